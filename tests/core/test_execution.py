from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_sched.core.destination import Destination
from ray_sched.core.execution import (
    AnswerPin,
    CallArrived,
    CallRequest,
    DagRequest,
    DepartArrived,
    Drop,
    Effect,
    Event,
    Execution,
    Fail,
    Finished,
    Forget,
    Leave,
    Load,
    Loaded,
    PinArrived,
    Report,
    Run,
    ScheduleArrived,
    Tick,
    TriggerArrived,
    UnpinArrived,
)
from ray_sched.core.open_calls import OpenCalls
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire import internal_pb2 as internal


def execution(*, max_functions: int = 0, batch_size: int = 3, limit: int = 100) -> Execution:
    return Execution(
        max_functions=max_functions,
        batch_size=batch_size,
        schedule_timeout_s=10.0,
        trigger_timeout_s=5.0,
        depart_timeout_s=2.0,
        limit=limit,
    )


def schedule(
    call: str, function: str = "f", triggers: Iterable[str] = ("BEGIN",), *, multi: bool = False
) -> cb.DagSchedule:
    message = cb.DagSchedule(id=call, target_function=function, triggers=triggers)
    message.dag.functions.add(name=function, type=cb.MULTIEXEC if multi else cb.REGULAR)
    message.arguments[function].values.add(body=b"own")
    message.arguments["other"].values.add(body=b"not ours")
    return message


def trigger(call: str, function: str = "f", source: str = "BEGIN") -> cb.DagTrigger:
    message = cb.DagTrigger(id=call, target_function=function, source=source)
    if source != "BEGIN":
        message.arguments.values.add(body=source.encode())
    return message


def pin(name: str, *, batching: bool = False) -> internal.PinFunction:
    return internal.PinFunction(name=name, response_address="127.0.0.1", batching=batching)


def feed(core: Execution, *events: Event, now: float = 0.0) -> list[Effect]:
    return [effect for event in events for effect in core.handle(event, now)]


def hold(core: Execution, name: str, *, batching: bool = False) -> None:
    feed(core, PinArrived(pin(name, batching=batching)))
    assert core.next_work() == Load(pin(name, batching=batching))
    feed(core, Loaded(pin(name, batching=batching)))


def runs(core: Execution) -> list[Run]:
    """All that is ready, each run ended with success."""
    found = []
    while isinstance(work := core.next_work(), Run):
        found.append(work)
        feed(core, Finished(work, (True,) * len(work.requests)))
    return found


def bodies(run: Run) -> list[list[bytes]]:
    return [[value.body for value in request.arguments] for request in run.requests]


# Joining.


@pytest.mark.parametrize("schedule_first", [True, False])
def test_a_function_runs_once_schedule_and_trigger_are_there(schedule_first: bool) -> None:
    core = execution()
    events: list[Event] = [ScheduleArrived(schedule("1"), 7), TriggerArrived(trigger("1"))]
    for event in events if schedule_first else reversed(events):
        assert core.next_work() is None
        feed(core, event)
    (run,) = runs(core)
    assert run == Run("f", (run.requests[0],), False)
    assert (run.requests[0].entry, bodies(run)) == (7, [[b"own"]])


def test_what_waits_for_triggers_is_told_from_what_goes_on_by_itself() -> None:
    def to(call: str) -> Destination:
        return Destination.of_result(schedule(call))

    core, begun = execution(), {1: to("waits"), 2: to("ready"), 3: to("multi"), 4: to("just came")}
    feed(core, ScheduleArrived(schedule("waits", triggers=["a", "b"]), 1))
    feed(core, ScheduleArrived(schedule("ready"), 2), ScheduleArrived(schedule("multi", multi=True), 3))
    assert core.open_calls(begun) == OpenCalls(
        ["just came"], [("waits", ("f", 0)), ("ready", ("f", 0)), ("multi", ("f", 0))]
    )
    feed(core, TriggerArrived(trigger("waits", "f", "b")))
    feed(core, TriggerArrived(trigger("ready")), TriggerArrived(trigger("multi")))
    told = OpenCalls(["ready", "multi", "just came"], [("waits", ("f", 1))])
    assert core.open_calls(begun) == told
    running = core.next_work()
    assert isinstance(running, Run)
    assert core.open_calls(begun) == told
    feed(core, Finished(running, (True,)))
    invalid = core.next_work()
    assert isinstance(invalid, Run)
    feed(core, Finished(invalid, (False,)))
    assert core.open_calls({1: to("waits"), 3: to("multi")}) == OpenCalls(
        [], [("waits", ("f", 1)), ("multi", ("f", 0))]
    )


def test_one_call_may_run_several_functions_here() -> None:
    core = execution()
    feed(core, ScheduleArrived(schedule("1", "f"), 1), ScheduleArrived(schedule("1", "g"), 2))
    feed(core, TriggerArrived(trigger("1", "g")))
    assert [run.function for run in runs(core)] == ["g"]


def test_the_same_call_may_come_again_after_it_has_ended() -> None:
    core = execution()
    for _ in range(2):
        feed(core, ScheduleArrived(schedule("1"), 1), TriggerArrived(trigger("1")))
        assert len(runs(core)) == 1


def test_a_schedule_that_came_twice_is_run_once() -> None:
    core = execution()
    effects = feed(core, ScheduleArrived(schedule("1"), 1), ScheduleArrived(schedule("1"), 2))
    assert effects == [Forget(2), Drop("schedule")]
    feed(core, TriggerArrived(trigger("1")))
    assert [run.requests[0].entry for run in runs(core)] == [1]


def test_triggers_of_unknown_functions_and_duplicates_do_not_count() -> None:
    core = execution()
    feed(core, ScheduleArrived(schedule("1", triggers=["a", "b"]), 1), TriggerArrived(trigger("1", "f", "a")))
    for source in ("a", "x"):
        assert feed(core, TriggerArrived(trigger("1", "f", source))) == [Drop("trigger")]
    assert core.next_work() is None
    feed(core, TriggerArrived(trigger("1", "f", "b")))
    assert bodies(runs(core)[0]) == [[b"own", b"a", b"b"]]


@settings(deadline=None)
@given(data=st.data(), sources=st.lists(st.sampled_from("abcdef"), min_size=1, unique=True))
def test_the_order_of_arrival_changes_nothing(data: st.DataObject, sources: list[str]) -> None:
    events: list[Event] = [TriggerArrived(trigger("1", "f", source)) for source in sources]
    events += [TriggerArrived(trigger("1", "f", s)) for s in data.draw(st.lists(st.sampled_from(sources)))]
    events.append(ScheduleArrived(schedule("1", "f", sources), 1))
    core = execution()
    found = []
    for event in data.draw(st.permutations(events)):
        feed(core, event)
        found += runs(core)
    (run,) = found
    assert bodies(run) == [[b"own", *(source.encode() for source in sources)]]
    assert core.waiting == 0


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("st"), st.sampled_from("12"), st.sampled_from("fg"), st.sampled_from("ab")),
        max_size=40,
    ),
    st.booleans(),
)
def test_every_schedule_ends_exactly_once(steps: list[tuple[str, str, str, str]], multi: bool) -> None:
    core = execution(limit=3)
    taken: list[int] = []
    ended: Counter[int] = Counter()

    def note(effects: list[Effect]) -> None:
        ended.update(effect.entry for effect in effects if isinstance(effect, (Fail, Forget)))

    for number, (kind, call, function, source) in enumerate(steps):
        if kind == "s":
            taken.append(number)
            event: Event = ScheduleArrived(schedule(call, function, ["a", "b"], multi=multi), number)
        else:
            event = TriggerArrived(trigger(call, function, source))
        note(core.handle(event, float(number)))
        assert core.waiting <= 3
        for run in runs(core):
            ended.update(request.entry for request in run.requests)
    note(feed(core, Tick(), now=1000.0))
    assert sorted(ended.elements()) == taken
    assert core.waiting == 0


# MULTIEXEC.


def test_multiexec_runs_for_one_trigger_after_the_other_until_one_counts() -> None:
    core = execution()
    feed(core, TriggerArrived(trigger("1", "f", "a")), TriggerArrived(trigger("1", "f", "b")))
    feed(core, ScheduleArrived(schedule("1", "f", ["a", "b", "c"], multi=True), 1))
    for source in (b"a", b"b"):
        run = core.next_work()
        assert isinstance(run, Run)
        assert bodies(run) == [[b"own", source]]
        assert core.next_work() is None
        feed(core, Finished(run, (False,)))
    assert core.next_work() is None
    feed(core, TriggerArrived(trigger("1", "f", "c")))
    assert len(runs(core)) == 1
    assert core.waiting == 0
    feed(core, TriggerArrived(trigger("1", "f", "a")))
    assert core.next_work() is None


def test_multiexec_does_not_expire_while_it_runs() -> None:
    core = execution()
    feed(
        core,
        ScheduleArrived(schedule("1", "f", ["a"], multi=True), 1),
        TriggerArrived(trigger("1", "f", "a")),
    )
    run = core.next_work()
    assert isinstance(run, Run)
    assert feed(core, Tick(), now=100.0) == []
    assert feed(core, Finished(run, (False,)), Tick(), now=100.0) == []
    (failed,) = feed(core, Tick(), now=111.0)
    assert isinstance(failed, Fail)


# Batches.


def test_a_batching_function_gets_what_is_queued_up_to_the_batch_size() -> None:
    core = execution()
    hold(core, "f", batching=True)
    hold(core, "g")
    for number in range(4):
        feed(core, ScheduleArrived(schedule(str(number)), number), TriggerArrived(trigger(str(number))))
        feed(core, CallArrived(cb.FunctionCall(name="f"), 10 + number))
    feed(core, ScheduleArrived(schedule("5", "g"), 5), TriggerArrived(trigger("5", "g")))
    found = [(run.function, run.batched, [request.entry for request in run.requests]) for run in runs(core)]
    assert found == [
        ("f", True, [0, 1, 2]),
        ("f", False, [10]),
        ("f", False, [11]),
        ("f", False, [12]),
        ("f", True, [3]),
        ("f", False, [13]),
        ("g", False, [5]),
    ]


def test_requests_with_another_number_of_arguments_or_consistency_are_another_batch() -> None:
    core = execution()
    hold(core, "f", batching=True)
    longer, causal = schedule("2"), schedule("3")
    longer.arguments["f"].values.add(body=b"more")
    causal.consistency = cb.SINGLE
    for number, message in enumerate((schedule("1"), longer, causal, schedule("4"))):
        feed(core, ScheduleArrived(message, number), TriggerArrived(trigger(message.id)))
    assert [[request.entry for request in run.requests] for run in runs(core)] == [[0, 3], [1], [2]]


# Pins.


def test_a_pin_is_answered_once_the_function_is_loaded() -> None:
    core = execution()
    assert feed(core, PinArrived(pin("f"))) == []
    assert core.next_work() == Load(pin("f"))
    assert feed(core, Loaded(pin("f"))) == [AnswerPin(pin("f"), True), Report()]
    assert core.functions == ("f",)


def test_a_function_that_cannot_be_loaded_is_refused() -> None:
    core = execution()
    feed(core, PinArrived(pin("f")))
    core.next_work()
    assert feed(core, Loaded(pin("f"), cb.FUNC_NOT_FOUND)) == [
        AnswerPin(pin("f"), False, cb.FUNC_NOT_FOUND),
        Report(),
    ]
    assert core.functions == ()


def test_a_pin_too_many_is_refused_also_while_the_first_is_queued() -> None:
    core = execution(max_functions=1)
    feed(core, PinArrived(pin("f")))
    refusal = [AnswerPin(pin("g"), False, cb.NO_RESOURCES), Report()]
    assert feed(core, PinArrived(pin("g"))) == refusal
    assert core.next_work() == Load(pin("f"))
    feed(core, Loaded(pin("f")))
    assert feed(core, PinArrived(pin("g"))) == refusal
    hold(core, "f")
    assert feed(core, UnpinArrived("f")) == [Report()]
    hold(core, "g")
    assert core.functions == ("g",)


def test_an_unpin_recalls_a_pin_that_is_queued() -> None:
    core = execution()
    feed(core, PinArrived(pin("f")), PinArrived(pin("g")))
    assert feed(core, UnpinArrived("f")) == [AnswerPin(pin("f"), False), Report()]
    assert core.next_work() == Load(pin("g"))
    assert core.next_work() is None


def test_an_unpin_of_what_is_not_pinned_is_dropped() -> None:
    assert feed(execution(), UnpinArrived("f")) == [Drop("unpin")]


def test_pins_come_before_calls() -> None:
    core = execution()
    feed(core, CallArrived(cb.FunctionCall(name="f"), 1), PinArrived(pin("g")))
    assert core.next_work() == Load(pin("g"))
    assert core.next_work() == Run("f", (CallRequest(cb.FunctionCall(name="f"), 1),), False)


# What waits too long, or is too much.


def test_a_schedule_without_triggers_fails() -> None:
    core = execution()
    feed(core, ScheduleArrived(schedule("1"), 1), now=0.0)
    feed(core, ScheduleArrived(schedule("2", "f", ["a", "b"]), 2), now=1.0)
    feed(core, TriggerArrived(trigger("2", "f", "a")), now=9.0)
    assert feed(core, Tick(), now=9.9) == []
    first, second = feed(core, Tick(), now=11.0)
    assert isinstance(first, Fail)
    assert isinstance(second, Fail)
    assert (first.entry, first.is_source) == (1, True)
    assert (second.entry, second.is_source) == (2, False)
    assert "'b'" in second.reason
    assert "'a'" not in second.reason


def test_a_trigger_without_a_schedule_is_dropped() -> None:
    core = execution()
    feed(core, TriggerArrived(trigger("1")), TriggerArrived(trigger("1")))
    assert feed(core, Tick(), now=4.9) == []
    assert feed(core, Tick(), now=5.0) == [Drop("trigger")] * 2
    feed(core, ScheduleArrived(schedule("1"), 1), now=5.0)
    assert core.next_work() is None


def test_the_oldest_of_too_many_waits_no_longer() -> None:
    core = execution(limit=2)
    effects = feed(core, *(ScheduleArrived(schedule(str(number)), number) for number in range(3)))
    assert [effect.entry for effect in effects if isinstance(effect, Fail)] == [0]
    effects = feed(core, *(TriggerArrived(trigger(str(number), "g")) for number in range(3)))
    assert effects == [Drop("trigger")]


# Departing.


def test_a_departing_executor_finishes_and_leaves() -> None:
    core = execution()
    hold(core, "f")
    feed(core, PinArrived(pin("g")), ScheduleArrived(schedule("1"), 1), ScheduleArrived(schedule("2"), 2))
    feed(core, CallArrived(cb.FunctionCall(name="f"), 3))
    assert feed(core, DepartArrived()) == [AnswerPin(pin("g"), False), Report()]
    assert core.functions == ()
    assert feed(core, DepartArrived()) == []
    assert feed(core, PinArrived(pin("f"))) == [AnswerPin(pin("f"), False, cb.NO_RESOURCES), Report()]
    assert [run.requests[0].entry for run in runs(core)] == [3]
    assert core.next_work() is None
    feed(core, TriggerArrived(trigger("1")))
    assert [run.requests[0].entry for run in runs(core)] == [1]
    (failed,) = feed(core, Tick(), now=2.0)
    assert isinstance(failed, Fail)
    assert core.next_work() == Leave()


def test_a_pin_that_was_being_loaded_when_it_departed_is_refused() -> None:
    core = execution()
    feed(core, PinArrived(pin("f")))
    core.next_work()
    feed(core, DepartArrived())
    assert feed(core, Loaded(pin("f"))) == [AnswerPin(pin("f"), False), Report()]
    assert core.functions == ()


def test_a_schedule_without_its_dag_runs_all_the_same() -> None:
    core = execution()
    feed(core, ScheduleArrived(cb.DagSchedule(id="1", target_function="f", triggers=["BEGIN"]), 1))
    feed(core, TriggerArrived(trigger("1")))
    (run,) = runs(core)
    assert isinstance(run.requests[0], DagRequest)
    assert run.requests[0].arguments == []


def test_no_more_pins_wait_than_a_thousand() -> None:
    core = execution()
    assert feed(core, *(PinArrived(pin(f"f{number}")) for number in range(1000))) == []
    assert feed(core, PinArrived(pin("late"))) == [AnswerPin(pin("late"), False, cb.NO_RESOURCES), Report()]
    core.next_work()
    assert feed(core, PinArrived(pin("late"))) == []


def test_triggers_of_a_multiexec_function_that_runs_do_not_pile_up() -> None:
    core = execution(limit=10)
    feed(
        core,
        ScheduleArrived(schedule("1", multi=True), 1),
        *(TriggerArrived(trigger("1")) for _ in range(11)),
    )
    assert feed(core, TriggerArrived(trigger("1"))) == [Drop("trigger")]
    assert isinstance(core.next_work(), Run)
