"""A drop-in scheduler for the Cloudburst functions-as-a-service system, built from Ray actors.

    client = ray_sched.connect("127.0.0.1")       # over ZeroMQ
    scheduler = ray_sched.get_scheduler()         # the Scheduler's Ray actor handle

Names are imported when they are first used: `import ray_sched` alone loads neither Ray nor ZeroMQ.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray_sched.actors.lookup import get_scheduler
    from ray_sched.client import Client, Continuation, DagFunction, Future, RemoteFunction, connect
    from ray_sched.config import Config
    from ray_sched.errors import (
        AlreadyRunningError,
        BadMessageError,
        ConfigError,
        DagExistsError,
        ExecutionError,
        FunctionNotFoundError,
        InvalidDagError,
        KeyMissingError,
        KvsError,
        LatticeMismatchError,
        NoLocalModeError,
        NoResourcesError,
        NoSuchDagError,
        NotPinnedError,
        NotRunningError,
        PortTakenError,
        RaySchedError,
        RefusedError,
        TimedOutError,
    )
    from ray_sched.reference import CloudburstReference

__version__ = "0.1.0"

_ELSEWHERE = {
    "Client": "ray_sched.client",
    "CloudburstReference": "ray_sched.reference",
    "Config": "ray_sched.config",
    "Continuation": "ray_sched.client",
    "DagFunction": "ray_sched.client",
    "Future": "ray_sched.client",
    "RemoteFunction": "ray_sched.client",
    "connect": "ray_sched.client",
    "get_scheduler": "ray_sched.actors.lookup",
}
"""What lies outside `ray_sched.errors`."""

__all__ = [
    "AlreadyRunningError",
    "BadMessageError",
    "Client",
    "CloudburstReference",
    "Config",
    "ConfigError",
    "Continuation",
    "DagExistsError",
    "DagFunction",
    "ExecutionError",
    "FunctionNotFoundError",
    "Future",
    "InvalidDagError",
    "KeyMissingError",
    "KvsError",
    "LatticeMismatchError",
    "NoLocalModeError",
    "NoResourcesError",
    "NoSuchDagError",
    "NotPinnedError",
    "NotRunningError",
    "PortTakenError",
    "RaySchedError",
    "RefusedError",
    "RemoteFunction",
    "TimedOutError",
    "__version__",
    "connect",
    "get_scheduler",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_ELSEWHERE.get(name, "ray_sched.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
