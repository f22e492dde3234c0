"""The calls that were acknowledged lately: where each went, and where its result is waited for.

A ring in a file that is mapped into memory: to note the calls of a turn costs one copy of a hundred bytes for
each and no system call, and what was noted is there when the process is killed at the next moment. The two
halves of the file take turns; the older one is given up when the newer one is full.
"""

from __future__ import annotations

import marshal
import math
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from ray_sched.core.destination import Destination
from ray_sched.core.executor import Address

LENGTH_BYTES: Final = 4
END: Final = bytes(LENGTH_BYTES)


class Noted(NamedTuple):
    at: float
    """Seconds of the node's monotonic clock."""
    executors: tuple[Address, ...]
    to: Destination
    continued: bool
    """Whether the result comes by way of an ingress once more."""


class Ledger:
    """For one thread. `size` is the file's, in bytes."""

    def __init__(self, path: Path, size: int, now: float = math.inf) -> None:
        """What a process before this one noted is kept, unless the size was another, or it is of the
        machine's time before its last start: then it is later than `now`. Raises OSError.
        """
        self._half = size // 2
        if path.exists() and path.stat().st_size != 2 * self._half:
            path.unlink()
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(file, 2 * self._half)
            self._map = mmap.mmap(file, 2 * self._half)
        finally:
            os.close(file)
        self._path = path
        # After the latest: what a killed process noted stays for as long as what this one notes.
        past = self._map[:]
        if any(call.at > now for call in read(past)):
            past = self._map[:] = bytes(len(past))
        halves = [list(_records(past, start)) for start in (0, self._half)]
        latest = [max((call.at for call, _ in half), default=float("-inf")) for half in halves]
        newer = int(latest[1] > latest[0])
        self._start = newer * self._half
        self._position = max((end for _, end in halves[newer]), default=self._start)

    def add(self, call: tuple[Any, ...]) -> None:
        """Note a call, as `Noted` has it, but of plain tuples; not one that is larger than half the file."""
        self.add_all([call])

    def add_all(self, calls: list[tuple[Any, ...]]) -> None:
        """`add` for several at once, which costs less than half."""
        body = marshal.dumps(calls)
        size = len(body) + LENGTH_BYTES
        position = self._position
        if position + size + LENGTH_BYTES > self._start + self._half:
            if size + LENGTH_BYTES > self._half:
                if len(calls) > 1:
                    for call in calls:
                        self.add(call)
                return
            position = self._start = self._half - self._start
        # What follows is ended first, and the length written last: a killed writer leaves whole records.
        self._map[position + LENGTH_BYTES : position + size + LENGTH_BYTES] = body + END
        self._map[position : position + LENGTH_BYTES] = len(body).to_bytes(LENGTH_BYTES, "little")
        self._position = position + size

    def copy(self) -> bytes:
        """All that is noted, for `read`."""
        return self._map[:]

    def close(self) -> None:
        """The file goes, too: nothing was lost. Again is harmless."""
        self._map.close()
        self._path.unlink(missing_ok=True)


def read(copy: bytes) -> Iterator[Noted]:
    """The calls of a `Ledger.copy`, in no particular order."""
    for start in (0, len(copy) // 2):
        for call, _ in _records(copy, start):
            yield call


def _records(copy: bytes, start: int) -> Iterator[tuple[Noted, int]]:
    """The calls of one half of the file, and where each ends."""
    position, end = start, start + len(copy) // 2
    while position + LENGTH_BYTES <= end:
        size = int.from_bytes(copy[position : position + LENGTH_BYTES], "little")
        position += LENGTH_BYTES
        if not 0 < size <= end - position:
            break
        try:
            calls = [
                Noted(at, executors, Destination(*to), continued)
                for at, executors, to, continued in marshal.loads(copy[position : position + size])
            ]
        except (ValueError, EOFError, TypeError):  # another Python's file
            break
        position += size
        for call in calls:
            yield call, position
