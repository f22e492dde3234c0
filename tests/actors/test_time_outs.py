"""A group whose store or executors do not answer in time: what was begun is undone and can be tried again."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import ray_sched
from ray_sched.actors import names
from ray_sched.actors.catalog import DAG_INDEX
from ray_sched.actors.messages import Booked, StatusSeen
from ray_sched.actors.policy import missed
from ray_sched.config import Config
from ray_sched.core.destination import Destination
from ray_sched.core.dispatch import seq_at
from ray_sched.core.executor import Status
from ray_sched.core.executors import ExecutorTable
from ray_sched.core.open_calls import Doubtful
from ray_sched.core.pins import PinRequest
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire import ports
from tests.actors.in_process import group
from tests.system.conftest import eventually
from tests.wire.players import (
    LegacyClient,
    PlayedAnna,
    PlayedExecutor,
    Pusher,
    Record,
    Verdict,
    decode,
    encode,
    messages,
)

HOST, STORE, NODE, OTHER = "127.0.37.1", "127.0.37.2", "127.0.37.3", "127.0.37.4"
FUNCTION = "f"

Actors = dict[str, Any]


@pytest.fixture(scope="module")
def pusher() -> Iterator[Pusher]:
    pusher = Pusher()
    yield pusher
    pusher.close()


@pytest.fixture(scope="module")
def anna(pusher: Pusher) -> Iterator[PlayedAnna]:
    anna = PlayedAnna(STORE, pusher)
    yield anna
    anna.close()


@pytest.fixture(scope="module")
def config(anna: PlayedAnna, tmp_path_factory: pytest.TempPathFactory) -> Config:
    return Config(host=HOST).replace(
        **{
            "kvs.host": STORE,
            "kvs.timeout_s": 1.0,
            "kvs.retries": 0,
            "scheduler.request_timeout_s": 2.0,
            "scheduler.table_timeout_s": 0.05,
            # The played executor does not go on to say that it is there.
            "scheduler.executor_timeout_s": 600.0,
            # So that nothing is made good by the look at all DAGs that comes once in a while.
            "stats.policy_period_s": 600.0,
            "executor.runtime_dir": str(tmp_path_factory.mktemp("runtime")),
        }
    )


@pytest.fixture(scope="module")
def actors(config: Config) -> Iterator[Actors]:
    with group(config) as actors:
        yield actors


@pytest.fixture
def client(actors: Actors) -> Iterator[LegacyClient]:
    with LegacyClient(HOST) as client:
        assert client.create_function(FUNCTION, b"never run").success
        yield client


@pytest.fixture
def executor(actors: Actors, pusher: Pusher) -> Iterator[PlayedExecutor]:
    def known() -> bool:
        return bool(actors[names.POLICY].status()["executors"])

    def named(executor: PlayedExecutor, pin: Record) -> str:
        return f"{executor.location}/{pin.name}"

    with PlayedExecutor(NODE, 0, HOST, pusher, name_in_answers=named) as executor:
        executor.report()
        eventually(known, "the executor is known")
        yield executor
        executor.report(running=False)
        eventually(lambda: not known(), "the executor is gone")


def test_what_needs_no_store_is_answered_while_it_is_silent(
    client: LegacyClient, executor: PlayedExecutor, anna: PlayedAnna
) -> None:
    assert client.create_dag("dag", [FUNCTION]).success
    anna.silent = True
    try:
        assert client.connect()
        assert FUNCTION in client.list()
        assert client.call_dag("dag").success
        assert client.call(FUNCTION).success
    finally:
        anna.silent = False
    assert client.delete_dag("dag").success


def test_a_store_that_falls_silent_when_all_is_pinned_gets_the_pins_given_back(
    client: LegacyClient, executor: PlayedExecutor, anna: PlayedAnna
) -> None:
    def fall_silent(pin: Record) -> Verdict:
        anna.silent = True
        return Verdict.ACCEPT

    executor.verdict = fall_silent
    reply = client.create_dag("dag", [FUNCTION])
    anna.silent = False
    assert (reply.success, reply.error) == (False, messages.NO_RESOURCES)
    assert [unpin.name for unpin in executor.wait_for("unpin")] == [FUNCTION]
    assert client.call_dag("dag").error == messages.NO_SUCH_DAG

    executor.verdict = Verdict.ACCEPT
    assert client.create_dag("dag", [FUNCTION]).success
    assert client.call_dag("dag").success
    assert client.delete_dag("dag").success


def test_a_failed_creation_leaves_nothing_in_the_store(
    client: LegacyClient, executor: PlayedExecutor, anna: PlayedAnna, config: Config
) -> None:
    def stored() -> bytes:
        return bytes(decode(messages.LWW_VALUE, anna.stored["dag"][1]).value)

    index = DAG_INDEX + config.group_name
    anna.failing[index] = messages.TIMEOUT
    try:
        reply = client.create_dag("dag", [FUNCTION])
    finally:
        del anna.failing[index]
    assert not reply.success
    eventually(lambda: stored() == b"", "the DAG is erased again")

    assert client.create_dag("dag", [FUNCTION]).success
    assert FUNCTION.encode() in stored()
    assert client.delete_dag("dag").success


def test_a_dag_whose_deletion_the_store_does_not_answer_goes_on_to_exist(
    client: LegacyClient, executor: PlayedExecutor, anna: PlayedAnna
) -> None:
    assert client.create_dag("dag", [FUNCTION]).success
    anna.silent = True
    reply = client.delete_dag("dag")
    anna.silent = False
    assert (reply.success, reply.error) == (False, messages.NO_RESOURCES)
    assert client.call_dag("dag").success
    assert executor.received("unpin") == []
    assert client.delete_dag("dag").success
    assert client.call_dag("dag").error == messages.NO_SUCH_DAG


def test_pins_that_are_not_answered_in_the_time_of_a_request_are_taken_back(
    client: LegacyClient, executor: PlayedExecutor
) -> None:
    executor.verdict = Verdict.HOLD
    reply = client.create_dag("dag", [FUNCTION])  # long before the pin's own time-out
    assert (reply.success, reply.error) == (False, messages.NO_RESOURCES)
    executor.wait_for("unpin")
    # It accepts what nobody waits for any more.
    executor.verdict = Verdict.ACCEPT
    assert executor.answer_held() == 1
    executor.wait_for("unpin", 2)
    assert client.create_dag("dag", [FUNCTION]).success
    assert client.delete_dag("dag").success


def test_what_an_executor_has_given_up_is_another_schedulers_to_pin_there(
    actors: Actors, client: LegacyClient, executor: PlayedExecutor
) -> None:
    def is_watched() -> bool:
        """Whether it is told to unpin it should it report it."""
        return ((NODE, 0), FUNCTION) in actors[names.POLICY]._record.asked

    assert client.create_dag("dag", [FUNCTION]).success
    assert is_watched()
    assert client.delete_dag("dag").success
    # It reports after each change.
    eventually(lambda: not is_watched(), "the unpin is known to have come")


def test_whom_the_ingress_cannot_reach_the_policy_leaves_out_until_it_reports_or_has_room(
    actors: Actors, executor: PlayedExecutor
) -> None:
    loop = actors[names.INGRESS]._loop

    def is_left_out() -> bool:
        (known,) = actors[names.POLICY].status()["executors"]
        return bool(known["overloaded"])

    assert not is_left_out()
    loop.mailbox.put(lambda now: loop._on_unsendable((NODE, 0)))
    eventually(is_left_out, "the Policy leaves it out")
    executor.report()
    eventually(lambda: not is_left_out(), "it is taken again")
    loop.mailbox.put(lambda now: loop._on_full((NODE, 0)))
    eventually(is_left_out, "the Policy leaves it out")
    loop.mailbox.put(lambda now: loop._on_room((NODE, 0)))
    eventually(lambda: not is_left_out(), "it is taken again")


def test_what_got_lost_on_its_way_from_the_ingress_the_policy_asks_for(
    actors: Actors, executor: PlayedExecutor
) -> None:
    loop, policy = actors[names.INGRESS]._loop, actors[names.POLICY]
    unheard = Status(OTHER, 5, ("g",))
    loop.mailbox.put(lambda now: loop._table.on_status(unheard, now, seq_at(now)))

    def known() -> dict[str, list[str]]:
        return {told["address"]: told["functions"] for told in policy.status()["executors"]}

    policy.on_events([], (7, 2))  # there was another one before it
    eventually(lambda: known().get(f"{OTHER}:5") == ["g"], "the Policy knows it, too")
    assert f"{NODE}:0" in known()
    leaves = unheard._replace(running=False, functions=())
    loop.mailbox.put(lambda now: loop._take_status(leaves, now, seq_at(now)))
    eventually(lambda: f"{OTHER}:5" not in known(), "it is gone")


def test_what_the_policy_missed_is_what_was_heard_since_and_brings_nobody_back() -> None:
    config = Config()
    ingress, policy = (
        ExecutorTable(config.policy, local=False, pin_grace_s=1.0, executor_timeout_s=15.0) for _ in range(2)
    )
    for seq, address in enumerate([(NODE, 0), (NODE, 1), (NODE, 2), (NODE, 3), (OTHER, 0)], 1):
        for table in (ingress, policy):
            table.on_status(Status(*address, () if address[1] == 3 else ("f",)), 20.0, seq)
    policy.remove((NODE, 1))  # silent, as far as the Policy knows
    ingress.on_status(Status(NODE, 2, ("f", "g")), 21.0, 10)
    ingress.on_status(Status(OTHER, 0, ("h",), process=5), 21.0, 11)  # another process than before
    ingress.on_status(Status(OTHER, 1), 21.0, 12)
    ingress.on_status(Status(OTHER, 2, ("long ago",)), 1.0, 13)
    for address in ((NODE, 3), (OTHER, 1)):
        ingress.booked(address, 14)
    for table, seq in ((policy, 15), (ingress, 15)):
        table.on_status(Status(NODE, 4), 20.0, seq)
        table.booked((NODE, 4), seq + 1)
    ingress.on_status(Status(NODE, 4), 21.0, 17)  # it is free again
    heard = list(missed(policy, ingress.records(), 6.0))
    assert [event for event in heard if isinstance(event, StatusSeen)] == [
        StatusSeen(Status(NODE, 2, ("f", "g")), 10, 21.0),
        StatusSeen(Status(OTHER, 0, running=False, process=5), 10, 21.0),
        StatusSeen(Status(OTHER, 0, ("h",), process=5), 11, 21.0),
        StatusSeen(Status(OTHER, 1), 14, 21.0),
        StatusSeen(Status(NODE, 4), 17, 21.0),
    ]
    assert [event for event in heard if isinstance(event, Booked)] == [
        Booked((NODE, 3), 14),
        Booked((OTHER, 1), 14),
    ]


def test_a_scheduler_that_knows_no_executors_yet_takes_no_call_for_lost(
    actors: Actors, monkeypatch: pytest.MonkeyPatch
) -> None:
    restarted = actors[names.SCHEDULER]
    untold = threading.Event()
    monkeypatch.setattr(untold, "set", lambda: None)  # the Policy goes on to tell
    monkeypatch.setattr(restarted._leasing, "fresh", untold)
    call = Doubtful(((NODE, 0),), Destination("k", "", "k", False, "base", False))
    with pytest.raises(ray_sched.NoResourcesError, match="has not told yet"):
        restarted.settle_calls([call])


def test_what_was_refused_before_it_was_heard_of_does_not_happen(
    actors: Actors, client: LegacyClient, executor: PlayedExecutor
) -> None:
    scheduler, past = actors[names.SCHEDULER], time.monotonic() - 0.001
    dag = cb.Dag(name="dag", functions=[cb.Dag.FunctionReference(name=FUNCTION)]).SerializeToString()
    function = cb.Function(name="late", body=b"never run").SerializeToString()
    for decision in (
        scheduler.request_dag(ports.DAG_CREATE, dag, past),
        scheduler.request_function(ports.FUNCTION_CREATE, function, past),
        scheduler.decide(ports.FUNCTION_CALL, cb.FunctionCall(name=FUNCTION).SerializeToString(), past),
    ):
        assert cb.GenericResponse.FromString(decision.reply.body).error == cb.NO_RESOURCES
        assert decision.sends == ()
    pinned = actors[names.POLICY].pin_dag("dag", [PinRequest(FUNCTION)], past)
    assert pinned.pins == () and pinned.reason
    assert client.list("late") == []
    assert client.call_dag("dag").error == messages.NO_SUCH_DAG
    assert executor.received("pin") == []


def test_cached_keys_stay_known_while_the_store_is_silent(
    config: Config, anna: PlayedAnna, pusher: Pusher, caplog: pytest.LogCaptureFixture
) -> None:
    cached = encode(
        messages.LWW_VALUE, {"timestamp": 1, "value": encode(messages.STRING_SET, {"keys": ["k"]})}
    )
    anna.stored[f"ANNA_METADATA|cache_ip|{NODE}"] = (messages.LWW, cached)

    def known() -> int:
        keys: int = actors[names.POLICY].status()["cached_keys"]
        return keys

    with (
        group(config.replace(host=OTHER, **{"stats.policy_period_s": 0.2})) as actors,
        PlayedExecutor(NODE, 1, OTHER, pusher) as executor,
    ):
        executor.report()
        eventually(lambda: known() == 1, "the cached key is known")
        anna.silent = True
        eventually(lambda: "the cached keys stay as they were" in caplog.text, "a read that fails")
        anna.silent = False
        assert known() == 1
