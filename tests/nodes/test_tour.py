"""A tour: three nodes, a DAG pinned across them, a node that dies under load, and one that comes on demand.

Each node has a loopback address of its own, as machines have. Read it from top to bottom. With `ray[default]`
(`make test-metrics`) it shows the pins with `ray list placement-groups`, which asks Ray's dashboard.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from urllib.request import urlopen

import pytest
from ray.util import placement_group_table

import ray_sched
from ray_sched.actors.group import Group
from ray_sched.actors.metering import can_be_seen
from ray_sched.client import Client
from ray_sched.config import Config
from tests.nodes.clusters import UNCLOSED, Nodes
from tests.nodes.waiting import answer, eventually, executors, pins, policy_status, reserved

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240), UNCLOSED]

HEAD, RIGHT, LEFT, LATER = "127.0.15.21", "127.0.15.22", "127.0.15.23", "127.0.15.24"
CONFIG = Config(host=HEAD).replace(
    **{
        "executor.count": 2,
        # One function for each slot, as in the legacy cluster mode: so a DAG can be too large.
        "executor.functions_per_executor": 1,
        "executor.status_period_s": 0.5,
        "executor.nodes_period_s": 0.3,
        "policy.max_recent_calls": 0,
    }
)
STOP_S = 30.0
ENDED_S = 60.0
"""Any call has a result or an error value by then; those on a dead node have it long before."""


def two_slots(ip: str) -> set[tuple[str, int]]:
    return {(ip, 0), (ip, 1)}


def holders(function: str) -> set[str]:
    """The nodes that Ray's own list says a function is on: `pin/<dag>/<function>/<ip>:<tid>`."""
    names = [info["name"] for info in placement_group_table().values() if info["state"] == "CREATED"]
    return {name.split("/")[3].split(":")[0] for name in names if f"/{function}/" in name}


def ray_prints(*command: str) -> str:
    """What a command of Ray's shows whoever types it."""
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    # Else it looks for what is on loopback at the machine's outward address, see `ray_sched.actors.cluster`.
    there = {**os.environ, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    done = subprocess.run(
        [*ray, *command], env=there, check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def ray_lists(nodes: Nodes) -> set[str]:
    """The pins in `ray list placement-groups`; without `ray[default]`, in the table that it prints."""
    if not nodes.dashboard:
        return reserved()
    assert dashboard_shows(nodes) == reserved()
    asked = ("list", "placement-groups", "--filter", "state=CREATED", "--format", "json")
    return {info["name"] for info in json.loads(ray_prints(*asked, "--address", nodes.address))}


def dashboard_shows(nodes: Nodes) -> set[str]:
    """The table of placement groups on the page of a job in the dashboard, asked for as the page does."""
    with urlopen(f"{nodes.dashboard}/api/v0/placement_groups?detail=1&limit=10000", timeout=30) as answered:
        rows = json.load(answered)["data"]["result"]["result"]
    return {row["name"] for row in rows if row["state"] == "CREATED"}


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOSCALER_UPDATE_INTERVAL_S", "1")  # `ray status` is what the autoscaler knows
        with Nodes(patch, dashboard=can_be_seen(), executor=2, pin=2) as nodes:
            yield nodes


def test_the_tour(nodes: Nodes) -> None:
    # A head with the group and two slots, and two nodes with two slots each. Nobody starts executors on them.
    by_address = {RIGHT: nodes.add(RIGHT, 2), LEFT: nodes.add(LEFT, 2)}
    group = Group.start(CONFIG)
    everywhere = two_slots(HEAD) | two_slots(RIGHT) | two_slots(LEFT)
    eventually(lambda: executors(HEAD) == everywhere, "executors on every node")

    with ray_sched.connect(HEAD) as client:
        for name in ("f", "g", "h", "k"):
            client.register(lambda _, x: x + 1, name)

        # Two functions that belong together, and a third one: one node gets both, and Ray's list shows it.
        client.register_dag("tour", ["f", "g", "h"], [("f", "g"), ("g", "h")], colocated=["f", "g"])
        assert answer(client, "tour", {"f": [1]}) == 4
        assert len(pins(HEAD)) == 3 and pins(HEAD) == reserved()
        assert holders("f") == holders("g") and len(holders("f")) == 1
        assert ray_lists(nodes) == pins(HEAD)
        counted = "0.0/6.0 pin (0.0 used of 3.0 reserved in placement groups)"
        eventually(lambda: counted in ray_prints("status", "--address", nodes.address), "Ray counts them")

        # A node dies under load. Every call ends, and soon they succeed again: the pins are made elsewhere.
        victim = next(ip for ip in (*holders("h"), *holders("f")) if ip != HEAD)
        with Load(client) as load:
            nodes.cut(by_address[victim])
            eventually(
                lambda: holders("f") | holders("g") | holders("h") <= alive(victim), "other nodes' pins"
            )
            eventually(lambda: answer(client, "tour", {"f": [1]}) == 4, "calls succeed again")
            before = load.succeeded
            eventually(lambda: load.succeeded > before + 20, "the load, too")
        assert load.succeeded and not load.unanswered
        eventually(lambda: executors(HEAD) == everywhere - two_slots(victim), "the dead node's executors go")
        eventually(lambda: len(pins(HEAD)) == 3 and pins(HEAD) == reserved(), "every pin is made again")
        assert ray_lists(nodes) == pins(HEAD)

        # One slot is left. A DAG of three is refused at once, and what it lacks is there for the autoscaler:
        # a pending placement group. Here a person adds the node.
        more = (["f", "g", "k"], [("f", "g"), ("g", "k")])
        with pytest.raises(ray_sched.NoResourcesError, match="add executors"):
            client.register_dag("more", *more)
        assert policy_status(HEAD)["demand"] == {"more": {"pin": 3}}
        eventually(lambda: "demand" in pending(), "Ray sees the demand")
        nodes.add(LATER, 2)
        client.register_dag("more", *more, wait_s=60)
        assert holders("k") and LATER in holders("f") | holders("g") | holders("k")
        eventually(lambda: not pending(), "the demand is met")

        # What is deleted is gone from Ray, too.
        for dag in ("tour", "more"):
            client.delete_dag(dag)
        eventually(lambda: reserved() == set() == pins(HEAD), "nothing is reserved")
    group.stop(STOP_S)


def alive(without: str) -> set[str]:
    return {HEAD, RIGHT, LEFT} - {without}


def pending() -> set[str]:
    """What waits for room, by the first part of its name."""
    table = placement_group_table().values()
    return {info["name"].split("/")[0] for info in table if info["state"] == "PENDING"}


class Load:
    """Two callers without a pause until the end of the block, who wait for the end of each call: one
    for a direct response, one for a value in the store."""

    def __init__(self, client: Client) -> None:
        self.succeeded = 0
        self.unanswered: list[str] = []
        self._client = client
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._call_on, args=(direct,)) for direct in (False, True)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _call_on(self, direct: bool) -> None:
        while not self._stopping.is_set():
            try:
                future = self._client.call_dag("tour", {"f": [1]}, direct_response=direct)
            except ray_sched.NoResourcesError:
                time.sleep(0.01)
                continue
            try:
                assert future.get(timeout_s=ENDED_S) == 4
                self.succeeded += 1
            except ray_sched.ExecutionError:
                pass
            except ray_sched.TimedOutError as error:
                self.unanswered.append(str(error))
