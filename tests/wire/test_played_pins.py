"""DAGs are created and deleted: what executors are asked to hold, and what becomes of their answers."""

from __future__ import annotations

import itertools

import pytest

from tests.wire.players import Record, Stage, Verdict, dag, decode, encode, messages, ports, until

pytestmark = pytest.mark.cluster


def test_a_pin_names_the_function_and_where_to_answer(stage: Stage) -> None:
    [executor] = stage.executors(1)
    function = stage.function()
    stage.create_dag([function])
    sent = encode(messages.PIN_FUNCTION, {"name": function, "response_address": stage.scheduler_ip})
    assert executor.mailbox.all("pin") == [sent]


def test_a_pin_says_that_the_function_takes_batches(stage: Stage) -> None:
    [executor] = stage.executors(1)
    function = stage.function()
    stage.create_dag([{"name": function, "batching": True}])
    assert executor.received("pin") == [
        {"name": function, "response_address": stage.scheduler_ip, "batching": True}
    ]


def test_every_function_is_pinned_once(stage: Stage) -> None:
    executors = stage.executors(2)
    functions = [stage.function() for _ in range(4)]
    stage.create_dag(functions, list(itertools.pairwise(functions)))
    pinned = [pin.name for executor in executors for pin in executor.received("pin")]
    assert sorted(pinned) == sorted(functions)


def test_a_rejected_pin_goes_to_another_executor(stage: Stage) -> None:
    verdicts = iter([Verdict.REJECT, Verdict.ACCEPT])
    executors = stage.executors(2, verdict=lambda pin: next(verdicts))
    function = stage.function()
    stage.create_dag([function])
    assert [[pin.name for pin in executor.received("pin")] for executor in executors] == [
        [function],
        [function],
    ]


def test_when_all_reject_the_pins_that_were_made_are_undone(stage: Stage) -> None:
    accepted, refused = stage.function("accepted"), stage.function("refused")

    def verdict(pin: Record) -> Verdict:
        return Verdict.ACCEPT if pin.name == accepted else Verdict.REJECT

    executors = stage.executors(2, verdict=verdict)
    name = stage.dag_name()
    reply = stage.client.create_dag(name, [accepted, refused], [(accepted, refused)])
    assert reply == {"success": False, "response_id": reply.response_id, "error": messages.NO_RESOURCES}

    holder, _ = stage.receiver("pin", name=accepted)
    holder.wait_for("unpin", where=lambda unpin: unpin.name == accepted)
    assert stage.client.call_dag(name).error == messages.NO_SUCH_DAG

    for executor in executors:
        executor.verdict = Verdict.ACCEPT
    stage.create_dag([accepted, refused], [(accepted, refused)], name=name)


def test_executors_that_name_themselves_are_asked_at_the_same_time(stage: Stage) -> None:
    executors = stage.executors(2, name_in_answers=lambda executor, pin: f"{executor.location}/{pin.name}")
    functions = [stage.function() for _ in range(2)]
    assert stage.client.delete_dag(stage.create_dag(functions, [(functions[0], functions[1])])).success
    for executor in executors:
        executor.wait_for("unpin")
    stage.settle()

    for executor in executors:
        executor.mailbox.clear()
        executor.verdict = Verdict.HOLD
    name = stage.dag_name()
    stage.client.send(ports.DAG_CREATE, encode(messages.DAG, dag(name, functions, [tuple(functions)])))
    # Both are asked before either has answered, and the answers may come in any order.
    first, _ = stage.receiver("pin", name=functions[0])
    second, _ = stage.receiver("pin", name=functions[1])
    assert first is not second
    second.answer_held()
    first.answer_held()
    assert decode(messages.GENERIC_RESPONSE, stage.client.receive(ports.DAG_CREATE)).success


def test_an_executor_that_runs_a_call_is_asked_for_no_pin(cluster_stage: Stage) -> None:
    [executor] = cluster_stage.executors(1, reports_calls=False)
    function = cluster_stage.function()
    assert cluster_stage.client.call(function).success
    cluster_stage.settle()
    name = cluster_stage.dag_name()
    reply = cluster_stage.client.create_dag(name, [function])
    assert (reply.success, reply.error) == (False, messages.NO_RESOURCES)
    assert executor.received("pin") == []
    executor.report()
    until(lambda: cluster_stage.client.create_dag(name, [function]).success, "it did not come free")


def test_without_executors_there_are_no_resources(stage: Stage) -> None:
    reply = stage.client.create_dag(stage.dag_name(), [stage.function()])
    assert (reply.success, reply.error) == (False, messages.NO_RESOURCES)


def test_a_dag_exists_once(stage: Stage) -> None:
    stage.executors(2)
    function = stage.function()
    name = stage.create_dag([function])
    reply = stage.client.create_dag(name, [function])
    assert (reply.success, reply.error) == (False, messages.DAG_ALREADY_EXISTS)
    assert stage.client.call_dag(name).success


def test_deleting_unpins_and_frees(stage: Stage) -> None:
    [executor] = stage.executors(1)
    function = stage.function()
    name = stage.create_dag([function])
    reply = stage.client.delete_dag(name)
    assert (reply.success, reply.error) == (True, messages.NO_CLOUDBURST_ERROR)
    executor.wait_for("unpin")
    assert executor.mailbox.all("unpin") == [function.encode()]
    assert stage.client.call_dag(name).error == messages.NO_SUCH_DAG
    reply = stage.client.delete_dag(name)
    assert (reply.success, reply.error) == (False, messages.NO_SUCH_DAG)


def test_a_deleted_dag_is_created_again_at_once(stage: Stage) -> None:
    stage.executors(1)
    function = stage.function()
    name = stage.create_dag([function])
    for _ in range(3):
        assert stage.client.delete_dag(name).success
        stage.create_dag([function], name=name)
        assert stage.client.call_dag(name).success


def test_deleting_keeps_what_another_dag_holds(stage: Stage) -> None:
    [executor] = stage.executors(1)
    shared, alone = stage.function("shared"), stage.function("alone")
    kept = stage.create_dag([shared])
    deleted = stage.create_dag([shared, alone], [(shared, alone)])
    assert stage.client.delete_dag(deleted).success
    executor.wait_for("unpin", where=lambda unpin: unpin.name == alone)
    stage.settle()
    assert stage.client.call_dag(kept).success
    assert executor.mailbox.all("unpin") == [alone.encode()]


@pytest.mark.parametrize("status_first", [False, True], ids=["before its status", "overtaken by its status"])
def test_a_late_answer_counts_for_nobody(stage: Stage, status_first: bool) -> None:
    verdicts = iter([Verdict.HOLD, Verdict.ACCEPT])
    executors = stage.executors(2, verdict=lambda pin: next(verdicts))
    slow, fast = stage.function("slow"), stage.function("fast")
    stage.create_dag([slow])
    late = next(executor for executor in executors if slow not in executor.functions)
    late.wait_for("unpin", where=lambda unpin: unpin.name == slow)
    if status_first:  # the two come over different connections
        late.report(functions=[slow])
        late.wait_for("unpin", 2, where=lambda unpin: unpin.name == slow)

    for executor in executors:
        executor.verdict = Verdict.HOLD
    name = stage.dag_name()
    stage.client.send(ports.DAG_CREATE, encode(messages.DAG, dag(name, [fast])))
    asked, _ = stage.receiver("pin", name=fast)
    late.answer_held(slow)
    for executor in executors:
        executor.verdict = Verdict.REJECT
    asked.answer_held(fast, accept=False)
    reply = decode(messages.GENERIC_RESPONSE, stage.client.receive(ports.DAG_CREATE))
    assert (reply.success, reply.error) == (False, messages.NO_RESOURCES)


def test_a_create_that_waits_for_a_pin_delays_no_other_request(stage: Stage) -> None:
    # So many that a scheduler which waits for one after the other is still at it when all is said.
    executors = stage.executors(8, verdict=Verdict.HOLD)
    waiting, known = stage.function("waiting"), stage.function("known")
    name = stage.dag_name()
    with stage.another_client() as creator:
        creator.send(ports.DAG_CREATE, encode(messages.DAG, dag(name, [waiting])))
        stage.receiver("pin", name=waiting)

        assert stage.client.connect()
        assert known in stage.client.list()
        assert stage.client.create_function(known, b"again").success
        assert stage.client.call(known).success
        assert stage.client.call_dag(name).error == messages.NO_SUCH_DAG
        assert stage.client.delete_dag(stage.dag_name()).error == messages.NO_SUCH_DAG

        assert not creator.has_reply(ports.DAG_CREATE)
        for executor in executors:
            executor.verdict = Verdict.ACCEPT
        for executor in executors:
            executor.answer_held()
        assert decode(messages.GENERIC_RESPONSE, creator.receive(ports.DAG_CREATE)).success
        assert stage.client.delete_dag(name).success


def test_a_gpu_function_goes_to_a_gpu_executor(stage: Stage) -> None:
    plain, with_gpu = stage.executor(), stage.executor(gpu=True)
    plain.report()
    stage.settle()
    function = stage.function()
    reply = stage.client.create_dag(stage.dag_name(), [{"name": function, "gpu": True}])
    assert (reply.success, reply.error) == (False, messages.NO_RESOURCES)
    with_gpu.report()
    name = stage.dag_name()
    until(
        lambda: stage.client.create_dag(name, [{"name": function, "gpu": True}]).success,
        "it was not taken in",
    )
    assert stage.client.delete_dag(name).success
    with_gpu.wait_for("unpin")
    with_gpu.report(running=False)
    assert [pin.name for pin in with_gpu.received("pin")] == [function]
    assert plain.received("pin") == []


def test_an_executor_holds_one_function_in_cluster_mode(cluster_stage: Stage) -> None:
    [executor] = cluster_stage.executors(1)
    first, second = cluster_stage.function(), cluster_stage.function()
    cluster_stage.create_dag([first])
    reply = cluster_stage.client.create_dag(cluster_stage.dag_name(), [second])
    assert (reply.success, reply.error) == (False, messages.NO_RESOURCES)
    assert [pin.name for pin in executor.received("pin")] == [first]


def test_an_executor_holds_several_functions_in_local_mode(stage: Stage) -> None:
    [executor] = stage.executors(1)
    functions = [stage.function() for _ in range(3)]
    stage.create_dag(functions, list(itertools.pairwise(functions)))
    assert sorted(pin.name for pin in executor.received("pin")) == sorted(functions)


def test_colocated_functions_share_a_node(cluster_stage: Stage) -> None:
    nodes = [cluster_stage.node() for _ in range(3)]
    executors = [cluster_stage.executor(ip, tid) for ip in nodes for tid in range(2)]
    for executor in executors:
        executor.report()
    cluster_stage.settle()
    functions = [cluster_stage.function() for _ in range(3)]
    cluster_stage.create_dag(functions, list(itertools.pairwise(functions)), colocated=functions[:2])
    ips = {pin.name: executor.ip for executor in executors for pin in executor.received("pin")}
    assert ips[functions[0]] == ips[functions[1]]


def test_a_silent_pin_does_not_stop_later_ones(stage: Stage) -> None:
    [executor] = stage.executors(1, verdict=Verdict.IGNORE)
    reply = stage.client.create_dag(stage.dag_name(), [stage.function()])
    assert (reply.success, reply.error) == (False, messages.NO_RESOURCES)
    # From now on the next anonymous answer may be the late one, and another sign has to do; from the
    # second DAG on the executor holds the function already, and its status says nothing new.
    executor.verdict = Verdict.ACCEPT
    shared = stage.function("shared")
    for _ in range(3):
        assert stage.client.call_dag(stage.create_dag([shared])).success
