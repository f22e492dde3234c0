"""The executors that one test plays in front of one scheduler, and what is cleared away after it."""

from __future__ import annotations

import itertools
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

from . import messages as m
from . import ports
from .client import LegacyClient
from .executor import PlayedExecutor
from .protobuf import Record
from .sockets import NothingCameError, Pusher

_SENTINEL = "stage_sentinel"


class Stage:
    """Made for one test; `close` leaves the scheduler without DAGs, executors and pins of that test.

    All statuses go through one connection, so the scheduler hears them in the order in which they
    were told. `settle` uses that to know, from outside, that everything told before has been taken in: it
    adds a GPU executor, the *sentinel*, and creates a DAG that only this one can hold. No test of
    ordinary executors sees anything of it.

    `addresses` gives an IP for each node that is played, never one twice: what a scheduler still has
    for an executor that left may reach whoever listens at its address next.
    """

    def __init__(
        self, scheduler_ip: str, addresses: Iterator[str], *, layout: ports.Layout = ports.CLASSIC
    ) -> None:
        self.scheduler_ip = scheduler_ip
        self.client = LegacyClient(scheduler_ip)
        self.pusher = Pusher()
        self._addresses = addresses
        self._layout = layout
        self._executors: list[PlayedExecutor] = []
        self._dags: list[str] = []
        self._numbers = itertools.count()
        self._prefix = uuid.uuid4().hex[:8]

    def __enter__(self) -> Stage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def name(self, word: str) -> str:
        """A name that no other test uses."""
        return f"{word}_{self._prefix}_{next(self._numbers)}"

    def dag_name(self) -> str:
        """A name for a DAG, which is deleted when the test is over, should it exist then."""
        name = self.name("dag")
        self._dags.append(name)
        return name

    def node(self) -> str:
        """The IP address of a further node."""
        return next(self._addresses)

    def executor(self, ip: str = "", tid: int = 0, **options: Any) -> PlayedExecutor:
        """An executor of which the scheduler has not heard yet; on a node of its own unless told."""
        played = PlayedExecutor(
            ip or self.node(), tid, self.scheduler_ip, self.pusher, layout=self._layout, **options
        )
        self._executors.append(played)
        return played

    def executors(self, count: int, **options: Any) -> list[PlayedExecutor]:
        """That many executors, each on a node of its own, known to the scheduler."""
        played = [self.executor(**options) for _ in range(count)]
        for executor in played:
            executor.report()
        self.settle()
        return played

    def function(self, word: str = "function") -> str:
        """The name of a function that is registered; nobody here runs its body."""
        name = self.name(word)
        reply = self.client.create_function(name, b"body of " + name.encode())
        assert reply.success, reply
        return name

    def create_dag(
        self,
        functions: Sequence[str | Mapping[str, Any]],
        links: Sequence[tuple[str, str]] = (),
        colocated: Sequence[str] = (),
        *,
        name: str = "",
    ) -> str:
        """The name of a DAG that was created, `name` or a new one; it is deleted when the test is over."""
        name = name or self.dag_name()
        reply = self.client.create_dag(name, functions, links, colocated)
        assert reply.success, reply
        return name

    def another_client(self) -> LegacyClient:
        """A client beside `client`, to be closed by the caller."""
        return LegacyClient(self.scheduler_ip)

    def receiver(self, kind: str, **fields: Any) -> tuple[PlayedExecutor, Record]:
        """Who of this stage got the message with these fields, and all of it. Raises `NothingCameError`."""
        found: list[tuple[PlayedExecutor, Record]] = []

        def somebody() -> bool:
            found.extend(
                (executor, record)
                for executor in self._executors
                for record in executor.received(kind)
                if fields.items() <= record.items()
            )
            return bool(found)

        until(somebody, f"no executor got a {kind} with {fields}")
        assert len(found) == 1, f"one {kind} arrived {len(found)} times"
        return found[0]

    def settle(self, timeout_s: float = 15.0) -> None:
        """Wait until the scheduler has taken in every status that was told. Raises `NothingCameError`."""
        assert self.client.create_function(_SENTINEL, b"never run").success
        dag = self.dag_name()
        sentinel = PlayedExecutor(
            self.node(), 0, self.scheduler_ip, self.pusher, layout=self._layout, gpu=True
        )
        try:
            sentinel.report()
            until(
                lambda: self.client.create_dag(dag, [{"name": _SENTINEL, "gpu": True}]).success,
                "the sentinel was not taken in",
                timeout_s,
            )
            sentinel.wait_for("pin")
            assert self.client.delete_dag(dag).success
            sentinel.wait_for("unpin")
            sentinel.report(running=False)
        finally:
            sentinel.close()

    def close(self) -> None:
        try:
            for dag in self._dags:
                reply = self.client.delete_dag(dag)
                assert reply.success or reply.error == m.NO_SUCH_DAG, reply
            for executor in self._executors:
                executor.report(running=False)
            if self._executors:
                self.settle()
        finally:
            for executor in self._executors:
                executor.close()
            self.client.close()
            self.pusher.close()


def until(happened: Callable[[], bool], what: str, timeout_s: float = 15.0) -> None:
    """Ask again until it is so, where nothing tells when: the protocol has no such message.

    Raises `NothingCameError` with `what` after `timeout_s`.
    """
    pause = threading.Event()
    deadline = time.monotonic() + timeout_s
    while not happened():
        if time.monotonic() > deadline:
            raise NothingCameError(f"{what} within {timeout_s} s")
        pause.wait(0.02)
