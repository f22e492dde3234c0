"""How busy an executor is, as its statuses say it."""

from __future__ import annotations


class Utilization:
    """The share of time that was spent on work. Times are seconds on one monotonic clock."""

    def __init__(self, now: float) -> None:
        self._since = now
        self._busy_s = 0.0
        self._began: float | None = None

    def begin(self, now: float) -> None:
        self._began = now

    def end(self, now: float) -> None:
        began, self._began = self._began, None
        # A report in between has counted its part already.
        self._busy_s += max(0.0, now - max(self._since, now if began is None else began))

    @property
    def working(self) -> bool:
        return self._began is not None

    def take(self, now: float) -> float:
        """The busy share (0 to 1) since the last time, work that goes on now included."""
        began, busy_s, since = self._began, self._busy_s, self._since
        if began is not None:
            busy_s += now - max(since, began)
        self._since, self._busy_s = now, 0.0
        return min(1.0, busy_s / (now - since)) if now > since else 0.0
