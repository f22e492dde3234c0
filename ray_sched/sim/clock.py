"""Simulated time: what happens when, in order."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any


class Clock:
    """Events by time; those of the same time in the order in which they were asked for."""

    def __init__(self, start_s: float = 0.0) -> None:
        self.now = start_s
        """Seconds."""
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._number = 0

    def at(self, when_s: float, act: Callable[..., None], *arguments: Any) -> None:
        """Call `act` at that time, or now where it is past."""
        self._number += 1
        heapq.heappush(self._events, (max(when_s, self.now), self._number, act, arguments))

    def after(self, delay_s: float, act: Callable[..., None], *arguments: Any) -> None:
        self.at(self.now + delay_s, act, *arguments)

    def every(self, period_s: float, first_s: float, act: Callable[[], None]) -> None:
        """Call `act` at `first_s`, and again after each period."""

        def again() -> None:
            act()
            self.after(period_s, again)

        self.at(first_s, again)

    def run(self, until_s: float, done: Callable[[], bool] = lambda: False) -> None:
        """Let happen what happens until then, or until `done` says so after an event."""
        events = self._events
        while events and events[0][0] <= until_s:
            self.now, _, act, arguments = heapq.heappop(events)
            act(*arguments)
            if done():
                return
        self.now = max(self.now, until_s)
