"""A whole group while strangers flood it, send it nonsense, and its executors fall silent."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray
import zmq

import ray_sched
from ray_sched import group_status
from ray_sched.actors import names
from ray_sched.actors.cluster import LocalCluster
from ray_sched.actors.group import Group
from ray_sched.client import Client
from ray_sched.config import Config
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire import ports
from tests.floods import flood
from tests.fuzz import inputs
from tests.system.conftest import STOP_S, eventually
from tests.wire.players import PlayedExecutor, Pusher

pytestmark = pytest.mark.cluster

HOST, FAR, FARTHER = "127.0.17.1", "127.0.17.2", "127.0.17.3"
CONFIG = Config(host=HOST).replace(
    **{
        "executor.count": 1,
        "executor.status_period_s": 0.5,
        "executor.reference_timeout_s": 0.1,
        "policy.max_recent_calls": 0,
        "scheduler.executor_timeout_s": 2.0,
    }
)
WAIT_S = 20.0
ROUNDED_S = 0.1
"""By so much a told age may differ from the true one."""


@pytest.fixture(scope="module")
def group(cluster: LocalCluster) -> Iterator[Group]:
    started = Group.start(CONFIG)
    yield started
    started.stop(STOP_S)


@pytest.fixture(scope="module")
def client(group: Group) -> Iterator[Client]:
    with ray_sched.connect(HOST) as client:
        client.register(lambda _, x: x + 1, "hard_incr")
        client.register_dag("hard", ["hard_incr"])
        yield client


def serves(client: Client) -> bool:
    try:
        return bool(
            client.call_dag("hard", {"hard_incr": [1]}, direct_response=True).get(timeout_s=WAIT_S) == 2
        )
    except ray_sched.NoResourcesError:
        return False


def status(group: Group, role: str) -> dict[str, Any]:
    told: dict[str, Any] = ray.get(names.find(group.name, role).status.remote(), timeout=WAIT_S)
    return told


def pids(group: Group) -> dict[str, int]:
    roles = (names.KVS, names.STATS, names.POLICY, names.SCHEDULER, names.GOSSIP, names.INGRESS)
    return {role: status(group, role)["pid"] for role in roles}


def test_nonsense_on_every_port_of_the_group_ends_no_actor(group: Group, client: Client) -> None:
    before = pids(group)
    rng = random.Random(17)
    layout = ports.CLASSIC
    executor = [
        getattr(layout, kind) for kind in ("pin", "unpin", "call", "schedule", "trigger", "user_message")
    ]
    kvs = [ports.KVS_ROUTING, ports.KVS_STORAGE]
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sockets = {}
    for port in (*ports.REQUEST_PORTS, *ports.PUSH_PORTS, *executor, *kvs):
        socket = context.socket(zmq.DEALER if port in ports.REQUEST_PORTS else zmq.PUSH)
        socket.linger = 0
        socket.sndtimeo = int(WAIT_S * 1000)
        socket.connect(ports.tcp(HOST, port))
        sockets[port] = socket
    everything = [*inputs.REAL, *inputs.LARGE, *inputs.NOT_UTF_8]
    asked = 0
    for _ in range(40):
        for port, socket in sockets.items():
            body = bytearray(rng.choice(everything))
            for _ in range(rng.randrange(3)):
                if body:
                    body[rng.randrange(len(body))] = rng.randrange(256)
            frames = [bytes(body)] * rng.choice((1, 1, 1, 2))
            if port in ports.REQUEST_PORTS:
                asked += 1
                frames = [b"", *frames]
            socket.send_multipart(frames)
    # A DAG that is absurd may be refused after its functions were looked up: all requests are answered.
    answered = 0
    deadline = time.monotonic() + 60.0
    while answered < asked and time.monotonic() < deadline:
        for port in ports.REQUEST_PORTS:
            while sockets[port].poll(1):
                sockets[port].recv_multipart()
                answered += 1
    assert answered == asked
    context.destroy(0)
    eventually(lambda: serves(client), "calls succeed again")
    client.register(lambda _: "new", "hard_new")
    assert "hard_new" in client.list("hard_")
    assert pids(group) == before
    assert status(group, names.INGRESS)["counts"].get("failed", 0) == 0


def test_a_flood_of_calls_starves_no_other_port(group: Group, client: Client) -> None:
    """`tests/actors/test_floods.py` does it to each port, in one process."""
    call = cb.DagCall(name="hard", response_address="tcp://127.0.17.9:9").SerializeToString()
    with flood(HOST, ports.DAG_CALL, call):
        flooded_at = time.monotonic()
        client.register(lambda _: 1, "hard_late", timeout_s=WAIT_S)
        assert "hard_incr" in client.list("hard_i", timeout_s=WAIT_S)
        client.register_dag("hard_late", ["hard_incr"], timeout_s=WAIT_S)
        client.delete_dag("hard_late", timeout_s=WAIT_S)

        def heard() -> bool:
            flooded_s = time.monotonic() - flooded_at
            known = status(group, names.POLICY)["executors"]
            # Ours never counts as silent; those that nonsense before spoke of may not be forgotten yet.
            (age_s,) = (executor["last_status_s"] for executor in known if executor["ip"] == HOST)
            assert age_s < CONFIG.scheduler.executor_timeout_s
            return bool(age_s + ROUNDED_S < flooded_s)

        eventually(heard, "a status comes through")
    eventually(lambda: serves(client), "calls succeed again")


def test_executors_that_fall_silent_are_replaced_or_missed_aloud(group: Group, client: Client) -> None:
    beats = threading.Event()
    pusher = Pusher()
    played = [PlayedExecutor(ip, 0, HOST, pusher) for ip in (FAR, FARTHER)]
    alive = set(played)

    def beat() -> None:
        while not beats.wait(0.3):
            for executor in list(alive):
                executor.report()

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        # Also those are gone by then that nonsense before spoke of.
        eventually(lambda: hosts(group) == {HOST, FAR, FARTHER}, "three executors")
        # Each of its three replicas has an executor of its own.
        scheduler = ray_sched.get_scheduler(group.name)
        ray.get(scheduler.register_dag.remote("wide", ["hard_incr"], num_replicas=3), timeout=WAIT_S)
        assert all(executor.functions == ["hard_incr"] for executor in played)

        alive.discard(played[0])
        played[0].close()
        eventually(lambda: missing(group) == {"wide": ["hard_incr"]}, "one is missed")
        assert FAR not in hosts(group)
        text = group_status.as_tables(told(group))
        assert "PINNED NOWHERE" in text and "wide  hard_incr" in text

        successor = PlayedExecutor(FAR, 1, HOST, pusher)
        played.append(successor)
        alive.add(successor)
        eventually(lambda: missing(group) == {}, "it is pinned again where there is room")
        assert successor.functions == ["hard_incr"]
        assert "PINNED NOWHERE" not in group_status.as_tables(told(group))
        ray.get(scheduler.delete_dag.remote("wide"), timeout=WAIT_S)
    finally:
        beats.set()
        thread.join()
        for executor in played:
            executor.report(running=False)
            executor.close()
        eventually(lambda: hosts(group) == {HOST}, "the played ones are gone")
        pusher.close()


def hosts(group: Group) -> set[str]:
    return {executor["ip"] for executor in status(group, names.POLICY)["executors"]}


def missing(group: Group) -> dict[str, list[str]]:
    found: dict[str, list[str]] = status(group, names.POLICY)["missing_pins"]
    return found


def told(group: Group) -> dict[str, Any]:
    return group_status._gather(group.name, group.status())
