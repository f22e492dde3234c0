"""What runs on this machine: one small file for each host address that a scheduler group of this user has.

A file whose process is gone is stale: whoever notices removes it, and what that process left behind.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

from ray_sched import processes
from ray_sched.errors import AlreadyRunningError, NotRunningError


@dataclass(frozen=True)
class Running:
    """A group that runs, or is being started."""

    host: str
    group: str
    ray_address: str
    """`HOST:PORT` of its Ray cluster; empty while that is being started."""
    pid: int
    """The process that holds it; 0: none, its actors live in a Ray cluster that was there before."""
    pid_started: int
    """When that process started, in clock ticks since boot: process ids are used again. Without one it is
    when the host was claimed, in Unix seconds."""
    folder: str = ""
    """Temporary files of its Ray cluster, where that is its own."""

    @property
    def alive(self) -> bool:
        """Whether its process lives; a group without one is believed."""
        return not self.pid or processes.started(self.pid) == self.pid_started

    def cluster_is_gone(self, timeout_s: float) -> bool:
        """Whether it has no process, and nothing takes a connection within `timeout_s` seconds where its Ray
        cluster was."""
        host, _, port = self.ray_address.rpartition(":")
        if self.pid or not host or not port.isdigit():
            return False
        try:
            socket.create_connection((host, int(port)), timeout_s).close()
        except OSError:
            return True
        return False

    @property
    def mark(self) -> str:
        """What marks the processes that its process started."""
        return f"{self.pid}:{self.pid_started}"

    def clean_up(self, grace_s: float) -> None:
        """Ends what its process started, by force after so many seconds, and removes its temporary files."""
        if self.pid:
            processes.end(self.mark, grace_s)
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)


def folder() -> Path:
    """Where the files lie: RAY_SCHED_STATE_DIR, else in XDG_RUNTIME_DIR, else in ~/.local/state."""
    if own := os.environ.get("RAY_SCHED_STATE_DIR"):
        path = Path(own)
    elif runtime := os.environ.get("XDG_RUNTIME_DIR"):
        path = Path(runtime) / "ray_sched"
    else:
        path = Path.home() / ".local" / "state" / "ray_sched"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def claim(entry: Running, ray_timeout_s: float = 5.0) -> None:
    """Writes its file, unless its host has one; that of a group whose Ray cluster has gone (which takes no
    connection within `ray_timeout_s` seconds) gives way.

    Raises:
        AlreadyRunningError: a group runs there, or is being started.
    """
    # A name that exists already cannot be linked to: of two that claim at once, one wins.
    draft = _draft(entry)
    try:
        while True:
            try:
                os.link(draft, _file(entry.host))
                return
            except FileExistsError:
                other = find(entry.host)
            if other is not None and other.cluster_is_gone(ray_timeout_s):
                forget(other)
            elif other is not None:
                where = f"process {other.pid}" if other.pid else f"in the Ray cluster at {other.ray_address}"
                raise AlreadyRunningError(
                    f"a scheduler group runs on {entry.host} already ({where}); "
                    f"stop it with: ray-sched down --host {entry.host}"
                )
    finally:
        draft.unlink()


def update(entry: Running, **changes: str | int) -> Running:
    """Writes the file of a claimed host anew, with these fields changed."""
    changed = dataclasses.replace(entry, **changes)  # type: ignore[arg-type]
    _draft(changed).replace(_file(changed.host))
    return changed


def forget(entry: Running) -> None:
    """Removes its file, unless that has become somebody else's."""
    current = _read(_file(entry.host))
    if current is None:
        return
    # A process changes its own entry; those without one can be told apart by the rest alone.
    same = current == entry if not entry.pid else current.pid_started == entry.pid_started
    if same and current.pid == entry.pid:
        _file(entry.host).unlink(missing_ok=True)


def find(host: str) -> Running | None:
    """What runs on that address, or None."""
    file = _file(host)
    entry = _read(file)
    if entry is None or entry.alive:
        return entry
    entry.clean_up(grace_s=0.0)
    file.unlink(missing_ok=True)
    return None


def everything() -> list[Running]:
    """All that runs, by host."""
    hosts = sorted(file.stem for file in folder().glob("*.json"))
    return [entry for host in hosts if (entry := find(host)) is not None]


def only(group: str | None = None) -> Running:
    """The group of that name, or the only one that runs.

    Raises:
        NotRunningError: there is none, or several to choose from.
    """
    entries = [entry for entry in everything() if group in (None, entry.group)]
    if not entries:
        which = f"no scheduler group {group!r}" if group else "no scheduler group"
        raise NotRunningError(f"{which} of this user runs on this machine; start one with: ray-sched up")
    if len(entries) > 1:
        raise NotRunningError(
            f"several scheduler groups run; name one of {', '.join(e.group for e in entries)}"
        )
    return entries[0]


def _file(host: str) -> Path:
    return folder() / f"{host}.json"


def _draft(entry: Running) -> Path:
    draft = folder() / f".{entry.host}.{os.getpid()}"
    draft.write_text(json.dumps(dataclasses.asdict(entry)))
    return draft


def _read(file: Path) -> Running | None:
    try:
        return Running(**json.loads(file.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        # Not written by this version: nothing that could be stopped by it.
        file.unlink(missing_ok=True)
        return None
