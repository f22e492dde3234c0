"""Nothing that a stranger sends, stores or answers is unpickled outside the executors.

Every bytes and text field of every message, on every port of the control plane's processes, gets a pickle
that leaves a file when it is read. The same bait is live: an executor takes it.
"""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ray
import zmq

import ray_sched
from ray_sched.actors.group import Group
from ray_sched.actors.policy import CACHED_KEYS
from ray_sched.errors import NoResourcesError
from ray_sched.kvs.client import KvsClient
from ray_sched.kvs.lattices import SetLattice
from ray_sched.wire import anna_pb2 as anna
from ray_sched.wire import ports, shared_pb2
from tests.security.bait import Bait, hostile, lattices
from tests.security.conftest import CONFIG, MGMT
from tests.security.processes import listening
from tests.security.stranger import Stranger, key_request, pushes, requests

pytestmark = pytest.mark.cluster

HOST = CONFIG.host
PATIENCE_S = 30.0


@pytest.fixture
def stranger() -> Iterator[Stranger]:
    stranger = Stranger(HOST)
    yield stranger
    stranger.close()


@pytest.fixture
def management(bait: Bait) -> Iterator[list[int]]:
    """A management node whose answer is the bait; the list grows with each answer."""
    answers: list[int] = []
    bodies = hostile(shared_pb2.StringSet(keys=["x"]), bait)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    socket.linger = 0
    socket.bind(ports.tcp(MGMT, ports.MGMT_SCHEDULERS))

    def answer() -> None:
        try:
            while True:
                frames = socket.recv_multipart()
                socket.send_multipart([*frames[:-1], bodies[len(answers) % len(bodies)]])
                answers.append(1)
        except zmq.ContextTerminated:
            socket.close(0)

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    yield answers
    context.term()
    thread.join(10)


def wait_for(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def called(call: Callable[[], object]) -> None:
    """In cluster mode a call has an executor for itself until that reports: another one is tried again."""

    def was_taken() -> bool:
        try:
            call()
        except NoResourcesError:
            return False
        return True

    wait_for(was_taken, "an executor is free")


def test_only_executors_take_the_bait(
    group: Group, bait: Bait, stranger: Stranger, management: list[int]
) -> None:
    with ray_sched.connect(HOST) as client:
        client.register(lambda library, *args: "fine", "hostile_f")
        client.register_dag("hostile_dag", ["hostile_f"])

        before = group.status()
        for port, sane in requests().items():
            bodies = hostile(sane, bait)
            assert stranger.ask(port, bodies) == len(bodies)
        pushed = {port: hostile(sane, bait) for port, sane in pushes().items()}
        for port, bodies in pushed.items():
            stranger.push(port, bodies)
        keys = [
            "hostile_key",
            CACHED_KEYS + HOST,
            "funcs/index-allfuncs",
            "hostile_output",
            "funcs/hostile_h",
        ]
        for raw in (pickle.dumps(bait, 0), pickle.dumps(bait, 4)):
            for kind, payload in lattices(raw):
                tuples = [anna.KeyTuple(key=key, lattice_type=kind, payload=payload) for key in keys]
                put = anna.KeyRequest(type=anna.PUT, tuples=tuples, response_address=f"tcp://{HOST}:45679")
                stranger.push(ports.KVS_STORAGE, [put.SerializeToString()])
        # What answers the clients of the store, and direct responses to the Scheduler.
        response = anna.KeyResponse(
            type=anna.GET, tuples=list(key_request().tuples), response_id=f"{HOST}:x:1"
        )
        found = anna.KeyAddressResponse(
            addresses=[anna.KeyAddressResponse.KeyAddress(key="k", ips=[f"tcp://{HOST}:6200"])],
            response_id=f"{HOST}:x:1",
        )
        ours = {status["pid"] for status in group.status().values()}
        others = {port for ip, port in listening(ours) if ip == HOST} - {*requests(), *pushed}
        answers = {port for port in others if port > ports.KVS_CLIENT_RESPONSE}
        assert len(answers) >= 4, "the Scheduler and the Policy have two each"
        for port in answers:
            stranger.push(port, [*hostile(response, bait), *hostile(found, bait)])

        with KvsClient(HOST, "127.0.18.7") as kvs:
            wait_for(lambda: isinstance(kvs.get("funcs/index-allfuncs"), SetLattice), "the index is there")
        client.list()
        statuses, updates = (len(pushed[port]) - 3 for port in (ports.STATUS, ports.SCHEDULER_UPDATE))
        # Without the last three, which are no messages.
        wait_for(lambda: counted(group, before, "ingress", "statuses") >= statuses, "statuses came")
        wait_for(lambda: counted(group, before, "gossip", "updates_taken") >= updates, "gossip came")
        wait_for(lambda: len(management) >= 8, "the management node was asked")

        # Results stay sealed on their way through the Scheduler: who asked for them reads them.
        scheduler = ray_sched.get_scheduler(group.name)
        client.register(lambda library, folder: Bait(folder), "hostile_result")
        client.register_dag("hostile_results", ["hostile_result"])
        assert os.getpid() not in bait.readers()
        called(lambda: ray.get(scheduler.call.remote("hostile_result", bait.folder), timeout=PATIENCE_S))
        ray.get(
            scheduler.call_dag.remote("hostile_results", {"hostile_result": [bait.folder]}),
            timeout=PATIENCE_S,
        )
        assert os.getpid() in bait.readers()
        called(lambda: client.function("hostile_f")(bait).get(timeout_s=PATIENCE_S))

    status = group.status()
    executors = {answer["pid"] for role, answer in status.items() if role.startswith("executor-")}
    control = {answer["pid"] for role, answer in status.items() if not role.startswith("executor-")}
    assert len(control) == 6
    assert bait.readers() & executors, "an executor has run what it was sent: the bait is live"
    assert not bait.readers() & control
    assert {role: answer["pid"] for role, answer in status.items()} == {
        role: answer["pid"] for role, answer in before.items()
    }, "nothing died of it"


def counted(group: Group, before: dict[str, dict[str, Any]], role: str, name: str) -> int:
    now = group.status()[role]["counts"].get(name, 0)
    return int(now) - int(before[role]["counts"].get(name, 0))
