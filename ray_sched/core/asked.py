"""What executors were told to pin, remembered until it is certain that they do not have it.

So a function that an executor reports and that no DAG has is known to be our own lost unpin, and not
another scheduler's pin.
"""

from __future__ import annotations

from collections.abc import Iterable

from ray_sched.core.executor import Address

ASKED_KEPT = 100_000
"""How many functions at executors are remembered as asked for."""

FORGOTTEN_KEPT = 10_000
"""How many functions that executors need not have are known when they are accepted after all."""


class Asked:
    """Keyed by executor and function; times are seconds of the caller's clock."""

    def __init__(self) -> None:
        self._asked: dict[tuple[Address, str], tuple[float, int]] = {}
        """When each executor was last told of each function, and how often more to unpin it."""
        self._reported: dict[Address, set[str]] = {}
        """What statuses named since it was asked for: one that does not is no older."""
        self._forgotten: dict[tuple[Address, str], None] = {}
        """What executors need not have, should they accept it after all."""

    def __contains__(self, what: tuple[Address, str]) -> bool:
        return what in self._asked

    def note(self, address: Address, function: str, now: float, tries: int = 0) -> None:
        """The executor is told to pin the function, or (for the `tries`th time more) to unpin it."""
        self._asked[address, function] = (now, tries)
        if len(self._asked) > ASKED_KEPT:
            oldest = next(iter(self._asked))
            del self._asked[oldest]
            self._unreport(*oldest)

    def note_pin(self, address: Address, function: str, now: float) -> bool:
        """It is told to pin the function; True if it was asked for it before, and may have it since then."""
        before = (address, function) in self._asked
        self.note(address, function, now)
        self._unreport(address, function)
        self._forgotten.pop((address, function), None)
        return before

    def tries(self, address: Address, function: str) -> int:
        """How often more than once it was told to unpin what it was asked for."""
        return self._asked[address, function][1]

    def due(self, address: Address, functions: Iterable[str], since: float) -> list[str]:
        """Those of the functions that it was asked for, and not told of any more `since` then."""
        asked = [f for f in functions if (address, f) in self._asked]
        return [f for f in asked if self._asked[address, f][0] <= since]

    def all(self) -> list[tuple[Address, str, float]]:
        """Every executor and function, and when it was last told of it."""
        return [(address, function, since) for (address, function), (since, _) in self._asked.items()]

    def on_status(self, address: Address, functions: tuple[str, ...]) -> list[str]:
        """What the executor was asked for, reported before and does not report now."""
        asked = {function for function in functions if (address, function) in self._asked}
        if asked:
            self._reported.setdefault(address, set()).update(asked)
        return sorted(self._reported.get(address, set()).difference(functions))

    def on_gone(self, address: Address) -> None:
        """What the next process there has not yet may be on its way to it since before."""
        self._reported.pop(address, None)

    def forget(self, address: Address, function: str) -> None:
        """It does not have it, as far as one can know: what told so may be older than a pin on its way."""
        self._forgotten[address, function] = None
        if len(self._forgotten) > FORGOTTEN_KEPT:
            del self._forgotten[next(iter(self._forgotten))]
        self._asked.pop((address, function), None)
        self._unreport(address, function)

    def accepted_late(self, address: Address, function: str, now: float) -> bool:
        """It accepted the function; True if that was forgotten: it is asked for again from now on."""
        if (address, function) not in self._forgotten:
            return False
        del self._forgotten[address, function]
        self.note(address, function, now)
        return True

    def _unreport(self, address: Address, function: str) -> None:
        reported = self._reported.get(address, set())
        reported.discard(function)
        if not reported:
            self._reported.pop(address, None)
