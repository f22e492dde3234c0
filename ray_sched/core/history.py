"""What happened lately: rings of small tuples, told as a story only when somebody asks.

Rule 1: to note something costs one append of a tuple; words are made when they are asked for.
Rule 2: a ring keeps the last `limit` entries, so that memory is bounded; it can say how far back it goes.
Rule 3: ids, names and addresses are kept, arguments and values never.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, NamedTuple

from ray_sched.core.executor import Executor
from ray_sched.core.executors import ExecutorTable

Told = tuple[float, str]
"""When (seconds of the clock that the entries have), and what happened, in words."""

TOLD = 50
"""Entries that one question is answered with at most, the latest ones."""

REQUEST: Final[ContextVar[str]] = ContextVar("request", default="")
"""The id of the request that is being served: what is noted meanwhile can be asked for by it, too."""


@contextmanager
def serving(request: str) -> Iterator[None]:
    """Within, what this thread notes and logs belongs to the request of that id; "" for none."""
    token = REQUEST.set(request)
    try:
        yield
    finally:
        REQUEST.reset(token)


class Entry(NamedTuple):
    """Something that happened, under the names by which it can be asked for."""

    at: float
    names: tuple[str, ...]
    what: str
    """A format for `facts`."""
    facts: tuple[Any, ...] = ()
    request: str = ""
    """The id of the request that it was done for, where there is one."""

    def words(self) -> str:
        said = self.what.format(*self.facts)
        return f"{said} (request {self.request})" if self.request else said


class Ring:
    """The last things that happened. Appending is safe from any thread."""

    def __init__(self, limit: int) -> None:
        self._entries: deque[tuple[Any, ...]] = deque(maxlen=limit)
        """What `Entry` is made of: to make one takes longer than to keep it."""
        self.heard: Callable[[Entry], None] | None = None
        """Told of each entry at once."""

    def note(self, at: float, names: tuple[str, ...], what: str, *facts: Any) -> None:
        noted = (at, names, what, facts, REQUEST.get())
        self._entries.append(noted)
        if self.heard is not None:
            self.heard(Entry(*noted))

    def about(self, name: str) -> list[Told]:
        """The latest entries under that name, or of the request with that id, oldest first."""
        entries = [Entry(*noted) for noted in self._entries.copy()]
        found = [entry for entry in entries if name in entry.names or name == entry.request]
        return [(entry.at, entry.words()) for entry in found[-TOLD:]]

    def since(self) -> float | None:
        """When the oldest entry was made, where older ones have gone; None where everything is remembered."""
        entries = self._entries
        return float(entries[0][0]) if len(entries) == entries.maxlen else None


Placed = tuple[float, str, str, Executor, tuple[int, int]]
"""A function call as its dispatcher notes it: when, its id, the function, the executor, and how many
candidates were available and overloaded. A bare tuple: a call has no time for more."""


class Decision(NamedTuple):
    """A call that a dispatcher placed, or refused: then the last function is the one without an executor."""

    at: float
    id: str
    key: str
    """Where the result goes, if the call said so."""
    name: str
    functions: Sequence[str]
    picked: Sequence[Executor]
    seen: Sequence[tuple[int, int]]
    """For each function how many candidates were available, and how many overloaded ones there were."""
    refused: str

    @classmethod
    def of(cls, noted: Placed | tuple[Any, ...]) -> Decision:
        """From what a dispatcher noted: the fields of this class, or a `Placed`."""
        if len(noted) == len(cls._fields):
            return cls(*noted)
        at, id, name, executor, sizes = noted
        return cls(at, id, "", name, (name,), (executor,), (sizes,), "")

    def ids(self) -> dict[str, str]:
        """What a log says of it."""
        executors = ",".join(executor.name for executor in self.picked)
        return {"id": self.id, "key": self.key, "name": self.name, "executors": executors}


class Decisions:
    """The last calls of one dispatcher; for its thread, but for `about`."""

    def __init__(self, limit: int) -> None:
        self._ring: deque[tuple[Any, ...]] = deque(maxlen=limit)
        self.add = self._ring.append

    def last(self) -> Decision:
        """The latest one. Raises IndexError where there is none."""
        return Decision.of(self._ring[-1])

    def about(self, name: str, policy: str, table: ExecutorTable) -> list[Told]:
        """The latest decisions on a call's id, a result's key, a function, a DAG, or an executor `ip:tid`."""
        decisions = map(Decision.of, self._ring.copy())
        found = [decision for decision in decisions if _concerns(decision, name)]
        return [told for decision in found[-TOLD:] for told in _tell(decision, policy, table)]

    def since(self) -> float | None:
        """As that of a `Ring`."""
        return self._ring[0][0] if len(self._ring) == self._ring.maxlen else None


def _concerns(decision: Decision, name: str) -> bool:
    return (
        name in (decision.id, decision.key, decision.name)
        or name in decision.functions
        or any(executor.name == name for executor in decision.picked)
    )


def _tell(decision: Decision, policy: str, table: ExecutorTable) -> Iterator[Told]:
    key = f", result to key {decision.key}" if decision.key and decision.key != decision.id else ""
    yield decision.at, f"call {decision.id or '(without an id)'} of {decision.name} came{key}"
    for number, (function, seen) in enumerate(zip(decision.functions, decision.seen, strict=False)):
        available, overloaded = seen
        candidates = f"{available} available and {overloaded} overloaded candidates"
        if number < len(decision.picked):
            executor = decision.picked[number]
            gone = "" if table.executors.get(executor.address) is executor else ", which is gone by now,"
            yield decision.at, f"{function}: policy {policy} picked {executor.name}{gone} of {candidates}"
        else:
            yield decision.at, f"{function}: policy {policy} picked nobody of {candidates}"
    if decision.refused:
        yield decision.at, f"refused: {decision.refused}"
