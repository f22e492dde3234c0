"""A group with two ingress shards: the same contract, and what several processes could break.

Some of the tests of calls are those of a group with one ingress, once more before this one. The whole suite
runs before such groups with `RAY_SCHED_INGRESS_SHARDS=2` in its environment.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from tests.wire.conftest import CLUSTER, Scheduler, scheduler, told_of
from tests.wire.players import (
    AnnaClient,
    LegacyClient,
    NoReplyError,
    PlayedManagement,
    Record,
    Stage,
    messages,
    until,
)
from tests.wire.test_played_calls import (  # noqa: F401 - they run here, too
    test_a_call_is_forwarded_as_it_came,
    test_a_call_takes_the_executor_until_its_next_status_in_cluster_mode,
    test_a_call_without_a_response_key_gets_one,
    test_a_queued_call_that_nobody_can_take_stores_an_error_value,
    test_an_executor_that_holds_a_function_gets_no_calls_in_cluster_mode,
    test_an_unknown_dag_is_named_so,
    test_sources_are_triggered_and_nobody_else,
    test_the_storage_tier_says_where_its_data_lies,
)
from tests.wire.test_played_statuses import (  # noqa: F401
    test_a_restarted_executor_is_free_again,
    test_calls_avoid_an_overloaded_executor,
)

pytestmark = pytest.mark.cluster

WAIT_S = 60.0
SHARDS = 2


@pytest.fixture(scope="module")
def sharded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scheduler]:
    """With two shards, in cluster mode."""
    if request.config.getoption("--target", ""):
        pytest.skip("how many shards a target has is not known")
    management = PlayedManagement("127.34.2.9")
    try:
        yield from scheduler(
            request, tmp_path_factory, CLUSTER, "127.34.2.1",
            "--executors", "0", "--mgmt", management.ip, "--layout", "wide",
            layout="wide", settings={"RAY_SCHED_INGRESS_SHARDS": str(SHARDS)}, management=management,
        )  # fmt: skip
    finally:
        management.close()


@pytest.fixture
def stage(sharded: Scheduler, node_addresses: Iterator[str]) -> Iterator[Stage]:
    with Stage(sharded.ip, node_addresses, layout=sharded.layout) as stage:
        yield stage


@pytest.fixture
def cluster_stage(stage: Stage) -> Stage:
    return stage


def at_once(stage: Stage, clients: int, calls: int, function: str) -> list[Record]:
    """The replies to as many calls of each of some clients, all at the same time."""
    replies: list[Record] = []

    def ask() -> None:
        with LegacyClient(stage.scheduler_ip, timeout_s=WAIT_S) as client:
            replies.extend(client.call(function) for _ in range(calls))

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    return replies


def test_no_executor_is_booked_twice(stage: Stage) -> None:
    executors = stage.executors(12, reports_calls=False)
    function = stage.function()
    for round_ in range(1, 4):
        replies = at_once(stage, clients=8, calls=4, function=function)
        assert len(replies) == 32
        accepted = [reply.response_id for reply in replies if reply.success]
        assert len(set(accepted)) == len(accepted) == len(executors)
        assert {reply.error for reply in replies if not reply.success} == {messages.NO_RESOURCES}
        for executor in executors:
            assert len(executor.wait_for("call", round_)) == round_
            executor.report()  # it is free again, and each shard hears so
        stage.settle()


def test_each_status_reaches_every_shard(stage: Stage) -> None:
    executor, other = stage.executors(2)
    function = stage.function()
    dag = stage.create_dag([function])
    stage.receiver("pin", name=function)
    holder, idle = (executor, other) if executor.received("pin") else (other, executor)
    idle.report(functions=[function])
    stage.settle()
    holder.report(running=False)

    def only_idle_is_picked() -> bool:
        before = len(holder.received("schedule"))
        assert all(stage.client.call_dag(dag).success for _ in range(4 * SHARDS))
        return len(holder.received("schedule")) == before

    until(only_idle_is_picked, "a shard did not hear that the executor left")


def test_calls_go_on_when_a_shard_is_killed(stage: Stage, sharded: Scheduler, anna: AnnaClient) -> None:
    [executor] = stage.executors(1)
    dag = stage.create_dag([stage.function()])
    pid = int(told_of(sharded)["actors"]["ingress-1"]["pid"])
    stopping = threading.Event()
    answered: list[str] = []
    unanswered: list[str] = []

    def ask(name: str) -> None:
        number = 0
        while not stopping.is_set():
            number += 1
            key = f"{name}-{number}"
            # A client as they are: it gives up after a while, and asks anew on another connection.
            with LegacyClient(stage.scheduler_ip, timeout_s=5.0) as client:
                try:
                    reply = client.call_dag(dag, output_key=key)
                except NoReplyError:
                    unanswered.append(key)
                    continue
            if reply.success:
                answered.append(reply.response_id)

    clients = [threading.Thread(target=ask, args=(f"client{n}",)) for n in range(4)]
    for client in clients:
        client.start()
    try:
        until(lambda: len(answered) > 50, "no calls went through", WAIT_S)
        os.kill(pid, signal.SIGKILL)
        killed_at = len(answered)
        until(lambda: len(answered) > killed_at + 50, "calls stopped with the shard", WAIT_S)
        until(lambda: restarted(sharded, pid), "the shard did not come back", WAIT_S)
    finally:
        stopping.set()
        for client in clients:
            client.join(WAIT_S)
    assert len(set(answered)) == len(answered), "a call was answered twice"
    assert len(unanswered) <= len(clients), "more went unanswered than were under way"

    def none_is_lost() -> bool:
        executor.report()  # were it silent, it would be that for which its calls are answered
        unsent = set(answered) - {schedule.output_key for schedule in executor.received("schedule")}
        # What the shard had answered, and not sent yet, has an error value.
        return all(anna.get(key).error == messages.NO_ERROR for key in unsent)

    until(none_is_lost, "a call was acknowledged and ended in silence", WAIT_S)


def restarted(sharded: Scheduler, pid: int) -> bool:
    """Whether the shard has a new process that decides calls."""
    told = told_of(sharded)["actors"]["ingress-1"]
    return told.get("pid", pid) != pid and told["lease_valid"] and told["counts"].get("dag_calls", 0) > 0


def test_the_status_command_tells_of_the_shards(stage: Stage, sharded: Scheduler) -> None:
    function = stage.function()
    before = told_of(sharded)
    assert {"ingress", "ingress-1", "ingress-2"} <= set(before["actors"])
    for _ in range(4):
        assert not stage.client.call(function).success
    after = told_of(sharded)
    assert after["counts"]["refused"] - before["counts"].get("refused", 0) == 4
    assert all(after["actors"][f"ingress-{n}"]["lease_valid"] for n in (1, 2))
