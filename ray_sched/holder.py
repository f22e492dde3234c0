"""The process that holds a group: starts Ray and the actors, waits until it is told to end, stops everything.

`ray-sched up` is one in the foreground. `up --detach` starts another in the background, which runs this file
and tells through a pipe how far it is.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any, Final, NoReturn

from ray_sched import descendants, running
from ray_sched.bound_ports import check_free
from ray_sched.config import Config
from ray_sched.errors import ConfigError, RaySchedError
from ray_sched.running import Running

Tell = Callable[[Mapping[str, Any]], None]
"""Told of what happens: `{"part": role, "facts": {...}, "seconds": s}` for each part that is ready, then
`{"ready": host}`; `{"stopping": True}` when it is told to end; `{"error": words, "code": exit code}`."""

STOP_S: Final = 20.0
"""What the actors' clean stop may take."""
CONNECT_S: Final = 5.0
_ENDING_S: Final = 5.0
INTERRUPTED: Final = 130
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def hold(config: Config, tell: Tell, log: str = "") -> int:
    """Starts a group, holds it until a signal comes, and stops it; returns the exit code.

    The first signal interrupts whatever goes on and stops everything cleanly, the second one at once.
    """
    ask = _Interruption()
    ask.install()
    descendants.adopt()
    try:
        with running.claimed(Running.here(config.host, config.group_name, log)) as entry:
            check_free(config)
            return _hold_claimed(config, tell, ask, entry)
    except KeyboardInterrupt:
        return INTERRUPTED
    except RaySchedError as error:
        tell({"error": str(error), "code": exit_code(error)})
        return exit_code(error)
    finally:
        descendants.end(_ENDING_S)


def exit_code(error: RaySchedError) -> int:
    """2 for a value that is not allowed, as for a wrong flag; 1 for everything else."""
    return 2 if isinstance(error, ConfigError) else 1


def _hold_claimed(config: Config, tell: Tell, ask: _Interruption, entry: Running) -> int:
    from ray_sched.actors.group import Group

    ready = False
    began = time.monotonic()
    with contextlib.ExitStack() as undo:
        # Ray's own start and stop leave processes behind when they are interrupted.
        with ask.deferred():
            entry = _start_ray(config, tell, entry, undo)
        try:
            group = Group.start(config, _ready_parts(tell, time.monotonic() - began))
            undo.callback(group.stop, STOP_S)
            tell({"ready": config.host})
            ready = True
            while not ask.asked:
                # An exception that a handler raises within a destructor is lost, so ask again.
                time.sleep(1.0)
            tell({"stopping": True})
        except KeyboardInterrupt:
            tell({"stopping": True})
        finally:
            ask.interrupts = False
    return 0 if ready else INTERRUPTED


def _start_ray(config: Config, tell: Tell, entry: Running, undo: contextlib.ExitStack) -> Running:
    from ray_sched.actors.cluster import LocalCluster, connect, disconnect

    began = time.monotonic()
    if config.ray_address:
        connect(config.ray_address, CONNECT_S)
        undo.callback(disconnect)
        address = config.ray_address
    else:
        cluster = LocalCluster.start(config)
        undo.callback(cluster.stop)
        address = cluster.address
    tell({"part": "ray", "facts": {"address": address}, "seconds": time.monotonic() - began})
    return running.update(entry, ray_address=address)


def _ready_parts(tell: Tell, before_s: float = 0.0) -> Callable[[str, dict[str, Any], float], None]:
    return lambda part, facts, seconds: tell({"part": part, "facts": facts, "seconds": before_s + seconds})


def start_detached(config: Config, tell: Tell) -> int:
    """Starts a process that holds a group in the background, and waits until it is ready; the exit code.

    With a Ray cluster that exists no process is needed: the actors stay there.
    """
    if config.ray_address:
        return _start_in_cluster(config, tell)
    log = running.folder() / f"{config.host}.log"
    reader, writer = os.pipe()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "ray_sched.holder", str(writer), str(log)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            pass_fds=[writer],
            start_new_session=True,
        )
    os.close(writer)
    assert process.stdin is not None
    with process.stdin as pipe:
        pickle.dump(config, pipe)
    try:
        with os.fdopen(reader) as lines:
            for line in lines:
                event = json.loads(line)
                tell(event)
                if "ready" in event:
                    return 0
                if "error" in event:
                    process.wait(STOP_S + _ENDING_S)
                    return int(event["code"])
    except KeyboardInterrupt:
        process.terminate()
        tell({"stopping": True})
        process.wait(STOP_S + _ENDING_S)
        return INTERRUPTED
    tell({"error": f"it ended before it was ready; see {log}", "code": 1})
    return 1


def _start_in_cluster(config: Config, tell: Tell) -> int:
    from ray_sched.actors.cluster import connect, disconnect
    from ray_sched.actors.group import Group

    try:
        check_free(config)
        connect(config.ray_address, CONNECT_S)
        try:
            Group.start(config, _ready_parts(tell))
            running.claim(Running(config.host, config.group_name, config.ray_address, 0, 0))
        finally:
            disconnect()
    except RaySchedError as error:
        tell({"error": str(error), "code": exit_code(error)})
        return exit_code(error)
    tell({"ready": config.host})
    return 0


class _Interruption:
    """What signals do: the first one interrupts or is remembered, the second one ends everything at once."""

    def __init__(self) -> None:
        self.asked = False
        self.interrupts = True

    def install(self) -> None:
        for number in _SIGNALS:
            signal.signal(number, self._on_signal)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """A signal within takes effect at the end; handlers that were set within are replaced by ours."""
        self.interrupts = False
        try:
            yield
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
        for entry in running.everything():
            if entry.pid == os.getpid():
                running.forget(entry)
        while left := descendants.of(os.getpid()):
            descendants.kill(left)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(-1, 0)
        os._exit(INTERRUPTED)


def _main() -> int:
    writer, log = int(sys.argv[1]), sys.argv[2]
    config: Config = pickle.load(sys.stdin.buffer)
    logging.basicConfig(level=config.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    pipe = os.fdopen(writer, "w")

    def tell(event: Mapping[str, Any]) -> None:
        logging.getLogger(__name__).info("%s", event)
        if pipe.closed:
            return
        with contextlib.suppress(BrokenPipeError):
            pipe.write(json.dumps(event, default=str) + "\n")
            pipe.flush()
        if "ready" in event:
            pipe.close()

    return hold(config, tell, log)


if __name__ == "__main__":
    sys.exit(_main())
