"""How a group is started: by a process of its own that holds it, watched from here."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from types import FrameType
from typing import BinaryIO, Final

from ray_sched import running
from ray_sched.bound_ports import check_free
from ray_sched.config import Config
from ray_sched.errors import RaySchedError
from ray_sched.holder import (
    INTERRUPTED,
    RELEASE,
    Order,
    Tell,
    exit_code,
    forget_ended,
    ready_parts,
)
from ray_sched.running import Running

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def start(config: Config, tell: Tell, detach: bool) -> int:
    """Starts a group and tells of each part that is ready; returns the exit code.

    Returns at the end of the group, which a signal to this process brings about (a second one at once);
    or, detached, when all is ready. Detached in a Ray cluster that exists the group needs no process: its
    actors stay there.
    """
    if detach and config.ray_address:
        return _start_in_cluster(config, tell)
    log = running.folder() / f"{config.host}.log"
    reader, writer = os.pipe()
    with log.open("wb") as output:
        holder = subprocess.Popen(
            [sys.executable, "-m", "ray_sched.holder"],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            pass_fds=[writer],
            start_new_session=True,
        )
    os.close(writer)
    with _signals_interrupt(), os.fdopen(reader, "rb") as lines:
        code = _watch(holder, Order(config, writer), detach, lines, tell)
    if code is None:
        tell({"error": f"the process that holds the group ended unexpectedly; see {log}", "code": 1})
        return 1
    return code


def _watch(
    holder: subprocess.Popen[bytes], order: Order, detach: bool, lines: BinaryIO, tell: Tell
) -> int | None:
    """The exit code; None when the holder ended without a word."""
    assert holder.stdin is not None
    interrupted = explained = False
    pickle.dump(order, holder.stdin)
    holder.stdin.flush()
    while True:
        try:
            for line in lines:
                event = json.loads(line)
                tell(event)
                if "ready" in event and detach:
                    holder.stdin.write(RELEASE)
                    holder.stdin.close()
                    return 0
                explained = explained or "error" in event
            code = holder.wait()
            return code if explained or interrupted or code == 0 else None
        except KeyboardInterrupt:
            interrupted = True
            holder.terminate()


@contextlib.contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Signals that end a process raise KeyboardInterrupt; Ctrl-C's, too, where a shell had it ignored."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start_in_cluster(config: Config, tell: Tell) -> int:
    from ray_sched.actors.cluster import connect, disconnect
    from ray_sched.actors.group import Group

    entry = Running(config.host, config.group_name, config.ray_address, 0, int(time.time()))
    try:
        forget_ended(config)
        connect(config.ray_address, config.ray_timeout_s)
        running.claim(entry, config.ray_timeout_s)
        try:
            check_free(config)
            Group.start(config, ready_parts(tell))
        except BaseException:
            running.forget(entry)
            raise
    except RaySchedError as error:
        tell({"error": str(error), "code": exit_code(error)})
        return exit_code(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        disconnect()
    tell({"ready": config.host})
    return 0
