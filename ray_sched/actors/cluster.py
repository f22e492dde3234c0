"""The Ray cluster under a group: a local one that is started for it, or one that exists."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from ray_sched.actors.names import NAMESPACE
from ray_sched.config import Config
from ray_sched.errors import NotRunningError

_ANY_NUMBER: Final = 1000
"""Functions that a slot of a local cluster offers room for when the configuration sets no limit."""

_OBJECT_STORE_BYTES: Final = 256 * 2**20
"""Values travel through the key-value store; Ray's own store carries arguments of the handle API alone."""

_ENVIRONMENT: Final = {
    # No token is needed: a local cluster listens on loopback alone, see _loopback_only.
    "RAY_AUTH_MODE": "disabled",
    # Workers at the default niceness of 15 lose a third of the hot path's speed on a busy machine.
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray's processes would write their titles over their environment, and `processes` could not tell them.
    "SPT_NOENV": "1",
    # What later versions of Ray do anyway, and warn of until then.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@dataclass(frozen=True)
class LocalCluster:
    """A Ray cluster of one node that this process started; it lives as long as the process, at most."""

    address: str
    """`127.0.0.1:PORT`"""

    @classmethod
    def start(cls, config: Config, folder: str, show_logs: bool = False) -> LocalCluster:
        """Starts it on loopback alone, offers the group's slots, and connects this process to it.

        Args:
            folder: for Ray's files; with a short path, since those of Unix sockets may have 107 characters.
            show_logs: whether what the actors log appears on this process's stderr, too.

        Raises:
            NotRunningError: Ray did not start. It gives a node 30 s, and what it had started by then stays:
                on a busy machine another try may do.
        """
        os.environ.update(_ENVIRONMENT)
        import ray

        slots = config.executor.count
        per_slot = config.functions_per_executor or _ANY_NUMBER
        resources = {
            "executor": slots,
            "pin": slots * per_slot,
            "gpu_pin": config.executor.gpu_count * per_slot,
        }
        with _loopback_only():
            try:
                context = ray.init(
                    resources={name: float(amount) for name, amount in resources.items() if amount},
                    log_to_driver=show_logs,
                    **_own(folder),
                )
            except Exception as error:  # Ray has no class for it
                raise NotRunningError(f"Ray did not start: {error}") from error
        return cls(str(context.address_info["gcs_address"]))

    def stop(self) -> None:
        import ray

        ray.shutdown()


def start_local_mode(folder: str) -> None:
    """Puts this process into Ray's local mode, where this version has it; Ray's files go to `folder`."""
    os.environ.update(_ENVIRONMENT)
    import ray

    with _loopback_only(), warnings.catch_warnings():
        # Ray warns that its later versions have none.
        warnings.simplefilter("ignore", FutureWarning)
        ray.init(local_mode=True, **_own(folder))


def _own(folder: str) -> dict[str, Any]:
    """What any Ray of our own is started with; its files go to `folder`."""
    return {
        "namespace": NAMESPACE,
        "include_dashboard": False,
        "configure_logging": False,
        "logging_level": logging.ERROR,
        "object_store_memory": _OBJECT_STORE_BYTES,
        # Ray opens its own folder to everybody: one below keeps them out.
        "_temp_dir": os.path.join(folder, "r"),
    }


def connect(address: str, timeout_s: float) -> None:
    """Connects this process to a Ray cluster that runs.

    For a cluster with token authentication, RAY_AUTH_MODE=token has to be set as on its nodes.

    Args:
        address: `HOST:PORT` of its head, or `auto`.
        timeout_s: seconds that the head has to take the connection.

    Raises:
        NotRunningError: nothing answers there, or it refuses this process.
    """
    host, _, port = address.rpartition(":")
    loopback = host.startswith("127.") or host == "localhost"
    if host and port.isdigit():
        try:
            # Ray itself would try for minutes.
            socket.create_connection((host, int(port)), timeout_s).close()
        except OSError as error:
            raise NotRunningError(f"no Ray cluster answers at {address}: {error.strerror or error}") from None
    import ray

    with _loopback_only() if loopback else contextlib.nullcontext():
        try:
            ray.init(
                address=address,
                namespace=NAMESPACE,
                log_to_driver=False,
                configure_logging=False,
                logging_level=logging.ERROR,
            )
        except (ConnectionError, RuntimeError) as error:
            mode = os.environ.get("RAY_AUTH_MODE", "not set")
            raise NotRunningError(
                f"could not join the Ray cluster at {address}: {error} (RAY_AUTH_MODE is {mode}; "
                "it must be what the cluster's nodes have)"
            ) from error


def disconnect() -> None:
    """Leaves the cluster that `connect` joined; what runs there goes on."""
    import ray

    ray.shutdown()


@contextlib.contextmanager
def _loopback_only() -> Iterator[None]:
    """Makes Ray take 127.0.0.1 for this machine's address, and so listen nowhere else.

    Else it replaces every loopback address by the machine's outward one, and its ports are open to the
    network. This is its own switch for other operating systems (RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER),
    which it reads from the environment when it is imported: too early for us.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
