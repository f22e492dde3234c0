"""The process that holds a group: starts Ray and the actors, waits until it is told to end, stops everything.

`ray_sched.starting` runs it in a session of its own, so that a signal to the terminal's processes reaches
neither it nor Ray's. It hears of the configuration on its standard input, and tells through a pipe how
far it is. SIGTERM ends it cleanly, a second one at once. So does the end of its standard input, unless
RELEASE came before: whoever started it may die in any way.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any, Final, NoReturn

from ray_sched import processes, running
from ray_sched.bound_ports import check_free
from ray_sched.config import Config
from ray_sched.errors import ConfigError, NotRunningError, RaySchedError
from ray_sched.running import Running

log = logging.getLogger(__name__)

Tell = Callable[[Mapping[str, Any]], None]
"""Told of what happens: `{"part": role, "facts": {...}, "seconds": s}` for each part that is ready, then
`{"ready": host}`; `{"stopping": True}` when it is told to end; `{"error": words, "code": exit code}`."""

INTERRUPTED: Final = 130
RELEASE: Final = b"."
"""On its standard input: from now on it lives by itself."""


def exit_code(error: RaySchedError) -> int:
    """2 for a value that is not allowed, as for a wrong flag; 1 for everything else."""
    return 2 if isinstance(error, ConfigError) else 1


def ready_parts(tell: Tell, before_s: float = 0.0) -> Callable[[str, dict[str, Any], float], None]:
    """Tells what `Group.start` reports, with seconds since an earlier start."""
    return lambda part, facts, seconds: tell({"part": part, "facts": facts, "seconds": before_s + seconds})


def forget_ended(config: Config) -> None:
    """Remove the host's file where it is of a group that ended with its Ray cluster, whose address the one to
    start in has taken. Raises NotRunningError when that cluster does not answer.
    """
    left = running.find(config.host)
    if left is None or left.pid or left.ray_address != config.ray_address:
        return
    if time.time() - left.pid_started < config.start_timeout_s:
        return  # it may be starting just now
    from ray_sched.actors import names
    from ray_sched.actors.cluster import connect, disconnect

    connect(config.ray_address, config.ray_timeout_s)
    try:
        if left.group not in names.roles_by_group():
            running.forget(left)
    finally:
        disconnect()


@dataclasses.dataclass(frozen=True)
class Order:
    """What the holder is told to do, once, on its standard input."""

    config: Config
    pipe: int
    """The file descriptor to tell of what happens."""


def _hold(config: Config, tell: Tell) -> int:
    """Starts a group, holds it until a signal comes, and stops it; returns the exit code."""
    pid = os.getpid()
    folder = "" if config.ray_address else tempfile.mkdtemp(prefix="ray_sched-", dir="/tmp")
    entry = Running(config.host, config.group_name, "", pid, processes.started(pid), folder)
    os.environ[processes.MARK] = entry.mark
    processes.adopt()
    interruption = _Interruption(entry)
    try:
        interruption.install()
        _check_keys(config)
        forget_ended(config)
        running.claim(entry, config.ray_timeout_s)
        check_free(config)
        return _hold_claimed(config, tell, interruption, entry)
    except KeyboardInterrupt:
        return INTERRUPTED
    except RaySchedError as error:
        tell({"error": str(error), "code": exit_code(error)})
        return exit_code(error)
    finally:
        entry.clean_up(config.threads_stop_timeout_s)
        running.forget(entry)


def _check_keys(config: Config) -> None:
    """Say within a second what an actor would say after many. Raises ConfigError."""
    if config.security.curve and not config.ray_address:
        from ray_sched.wire.curve import Keys

        Keys.of_group(config.security.curve)
        Keys.of_executor(config.security.curve)


def _hold_claimed(config: Config, tell: Tell, interruption: _Interruption, entry: Running) -> int:
    from ray_sched.actors.group import Group

    ready = False
    began = time.monotonic()
    with contextlib.ExitStack() as undo:
        # Ray's own start and stop leave processes behind when they are interrupted.
        with interruption.deferred():
            address = _start_ray(config, entry, undo, interruption)
        try:
            tell({"part": "ray", "facts": {"address": address}, "seconds": time.monotonic() - began})
            group = Group.start(config, ready_parts(tell, time.monotonic() - began))
            undo.callback(group.stop, config.stop_timeout_s)
            ready = True  # before it is told: whoever hears it may end this at once
            tell({"ready": config.host})
            while not interruption.asked:
                # An exception that a handler raises within a destructor is lost, so ask again.
                time.sleep(1.0)
        except KeyboardInterrupt:
            pass
        finally:
            interruption.interrupts = False
        tell({"stopping": True})
    return 0 if ready else INTERRUPTED


def _start_ray(
    config: Config, entry: Running, undo: contextlib.ExitStack, interruption: _Interruption
) -> str:
    """Returns the cluster's address. Raises NotRunningError."""
    from ray_sched.actors.cluster import LocalCluster, connect, disconnect

    if config.ray_address:
        connect(config.ray_address, config.ray_timeout_s)
        undo.callback(disconnect)
        address = config.ray_address
    else:
        try:
            cluster = LocalCluster.start(config, entry.folder, show_logs=True)
        except NotRunningError as error:
            if interruption.asked:
                raise KeyboardInterrupt from error
            log.warning("%s; it is tried once more", error)
            processes.end(entry.mark, 0.0)  # what it had started
            cluster = LocalCluster.start(config, entry.folder, show_logs=True)
        undo.callback(cluster.stop)
        address = cluster.address
    running.update(entry, ray_address=address)
    return address


class _Interruption:
    """What SIGTERM does: the first one interrupts or is remembered, the second ends everything at once."""

    def __init__(self, entry: Running) -> None:
        self.asked = False
        self.interrupts = True
        self._entry = entry

    def install(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """A signal within takes effect at the end; handlers that were set within are replaced by ours."""
        self.interrupts = False
        try:
            yield
        except SystemExit:  # from the handler of SIGTERM that Ray sets while it starts
            self.asked = True
        finally:
            self.install()
            self.interrupts = True
        if self.asked:
            raise KeyboardInterrupt

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            self._end_at_once()
        self.asked = True
        if self.interrupts:
            raise KeyboardInterrupt

    def _end_at_once(self) -> NoReturn:
        self._entry.clean_up(grace_s=0.0)
        running.forget(self._entry)
        os._exit(INTERRUPTED)


def _end_with(stdin: int) -> None:
    # Not through sys.stdin: its lock, held by a thread, aborts the interpreter's end.
    if os.read(stdin, 1) != RELEASE:
        log.info("the process that started this one is gone")
        os.kill(os.getpid(), signal.SIGTERM)


def _main() -> int:
    order: Order = pickle.load(sys.stdin.buffer)
    logging.basicConfig(
        level=order.config.log_level, format="%(asctime)s level=%(levelname)s holder %(message)s"
    )
    os.set_inheritable(order.pipe, False)
    pipe = os.fdopen(order.pipe, "w")
    threading.Thread(target=_end_with, args=(sys.stdin.fileno(),), daemon=True).start()

    def tell(event: Mapping[str, Any]) -> None:
        line = json.dumps(event, default=str)
        log.info("%s", line)
        # Whoever was told of "ready" may have gone.
        with contextlib.suppress(BrokenPipeError):
            pipe.write(line + "\n")
            pipe.flush()

    return _hold(order.config, tell)


if __name__ == "__main__":
    sys.exit(_main())
