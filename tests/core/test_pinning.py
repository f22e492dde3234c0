"""The pin transaction: all or nothing, whatever the executors answer, and when."""

from __future__ import annotations

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ray_sched.config import PolicyConfig
from ray_sched.core.executor import Address, Status
from ray_sched.core.executors import ExecutorTable
from ray_sched.core.history import serving
from ray_sched.core.pinning import QUARANTINE_S, Pinning
from ray_sched.core.pins import (
    Demand,
    Effect,
    Finished,
    Forget,
    Pin,
    PinRequest,
    Reserve,
    SendPin,
    SendUnpin,
    Unreserve,
    answer_name,
    parse_answer_name,
)

TIMEOUT_S = 10.0


class Cluster:
    """A table and its pinning, and executors that answer as the test says."""

    def __init__(
        self, *addresses: Address, local: bool = False, capacity: int = 1, gpu: bool = False
    ) -> None:
        self.now = 100.0
        self.table = ExecutorTable(PolicyConfig(), local=local, pin_grace_s=1.0, executor_timeout_s=1e9)
        self.pinning = Pinning(
            self.table, random.Random(1), functions_per_executor=capacity, local=local,
            pin_timeout_s=TIMEOUT_S, settle_s=1.0,
        )  # fmt: skip
        for address in addresses:
            self.status(address, gpu=gpu)

    def status(
        self, address: Address, *functions: str, gpu: bool = False, running: bool = True
    ) -> list[Effect]:
        self.table.on_status(Status(*address, functions, running=running, gpu=gpu), self.now)
        if not running:
            return self.pinning.on_gone(address, self.now)
        return self.pinning.on_status(address, functions, self.now)

    def create(self, dag: str, *functions: str | PinRequest) -> list[Effect]:
        requests = [f if isinstance(f, PinRequest) else PinRequest(f) for f in functions]
        return self.pinning.create(dag, requests, self.now)[1]

    def answer(self, success: bool, pin: SendPin | None = None) -> list[Effect]:
        name = answer_name(pin.address, pin.function) if pin else ""
        return self.pinning.on_answer(success, name, self.now)

    def later(self, seconds: float) -> list[Effect]:
        effects = []
        until = self.now + seconds
        while self.now < until:
            self.now = min(self.now + 1.0, until)
            effects += self.pinning.tick(self.now)
        return effects

    def holders(self, function: str) -> set[Address]:
        return {e.address for e in self.table.functions.get(function, ())}


A, B, C = ("10.0.0.1", 0), ("10.0.0.2", 0), ("10.0.0.3", 0)


def only(effects: list[Effect]) -> Effect:
    assert len(effects) == 1, effects
    return effects[0]


def sent(effects: list[Effect]) -> SendPin:
    pins = [e for e in effects if isinstance(e, SendPin)]
    assert len(pins) == 1, effects
    return pins[0]


def finished(effects: list[Effect]) -> Finished:
    ends = [e for e in effects if isinstance(e, Finished)]
    assert len(ends) == 1, effects
    return ends[0]


def test_what_is_done_for_a_request_is_told_by_its_id_alone() -> None:
    c = Cluster(A, B)
    with serving("r1"):
        first = sent(c.create("one", "f"))
    with serving("r2"):
        assert not c.create("two", "g")  # it waits for the first one's answer
    with serving("r3"):
        second = sent(c.answer(True, first))
    assert (first.origin, second.origin) == ("r1", "r2")
    c.answer(True, second)
    told = {id: [what for _, what in c.pinning.history.about(id)] for id in ("r1", "r2", "r3")}
    assert [what.partition(": ")[0] for what in told["r1"]][:1] == ["pin of f for DAG one"]
    assert told["r1"][-1] == "all 1 pins of DAG one hold (request r1)"
    assert told["r2"][-1] == "all 1 pins of DAG two hold (request r2)"
    assert not told["r3"]
    c.now += 10.0
    c.status(first.address)  # its process has begun anew
    assert c.pinning.history.about("one")[-1][1].endswith("is lost")  # for nobody's request


def test_accepted_pins_complete_the_transaction() -> None:
    c = Cluster(A, B)
    first = sent(c.create("dag", "f", "g"))
    second = sent(c.answer(True))
    end = finished(c.answer(True))
    assert {first.address, second.address} == {A, B}
    assert not end.reason
    assert {p.function for p in end.pins} == {"f", "g"}
    assert c.holders("f") == {first.address}
    assert not c.table.free[False]


def test_a_rejected_pin_goes_to_another_executor() -> None:
    c = Cluster(A, B)
    first = sent(c.create("dag", "f"))
    second = sent(c.answer(False))
    assert second.address != first.address
    assert c.holders("f") == set()
    assert finished(c.answer(True)).pins[0].address == second.address
    assert {e.address for e in c.table.free[False]} == {first.address}


def test_when_all_reject_everything_is_undone() -> None:
    c = Cluster(A, B, C)
    first = sent(c.create("dag", "f", "g"))
    c.answer(True)
    c.answer(False)
    effects = c.answer(False)
    assert SendUnpin(first.address, "f") in effects
    end = finished(effects)
    assert end.pins == ()
    assert "'g'" in end.reason and "rejected" in end.reason
    assert c.holders("f") == set()
    assert c.pinning.pins == {}


def test_without_a_free_executor_it_fails_at_once() -> None:
    c = Cluster()
    assert "add executors" in finished(c.create("dag", "f")).reason


def test_a_silent_executor_is_given_up_and_told_so() -> None:
    c = Cluster(A, B)
    first = sent(c.create("dag", "f"))
    assert c.later(TIMEOUT_S - 0.1) == []
    effects = c.later(0.2)
    assert SendUnpin(first.address, "f") in effects
    assert sent(effects).address != first.address


def test_time_in_which_the_policy_itself_stood_still_gives_nobody_up() -> None:
    c = Cluster(A, B)
    sent(c.create("dag", "f"))
    c.later(1.0)
    c.now += 100.0
    assert c.pinning.tick(c.now) == []
    finished(c.answer(True))


def test_a_late_anonymous_answer_counts_for_nobody() -> None:
    c = Cluster(A, B)
    first = sent(c.create("dag", "f"))
    second = sent(c.later(TIMEOUT_S))
    assert c.answer(True) == []  # whose is it?
    assert c.holders("f") == set()
    assert c.pinning.late_answers == 1
    end = finished(c.status(second.address, "f"))  # its own status settles it
    assert end.pins[0].address == second.address != first.address


def test_an_executor_that_accepts_after_it_was_given_up_is_unpinned() -> None:
    c = Cluster(A, B)
    first = sent(c.create("dag", "f"))
    second = sent(c.later(TIMEOUT_S))
    c.status(second.address, "f")
    assert c.status(first.address, "f") == [SendUnpin(first.address, "f")]
    assert c.holders("f") == {second.address}


def test_anonymous_executors_are_asked_one_at_a_time() -> None:
    c = Cluster(A, B, C)
    sent(c.create("one", "f"))
    assert c.create("two", "g") == []
    sent(c.answer(True))


def test_executors_that_name_themselves_are_asked_at_the_same_time() -> None:
    c = Cluster(A, B, C)
    for dag in ("one", "two", "three"):
        effects = c.create(dag, "f")
        c.answer(True, sent(effects))
    for dag in ("one", "two", "three"):
        c.pinning.release(dag, c.now)
    for address in (A, B, C):
        c.status(address)
    effects = c.create("dag", "f", "g", "h")
    pins = [e for e in effects if isinstance(e, SendPin)]
    assert len(pins) == 3
    for pin in reversed(pins):
        effects = c.answer(True, pin)
    assert len(finished(effects).pins) == 3


def test_an_answer_that_names_someone_else_counts_for_nobody() -> None:
    c = Cluster(A)
    pin = sent(c.create("dag", "f"))
    assert c.answer(True, SendPin(B, "f", False)) == []
    assert c.answer(True, SendPin(A, "g", False)) == []
    finished(c.answer(True, pin))


def test_who_is_named_by_somebody_else_can_be_pinned_on_once_that_has_shown() -> None:
    c = Cluster(A)
    c.pinning.on_answer(True, answer_name(A, "f"), c.now)
    first = sent(c.create("one", "f"))
    assert not c.answer(True)  # its own answers name nobody
    assert finished(c.later(TIMEOUT_S)).reason
    assert not c.status(first.address)
    sent(c.create("two", "f"))
    assert not c.answer(True)  # which may have been the first one's
    assert finished(c.status(A, "f")).pins == (Pin("two", "f", A),)


def test_an_executor_that_vanishes_during_its_pin_is_replaced() -> None:
    c = Cluster(A, B)
    first = sent(c.create("dag", "f"))
    assert sent(c.status(first.address, running=False)).address != first.address


def test_gpu_functions_go_to_gpu_executors_alone() -> None:
    c = Cluster(A, B)
    assert "GPU" in finished(c.create("dag", PinRequest("f", gpu=True))).reason
    c.status(C, gpu=True)
    assert sent(c.create("dag", PinRequest("f", gpu=True))).address == C


def test_in_local_mode_functions_spread_and_then_share() -> None:
    c = Cluster(A, B, local=True, capacity=0)
    pins = []
    effects = c.create("dag", "f", "g", "h")
    while not any(isinstance(e, Finished) for e in effects):
        pins.append(sent(effects))
        effects = c.answer(True)
    assert {p.address for p in pins[:2]} == {A, B}
    assert len(pins) == 3


def test_releasing_a_dag_keeps_what_another_one_holds() -> None:
    c = Cluster(A, local=True, capacity=0)
    for dag in ("one", "two"):
        c.create(dag, "f")
        c.answer(True)
    assert c.pinning.release("one", c.now) == []
    assert c.holders("f") == {A}
    assert only(c.pinning.release("two", c.now)) == SendUnpin(A, "f")
    assert c.holders("f") == set()


def test_creating_again_right_after_deletion_waits_for_the_executor() -> None:
    c = Cluster(A)
    c.create("dag", "f")
    c.answer(True)
    c.pinning.release("dag", c.now)
    assert c.create("dag", "f") == []
    assert sent(c.status(A)).address == A


def test_a_function_is_not_pinned_again_where_its_unpin_could_overtake_the_pin() -> None:
    c = Cluster(A, local=True, capacity=0)
    c.create("dag", "f")
    c.answer(True)
    c.status(A, "f")
    assert SendUnpin(A, "f") in c.pinning.release("dag", c.now)
    assert not [effect for effect in c.create("dag", "f") if isinstance(effect, SendPin)]
    assert sent(c.create("other", "g")).address == A
    c.answer(True)
    assert sent(c.status(A, "g")) == SendPin(A, "f", False)


def test_an_executor_that_never_reports_after_an_unpin_is_taken_for_free() -> None:
    c = Cluster(A)
    c.create("dag", "f")
    c.answer(True)
    c.pinning.release("dag", c.now)
    c.create("dag", "f")
    assert sent(c.later(1.0)).address == A


def test_cancelling_undoes_and_an_acceptance_that_comes_then_is_undone_too() -> None:
    c = Cluster(A)
    number, effects = c.pinning.create("dag", [PinRequest("f")], c.now)
    pin = sent(effects)
    effects = c.pinning.cancel(number, "the client gave up", c.now)
    assert SendUnpin(A, "f") in effects
    assert finished(effects).reason == "the client gave up"
    assert SendUnpin(A, "f") in c.answer(True, pin)
    assert c.holders("f") == set()


@pytest.mark.parametrize("gone", [True, False])
def test_a_lost_pin_is_made_again_elsewhere(gone: bool) -> None:
    c = Cluster(A, B)
    first = sent(c.create("dag", "f"))
    c.answer(True)
    c.later(2.0)
    c.status(first.address, running=not gone)
    assert c.pinning.missing() == {"dag": ["f"]}
    again = sent(c.later(0.1))
    c.answer(True)
    assert c.pinning.missing() == {}
    assert c.holders("f") == {again.address}


def test_a_lost_pin_without_room_is_tried_until_there_is_some() -> None:
    c = Cluster(A)
    c.create("dag", "f")
    c.answer(True)
    c.status(A, running=False)
    assert c.later(0.1) == [Demand("dag", 1, 0)]
    c.status(B)
    assert sent(c.later(1.5)).address == B


def test_colocated_functions_go_to_one_node_and_first_to_the_emptiest() -> None:
    one, two, three = ("10.0.0.1", 0), ("10.0.0.2", 0), ("10.0.0.2", 1)
    c = Cluster(one, two, three)
    f, g = PinRequest("f", colocated=True), PinRequest("g", colocated=True)
    first = sent(c.create("dag", f, g))
    second = sent(c.answer(True))
    assert {first.address, second.address} == {two, three}


def test_after_a_restart_pins_are_taken_over_from_what_executors_report() -> None:
    c = Cluster(A)
    c.status(A, "f")
    c.pinning.adopt("dag", [PinRequest("f")], c.now)
    assert c.pinning.missing() == {}
    assert only(c.pinning.release("dag", c.now)) == SendUnpin(A, "f")


@pytest.mark.parametrize("name", ["", "x", "1.2.3.4/f", "1.2.3.4:x/f", ":1/f", "550e8400-e29b"])
def test_answers_that_name_nobody(name: str) -> None:
    assert parse_answer_name(name) == (None, "")


def test_answer_names_round_trip() -> None:
    assert parse_answer_name(answer_name(("10.0.0.1", 12), "a/b:c")) == (("10.0.0.1", 12), "a/b:c")


class Transactions(RuleBasedStateMachine):
    """Whatever order things happen in: no executor holds more than it may, and what fails is undone."""

    addresses = st.sampled_from([A, B, C])
    functions = st.lists(st.sampled_from(["f", "g", "h"]), min_size=1, max_size=3, unique=True)
    dags = st.sampled_from(["one", "two"])

    def __init__(self) -> None:
        super().__init__()
        self.c = Cluster(A, B, C)
        self.open: set[str] = set()
        self.created: set[str] = set()
        self.asked: list[SendPin] = []
        self.reserved: set[Pin] = set()
        """What Ray would have, if it were as fast as it was told."""
        self.reserving: list[Pin] = []

    def take(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, SendPin):
                self.asked.append(effect)
            elif isinstance(effect, Reserve):
                assert effect.pin not in self.reserved
                self.reserved.add(effect.pin)
                self.reserving.append(effect.pin)
            elif isinstance(effect, Unreserve):
                self.reserved.remove(effect.pin)
            elif isinstance(effect, Finished):
                assert effect.dag in self.open
                self.open.discard(effect.dag)
                if not effect.reason:
                    self.created.add(effect.dag)

    @rule(dag=dags, functions=functions)
    def create(self, dag: str, functions: list[str]) -> None:
        if dag not in self.open | self.created:
            self.open.add(dag)
            self.take(self.c.create(dag, *functions))

    @rule(dag=dags)
    def delete(self, dag: str) -> None:
        if dag in self.created:
            self.created.discard(dag)
            self.take(self.c.pinning.release(dag, self.c.now))

    @rule(accept=st.booleans(), named=st.booleans(), which=st.integers(0, 10))
    def answer(self, accept: bool, named: bool, which: int) -> None:
        if self.asked:
            pin = self.asked.pop(which % len(self.asked))
            self.take(self.c.answer(accept, pin if named else None))

    @rule(
        address=addresses, functions=st.lists(st.sampled_from(["f", "g"]), max_size=1), running=st.booleans()
    )
    def status(self, address: Address, functions: list[str], running: bool) -> None:
        self.take(self.c.status(address, *functions, running=running))

    @rule(address=addresses, covered=st.booleans())
    def cover(self, address: Address, covered: bool) -> None:
        pinning = self.c.pinning
        self.take(pinning.on_covered(address, False) if covered else pinning.on_uncovered(address))

    @rule(has_room=st.booleans(), which=st.integers(0, 10))
    def reserve(self, has_room: bool, which: int) -> None:
        if self.reserving:
            pin = self.reserving.pop(which % len(self.reserving))
            self.take(self.c.pinning.on_reserved(pin, has_room, self.c.now))

    @rule(seconds=st.sampled_from([0.2, 2.0, 15.0, 100.0]))
    def wait(self, seconds: float) -> None:
        self.take(self.c.later(seconds))

    @invariant()
    def holds_together(self) -> None:
        self.c.pinning.validate()
        self.c.table.validate()
        assert set(self.c.pinning.pins) <= self.created | self.open
        assert self.reserved == set(self.c.pinning.ledger.pins)

    def teardown(self) -> None:
        """Every transaction ends, without any further event than time."""
        for _ in range(20):
            self.take(self.c.later(TIMEOUT_S))
        assert not self.open


Transactions.TestCase.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
TestTransactions = Transactions.TestCase


def test_an_executor_that_never_heard_its_unpin_is_told_again() -> None:
    c = Cluster(A)
    c.create("dag", "f")
    c.answer(True)
    c.status(A, "f")
    assert only(c.pinning.release("dag", c.now)) == SendUnpin(A, "f")
    assert c.status(A, "f") == []  # it may have been sent before the unpin came
    c.later(2.0)
    for _ in range(3):
        assert c.status(A, "f") == [SendUnpin(A, "f")]
        c.later(2.0)
    assert c.status(A, "f") == [Forget(A, "f")]  # somebody else wants it there
    assert c.status(A, "f") == []
    assert c.holders("f") == {A}


def test_an_executor_that_went_silent_during_its_pin_and_accepted_it_after_all_is_unpinned() -> None:
    c = Cluster(A, B)
    first = sent(c.create("dag", "f"))
    c.status(first.address, running=False)
    c.answer(True)
    c.later(2.0)
    assert c.status(first.address, "f") == [SendUnpin(first.address, "f")]


def test_what_was_missed_is_made_good_by_the_list_of_dags() -> None:
    c = Cluster(A, B, C)
    for dag in ("kept", "gone"):
        c.create(dag, dag)
        c.answer(True)
    c.now += 1.0
    wanted = {"kept": [PinRequest("kept")], "missed": [PinRequest("missed")]}
    effects = c.pinning.reconcile(wanted, [], c.now, c.now)
    assert [e.function for e in effects if isinstance(e, SendUnpin)] == ["gone"]
    assert sent(c.later(2.0)).function == "missed"


def test_a_list_of_dags_that_is_older_than_what_happened_here_changes_nothing() -> None:
    c = Cluster(A, B)
    as_of = c.now
    c.now += 0.1
    c.create("new", "f")
    c.answer(True)
    assert c.pinning.reconcile({}, [], as_of, c.now) == []
    c.pinning.release("new", c.now)
    c.status(A)
    c.status(B)
    assert c.pinning.reconcile({"new": [PinRequest("f")]}, [], as_of, c.now) == []
    assert c.later(2.0) == []


def test_a_dag_that_is_being_created_is_left_alone() -> None:
    c = Cluster(A)
    pin = sent(c.create("dag", "f"))
    c.now += 1.0
    assert c.pinning.reconcile({}, ["dag"], c.now, c.now) == []
    finished(c.answer(True, pin))


def test_a_creation_that_nobody_waits_for_any_more_is_undone() -> None:
    c = Cluster(A)
    sent(c.create("dag", "f"))
    c.now += 1.0
    effects = c.pinning.reconcile({}, [], c.now, c.now)
    assert SendUnpin(A, "f") in effects
    assert finished(effects).reason


@pytest.mark.parametrize("local", [False, True])
def test_an_empty_node_with_room_comes_before_a_used_one_with_more(local: bool) -> None:
    used = [("10.0.0.1", tid) for tid in range(4)]
    empty = [("10.0.0.2", tid) for tid in range(2)]
    c = Cluster(*used, *empty, local=local, capacity=0 if local else 1)
    c.status(used[0], "other")
    f, g = PinRequest("f", colocated=True), PinRequest("g", colocated=True)
    first = sent(c.create("dag", f, g))
    second = sent(c.answer(True))
    assert {first.address, second.address} == set(empty)


def test_without_an_empty_node_with_room_one_with_room_for_all_is_taken() -> None:
    used = [("10.0.0.1", tid) for tid in range(3)]
    c = Cluster(*used, ("10.0.0.2", 0))
    c.status(used[0], "other")
    f, g = PinRequest("f", colocated=True), PinRequest("g", colocated=True)
    assert {sent(c.create("dag", f, g)).address[0], sent(c.answer(True)).address[0]} == {"10.0.0.1"}


def test_a_late_answer_counts_for_nobody_when_its_status_came_first() -> None:
    c = Cluster(A, B)
    first = sent(c.create("dag", "f"))
    second = sent(c.later(TIMEOUT_S))
    c.status(first.address, "f")  # it accepted after all; its answer is still to come
    assert c.answer(True) == []
    assert c.holders("f") != {second.address}
    finished(c.status(second.address, "f"))


def test_once_every_late_answer_has_come_answers_are_believed_again() -> None:
    c = Cluster(A, B, C)
    sent(c.create("one", "f"))
    second = sent(c.later(TIMEOUT_S))
    c.answer(True)
    finished(c.status(second.address, "f"))
    c.answer(True)
    sent(c.create("two", "g"))
    finished(c.answer(True))


def test_who_held_the_function_before_confirms_its_pin_by_being_seen() -> None:
    c = Cluster(A, B, local=True, capacity=0)
    c.create("one", "f")
    c.answer(True)
    (holder,) = c.holders("f")
    c.later(2.0)
    c.create("silent", "g")
    c.later(3 * TIMEOUT_S)  # nobody answers: from now on unnamed answers are not believed
    c.status(A if holder == B else B, running=False)
    pin = sent(c.create("two", "f"))
    assert pin.address == holder
    assert c.answer(True) == []
    finished(c.pinning.on_seen([holder], c.now))


def reserve(effects: list[Effect]) -> Pin:
    pins = [e.pin for e in effects if isinstance(e, Reserve)]
    assert len(pins) == 1, effects
    return pins[0]


def test_ray_is_asked_for_room_before_the_executor_and_forgets_the_pin_with_it() -> None:
    c = Cluster(A)
    c.pinning.on_covered(A, gpu=True)
    assert c.create("dag", "f") == [Reserve(Pin("dag", "f", A), gpu=True)]
    sent_pin = only(c.pinning.on_reserved(Pin("dag", "f", A), True, c.now))
    assert sent_pin == SendPin(A, "f", False)
    finished(c.answer(True, sent_pin))
    c.status(A, "f")
    assert c.pinning.release("dag", c.now) == [Unreserve(Pin("dag", "f", A)), SendUnpin(A, "f")]


def test_without_room_in_ray_the_function_goes_elsewhere() -> None:
    c = Cluster(A, B)
    for address in (A, B):
        c.pinning.on_covered(address, gpu=False)
    first = reserve(c.create("dag", "f"))
    effects = c.pinning.on_reserved(first, False, c.now)
    assert effects[0] == Unreserve(first)
    second = reserve(effects)
    assert second.address != first.address
    last = c.pinning.on_reserved(second, False, c.now)
    assert Demand("dag", 1, 0) in last
    assert "no executor took 'f'" in finished(last).reason


def test_a_rejected_pin_loses_its_reservation() -> None:
    c = Cluster(A)
    c.pinning.on_covered(A, gpu=False)
    pin = reserve(c.create("dag", "f"))
    effects = c.answer(False, sent(c.pinning.on_reserved(pin, True, c.now)))
    assert effects[0] == Unreserve(pin)
    assert not any(isinstance(e, Demand) for e in effects), "more executors would reject it, too"


def test_pins_that_were_there_before_are_reserved_once_their_executor_is_known_to_hold_a_slot() -> None:
    c = Cluster(A)
    c.create("dag", "f")
    finished(c.answer(True))
    assert c.pinning.on_covered(A, gpu=False) == [Reserve(Pin("dag", "f", A), gpu=False)]
    assert c.pinning.on_covered(A, gpu=False) == []
    assert c.pinning.on_uncovered(A) == [Unreserve(Pin("dag", "f", A))]


def test_what_found_no_room_is_demanded_until_it_has_some() -> None:
    c = Cluster(A)
    c.status(B, gpu=True)
    requests = [PinRequest("f"), PinRequest("g"), PinRequest("h", gpu=True)]
    effects = c.create("dag", *requests)
    c.answer(True)
    assert Demand("dag", 2, 1) in effects, "the whole DAG: what it had is free again"
    c.status(A)
    c.status(C)
    c.create("dag", *requests)
    c.answer(True)
    c.answer(True)
    effects = c.answer(True)
    finished(effects)
    assert Demand("dag", 0, 0) in effects


def test_a_lost_pin_is_demanded_and_no_longer_when_its_dag_is_deleted() -> None:
    c = Cluster(A)
    c.create("dag", "f")
    c.answer(True)
    c.status(A, running=False)
    assert c.later(0.1) == [Demand("dag", 1, 0)]
    assert c.pinning.release("dag", c.now) == [Demand("dag", 0, 0)]


def test_what_finds_no_room_waits_for_an_executor_that_is_being_started_anew() -> None:
    c = Cluster(A)
    c.table.remove(A)
    c.pinning.on_gone(A, c.now, returns=True)
    assert c.create("dag", "f") == []
    assert c.later(1.0) == []
    pin = sent(c.status(A))
    finished(c.answer(True, pin))


def test_but_not_for_ever() -> None:
    c = Cluster(A)
    c.table.remove(A)
    c.pinning.on_gone(A, c.now, returns=True)
    c.create("dag", "f")
    assert "no free executor" in finished(c.later(6.0)).reason


def test_where_ray_counts_them_two_dags_pins_of_one_function_are_two() -> None:
    c = Cluster(A, B, local=True, capacity=1)
    for address in (A, B):
        c.pinning.on_covered(address, gpu=False)
    first = reserve(c.create("one", "f"))
    finished(c.answer(True, sent(c.pinning.on_reserved(first, True, c.now))))
    assert reserve(c.create("two", "f")).address != first.address
    assert "no free executor" in finished(c.create("three", "f")).reason


def test_a_pin_on_its_way_to_an_executor_that_ends_is_taken_back_from_the_next_process() -> None:
    c = Cluster(A)
    finished(c.answer(True, sent(c.create("dag", "f"))))
    c.status(A, "f")
    c.pinning.on_gone(A, c.now, returns=True)
    c.pinning.release("dag", c.now)
    c.status(A)  # the next process, to which a pin from before is on its way
    c.later(2.0)
    assert SendUnpin(A, "f") in c.status(A, "f")


def test_a_refusal_says_what_the_executors_are_at() -> None:
    c = Cluster(A, B, C)
    c.status(B, "old")
    c.table.suspect(C)
    reason = finished(c.create("dag", "f", "g")).reason
    assert "(1 being asked, 1 holding functions, 1 not reached)" in reason


def test_what_cannot_fit_asks_nobody() -> None:
    c = Cluster(A)
    c.pinning.on_covered(A, gpu=False)
    effects = c.create("dag", "f", "g")
    assert [type(effect) for effect in effects] == [Demand, Finished]
    assert reserve(c.create("small", "f"))


# --- what was asked for, and who goes first ---


def test_after_a_restart_nothing_is_pinned_or_unpinned_before_the_dags_are_known() -> None:
    c = Cluster(A, B)
    c.pinning.recall([(A, "f")], c.now)
    assert c.status(A, "f") == []
    assert c.create("new", "g") == []
    assert c.later(3.0) == []
    effects = c.pinning.reconcile({"dag": [PinRequest("f")]}, ["new"], c.now, c.now)
    assert effects == [SendPin(B, "g", False)]
    assert c.pinning.pins == {"dag": [Pin("dag", "f", A)]}


def test_what_was_asked_for_before_a_restart_and_no_dag_has_is_unpinned() -> None:
    c = Cluster(A, B)
    c.pinning.recall([(A, "f")], c.now)
    c.status(A, "f")
    c.status(B, "f")  # another scheduler's: never asked for here
    c.later(2.0)
    assert c.pinning.reconcile({}, [], c.now, c.now) == [SendUnpin(A, "f")]
    c.later(2.0)
    assert c.status(A, "f") == [SendUnpin(A, "f")]
    assert c.status(B, "f") == []


def test_without_a_time_to_settle_what_was_never_asked_for_is_left_alone_too() -> None:
    c = Cluster(A)
    c.pinning._settle_s = 0.0
    assert c.status(A, "f") == []
    assert c.pinning.reconcile({}, [], c.now, c.now) == []


def test_no_more_is_taken_over_at_an_executor_than_it_may_hold() -> None:
    c = Cluster(A)
    c.status(A, "f")
    c.table.pinned(A, "g", c.now)  # one of the two is what it had before
    c.pinning.reconcile({"one": [PinRequest("f")], "two": [PinRequest("g")]}, [], c.now, c.now)
    assert c.pinning.pins["one"] == [Pin("one", "f", A)]
    assert c.pinning.missing() == {"two": ["g"]}
    c.pinning.validate()


def test_an_executor_that_reports_after_the_dags_are_known_gives_its_pin_back() -> None:
    c = Cluster(local=True, capacity=0)
    c.pinning.recall([(A, "f"), (A, "g")], c.now)
    c.pinning.reconcile({"one": [PinRequest("f")], "two": [PinRequest("f")]}, [], c.now, c.now)
    assert c.status(A, "f", "g") == [SendUnpin(A, "g")]
    assert c.pinning.pins == {"one": [Pin("one", "f", A)], "two": [Pin("two", "f", A)]}


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("reported", [(), (A,), (A, B)], ids=len)
def test_after_a_restart_two_dags_of_one_function_do_not_get_the_same_executor(
    local: bool, reported: tuple[Address, ...]
) -> None:
    c = Cluster(local=local, capacity=1)
    c.pinning.recall([(A, "f"), (B, "f")], c.now)
    for address in reported:
        c.status(address, "f")
    c.pinning.reconcile({"one": [PinRequest("f")], "two": [PinRequest("f")]}, [], c.now, c.now)
    for address in (A, B):
        assert c.status(address, "f") == []
    taken = {pin.address for dag in ("one", "two") for pin in c.pinning.pins[dag]}
    assert [len(c.pinning.pins[dag]) for dag in ("one", "two")] == [1, 1]
    assert taken == {A, B}


def test_an_unpin_that_nobody_heard_is_made_good_though_no_status_changes() -> None:
    c = Cluster(A)
    c.create("dag", "f")
    c.answer(True)
    c.status(A, "f")
    c.pinning.release("dag", c.now)
    c.status(A, "f")  # it was sent before the unpin came, which is lost
    c.later(5.0)
    assert c.pinning.reconcile({}, [], c.now, c.now) == [SendUnpin(A, "f")]


def test_what_no_executor_has_is_forgotten_and_then_another_schedulers_to_pin_there() -> None:
    c = Cluster(A)
    c.create("dag", "f")
    c.answer(True)
    c.status(A, "f")
    c.pinning.release("dag", c.now)
    assert c.status(A) == [Forget(A, "f")]
    c.later(5.0)
    assert c.status(A, "f") == []
    assert c.pinning.reconcile({}, [], c.now, c.now) == []


def test_what_an_executor_reports_without_the_function_that_it_has_not_taken_yet_forgets_nothing() -> None:
    c = Cluster(A)
    c.create("dag", "f")
    c.later(TIMEOUT_S)
    assert c.status(A) == []  # the pin may still be on its way to it
    assert c.status(A, "f") == [SendUnpin(A, "f")]
    assert c.status(A) == [Forget(A, "f")]


def test_a_pin_that_nobody_answered_is_forgotten_when_it_cannot_be_on_its_way_any_more() -> None:
    c = Cluster(A)
    c.create("dag", "f")
    c.later(TIMEOUT_S)
    c.status(A)
    c.later(QUARANTINE_S - 2.0)
    assert c.pinning.reconcile({}, [], c.now, c.now) == []
    c.later(2.0)
    assert c.pinning.reconcile({}, [], c.now, c.now) == [Forget(A, "f")]
    assert c.status(A, "f") == []


def test_what_an_executor_rejected_is_another_schedulers_to_pin_there() -> None:
    c = Cluster(A)
    pin = sent(c.create("dag", "f"))
    assert Forget(A, "f") in c.answer(False, pin)
    c.later(5.0)
    assert c.status(A, "f") == []
    assert c.pinning.reconcile({}, [], c.now, c.now) == []


def test_a_rejection_without_a_name_may_be_another_executors() -> None:
    c = Cluster(A)
    c.create("dag", "f")
    assert Forget(A, "f") not in c.answer(False)
    c.later(5.0)
    assert c.status(A, "f") == [SendUnpin(A, "f")]


def test_a_status_that_names_the_function_after_its_unpin_confirms_the_pin_as_well() -> None:
    c = Cluster(A)
    c.create("dag", "f")
    c.answer(True)
    c.pinning.release("dag", c.now)
    assert c.status(A, "f") == []  # sent before the unpin came
    assert c.status(A) == [Forget(A, "f")]
    c.later(5.0)
    assert c.status(A, "f") == []


def test_a_status_that_comes_before_the_acceptance_names_the_function_as_well() -> None:
    c = Cluster(A)
    c.create("dag", "f")
    c.status(A, "f")
    c.answer(True)
    c.pinning.release("dag", c.now)
    assert c.status(A) == [Forget(A, "f")]


def test_a_status_from_before_the_pin_does_not_tell_that_the_unpin_was_heard() -> None:
    c = Cluster(A)
    c.create("dag", "f")
    c.answer(True)
    c.pinning.release("dag", c.now)
    assert Forget(A, "f") not in c.status(A)  # the acceptance overtook it
    c.later(5.0)
    assert c.status(A, "f") == [SendUnpin(A, "f")]


def test_an_executor_that_rejects_what_it_was_asked_for_before_may_hold_it_since() -> None:
    c = Cluster(A)
    c.create("first", "f")
    c.later(TIMEOUT_S)
    pin = sent(c.create("second", "f"))
    assert Forget(A, "f") not in c.answer(False, pin)
    c.later(5.0)
    assert c.status(A, "f") == [SendUnpin(A, "f")]


def test_a_pin_that_is_accepted_after_it_was_forgotten_is_taken_back() -> None:
    c = Cluster(A)
    pin = sent(c.create("dag", "f"))
    c.answer(False, pin)
    assert c.answer(True, pin) == [SendUnpin(A, "f")]
    c.later(5.0)
    assert c.status(A, "f") == [SendUnpin(A, "f")]


def test_a_pin_that_is_accepted_when_nobody_expected_it_any_more_is_taken_back() -> None:
    c = Cluster(A)
    pin = sent(c.create("dag", "f"))
    c.later(TIMEOUT_S + QUARANTINE_S)
    c.status(A)
    assert c.pinning.reconcile({}, [], c.now, c.now) == [Forget(A, "f")]
    assert c.answer(True, pin) == [SendUnpin(A, "f")]


def test_a_pin_that_was_on_its_way_when_statuses_told_of_the_one_before_it_is_taken_back() -> None:
    c = Cluster(A)
    c.create("first", "f")
    c.later(TIMEOUT_S)
    pin = sent(c.create("second", "f"))
    c.pinning.release("second", c.now)
    c.status(A, "f")  # of the first pin,
    assert Forget(A, "f") in c.status(A)  # and of its unpin
    assert c.answer(True, pin) == [SendUnpin(A, "f")]


def test_what_a_dag_is_just_getting_is_no_other_dags_to_take_over() -> None:
    c = Cluster(A, B)
    c.pinning.recall([(A, "f"), (B, "f")], c.now)
    wanted = [PinRequest("f")]
    c.pinning.reconcile({"old": wanted}, [], c.now, c.now)
    pin = sent(c.create("new", "f"))
    c.status(pin.address, "f")  # it has accepted; its answer is on its way
    c.answer(True, pin)
    assert c.pinning.pins["new"] == [Pin("new", "f", pin.address)]
    assert c.pinning.missing() == {"old": ["f"]}


def test_a_function_that_is_pinned_anew_is_not_forgotten_by_the_end_of_the_pin_before() -> None:
    c = Cluster(A)
    for _ in range(2):
        c.create("dag", "f")
        c.answer(True)
        c.status(A, "f")
        c.pinning.release("dag", c.now)
        c.later(2.0)
    pin = sent(c.create("dag", "f"))
    assert c.status(A) == []
    c.later(TIMEOUT_S)
    assert c.status(A, "f") == [SendUnpin(A, "f")], pin


def test_a_new_dag_gets_no_room_that_a_lost_pin_waits_for() -> None:
    c = Cluster(A)
    c.create("old", "f")
    c.answer(True)
    c.status(A, running=False)
    assert Demand("old", 1, 0) in c.later(2.0)  # there is no room
    c.status(B)
    assert finished(c.create("new", "g")).reason
    assert c.later(2.0) == [SendPin(B, "f", False)]
    c.answer(True)
    assert not c.pinning.missing()


def test_lost_pins_go_before_new_dags_that_wait() -> None:
    c = Cluster(A)
    c.create("old", "f")
    c.answer(True)
    c.table.died(A)
    assert c.pinning.on_gone(A, c.now, returns=True) == []
    assert c.later(1.0) == []  # it waits for the process that follows
    c.create("new", "g")
    assert sent(c.status(A)).function == "f"


def test_answers_of_those_whom_nobody_knows_are_not_kept() -> None:
    c = Cluster(A)
    for number in range(1000):
        c.answer(True, SendPin(("10.9.9.9", number), "f", False))
    assert c.pinning._named == set()
