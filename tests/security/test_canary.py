"""No log of a group has anything of its users': arguments, results, values, bodies, words of their errors."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import zmq

import ray_sched
from ray_sched.actors.group import Group
from ray_sched.wire import anna_pb2 as anna
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire import ports
from ray_sched.wire.curve import Keys
from tests.security.conftest import KEYED

pytestmark = pytest.mark.cluster

CANARY = "canary-7f3d19"
PATIENCE_S = 30.0


@pytest.fixture
def client(keyed_group: Group, keys_folder: Path) -> Iterator[ray_sched.Client]:
    # An address that no client without keys had before: see docs/security.md.
    alice = keys_folder / "clients" / "alice"
    with ray_sched.connect(KEYED, keys=alice, local_ip="127.0.18.31") as client:
        yield client


class Unloadable:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return complain, (CANARY,)


def complain(words: str) -> None:
    raise RuntimeError(f"cannot load: {words}")


def test_no_log_has_the_canary(
    client: ray_sched.Client, keyed_group: Group, keys_folder: Path, logs: Path
) -> None:
    def fails(library: Any, x: Any) -> None:
        raise ValueError(f"wrong value: {x}")

    same = client.register(lambda library, x: x, "canary_same")
    failing = client.register(fails, "canary_fails")
    assert same(CANARY).get(timeout_s=PATIENCE_S) == CANARY
    assert same({"key": [CANARY]}).get(timeout_s=PATIENCE_S) == {"key": [CANARY]}
    with pytest.raises(ray_sched.ExecutionError, match=CANARY):
        failing(CANARY).get(timeout_s=PATIENCE_S)
    with pytest.raises(ray_sched.ExecutionError, match=CANARY):
        same(Unloadable()).get(timeout_s=PATIENCE_S)

    client.register_dag("canary_dag", ["canary_same", "canary_fails"], [("canary_same", "canary_fails")])
    for direct in (False, True):
        with pytest.raises(ray_sched.ExecutionError, match=CANARY):
            call = client.call_dag("canary_dag", {"canary_same": [CANARY]}, direct_response=direct)
            call.get(timeout_s=PATIENCE_S)
    scheduler = ray_sched.get_scheduler(keyed_group.name)
    with pytest.raises(ray_sched.ExecutionError, match=CANARY):
        ray.get(scheduler.call.remote("canary_fails", CANARY), timeout=PATIENCE_S)
    client.put("canary_key", CANARY)
    assert client.get("canary_key") == CANARY

    # A body that makes no function, and messages that are none.
    alice = Keys.of_client(keys_folder / "clients" / "alice")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    broken = b"\xff" + CANARY.encode()
    for port in ports.REQUEST_PORTS[1:]:
        socket = context.socket(zmq.REQ)
        socket.linger = 0
        socket.rcvtimeo = int(PATIENCE_S * 1000)
        alice.connect(socket, port)
        socket.connect(ports.tcp(KEYED, port))
        socket.send(broken)
        socket.recv()
        if port == ports.FUNCTION_CREATE:
            socket.send(cb.Function(name="canary_body", body=b"\x80" + CANARY.encode()).SerializeToString())
            assert cb.GenericResponse.FromString(socket.recv()).success
        socket.close(0)
    socket = context.socket(zmq.PUSH)
    alice.connect(socket, ports.KVS_STORAGE)
    socket.connect(ports.tcp(KEYED, ports.KVS_STORAGE))
    pair = anna.KeyTuple(key="canary_other", lattice_type=anna.SET, payload=broken)
    socket.send(anna.KeyRequest(type=anna.PUT, tuples=[pair], response_address="x").SerializeToString())
    socket.send(broken)
    socket.close(5000)
    context.term()
    body = client.function("canary_body")(CANARY)
    with pytest.raises(ray_sched.RefusedError):
        body.get(timeout_s=PATIENCE_S)

    text = {file: file.read_text(errors="replace") for file in logs.rglob("*") if file.is_file()}
    logged = "".join(text.values())
    assert 'msg="a run failed"' in logged, "these are the logs"
    assert f"id={body.id}" in logged, "a call's id is in the log of its executor"
    assert not [file.name for file, content in text.items() if CANARY in content]
    assert logging.getLogger("ray_sched").propagate, "this process was left alone"
