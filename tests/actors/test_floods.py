"""Whichever port is flooded, the others are served meanwhile, and it is itself again afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

from ray_sched.actors import names
from ray_sched.config import Config
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire import internal_pb2, ports
from tests.actors.in_process import group
from tests.floods import flood
from tests.system.conftest import eventually
from tests.wire.players import LegacyClient, PlayedExecutor, Pusher, Record

HOST, NODE, STRANGER = "127.0.39.11", "127.0.39.12", "127.0.39.13"
WAIT_MS: Final = 30_000

GPU_STATUS = internal_pb2.ThreadStatus(ip=STRANGER, tid=0, running=True, type=internal_pb2.GPU)
LATE_ANSWER = cb.GenericResponse(success=True, response_id=f"{STRANGER}:0/nothing")
FLOODS: Final[dict[int, bytes]] = {
    ports.CONNECT: b"",
    ports.FUNCTION_CREATE: cb.Function(name="flood", body=b"x").SerializeToString(),
    ports.FUNCTION_CALL: cb.FunctionCall(name="f", response_key="flood").SerializeToString(),
    ports.LIST: b"",
    ports.DAG_CREATE: cb.Dag(name="flood").SerializeToString(),
    ports.DAG_CALL: cb.DagCall(name="standing", output_key="flood").SerializeToString(),
    ports.DAG_DELETE: b"flood",
    ports.CALL_QUEUE: cb.FunctionCall(name="f", response_key="flood").SerializeToString(),
    ports.STATUS: GPU_STATUS.SerializeToString(),
    ports.SCHEDULER_UPDATE: internal_pb2.SchedulerStatus(dags=["flood"]).SerializeToString(),
    ports.PIN_ACCEPT: LATE_ANSWER.SerializeToString(),
    ports.CONTINUATION: cb.Continuation(name="flood", id="flood").SerializeToString(),
}

Actors = dict[str, Any]


@pytest.fixture(scope="module")
def actors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Actors]:
    config = Config(host=HOST).replace(
        **{
            "policy.max_recent_calls": 0,
            # The played executor tells something only when it is asked for something.
            "scheduler.executor_timeout_s": 600.0,
            "executor.runtime_dir": str(tmp_path_factory.mktemp("runtime")),
        }
    )
    with group(config) as actors:
        yield actors


@pytest.fixture(scope="module")
def executor(actors: Actors) -> Iterator[PlayedExecutor]:
    def named(executor: PlayedExecutor, pin: Record) -> str:
        return f"{executor.location}/{pin.name}"

    pusher = Pusher()
    with PlayedExecutor(NODE, 0, HOST, pusher, name_in_answers=named, reports_calls=False) as executor:
        executor.report()
        eventually(lambda: bool(actors[names.POLICY].status()["executors"]), "the executor is known")
        yield executor
    pusher.close()


@pytest.fixture(scope="module")
def reporter(actors: Actors) -> Iterator[PlayedExecutor]:
    """Nobody sends it anything, so that it tells its status only when a test says so."""
    pusher = Pusher()
    with PlayedExecutor(NODE, 1, HOST, pusher, gpu=True) as reporter:
        yield reporter
    pusher.close()


@pytest.fixture(scope="module")
def client(executor: PlayedExecutor) -> Iterator[LegacyClient]:
    with LegacyClient(HOST, timeout_s=WAIT_MS / 1000) as client:
        assert client.create_function("f", b"never run").success
        assert client.create_dag("standing", ["f"]).success
        yield client


def held_by(actors: Actors, executor: PlayedExecutor) -> list[str]:
    """Its functions, as the Policy knows them."""
    known = actors[names.POLICY].status()["executors"]
    return next((told["functions"] for told in known if told["address"] == executor.location), [])


@pytest.mark.parametrize("flooded", list(FLOODS))
def test_a_flood_on_one_port_starves_no_other(
    flooded: int, actors: Actors, client: LegacyClient, reporter: PlayedExecutor
) -> None:
    steps: list[tuple[int, Callable[[], bool]]] = [
        (ports.CONNECT, lambda: client.connect() == HOST),
        (ports.FUNCTION_CREATE, lambda: bool(client.create_function("late", b"x").success)),
        (ports.LIST, lambda: "late" in client.list("l")),
        (ports.DAG_CREATE, lambda: bool(client.create_dag("late", ["late"]).success)),
        (ports.DAG_CALL, lambda: bool(client.call_dag("late").success)),
        (ports.FUNCTION_CALL, lambda: bool(client.call("f").success)),
        (ports.DAG_DELETE, lambda: bool(client.delete_dag("late").success)),
    ]
    with flood(HOST, flooded, FLOODS[flooded]):
        for port, served in steps:
            if port == flooded or (flooded == ports.DAG_CREATE and port > flooded):
                continue
            assert served(), f"port {port} while {flooded} is flooded"
        if flooded != ports.STATUS:
            for function in ("one", "other"):
                reporter.report(functions=[function])
                eventually(
                    lambda function=function: held_by(actors, reporter) == [function],  # type: ignore[misc]
                    f"a status while {flooded} is flooded",
                )
    if flooded == ports.DAG_DELETE:
        eventually(lambda: bool(client.delete_dag("late").success), "what could not be deleted meanwhile is")
    for port, served in steps:
        # What was flooded may have some of it before it still.
        eventually(served, f"port {port} after {flooded} was flooded")
