"""The Executor actor: one slot, an executor thread of the wire protocol."""

from __future__ import annotations

import logging
import os
import threading
from typing import Any

import ray

from ray_sched.actors.names import executor_role
from ray_sched.config import Config
from ray_sched.executor.server import ExecutorServer

logger = logging.getLogger(__name__)


class ExecutorActor:
    """Runs functions as executor thread `tid` on the group's address.

    Started again by Ray after a crash or a function that exits the process, it holds no functions, says so at
    once, and answers the calls that were under way with an error. Raises PortTakenError or ConfigError
    where it cannot start.
    """

    def __init__(self, config: Config, tid: int, gpu: bool = False) -> None:
        self._server = ExecutorServer(config, tid, gpu=gpu, on_departed=self._leave)
        self._server.start()

    def ready(self) -> dict[str, Any]:
        """Role, address and type."""
        server = self._server
        return {
            "role": executor_role(server.tid),
            "address": f"{server.ip}:{server.tid}",
            "type": "gpu" if server.gpu else "cpu",
        }

    def status(self) -> dict[str, Any]:
        """As `ready`, with what is pinned here and what it has counted since its start."""
        return {"pid": os.getpid(), **self.ready(), **self._server.status()}

    def stop(self) -> None:
        """Free the ports. Again is harmless."""
        self._server.stop()

    def _leave(self) -> None:
        # A departed executor is not to be started again. Not from the thread that has to end for `stop`.
        def end() -> None:
            self._server.stop()
            ray.kill(ray.get_runtime_context().current_actor, no_restart=True)

        threading.Thread(target=end, name="executor-leaves", daemon=True).start()
