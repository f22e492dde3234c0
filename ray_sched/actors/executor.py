"""The Executor actor: one slot, an executor thread of the wire protocol."""

from __future__ import annotations

import logging
import os
import threading
from typing import Any, Final

import ray

from ray_sched.actors import local_mode
from ray_sched.actors.messages import Presence
from ray_sched.actors.names import executor_role
from ray_sched.actors.process import leave_for_restart, prepare_log
from ray_sched.actors.telling import Account, account
from ray_sched.config import Config
from ray_sched.core.open_calls import OpenCalls
from ray_sched.executor.server import ExecutorServer

logger = logging.getLogger(__name__)


class ExecutorActor:
    """Runs functions as executor thread `tid` on `ip`, by default the group's address.

    Started again by Ray after a crash or a function that exits the process, it holds no functions, says so at
    once, and answers the calls that were under way with an error. Raises PortTakenError or ConfigError
    where it cannot start.
    """

    CONCURRENCY_GROUPS: Final = {"watch": 16}
    """Each group's Policy has a call parked here, so that Ray tells it of this actor's death."""

    def __init__(
        self, config: Config, tid: int, gpu: bool = False, ip: str = "", holds_slot: bool = False
    ) -> None:
        self._holds_slot = holds_slot
        self._ending = threading.Event()
        prepare_log(config, executor_role(ip or config.host, tid))
        self._server = ExecutorServer(
            config, tid, gpu=gpu, ip=ip or None, on_stuck=leave_for_restart, on_departed=self._leave
        )
        self._server.start()

    @ray.method(concurrency_group="watch")
    def watch(self, seconds: float) -> Presence:
        """Returns after so many seconds, or when this executor ends."""
        self._ending.wait(seconds)
        node = ray.get_runtime_context().get_node_id()
        return Presence(node, os.getpid(), self._server.gpu, self._holds_slot, self._server.idle_s)

    def ready(self) -> dict[str, Any]:
        """Role, address and type."""
        server = self._server
        return {
            "role": executor_role(server.ip, server.tid),
            "address": f"{server.ip}:{server.tid}",
            "type": "gpu" if server.gpu else "cpu",
        }

    def status(self) -> dict[str, Any]:
        """As `ready`, with what is pinned here and what it has counted since its start."""
        return {"pid": os.getpid(), **self.ready(), **self._server.status()}

    def depart(self) -> None:
        """Finish what is here, and leave for good."""
        self._server.depart()

    def open_calls(self) -> OpenCalls:
        """As `ExecutorServer.open_calls`."""
        return self._server.open_calls()

    def why(self, name: str) -> Account:
        """What happened here to a call, a function or a DAG; to all, for this executor's own address."""
        history = self._server.history
        return account(history.about(name), (), (history.since(),))

    def stop(self) -> None:
        """Free the ports. Again is harmless."""
        self._ending.set()
        self._server.stop()

    def _leave(self) -> None:
        # A departed executor is not to be started again. Not from the thread that has to end for `stop`.
        def end() -> None:
            self.stop()
            if local_mode.is_on():
                return  # nothing would start it again
            ray.kill(ray.get_runtime_context().current_actor, no_restart=True)

        threading.Thread(target=end, name="executor-leaves", daemon=True).start()
