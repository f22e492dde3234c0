"""The group on a real Ray cluster, with stand-ins for the actors."""

from __future__ import annotations

import dataclasses
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from ray_sched.actors import names
from ray_sched.actors.cluster import LocalCluster
from ray_sched.actors.group import Group
from ray_sched.config import Config
from ray_sched.errors import AlreadyRunningError, NotRunningError, PortTakenError, TimedOutError
from tests.actors import standins

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    # pytest's own folders have too long paths.
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        started = LocalCluster.start(Config(host="127.0.5.1"), folder)
        yield started
        started.stop()


@pytest.fixture
def config(cluster: LocalCluster, tmp_path: Path, request: pytest.FixtureRequest) -> Config:
    names = sorted(item.name for item in request.session.items if item.fspath == request.node.fspath)
    host = f"127.0.5.{10 + names.index(request.node.name)}"
    return Config(host=host).replace(**{"kvs.path": str(tmp_path / "story"), "executor.count": 2})


def story(config: Config) -> list[str]:
    return Path(config.kvs.path).read_text().splitlines()


def can_bind(host: str, port: int) -> bool:
    """Raises when it cannot."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        return True


def test_parts_become_ready_in_order_and_stop_in_the_opposite_order(config: Config) -> None:
    told: list[str] = []
    config = config.replace(**{"executor.gpu_count": 1})
    group = Group.start(config, lambda part, facts, seconds: told.append(part), parts=standins.parts())
    order = ["kvs", "stats", "policy", "scheduler", "gossip", "ingress"]
    assert told[:6] == order
    assert sorted(told[6:]) == [f"executor-{config.host}-{tid}" for tid in (0, 1)]
    assert story(config)[:6] == [f"ready {role}" for role in order]
    assert sorted(story(config)[6:]) == ["ready executor 0", "ready executor 1 gpu"]

    Path(config.kvs.path).unlink()
    group.stop(timeout_s=20)
    stopped = story(config)
    assert stopped[:2] == ["stop ingress", "stop policy"]
    assert sorted(stopped[2:4]) == ["stop executor 0", "stop executor 1 gpu"]
    assert stopped[4:] == ["stop gossip", "stop scheduler", "stop stats", "stop kvs"]
    assert config.host not in names.roles_by_group()
    assert can_bind(config.host, 5000)


@pytest.fixture(scope="module")
def standing(cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    """For tests that only look at it: without executors, and with a key-value store elsewhere."""
    config = Config(host="127.0.5.8").replace(
        **{
            "kvs.path": str(tmp_path_factory.mktemp("standing") / "story"),
            "kvs.host": "127.0.5.9",
            "executor.count": 0,
            "scheduler.api_threads": 2,
        }
    )
    group = Group.start(config, parts=standins.parts())
    yield group
    group.stop(timeout_s=20)


def test_a_foreign_kvs_needs_no_actor(standing: Group) -> None:
    assert sorted(standing.handles) == ["gossip", "ingress", "policy", "scheduler", "stats"]


def test_a_second_group_of_the_name_is_refused_and_the_first_lives_on(standing: Group) -> None:
    with pytest.raises(AlreadyRunningError, match="runs in this Ray cluster already"):
        Group.start(Config(host=standing.name), parts=standins.parts())
    attached = Group.attach(standing.name)
    assert list(attached.handles) == list(standing.handles)
    assert attached.status()["scheduler"]["role"] == "scheduler"


def test_a_class_may_have_concurrency_groups_as_is_configured(standing: Group) -> None:
    scheduler = names.find(standing.name, names.SCHEDULER)
    assert sorted(ray.get([scheduler.meet.remote(), scheduler.meet.remote()], timeout=30)) == [0, 1]


@pytest.mark.parametrize(
    ("policy", "error", "words"),
    [
        (standins.BrokenPolicy, PortTakenError, "port 5000 is taken by somebody"),
        (standins.StillbornPolicy, PortTakenError, "port 5001 is taken by somebody else"),
    ],
)
def test_an_actor_that_cannot_start_gives_its_own_error_and_nothing_stays(
    config: Config, policy: type[standins.StandIn], error: type[Exception], words: str
) -> None:
    config = config.replace(**{"executor.count": 0})
    with pytest.raises(error) as caught:
        Group.start(config, parts=standins.parts(policy))
    assert str(caught.value) == words
    assert config.host not in names.roles_by_group()


@pytest.mark.parametrize(
    ("policy", "timeout_s", "words"),
    [
        (standins.SlowPolicy, 10.0, "policy did not become ready within start_timeout_s = 10 s"),
        # The executor has to be ready in that time, on a busy machine, too.
        (standins.UntoldPolicy, 15.0, "no status of executor-.* has reached the policy within"),
    ],
)
def test_a_start_that_takes_too_long_is_given_up(
    config: Config, policy: type[standins.StandIn], timeout_s: float, words: str
) -> None:
    config = dataclasses.replace(config, start_timeout_s=timeout_s)
    with pytest.raises(TimedOutError, match=words):
        Group.start(config, parts=standins.parts(policy))
    assert config.host not in names.roles_by_group()


def test_an_actor_that_hangs_is_named_and_does_not_hold_up_the_stop_of_the_others(config: Config) -> None:
    config = config.replace(**{"executor.count": 0})
    group = Group.start(config, parts=standins.parts(standins.DeafPolicy))
    answers: dict[str, dict[str, Any]] = group.status(timeout_s=1.0)
    assert answers["policy"] == {"error": "not answering"}
    assert "pid" in answers["ingress"]
    group.stop(timeout_s=8)
    assert story(config)[-1] == "stop kvs"
    assert config.host not in names.roles_by_group()


def test_attaching_to_nothing_says_so(cluster: LocalCluster) -> None:
    with pytest.raises(NotRunningError, match=r"no scheduler group '127\.0\.5\.99' runs"):
        Group.attach("127.0.5.99")
    with pytest.raises(NotRunningError, match="no ingress"):
        names.find("127.0.5.99", names.INGRESS)


def test_ray_listens_on_loopback_alone(cluster: LocalCluster) -> None:
    port = int(cluster.address.rpartition(":")[2])
    outward = socket.gethostbyname(socket.gethostname())
    socket.create_connection(("127.0.0.1", port), 5).close()
    if not outward.startswith("127."):
        with pytest.raises(OSError):
            socket.create_connection((outward, port), 2)
