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
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    fields = stat.rpartition(")")[2].split()
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


def _exits() -> bool:
    """Whether a process of this user is on its way out: its environment has gone, and sockets may be there.

    It has the flag of that (proc(5), stat field 9), and is no zombie yet, or is one by its first thread only.
    """
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                if process.stat().st_uid == os.getuid():
                    fields = (process / "stat").read_text().rpartition(")")[2].split()
                    last = fields[0] in "ZX" and len(os.listdir(process / "task")) <= 1
                    if int(fields[6]) & _PF_EXITING and not last:
                        return True
    return False


def end(mark: str, grace_s: float) -> None:
    """Waits that long for the marked processes to end by themselves, then kills those that are left.

    Their ports and files are free then: processes that exit are waited for, too.
    """
    deadline = time.monotonic() + grace_s
    while left := marked(mark):
        if time.monotonic() > deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        _reap()
        time.sleep(_POLL_S)
    deadline = time.monotonic() + _EXIT_S
    while _exits() and time.monotonic() < deadline:
        _reap()
        time.sleep(_POLL_S)
    _reap()


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
