"""How a group is stopped from outside: by the process that holds it, or by its actors' names."""

from __future__ import annotations

import os
import signal
import time
from typing import Final

from ray_sched import running
from ray_sched.config import Config
from ray_sched.errors import NotRunningError, RaySchedError
from ray_sched.running import Running

_POLL_S: Final = 0.1
_CLEAN_UP_S: Final = 1.0


def stop(config: Config, timeout_s: float) -> bool:
    """Stops the group on a host, cleanly within `timeout_s` seconds, else by force.

    Returns false where it was gone already, with its Ray cluster or out of it, and is only forgotten.

    Args:
        config: names the host, and the Ray cluster and the group where another machine started it.

    Raises:
        NotRunningError: there is none.
    """
    entry = running.find(config.host)
    if entry is None:
        if not config.ray_address:
            raise NotRunningError(
                f"no scheduler group of this user runs on {config.host}, so there is nothing to stop"
            )
        _stop_actors(config.group_name, config, config.ray_address, timeout_s)
        return True
    if entry.pid:
        _stop_holder(entry, timeout_s)
        return True
    address = config.ray_address or entry.ray_address
    was_there = True
    try:
        if address == entry.ray_address and entry.cluster_is_gone(config.ray_timeout_s):
            was_there = False
        else:
            _stop_actors(entry.group, config, address, timeout_s)
    except _GroupGoneError:
        if address != entry.ray_address:
            raise
        was_there = False
    running.forget(entry)
    return was_there


class _GroupGoneError(NotRunningError):
    """The Ray cluster answers, and has no such group."""


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


def _stop_actors(name: str, config: Config, ray_address: str, timeout_s: float) -> None:
    from ray_sched.actors.cluster import connect, disconnect
    from ray_sched.actors.group import Group

    connect(ray_address, config.ray_timeout_s)
    try:
        try:
            group = Group.attach(name)
        except NotRunningError as error:
            raise _GroupGoneError(str(error)) from None
        group.stop(timeout_s)
    finally:
        disconnect()
