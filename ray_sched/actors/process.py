"""What each actor's process needs: its log, its past, and a way out when it cannot go on."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import Final

import ray

from ray_sched.actors import local_mode, names
from ray_sched.config import Config
from ray_sched.logs import configure

log = logging.getLogger(__name__)

SWITCH_INTERVAL_S: Final = 0.0005
"""How long another thread may keep the interpreter from a loop that has something to do."""
BACKGROUND: Final = (names.POLICY, names.STATS, names.GOSSIP)
"""The actors that no call waits for, as long as the Policy has its word now and then: leases need it."""
LEAST_PRIORITY: Final = 19


def prepare_process(config: Config, role: str) -> None:
    """Called once, at the start of an actor's constructor; in local mode the process is the program's own."""
    prepare_log(config, role)
    if local_mode.is_on():
        return
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    if role in BACKGROUND:
        give_way(config.background_nice)


def give_way(nice: int) -> None:
    """Let all threads of this process, Ray's too, run at so much less of a priority than they do. (Source:
    setpriority(2): on Linux each thread has its own, and one that is started takes that of the thread that
    starts it.)
    """
    if not nice:
        return
    try:
        for thread in map(int, os.listdir("/proc/self/task")):
            with contextlib.suppress(ProcessLookupError):  # it has ended
                own = os.getpriority(os.PRIO_PROCESS, thread)
                os.setpriority(os.PRIO_PROCESS, thread, min(own + nice, LEAST_PRIORITY))
    except OSError as error:  # a sandbox may forbid it
        log.warning("this actor cannot give way to others on busy cores: %s", error)


def prepare_log(config: Config, role: str) -> None:
    """The actor's log lines; in local mode they go where the program has its own."""
    if not local_mode.is_on():
        configure(config, role)


def was_restarted() -> bool:
    """Whether Ray started this actor anew after its process had died; never without Ray or in local mode."""
    if not ray.is_initialized() or local_mode.is_on():  # to ask for Ray's context would start it
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own property uses what Ray deprecates
        return bool(ray.get_runtime_context().was_current_actor_reconstructed)


def keep_alive(run: Callable[[], None]) -> None:
    """Run a thread's work; when it fails, end the process: an actor without it would only seem to live."""
    try:
        run()
    except BaseException:
        log.exception("a thread of this actor failed; the actor is started anew")
        leave_for_restart()


def leave_for_restart() -> None:
    """End this process, so that Ray starts the actor anew: better than one that does nothing.

    In local mode, where the program would end with it, the actor stays as it is, and says so.
    """
    if local_mode.is_on():
        log.error("in Ray's local mode nothing is started anew: this group works no longer")
        return
    logging.shutdown()
    os._exit(1)
