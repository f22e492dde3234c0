"""What the Policy tells at once, and what only with its next heartbeat, which here does not come."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from ray_sched.actors import names
from ray_sched.actors.messages import StatusSeen
from ray_sched.config import Config
from ray_sched.core.dispatch import seq_at
from ray_sched.core.executor import Address, Status
from ray_sched.core.replication import Update
from tests.actors.in_process import group
from tests.system.conftest import eventually
from tests.wire.players import LegacyClient, PlayedExecutor, Pusher, Record

HOST, NODE = "127.0.37.11", "127.0.37.12"
FIRST, SECOND, THIRD = (NODE, 0), (NODE, 1), (NODE, 2)
NUMBERS = itertools.count(1)

Actors = dict[str, Any]


@pytest.fixture(scope="module")
def actors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Actors]:
    settings = {
        "scheduler.lease_s": 900.0,
        "scheduler.executor_timeout_s": 900.0,
        "stats.policy_period_s": 600.0,
        "kvs.path": str(tmp_path_factory.mktemp("store") / "kvs"),
        "executor.runtime_dir": str(tmp_path_factory.mktemp("runtime")),
    }
    config = Config(host=HOST).replace(**settings)
    with group(config) as actors:
        policy = actors[names.POLICY]
        # From now on; that the Scheduler hears of it at all, the usual ones have seen to.
        with policy._lock:  # which the ticker holds while it tells, and sets the time of the next one
            policy._config = config.replace(**{"scheduler.heartbeat_s": 300.0})
            last = policy._publisher._number
        eventually(lambda: policy._publisher._number > last, "the last of the usual heartbeats")
        yield actors


@pytest.fixture
def told(actors: Actors, monkeypatch: pytest.MonkeyPatch) -> list[Update]:
    """What the Policy tells from now on."""
    updates: list[Update] = []
    publisher = actors[names.POLICY]._publisher
    next_update = publisher.next_update

    def noted(now: float) -> Update:
        updates.append(next_update(now))
        return updates[-1]

    monkeypatch.setattr(publisher, "next_update", noted)
    return updates


@pytest.fixture
def client(actors: Actors) -> Iterator[LegacyClient]:
    with LegacyClient(HOST) as client:
        yield client


@pytest.fixture
def executors(actors: Actors) -> Iterator[list[PlayedExecutor]]:
    """Two, which name themselves as ours do, so that each gets several pins at once."""
    with ExitStack() as stack:
        pusher = Pusher()
        stack.callback(pusher.close)

        def named(executor: PlayedExecutor, pin: Record) -> str:
            return f"{executor.location}/{pin.name}"

        played = [
            stack.enter_context(PlayedExecutor(*address, HOST, pusher, name_in_answers=named))
            for address in (FIRST, SECOND)
        ]
        for executor in played:
            executor.report()
        eventually(lambda: known(actors) == {FIRST, SECOND}, "both are known")
        yield played
        for executor in played:
            executor.report(running=False)
        eventually(lambda: not known(actors), "both are gone")


def known(actors: Actors) -> set[Address]:
    """As the Policy knows them."""
    policy = actors[names.POLICY]
    with policy._lock:
        return set(policy._table.executors)


def holders(actors: Actors, function: str) -> set[Address]:
    """As the Scheduler knows them."""
    leasing = actors[names.SCHEDULER]._leasing
    with leasing._lock:
        return {executor.address for executor in leasing.table.functions.get(function, ())}


@pytest.fixture
def dag(client: LegacyClient) -> Iterator[str]:
    """Of three functions in a row, named after it, that are pinned nowhere else."""
    name = f"d{next(NUMBERS)}"
    functions = [f"{name}_{step}" for step in range(3)]
    for function in functions:
        assert client.create_function(function, b"never run").success
    assert client.create_dag(name, functions, list(itertools.pairwise(functions))).success
    yield name
    client.delete_dag(name)


def test_that_a_function_has_one_executor_more_is_told_with_the_next_heartbeat(
    actors: Actors, executors: list[PlayedExecutor], dag: str, told: list[Update]
) -> None:
    policy, function = actors[names.POLICY], f"{dag}_1"
    (holder,) = holders(actors, function)
    (other,) = {FIRST, SECOND} - {holder}
    held = policy._table.executors[other].functions
    eventually(lambda: not policy._table.pressing, "what came before is told")
    told.clear()
    # Through the ingress: what it reported after its pins may still be on its way.
    executors[[FIRST, SECOND].index(other)].report(functions=sorted({*held, function}))
    eventually(lambda: len(policy._table.functions[function]) == 2, "the Policy knows it")
    assert told == []
    # What has to be told at once brings it along.
    now = time.monotonic()
    policy.on_events([StatusSeen(Status(*THIRD), seq_at(now), now)])
    eventually(lambda: holders(actors, function) == {holder, other}, "the Scheduler knows both")
    policy.on_events([StatusSeen(Status(*THIRD, running=False), seq_at(now) + 1, now)])


@pytest.mark.parametrize("status", [Status(*FIRST, running=False), Status(*THIRD)])
def test_who_comes_or_goes_is_told_at_once(
    actors: Actors, executors: list[PlayedExecutor], told: list[Update], status: Status
) -> None:
    policy = actors[names.POLICY]
    eventually(lambda: not policy._table.pressing, "what came before is told")
    told.clear()
    now = time.monotonic()
    policy.on_events([StatusSeen(status, seq_at(now), now)])
    (update,) = told
    assert status.address in {*update.removed, *((record.ip, record.tid) for record in update.executors)}
    policy.on_events([StatusSeen(Status(*THIRD, running=False), seq_at(now) + 1, now)])


def test_what_a_full_link_does_not_take_is_told_once_it_has_room(
    actors: Actors, executors: list[PlayedExecutor], told: list[Update], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = actors[names.POLICY]
    eventually(lambda: not policy._table.pressing, "what came before is told")
    told.clear()
    now = time.monotonic()
    with monkeypatch.context() as full:
        full.setattr(policy._scheduler, "has_room", lambda: False)
        policy.on_events([StatusSeen(Status(*THIRD), seq_at(now), now)])
        assert told == []
    eventually(lambda: bool(told), "it is told with a tick")
    assert THIRD in {(record.ip, record.tid) for record in told[0].executors}
    policy.on_events([StatusSeen(Status(*THIRD, running=False), seq_at(now) + 1, now)])


def test_a_creation_is_told_at_its_end_and_a_deletion_at_once(
    actors: Actors,
    executors: list[PlayedExecutor],
    told: list[Update],
    client: LegacyClient,
    dag: str,
) -> None:
    eventually(lambda: not actors[names.POLICY]._table.pressing, "what came before is told")
    told.clear()
    again = [f"{dag}_{step}" for step in range(3)]
    assert client.create_dag(f"{dag}_again", again, list(itertools.pairwise(again))).success
    assert len(told) <= 1, "its functions have executors already"
    assert client.delete_dag(f"{dag}_again").success
    assert all(holders(actors, f"{dag}_{step}") for step in range(3))
    assert client.call_dag(dag).success
    assert client.delete_dag(dag).success
    eventually(lambda: not any(holders(actors, f"{dag}_{step}") for step in range(3)), "all are unpinned")


def test_where_a_lost_pin_is_made_again_is_told_at_once(
    actors: Actors, executors: list[PlayedExecutor], dag: str
) -> None:
    (before,) = holders(actors, f"{dag}_1")
    executors[[FIRST, SECOND].index(before)].report(running=False)
    (left,) = {FIRST, SECOND} - {before}
    eventually(lambda: holders(actors, f"{dag}_1") == {left}, "the Scheduler knows where it is now")
