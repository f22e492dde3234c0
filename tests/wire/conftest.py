"""The schedulers under test: ours, started as a program, or with `--target` one that runs already.

Several kinds of scheduler are needed, because a management node (and so cluster mode), executors of its own
and an Anna are settings of a whole group. A target is of one kind, and the tests of the others skip
(`docs/compatibility.md` says how to run them).
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.wire.players import (
    AnnaClient,
    LegacyClient,
    NoReplyError,
    PlayedAnna,
    PlayedManagement,
    PlayedSink,
    Pusher,
    Stage,
    messages,
    ports,
    until,
)

EXECUTING, LOCAL, CLUSTER, ANNA = "executing", "local", "cluster", "anna"
LENT = "lent"
"""Executors of ours under another scheduler: there is no target of that kind."""
REPOSITORY = Path(__file__).parents[2]
START_S = 90.0
STOP_S = 60.0

PERIODS = {
    # What a deployment does each 5 s, so that no test has to wait for it that long.
    "RAY_SCHED_GOSSIP_PERIOD_S": "0.5",
    "RAY_SCHED_STATS_PERIOD_S": "0.5",
    "RAY_SCHED_STATS_FLUSH_S": "0.1",
    "RAY_SCHED_STATS_POLICY_PERIOD_S": "0.5",
    # Longer than a busy machine makes a played executor wait for its turn.
    "RAY_SCHED_SCHEDULER_PIN_TIMEOUT_S": "3",
    # Without picks at random a test can say who gets a call.
    "RAY_SCHED_POLICY_RANDOM_THRESHOLD": "0",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    wire = parser.getgroup("wire", "conformance to the wire contract")
    wire.addoption(
        "--target", default="", help="IP address of a scheduler that runs, to be tested instead of ours"
    )
    wire.addoption(
        "--target-kind",
        default=LOCAL,
        choices=(EXECUTING, LOCAL, CLUSTER, ANNA),
        help="executing: it has executors of its own; local: neither executors nor a management node; "
        "cluster: no executors, and its management node is --target-mgmt, which the tests play; "
        "anna: as executing, and its key-value store is --target-anna, an Anna of four routing threads "
        "that the tests play",
    )
    wire.addoption("--target-layout", default="classic", choices=tuple(ports.LAYOUTS), help="executor ports")
    wire.addoption(
        "--target-mgmt", default="127.0.6.9", help="address at which its management node is played"
    )
    wire.addoption(
        "--target-anna", default="127.0.9.51", help="address at which its Anna is played, in cluster mode"
    )


@dataclass(frozen=True)
class Scheduler:
    """A scheduler under test, as the tests may know it."""

    ip: str
    layout: ports.Layout
    management: PlayedManagement | None = None
    anna: PlayedAnna | None = None
    ray_address: str = ""
    """Of ours: where `ray-sched status` finds it. Empty for a target, and where it started Ray itself."""


@pytest.fixture(scope="package")
def ray_address() -> Iterator[str]:
    """A Ray cluster that all groups of this folder share: starting one takes longer than starting them."""
    holder = subprocess.Popen(
        [sys.executable, "-m", "tests.wire.ray_holder"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env=environment(),
        start_new_session=True,  # Ctrl-C is for pytest, which then ends this with its standard input
    )
    assert holder.stdin is not None and holder.stdout is not None
    address = holder.stdout.readline().strip()
    assert address, "Ray did not start"
    yield address
    holder.stdin.close()
    holder.stdout.close()
    assert holder.wait(STOP_S) == 0


@pytest.fixture(scope="module")
def executing(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scheduler]:
    """With three executors of its own, in local mode."""
    yield from scheduler(request, tmp_path_factory, EXECUTING, "127.0.6.1", "--executors", "3")


@pytest.fixture(scope="package")
def local(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scheduler]:
    """Without executors, in local mode, classic layout."""
    yield from scheduler(request, tmp_path_factory, LOCAL, "127.0.6.2", "--executors", "0")


@pytest.fixture(scope="package")
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scheduler]:
    """Without executors, with a management node that is played, wide layout."""
    mgmt_ip = request.config.getoption("--target-mgmt", "127.0.6.9")
    management = PlayedManagement(mgmt_ip)
    try:
        yield from scheduler(
            request, tmp_path_factory, CLUSTER, "127.0.6.3",
            "--executors", "0", "--mgmt", mgmt_ip, "--layout", "wide",
            layout="wide", management=management,
        )  # fmt: skip
    finally:
        management.close()


@pytest.fixture(scope="module")
def with_anna(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scheduler]:
    """With an executor of its own, and an Anna that is played, whose routing tier has four threads."""
    anna_ip, pusher = request.config.getoption("--target-anna", "127.0.9.51"), Pusher()
    anna = PlayedAnna(anna_ip, pusher, routing_threads=4)
    try:
        yield from scheduler(
            request, tmp_path_factory, ANNA, "127.0.9.50",
            "--executors", "1", "--kvs", anna_ip,
            settings={"RAY_SCHED_KVS_ROUTING_PORTS": "4"}, anna=anna,
        )  # fmt: skip
    finally:
        anna.close()
        pusher.close()


@pytest.fixture(scope="module")
def lent(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scheduler]:
    """With two executors that report to another scheduler and to a management node, both played."""
    management = PlayedManagement("127.0.9.61")
    try:
        yield from scheduler(
            request, tmp_path_factory, LENT, "127.0.9.62",
            "--executors", "2", "--mgmt", management.ip, "--layout", "wide",
            layout="wide", settings={"RAY_SCHED_EXECUTOR_SCHEDULER_IPS": "127.0.9.60"}, management=management,
        )  # fmt: skip
    finally:
        management.close()


@pytest.fixture(scope="session")
def node_addresses() -> Iterator[str]:
    """Never one twice."""
    return (f"127.6.{number // 250}.{1 + number % 250}" for number in itertools.count())


@pytest.fixture
def stage(local: Scheduler, node_addresses: Iterator[str]) -> Iterator[Stage]:
    """Played executors before a scheduler in local mode."""
    with Stage(local.ip, node_addresses, layout=local.layout) as stage:
        yield stage


@pytest.fixture
def anna(stage: Stage) -> Iterator[AnnaClient]:
    """A client of the key-value store that the scheduler uses."""
    client = AnnaClient(stage.client.connect(), stage.node(), stage.pusher)
    yield client
    client.close()


@pytest.fixture
def cluster_stage(cluster: Scheduler, node_addresses: Iterator[str]) -> Iterator[Stage]:
    """Played executors before a scheduler in cluster mode."""
    with Stage(cluster.ip, node_addresses, layout=cluster.layout) as stage:
        yield stage


@pytest.fixture
def pusher() -> Iterator[Pusher]:
    pusher = Pusher()
    yield pusher
    pusher.close()


@pytest.fixture
def sink() -> Iterator[PlayedSink]:
    sink = PlayedSink("127.0.6.10")
    yield sink
    sink.close()


def environment(settings: Mapping[str, str] | None = None) -> dict[str, str]:
    own = {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(REPOSITORY)}
    return {**os.environ, **PERIODS, **own, **(settings or {})}


def told_of(scheduler: Scheduler) -> dict[str, Any]:
    """What `ray-sched status` tells of a scheduler of ours."""
    program = Path(sys.executable).parent / "ray-sched"
    told = subprocess.run(
        [str(program), "status", "--json", "--host", scheduler.ip, "--address", scheduler.ray_address],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env=environment(),
    )
    found: dict[str, Any] = json.loads(told.stdout)
    return found


def scheduler(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    ip: str,
    *options: str,
    layout: str = "classic",
    management: PlayedManagement | None = None,
    anna: PlayedAnna | None = None,
    settings: Mapping[str, str] | None = None,
    own_ray: bool = False,
) -> Iterator[Scheduler]:
    """The target if it is of that kind, else a group of ours that is started and stopped.

    With `own_ray` it starts a Ray cluster for itself.
    """
    target = request.config.getoption("--target", "")
    if target:
        if request.config.getoption("--target-kind") != kind:
            pytest.skip(f"the target is not of the kind {kind!r}")
        layout = request.config.getoption("--target-layout")
        await_ready(None, target, kind in (EXECUTING, ANNA))
        yield Scheduler(target, ports.LAYOUTS[layout], management, anna)
        return
    ray_address = "" if own_ray else request.getfixturevalue("ray_address")
    there = () if own_ray else ("--address", ray_address)
    folder = tmp_path_factory.mktemp("wire")
    log = folder / f"{kind}.log"
    program = Path(sys.executable).parent / "ray-sched"
    with log.open("w") as out:
        group = subprocess.Popen(
            [str(program), "up", "--host", ip, *there, *options],
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**environment(settings), "RAY_SCHED_STATE_DIR": str(folder)},
            start_new_session=True,
        )
        try:
            await_ready((group, folder), ip, kind in (EXECUTING, ANNA))
            yield Scheduler(ip, ports.LAYOUTS[layout], management, anna, ray_address)
        finally:
            stop(group)
    assert group.returncode == 0, ended(group, folder)


def ended(group: subprocess.Popen[bytes], folder: Path) -> str:
    logs = "\n".join(log.read_text() for log in sorted(folder.glob("*.log")))
    return f"`ray-sched up` ended with {group.returncode}:\n{logs}"


def await_ready(own: tuple[subprocess.Popen[bytes], Path] | None, ip: str, with_executors: bool) -> None:
    """Until it answers, and takes calls where it has executors; `own` is a process of ours and its logs."""

    def answers() -> bool:
        if own is not None:
            group, folder = own
            assert group.poll() is None, ended(group, folder)
        with LegacyClient(ip, timeout_s=1.0) as client:
            try:
                client.connect()
                return not with_executors or client.call("nobody").error != messages.NO_RESOURCES
            except NoReplyError:
                return False

    until(answers, f"{ip} answered nobody", START_S)


def stop(group: subprocess.Popen[bytes]) -> None:
    if group.poll() is None:
        group.send_signal(signal.SIGINT)
    try:
        group.wait(STOP_S)
    except subprocess.TimeoutExpired:
        group.kill()
        group.wait()
