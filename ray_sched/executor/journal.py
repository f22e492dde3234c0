"""The calls that were taken on and are not done, so that none is lost in silence when the process dies.

One line of JSON for each call that begins and one for each that ends, appended without waiting for
the disk: what the process has written, the operating system keeps when the process dies. A file
that has grown is replaced by one with the open calls alone.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Final

from ray_sched.core.destination import Destination

SHRINK_AT_BYTES: Final = 1 << 20


class Journal:
    """The open calls of one executor thread, by numbers that it gives. Thread-safe.

    `leftovers` are those that the process before this one left open.
    """

    def __init__(self, path: Path, shrink_at_bytes: int = SHRINK_AT_BYTES) -> None:
        self.path = path
        self._shrink_at = self._shrink_at_bytes = shrink_at_bytes
        self._open: dict[int, bytes] = {}
        self._lock = threading.Lock()
        self.was_there = path.exists()
        """Whether a process before this one did not come to its end."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self.leftovers = _read(path)
        self._numbers = max(self.leftovers, default=0)
        for number, destination in self.leftovers.items():
            self._open[number] = _begun(number, destination)
        self._size = path.stat().st_size

    def __len__(self) -> int:
        return len(self._open)

    def begin(self, destination: Destination) -> int:
        """Note a call that was taken on; gives its number."""
        with self._lock:
            self._numbers += 1
            number = self._numbers
            line = self._open[number] = _begun(number, destination)
            self._append(line)
            return number

    def end(self, number: int) -> None:
        """Cross out a call that is done. Again is harmless."""
        with self._lock:
            if self._open.pop(number, None) is None:
                return
            self._append(b"[%d]\n" % number)
            if self._size > self._shrink_at:
                self._shrink()

    def open_calls(self) -> dict[int, Destination]:
        """Those that are not done, by number."""
        with self._lock:
            return {number: _parse(line)[1] for number, line in self._open.items()}

    def close(self) -> None:
        """Let go of the file; it is removed when nothing is open. Again is harmless."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1
                if not self._open:
                    self.path.unlink(missing_ok=True)

    def _append(self, line: bytes) -> None:
        if self._file >= 0:
            self._size += os.write(self._file, line)

    def _shrink(self) -> None:
        """Keep what is open alone. A crash in between leaves the new lines twice, or the old file."""
        fresh = self.path.with_suffix(".new")
        file = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = os.write(file, b"".join(self._open.values()))
        os.replace(fresh, self.path)
        os.close(self._file)
        self._file = file
        self._shrink_at = self._shrink_at_bytes + 2 * self._size


def _begun(number: int, destination: Destination) -> bytes:
    return json.dumps((number, *destination)).encode() + b"\n"


def _parse(line: bytes) -> tuple[int, Destination]:
    number, *fields = json.loads(line)
    return number, Destination(*fields)


def _read(path: Path) -> dict[int, Destination]:
    found: dict[int, Destination] = {}
    for line in path.read_bytes().splitlines():
        try:
            fields = json.loads(line)
            if len(fields) == 1:
                found.pop(fields[0], None)
            else:
                number, destination = _parse(line)
                found[number] = destination
        except (ValueError, TypeError):
            # A line that was being written when the machine went down.
            continue
    return found
