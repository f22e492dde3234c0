"""A whole group on a Ray cluster of its own, with a management node that the tests play."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_sched import keys
from ray_sched.actors.cluster import LocalCluster
from ray_sched.actors.group import Group
from ray_sched.config import Config
from tests.security.bait import Bait

MGMT = "127.0.18.9"
KEYED = "127.0.18.2"
"""The address of the group that admits holders of keys alone."""
CONFIG = Config(host="127.0.18.1", mgmt=MGMT).replace(
    **{
        "executor.count": 3,
        "executor.functions_per_executor": 20,
        "executor.status_period_s": 0.5,
        "gossip.period_s": 0.5,
        "stats.policy_period_s": 0.5,
        "policy.max_recent_calls": 0,
    }
)
STOP_S = 30.0


@pytest.fixture
def bait(tmp_path_factory: pytest.TempPathFactory) -> Bait:
    return Bait(tmp_path_factory.mktemp("bait"))


@pytest.fixture(scope="package")
def cluster() -> Iterator[LocalCluster]:
    # pytest's own folders have too long paths for Ray's Unix sockets.
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        room = CONFIG.replace(**{"executor.count": 8})
        started = LocalCluster.start(room, folder)
        yield started
        started.stop()


@pytest.fixture(scope="package")
def logs(cluster: LocalCluster) -> Path:
    """Where Ray keeps what the actors log."""
    import ray

    session = ray._private.worker.global_worker.node.get_session_dir_path()
    return Path(session) / "logs"


@pytest.fixture(scope="package")
def group(cluster: LocalCluster) -> Iterator[Group]:
    started = Group.start(CONFIG)
    yield started
    started.stop(STOP_S)


@pytest.fixture(scope="package")
def keys_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A group's keys, with one client's, alice's."""
    folder = tmp_path_factory.mktemp("keys")
    keys.new("alice", folder)
    return folder


@pytest.fixture(scope="package")
def keyed_group(cluster: LocalCluster, keys_folder: Path) -> Iterator[Group]:
    config = Config(host=KEYED, log_level="DEBUG").replace(
        **{"executor.count": 2, "executor.status_period_s": 0.5, "security.curve": str(keys_folder)}
    )
    started = Group.start(config)
    yield started
    started.stop(STOP_S)
