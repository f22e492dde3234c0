"""The processes that belong to a group: none of them may outlive the one that holds it.

They are told by a mark in their environment, which whatever is started below the holder inherits, and
which stays when parents die in any order.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path
from typing import Final

MARK: Final = "RAY_SCHED_HOLDER"
"""The variable that has it."""
_PR_SET_CHILD_SUBREAPER: Final = 36
_POLL_S: Final = 0.05
_EXIT_S: Final = 5.0
"""At most that long a process that exits is waited for: what is left is the kernel's work."""
_PF_EXITING: Final = 0x4


def adopt() -> None:
    """From now on a process below this one becomes our child, not init's, when its parent dies (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def started(pid: int) -> int:
    """When a process started, in clock ticks since boot; 0: there is none (proc(5), stat field 22)."""
    try:
        fields = _stat(Path(f"/proc/{pid}"))
    except OSError:
        return 0
    return 0 if fields[0] == "Z" else int(fields[19])


def marked(mark: str) -> list[int]:
    """The processes of this user that have the mark, without this one."""
    entry = f"{MARK}={mark}".encode()
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            with contextlib.suppress(OSError):
                if entry in (process / "environ").read_bytes().split(b"\0"):
                    found.append(int(process.name))
    return found


def _exiting() -> list[tuple[int, int]]:
    """Processes of this user that are on their way out, with when they started.

    Their environment has gone, and their sockets may still be there. Such a process has the flag of that
    (proc(5), stat field 9), and is no zombie yet, or is one by its first thread only.
    """
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                if process.stat().st_uid == os.getuid():
                    fields = _stat(process)
                    gone = fields[0] in "ZX" and len(os.listdir(process / "task")) <= 1
                    if int(fields[6]) & _PF_EXITING and not gone:
                        found.append((int(process.name), int(fields[19])))
    return found


def _stat(process: Path) -> list[str]:
    """From field 3 on: those before may have anything in them."""
    return (process / "stat").read_text().rpartition(")")[2].split()


def end(mark: str, grace_s: float) -> None:
    """Waits that long for the marked processes to end by themselves, then kills those that are left.

    Their ports and files are free then: what exits at that moment is waited for, too, for _EXIT_S at most.
    """
    deadline = time.monotonic() + grace_s
    while left := marked(mark):
        if time.monotonic() > deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        _reap()
        time.sleep(_POLL_S)
    # None of them has its mark any more, so whoever exits may be one; who begins to exit later is not.
    exiting, deadline = set(_exiting()), time.monotonic() + _EXIT_S
    while exiting and time.monotonic() < deadline:
        _reap()
        time.sleep(_POLL_S)
        exiting &= set(_exiting())
    _reap()


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
