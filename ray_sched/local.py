"""A whole scheduler group within the program that starts it, for tests and debuggers: Ray's local mode.

    group = ray_sched.local.start(Config(host="127.0.0.2"))
    scheduler = ray_sched.get_scheduler(group.name)
    ...
    ray_sched.local.stop(group)

The actors are the same as ever, in threads of the program: its breakpoints and prints reach into every one.
They bind their ports, too, so that ZeroMQ clients are served. Where the program itself has called
`ray.init(local_mode=True)`, `Group.start` does as well.
"""

from __future__ import annotations

import tempfile
from typing import Final

import ray

from ray_sched.actors import cluster, local_mode, names
from ray_sched.actors.group import Group, OnReady
from ray_sched.bound_ports import check_free
from ray_sched.config import Config
from ray_sched.errors import NoLocalModeError

LAST_VERSION: Final = "2.53"
"""The last version of Ray that has local mode."""
STOP_S: Final = 10.0
_folder: tempfile.TemporaryDirectory[str] | None = None
"""Ray's files, where it was started here; gone at the end of the program at the latest."""


def start(config: Config | None = None, on_ready: OnReady | None = None) -> Group:
    """Starts a group in this process and waits until all of it is ready. More than one may run.

    Raises:
        NoLocalModeError: this version of Ray has none, or this process is in a Ray cluster.
        ConfigError, PortTakenError: the host is no address of this machine, or a port is taken.
        AlreadyRunningError: a group of this name runs here.
        RaySchedError: an actor could not start, for the reason that its own error gives.
    """
    if not local_mode.exists():
        raise NoLocalModeError(
            f"Ray {ray.__version__} has no local mode; the last version that has it is {LAST_VERSION} "
            f"(pip install 'ray=={LAST_VERSION}.*'). With this one, run the group on a small cluster of this "
            "machine: ray-sched up"
        )
    if ray.is_initialized() and not local_mode.is_on():
        raise NoLocalModeError(
            "this process is in a Ray cluster, and cannot be in local mode, too: call ray.shutdown() first"
        )
    config = config or Config()
    if names.actor_name(config.group_name, names.INGRESS) not in local_mode.actor_names():
        check_free(config)
    if not ray.is_initialized():
        _start_ray()
    try:
        return Group.start(config, on_ready)
    except BaseException:
        _stop_ray_if_unused()
        raise


def stop(group: Group, timeout_s: float = STOP_S) -> None:
    """Stops a group, and, with the last one, Ray, if `start` has started it. Raises TimedOutError."""
    try:
        group.stop(timeout_s)
    finally:
        _stop_ray_if_unused()


def _start_ray() -> None:
    global _folder
    # Under /tmp: the paths of Unix sockets may have 107 characters.
    _folder = tempfile.TemporaryDirectory(prefix="ray_sched-", dir="/tmp", ignore_cleanup_errors=True)
    cluster.start_local_mode(_folder.name)


def _stop_ray_if_unused() -> None:
    global _folder
    if _folder is not None and not names.roles_by_group():
        ray.shutdown()
        _folder.cleanup()
        _folder = None
