"""What executors were told to pin, in a file: a Policy that was killed would else not know its own pins
from those of another scheduler on the same executors, and never unpin those that no DAG has any more.

One line of JSON for each function that is asked for and each that is forgotten, appended without waiting
for the disk: what the process has written, the operating system keeps when the process dies.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final

from ray_sched.core.asked import ASKED_KEPT
from ray_sched.core.executor import Address

SHRINK_AT_BYTES: Final = 1 << 20


class PinRecord:
    """For one thread at a time."""

    def __init__(self, path: Path, shrink_at_bytes: int = SHRINK_AT_BYTES) -> None:
        """With what a killed process before this one wrote; raises OSError."""
        self._path = path
        self._shrink_at = self._shrink_at_bytes = shrink_at_bytes
        self.asked: dict[tuple[Address, str], None] = _read(path) if path.exists() else {}
        self._file = -1
        self._write_anew()

    def add(self, address: Address, function: str) -> None:
        """Before the executor is told."""
        if (address, function) not in self.asked:
            self.asked[address, function] = None
            self._append(_line(address, function, True))
            if len(self.asked) > ASKED_KEPT:  # which are remembered without this file, too
                self.discard(*next(iter(self.asked)))

    def discard(self, address: Address, function: str) -> None:
        """The executor does not have it."""
        if (address, function) in self.asked:
            del self.asked[address, function]
            self._append(_line(address, function, False))

    def close(self) -> None:
        """The file goes, too: whoever comes next knows of no pins. Again is harmless."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            self._path.unlink(missing_ok=True)

    def _append(self, line: bytes) -> None:
        if self._file < 0:
            return
        self._size += os.write(self._file, line)
        if self._size > self._shrink_at:
            self._write_anew()

    def _write_anew(self) -> None:
        """What is asked for alone. A crash in between leaves the old file."""
        fresh = self._path.with_suffix(".new")
        file = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = os.write(file, b"".join(_line(*asked, True) for asked in self.asked))
        os.replace(fresh, self._path)
        if self._file >= 0:
            os.close(self._file)
        self._file = file
        self._shrink_at = self._shrink_at_bytes + 2 * self._size


def _line(address: Address, function: str, asked: bool) -> bytes:
    return json.dumps((*address, function, asked)).encode() + b"\n"


def _read(path: Path) -> dict[tuple[Address, str], None]:
    found: dict[tuple[Address, str], None] = {}
    for line in path.read_bytes().splitlines():
        try:
            ip, tid, function, asked = json.loads(line)
        except (ValueError, TypeError):  # it was being written when the machine went down
            continue
        if asked:
            found[(ip, tid), function] = None
        else:
            found.pop(((ip, tid), function), None)
    return found
