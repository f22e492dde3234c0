"""The timestamps of last-writer-wins values, on the scale that all writers of the wire share.

`int(unix_seconds * p + tid)`, where p is the smallest power of ten above the writer's thread id
and at least 10: tenths of a second for the first ten threads. A writer on a finer scale would
outrank the others for ever.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from ray_sched.errors import KvsError

PRUNE_AT: Final = 10_000
SEEN_KEPT: Final = 100_000
"""Keys with a timestamp ahead of our clock that are remembered; of more than these, the latest."""
HIGHEST: Final = 2**64 - 1


class Timestamps:
    """Gives each write of a key a higher timestamp than this writer's one before. Thread-safe."""

    def __init__(self, tid: int = 0, clock: Callable[[], float] = time.time) -> None:
        self._tid = tid
        self._clock = clock
        self._scale = 10
        while self._scale <= tid:
            self._scale *= 10
        self._last: dict[str, int] = {}
        self._prune_at = PRUNE_AT
        self._lock = threading.Lock()

    def seen(self, key: str, timestamp: int) -> None:
        """The key was read: a write that follows has to outrank it, be its writer's clock ahead of ours."""
        with self._lock:
            if timestamp >= int(self._clock() * self._scale + self._tid):
                self._last[key] = max(timestamp, self._last.pop(key, -1))
                if len(self._last) > SEEN_KEPT:
                    del self._last[next(iter(self._last))]

    def next(self, key: str) -> int:
        """The timestamp of a write of `key` now. Raises KvsError where there is none left."""
        with self._lock:
            now = int(self._clock() * self._scale + self._tid)
            timestamp = max(now, self._last.get(key, -1) + 1)
            if timestamp > HIGHEST:
                raise KvsError(f"somebody wrote {key!r} with the highest timestamp there is: use another key")
            self._last[key] = timestamp
            if len(self._last) > self._prune_at:
                # Those that the clock has passed cannot tie with a write from now on.
                self._last = {known: last for known, last in self._last.items() if last >= now}
                self._prune_at = max(PRUNE_AT, 2 * len(self._last))
            return timestamp
