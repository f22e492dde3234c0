"""What a call becomes: exactly these messages, to exactly these executors, or nothing at all."""

from __future__ import annotations

import random
import uuid

import pytest

from ray_sched.config import PolicyConfig
from ray_sched.core.arrivals import Arrivals
from ray_sched.core.dags import plan_of
from ray_sched.core.dispatch import CALL, SCHEDULE, TRIGGER, Dispatcher
from ray_sched.core.executor import Status
from ray_sched.core.executors import ExecutorTable
from ray_sched.core.policies import load_policy
from ray_sched.errors import BadMessageError, NoResourcesError, NoSuchDagError
from ray_sched.values import to_value
from ray_sched.wire import cloudburst_pb2 as cb

NOW, UNIX = 10.0, 1_600_000_000.25


def dag(name: str, functions: list[str], links: list[tuple[str, str]]) -> cb.Dag:
    message = cb.Dag(name=name)
    for function in functions:
        message.functions.add(name=function)
    for source, sink in links:
        message.connections.add(source=source, sink=sink)
    return message


DIAMOND = dag("diamond", ["a", "b", "c", "d"], [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")])


class Setting:
    def __init__(self, *dags: cb.Dag, local: bool = False, **policy: object) -> None:
        config = PolicyConfig(name="random", **policy)  # type: ignore[arg-type]
        self.table = ExecutorTable(config, local=local, pin_grace_s=1.0, executor_timeout_s=1e9)
        self.arrivals = Arrivals()
        self.dispatcher = Dispatcher(
            self.table,
            {d.name: plan_of(d) for d in dags},
            load_policy(config),
            random.Random(1),
            self.arrivals,
        )

    def executor(self, tid: int, *functions: str, ip: str = "10.0.0.1", utilization: float = 0.0) -> None:
        self.table.on_status(Status(ip, tid, functions, utilization), 0.0)

    def call_dag(self, call: cb.DagCall) -> tuple[str, dict[str, cb.DagSchedule], list[cb.DagTrigger]]:
        dispatched = self.dispatcher.call_dag(call, NOW, UNIX)
        schedules = {}
        triggers = []
        for executor, kind, body in dispatched[1]:
            if kind == SCHEDULE:
                schedule = cb.DagSchedule.FromString(body)
                schedules[schedule.target_function] = schedule
                assert schedule.locations[schedule.target_function] == executor.name
            else:
                assert kind == TRIGGER
                triggers.append(cb.DagTrigger.FromString(body))
        return dispatched[0], schedules, triggers


@pytest.fixture
def diamond() -> Setting:
    s = Setting(DIAMOND)
    for tid, function in enumerate("abcd"):
        s.executor(tid, function)
    return s


def test_every_function_gets_the_whole_schedule(diamond: Setting) -> None:
    call = cb.DagCall(
        name="diamond", response_address="tcp://h:1", consistency=cb.MULTI, output_key="out", client_id="me"
    )
    call.function_args["a"].values.append(to_value(1))
    response_id, schedules, _ = diamond.call_dag(call)
    assert response_id == "out"
    upstream = {"a": ["BEGIN"], "b": ["a"], "c": ["a"], "d": ["b", "c"]}
    for name, schedule in schedules.items():
        assert schedule == cb.DagSchedule(
            id=schedules["a"].id,
            dag=DIAMOND,
            target_function=name,
            consistency=cb.MULTI,
            triggers=upstream[name],
            locations={function: f"10.0.0.1:{tid}" for tid, function in enumerate("abcd")},
            arguments={"a": cb.Arguments(values=[to_value(1)])},
            response_address="tcp://h:1",
            output_key="out",
            client_id="me",
            start_time=UNIX,
            continuation=cb.Continuation(),
        )
        assert schedule.HasField("continuation")
    assert set(schedules) == set("abcd")


def test_only_sources_are_triggered_by_the_scheduler(diamond: Setting) -> None:
    _, schedules, triggers = diamond.call_dag(cb.DagCall(name="diamond"))
    assert triggers == [cb.DagTrigger(id=schedules["a"].id, target_function="a", source="BEGIN")]


def test_schedules_are_sent_before_the_triggers(diamond: Setting) -> None:
    kinds = [kind for _, kind, _ in diamond.dispatcher.call_dag(cb.DagCall(name="diamond"), NOW, UNIX)[1]]
    assert kinds == [SCHEDULE] * 4 + [TRIGGER]


def test_without_an_output_key_the_id_of_the_schedule_is_answered(diamond: Setting) -> None:
    response_id, schedules, _ = diamond.call_dag(cb.DagCall(name="diamond"))
    assert response_id == schedules["a"].id
    assert uuid.UUID(response_id).version == 4


def test_ids_differ(diamond: Setting) -> None:
    assert len({diamond.dispatcher.new_id() for _ in range(1000)}) == 1000


def test_a_dag_that_is_not_known_is_refused(diamond: Setting) -> None:
    with pytest.raises(NoSuchDagError, match="'other'"):
        diamond.dispatcher.call_dag(cb.DagCall(name="other"), NOW, UNIX)


def test_nothing_is_sent_or_counted_unless_every_function_finds_an_executor(diamond: Setting) -> None:
    diamond.executor(3, running_elsewhere := "other")
    assert running_elsewhere not in "abcd"
    with pytest.raises(NoResourcesError, match="'d'"):
        diamond.dispatcher.call_dag(cb.DagCall(name="diamond"), NOW, UNIX)
    assert diamond.arrivals.take() is None
    assert all(e.recent == 0 for e in diamond.table.executors.values())


def test_a_continuation_appends_the_result_to_every_source_and_keeps_the_id() -> None:
    s = Setting(dag("join", ["x", "y", "z"], [("x", "z"), ("y", "z")]))
    for tid, function in enumerate("xyz"):
        s.executor(tid, function)
    call = cb.DagCall(name="ignored", output_key="out")
    call.function_args["x"].values.append(to_value("first"))
    result = to_value(9)
    dispatched = s.dispatcher.continue_dag(
        cb.Continuation(name="join", id="req-1", result=result.SerializeToString(), call=call), NOW, UNIX
    )
    schedule = cb.DagSchedule.FromString(dispatched[1][0][2])
    assert schedule.id == "req-1"
    assert list(schedule.arguments["x"].values) == [to_value("first"), result]
    assert list(schedule.arguments["y"].values) == [result]
    assert "z" not in schedule.arguments


def test_a_one_shot_call_is_passed_on_and_its_key_answered() -> None:
    s = Setting()
    s.executor(1)
    call = cb.FunctionCall(
        name="f", request_id=7, response_key="key", arguments=cb.Arguments(values=[to_value(2)])
    )
    dispatched = s.dispatcher.call(call, NOW)
    ((executor, kind, body),) = dispatched[1]
    assert (executor.name, kind, dispatched[0]) == ("10.0.0.1:1", CALL, "key")
    assert cb.FunctionCall.FromString(body) == call


def test_a_one_shot_call_without_a_key_gets_one() -> None:
    s = Setting()
    s.executor(1)
    dispatched = s.dispatcher.call(cb.FunctionCall(name="f"), NOW)
    assert uuid.UUID(dispatched[0])
    assert cb.FunctionCall.FromString(dispatched[1][0][2]).response_key == dispatched[0]


def test_a_one_shot_call_takes_an_unpinned_executor_and_keeps_it_busy() -> None:
    s = Setting()
    s.executor(1, "g")
    s.executor(2)
    assert s.dispatcher.call(cb.FunctionCall(name="f"), NOW)[1][0][0].tid == 2
    with pytest.raises(NoResourcesError):
        s.dispatcher.call(cb.FunctionCall(name="f"), NOW)


def test_in_local_mode_an_executor_stays_free() -> None:
    s = Setting(local=True)
    s.executor(1, "g")
    for _ in range(3):
        assert s.dispatcher.call(cb.FunctionCall(name="f"), NOW)[1][0][0].tid == 1


def test_a_call_of_the_storage_tier_goes_where_the_data_is() -> None:
    for seed in range(20):
        s = Setting(local=True)
        s.dispatcher._rng.seed(seed)
        s.executor(0, ip="10.0.0.1")
        s.executor(0, ip="10.0.0.2")
        near = cb.FunctionCall(name="f", source_hint=cb.STORAGE, locations=["10.0.0.9", "10.0.0.2"])
        assert s.dispatcher.call(near, NOW)[1][0][0].ip == "10.0.0.2"
        elsewhere = cb.FunctionCall(name="f", source_hint=cb.STORAGE, locations=["10.0.0.9"])
        assert s.dispatcher.call(elsewhere, NOW)[1]


def test_locations_steer_the_storage_tiers_calls_alone() -> None:
    s = Setting(local=True)
    s.executor(0, ip="10.0.0.1")
    s.executor(0, ip="10.0.0.2")
    call = cb.FunctionCall(name="f", locations=["10.0.0.2"])
    assert {s.dispatcher.call(call, NOW)[1][0][0].ip for _ in range(20)} == {"10.0.0.1", "10.0.0.2"}


def test_one_shot_calls_overload_an_executor_too() -> None:
    s = Setting(local=True, max_recent_calls=3)
    s.executor(0)
    for _ in range(4):
        s.dispatcher.call(cb.FunctionCall(name="f"), NOW)
    with pytest.raises(NoResourcesError):
        s.dispatcher.call(cb.FunctionCall(name="f"), NOW)


def test_overloaded_executors_mean_no_resources() -> None:
    s = Setting(dag("d", ["f"], []), max_recent_calls=3)
    s.executor(0, "f")
    for _ in range(4):
        s.dispatcher.call_dag(cb.DagCall(name="d"), NOW, UNIX)
    with pytest.raises(NoResourcesError):
        s.dispatcher.call_dag(cb.DagCall(name="d"), NOW, UNIX)


@pytest.mark.parametrize("overload", ["refuse", "keep-last"])
def test_whom_messages_do_not_reach_gets_none_though_a_share_goes_to_the_overloaded(overload: str) -> None:
    setting = Setting(dag("d", ["f"], []), local=True, random_threshold=1.0, overload=overload)
    for tid in (0, 1, 2):
        setting.executor(tid, "f", utilization=0.9 if tid == 1 else 0.0)
    setting.table.suspect(("10.0.0.1", 2), full=True)
    call = cb.DagCall(name="d")
    for _ in range(50):
        dispatched = [setting.dispatcher.call_dag(call, NOW, UNIX), setting.dispatcher.call(one_shot(), NOW)]
        assert {executor.tid for _, sends in dispatched for executor, _, _ in sends} <= {0, 1}
    setting.table.suspect(("10.0.0.1", 0), full=True)
    if overload == "keep-last":
        for _ in range(50):
            ((executor, _, _), *_) = setting.dispatcher.call_dag(call, NOW, UNIX)[1]
            assert executor.tid == 1
    setting.table.suspect(("10.0.0.1", 1), full=True)
    with pytest.raises(NoResourcesError):
        setting.dispatcher.call_dag(call, NOW, UNIX)
    with pytest.raises(NoResourcesError):
        setting.dispatcher.call(one_shot(), NOW)


def one_shot() -> cb.FunctionCall:
    return cb.FunctionCall(name="f", response_key="key")


def test_arrivals_are_counted(diamond: Setting) -> None:
    for seconds in (0.0, 0.5, 0.75):
        diamond.dispatcher.call_dag(cb.DagCall(name="diamond"), NOW + seconds, UNIX)
    batch = diamond.arrivals.take()
    assert batch is not None
    assert batch.functions == dict.fromkeys("abcd", 3)
    assert batch.dags == {"diamond": [0.5, 0.25]}


def test_a_call_without_a_name_is_refused() -> None:
    s = Setting(local=True)
    s.executor(0)
    with pytest.raises(BadMessageError):
        s.dispatcher.call(cb.FunctionCall(), NOW)


def test_a_call_whose_messages_would_fill_the_memory_is_refused() -> None:
    names = [f"f{number}" for number in range(200)]
    s = Setting(dag("long", names, []), local=True)
    s.executor(0, *names)
    call = cb.DagCall(name="long")
    call.function_args["f0"].values.add(body=bytes(6 * 2**20))
    with pytest.raises(BadMessageError, match="too large"):
        s.call_dag(call)
