"""A whole group on a real Ray cluster, for both ways in."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import ray_sched
from ray_sched.actors.cluster import LocalCluster
from ray_sched.actors.group import Group
from ray_sched.client import Client
from ray_sched.config import Config

CONFIG = Config(host="127.0.8.1").replace(
    **{
        "executor.count": 3,
        # Without an overload limit, so that no test depends on how often another one called.
        "policy.max_recent_calls": 0,
    }
)
STOP_S = 30.0


@pytest.fixture(scope="package")
def cluster() -> Iterator[LocalCluster]:
    # pytest's own folders have too long paths for Ray's Unix sockets.
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        started = LocalCluster.start(CONFIG, folder)
        yield started
        started.stop()


@pytest.fixture(scope="package")
def group(cluster: LocalCluster) -> Iterator[Group]:
    started = Group.start(CONFIG)
    yield started
    started.stop(STOP_S)


@pytest.fixture
def scheduler(group: Group) -> Any:
    """The Scheduler's actor handle."""
    return ray_sched.get_scheduler(group.name)


@pytest.fixture(scope="package")
def client(group: Group) -> Iterator[Client]:
    with ray_sched.connect(CONFIG.host) as client:
        yield client


def eventually(holds: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    """Ask until it holds, without more load than ten times a second."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:g} s"
        time.sleep(0.1)
