"""The Ingress actor: a thin shell around the loop that owns every scheduler port of the group.

The loop is a class of its own, because Ray wraps each method of an actor's class, private ones too,
and the hot path would pay for it at every step.
"""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import ray

from ray_sched.actors import local_mode, names
from ray_sched.actors.ingress_loop import IngressLoop
from ray_sched.actors.messages import Send
from ray_sched.actors.metering import Metering
from ray_sched.actors.process import leave_for_restart, prepare_process
from ray_sched.actors.telling import Account
from ray_sched.config import Config
from ray_sched.core.replication import Update
from ray_sched.errors import TimedOutError
from ray_sched.wire import ports


class IngressActor:
    CONCURRENCY_GROUPS: Final = {"events": 1}

    def __init__(self, config: Config) -> None:
        self._begin(config, names.INGRESS, IngressLoop if config.ingress.shards == 1 else _front())

    def _begin(self, config: Config, role: str, loop: Callable[..., IngressLoop]) -> None:
        prepare_process(config, role)
        self._config = config
        self._loop = loop(config, on_failure=leave_for_restart)
        self._loop.start()
        self._metering = Metering(config, role, self._loop.samples)
        if not local_mode.is_on():
            # What was loaded until now stays: no collection has to look through it while calls wait.
            gc.collect()
            gc.freeze()

    @ray.method(concurrency_group="events")
    def apply(self, update: Update) -> None:
        """An update of the dispatch table; returns once the loop has taken it in."""
        self._in_loop(lambda now: self._loop.apply(update, now))

    @ray.method(concurrency_group="events")
    def send(self, sends: tuple[Send, ...]) -> None:
        """Messages to executors, from the Policy or the Scheduler."""
        self._loop.mailbox.put(lambda now: self._loop.send(sends, now))

    def snapshot(self) -> Update:
        """All that is known of the executors here: a restarted Policy begins with it."""
        found: list[Update] = []
        self._in_loop(lambda now: found.append(self._loop.snapshot(now)))
        return found[0]

    def ready(self) -> dict[str, Any]:
        """Waits for the first table; raises TimedOutError when none comes."""
        if not self._loop.synced.wait(self._config.start_timeout_s):
            raise TimedOutError(
                f"no dispatch table within start_timeout_s = {self._config.start_timeout_s:g} s"
            )
        return {"address": f"{self._config.host}:{ports.CONNECT}-{ports.DAG_DELETE}"}

    def status(self) -> dict[str, Any]:
        return {"pid": os.getpid(), **self._loop.status(time.monotonic())}

    def why(self, name: str) -> Account:
        """How calls were decided here: by id, result key, function, DAG or executor."""
        return self._loop.why(name)

    def stop(self) -> None:
        self._metering.stop()
        self._loop.stop()

    def _in_loop(self, action: Callable[[float], None]) -> None:
        done = threading.Event()

        def act(now: float) -> None:
            try:
                action(now)
            finally:
                done.set()

        self._loop.mailbox.put(act)
        timeout_s = self._config.ingress.loop_timeout_s
        if not done.wait(timeout_s):
            raise TimedOutError(f"the ingress loop did not take it within {timeout_s:g} s")


class ShardActor(IngressActor):
    """One of those that decide calls, where there are several (`ingress.shards`)."""

    def __init__(self, config: Config, number: int) -> None:
        from ray_sched.actors.sharded_ingress import ShardLoop

        def loop(config: Config, **others: Any) -> ShardLoop:
            return ShardLoop(config, number, **others)

        self._number = number
        self._begin(config, names.shard_role(number), loop)

    def ready(self) -> dict[str, Any]:
        super().ready()
        return {"shard": f"{self._number} of {self._config.ingress.shards}"}


def _front() -> Callable[..., IngressLoop]:
    from ray_sched.actors.sharded_ingress import FrontLoop  # most groups have no use for it

    return FrontLoop
