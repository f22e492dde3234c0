"""How a group is stopped from outside: by the process that holds it, or by its actors' names."""

from __future__ import annotations

import os
import signal
import time
from typing import Final

from ray_sched import running
from ray_sched.errors import NotRunningError, RaySchedError
from ray_sched.holder import CONNECT_S
from ray_sched.running import Running

_POLL_S: Final = 0.1
_CLEAN_UP_S: Final = 1.0


def stop(host: str, ray_address: str, timeout_s: float) -> None:
    """Stops the group on a host, cleanly within `timeout_s` seconds, else by force.

    Args:
        ray_address: the Ray cluster that it runs in, where another machine started it; else empty.

    Raises:
        NotRunningError: there is none.
    """
    entry = running.find(host)
    if entry is not None and entry.pid:
        _stop_holder(entry, timeout_s)
    elif ray_address or entry is not None:
        _stop_actors(host, ray_address or (entry.ray_address if entry else ""), timeout_s)
        if entry is not None:
            running.forget(entry)
    else:
        raise NotRunningError(f"no scheduler group of this user runs on {host}, so there is nothing to stop")


def _stop_holder(entry: Running, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    try:
        os.kill(entry.pid, signal.SIGTERM)
    except PermissionError:
        raise RaySchedError(f"process {entry.pid}, which holds the group, belongs to another user") from None
    except ProcessLookupError:
        return
    while entry.alive:
        if time.monotonic() > deadline:
            os.kill(entry.pid, signal.SIGKILL)
            break
        time.sleep(_POLL_S)
    entry.clean_up(_CLEAN_UP_S)
    running.forget(entry)


def _stop_actors(host: str, ray_address: str, timeout_s: float) -> None:
    from ray_sched.actors.cluster import connect, disconnect
    from ray_sched.actors.group import Group

    connect(ray_address, CONNECT_S)
    try:
        Group.attach(host).stop(timeout_s)
    finally:
        disconnect()
