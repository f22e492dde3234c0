"""Tiny actors in the place of the real ones, for tests of the group that runs them."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import ray

from ray_sched.actors import names
from ray_sched.actors.group import Part, Parts
from ray_sched.config import Config
from ray_sched.core.executor import Address
from ray_sched.errors import PortTakenError


class StandIn:
    """Records what is done to it in a file that all of the group share: `kvs.path`."""

    role = "stand-in"

    def __init__(self, config: Config) -> None:
        self.config = config

    def note(self, what: str) -> None:
        with Path(self.config.kvs.path).open("a") as story:
            story.write(f"{what} {self.role}\n")

    def ready(self) -> dict[str, Any]:
        self.note("ready")
        return {"pid": os.getpid()}

    def status(self) -> dict[str, Any]:
        return {"pid": os.getpid(), "role": self.role}

    def stop(self) -> None:
        self.note("stop")


class Kvs(StandIn):
    role = names.KVS


class Stats(StandIn):
    role = names.STATS


class Policy(StandIn):
    role = names.POLICY

    def unknown(self, addresses: list[Address]) -> list[Address]:
        """Each is heard of later than the one before."""
        return addresses[1:]


class Scheduler(StandIn):
    role = names.SCHEDULER

    @classmethod
    def concurrency_groups(cls, config: Config) -> dict[str, int]:
        return {"slow": config.scheduler.api_threads}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._both = threading.Barrier(2)

    @ray.method(concurrency_group="slow")
    def meet(self) -> int:
        """Returns when two calls are in it at once."""
        return self._both.wait(timeout=20)


class Gossip(StandIn):
    role = names.GOSSIP


class Ingress(StandIn):
    """Binds a port, as the real one does."""

    role = names.INGRESS

    def ready(self) -> dict[str, Any]:
        self.socket = socket.create_server((self.config.host, 5000))
        return super().ready()

    def stop(self) -> None:
        super().stop()
        self.socket.close()


class Executor(StandIn):
    def __init__(self, config: Config, tid: int, gpu: bool, ip: str, holds_slot: bool) -> None:
        super().__init__(config)
        self.role = f"executor {tid}{' gpu' if gpu else ''}"


class BrokenPolicy(Policy):
    def ready(self) -> dict[str, Any]:
        raise PortTakenError("port 5000 is taken by somebody")


class StillbornPolicy(Policy):
    def __init__(self, config: Config) -> None:
        super().__init__(config)
        raise PortTakenError("port 5001 is taken by somebody else")


class DeafPolicy(Policy):
    """Comes up, and then answers nothing."""

    def status(self) -> dict[str, Any]:
        time.sleep(600)
        return {}

    def stop(self) -> None:
        time.sleep(600)


class SlowPolicy(Policy):
    def ready(self) -> dict[str, Any]:
        time.sleep(600)
        return {}


class UntoldPolicy(Policy):
    """Executors report, and it does not hear them."""

    def unknown(self, addresses: list[Address]) -> list[Address]:
        return addresses[:1]


def parts(policy: type[StandIn] = Policy) -> Parts:
    here = __name__
    return Parts(
        control=(
            Part(names.KVS, f"{here}:Kvs"),
            Part(names.STATS, f"{here}:Stats"),
            Part(names.POLICY, f"{here}:{policy.__name__}"),
            Part(names.SCHEDULER, f"{here}:Scheduler"),
            Part(names.GOSSIP, f"{here}:Gossip"),
            Part(names.INGRESS, f"{here}:Ingress"),
        ),
        executor=Part("executor", f"{here}:Executor"),
    )
