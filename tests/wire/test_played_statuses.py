"""What executors tell of themselves, and how calls then go: free, holding, restarted, leaving, overloaded."""

from __future__ import annotations

import time

import pytest

from tests.wire.players import PlayedExecutor, Stage, Verdict, messages, until

pytestmark = pytest.mark.cluster

HIGH = 0.9
"""A utilization above the 70 % at which an executor backs off."""


def receivers(stage: Stage, dag: str, calls: int = 12) -> set[PlayedExecutor]:
    """Which executors get a DAG's calls."""
    replies = [stage.client.call_dag(dag) for _ in range(calls)]
    assert all(reply.success for reply in replies), [reply.error for reply in replies]
    return {stage.receiver("schedule", id=reply.response_id)[0] for reply in replies}


def test_an_executor_that_reports_a_function_gets_its_calls(stage: Stage) -> None:
    first, second = stage.executors(2)
    function = stage.function()
    dag = stage.create_dag([function])
    first.report(functions=[function])
    second.report(functions=[function])
    stage.settle()
    until(lambda: receivers(stage, dag) == {first, second}, "one of the two got no call")


def test_an_executor_that_leaves_gets_nothing_more(stage: Stage) -> None:
    staying, leaving = stage.executors(2)
    function = stage.function()
    dag = stage.create_dag([function])
    for executor in (staying, leaving):
        executor.report(functions=[function])
    leaving.report(running=False)
    stage.settle()
    assert receivers(stage, dag) == {staying}
    for _ in range(8):
        key = stage.client.call(function).response_id
        assert stage.receiver("call", response_key=key)[0] is staying


def test_what_waits_for_an_executor_that_left_is_not_its_successors(stage: Stage) -> None:
    [leaving] = stage.executors(1)
    dag = stage.create_dag([stage.function()])
    leaving.close()  # it hears nothing any more, and what is sent waits
    assert all(stage.client.call_dag(dag).success for _ in range(3))
    leaving.report(running=False)
    stage.settle()
    time.sleep(0.5)  # to one that says goodbye what was on its way may go out for a moment

    successor = stage.executor(leaving.ip)
    successor.report()
    successor.wait_for("pin")
    until(lambda: stage.client.call_dag(dag, client_id="after it").success, "the DAG did not come back")
    successor.wait_for("schedule", where=lambda schedule: schedule.client_id == "after it")
    # Through the same connection they would have come before it.
    assert [schedule.client_id for schedule in successor.received("schedule")] == ["after it"]


def test_a_lost_pin_is_made_again_elsewhere(stage: Stage) -> None:
    one, other = stage.executors(2)
    dag = stage.create_dag([stage.function()])
    holder, spare = (one, other) if one.functions else (other, one)
    holder.report(running=False)
    spare.wait_for("pin")
    until(lambda: stage.client.call_dag(dag).success, "the DAG did not come back")
    assert receivers(stage, dag, 4) == {spare}


def test_a_restarted_executor_is_free_again(cluster_stage: Stage) -> None:
    [executor] = cluster_stage.executors(1)
    first, second = cluster_stage.function(), cluster_stage.function()
    dag = cluster_stage.create_dag([first])
    assert cluster_stage.client.delete_dag(dag).success
    executor.wait_for("unpin")
    executor.report(functions=[])
    cluster_stage.settle()
    cluster_stage.create_dag([second])
    assert [pin.name for pin in executor.received("pin")] == [first, second]


def test_a_status_without_its_function_means_a_restart(stage: Stage) -> None:
    one, other = stage.executors(2)
    function = stage.function()
    dag = stage.create_dag([function])
    for executor in (one, other):
        executor.report(functions=[function])
    stage.settle()
    one.verdict = Verdict.REJECT  # its lost pin is made again, and not there

    def forgotten() -> bool:
        # More than one status: right after a pin the first may have been on its way before it.
        one.report(functions=[])
        stage.settle()
        return receivers(stage, dag) == {other}

    until(forgotten, "a restarted executor still gets calls")


def test_calls_avoid_an_overloaded_executor(cluster_stage: Stage) -> None:
    calm, busy = cluster_stage.executors(2)
    function = cluster_stage.function()
    dag = cluster_stage.create_dag([function])
    calm.report(functions=[function])
    busy.report(functions=[function])
    busy.report(utilization=HIGH)
    cluster_stage.settle()
    assert receivers(cluster_stage, dag) == {calm}


def test_when_all_are_overloaded_there_are_no_resources(cluster_stage: Stage) -> None:
    executors = cluster_stage.executors(2)
    function = cluster_stage.function()
    dag = cluster_stage.create_dag([function])
    for executor in executors:
        executor.report(functions=[function])
    for executor in executors:
        executor.report(utilization=HIGH)
    cluster_stage.settle()
    reply = cluster_stage.client.call_dag(dag)
    assert (reply.success, reply.error) == (False, messages.NO_RESOURCES)
    until(lambda: cluster_stage.client.call_dag(dag).success, "the backoff did not end")


def test_the_only_executor_of_a_function_does_not_back_off(cluster_stage: Stage) -> None:
    [executor] = cluster_stage.executors(1)
    dag = cluster_stage.create_dag([cluster_stage.function()])
    executor.report(utilization=HIGH)
    cluster_stage.settle()
    assert all(cluster_stage.client.call_dag(dag).success for _ in range(5))


def test_too_many_recent_calls_are_an_overload(stage: Stage) -> None:
    [executor] = stage.executors(1)
    dag = stage.create_dag([stage.function()])
    # Calls that grow old meanwhile count no more: there may have to be some beyond the 1,000.
    accepted = 0
    while (reply := stage.client.call_dag(dag)).success and accepted < 10_000:
        accepted += 1
    assert reply.error == messages.NO_RESOURCES
    assert accepted >= 1000
    executor.wait_for("schedule", accepted)
