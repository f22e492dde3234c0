"""The processes below this one: none of them may outlive the command that started them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path
from typing import Final

_PR_SET_CHILD_SUBREAPER: Final = 36
_POLL_S: Final = 0.05


def adopt() -> None:
    """From now on a process below this one becomes our child, not init's, when its parent dies (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def of(pid: int) -> list[int]:
    """The processes below that one, children before their children."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found = list(children.get(pid, []))
    for child in found:
        found.extend(children.get(child, []))
    return found


def end(grace_s: float) -> None:
    """Waits that long for all processes below this one to end, then kills those that are left."""
    deadline = time.monotonic() + grace_s
    while left := _reap():
        if time.monotonic() > deadline:
            kill(left)
        time.sleep(_POLL_S)


def kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _reap() -> list[int]:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    return of(os.getpid())
