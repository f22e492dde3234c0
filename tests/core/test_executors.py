"""What a status changes, and what overload means: the legacy policy suite's behaviours, one by one."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ray_sched.config import PolicyConfig
from ray_sched.core.executor import Executor, Status
from ray_sched.core.executors import OURS_GRACE_S, ExecutorTable
from ray_sched.core.replication import Publisher

A, B = ("10.0.0.1", 0), ("10.0.0.2", 1)


def table(*, local: bool = False, **policy: object) -> ExecutorTable:
    return ExecutorTable(PolicyConfig(**policy), local=local, pin_grace_s=1.0, executor_timeout_s=15.0)  # type: ignore[arg-type]


def status(address: tuple[str, int] = A, *functions: str, **fields: object) -> Status:
    return Status(*address, functions, **fields)  # type: ignore[arg-type]


def holders(t: ExecutorTable, function: str) -> set[tuple[str, int]]:
    return {e.address for e in t.functions.get(function, ())}


def free(t: ExecutorTable, gpu: bool = False) -> set[tuple[str, int]]:
    return {e.address for e in t.free[gpu]}


def test_an_executor_without_functions_is_free() -> None:
    t = table()
    assert t.on_status(status(), 0.0)
    assert free(t) == {A}


def test_a_status_takes_the_executor_out_of_the_free_set_and_adds_its_functions() -> None:
    t = table()
    t.on_status(status(), 0.0)
    t.on_status(status(A, "f", "g"), 1.0)
    assert free(t) == set()
    assert holders(t, "f") == holders(t, "g") == {A}


def test_in_local_mode_an_executor_with_functions_stays_free() -> None:
    t = table(local=True)
    t.on_status(status(A, "f"), 0.0)
    assert free(t) == {A}


def test_a_status_without_its_former_functions_means_a_restart() -> None:
    t = table()
    t.on_status(status(A, "f", "g"), 0.0)
    t.on_status(status(A), 5.0)
    assert holders(t, "f") == holders(t, "g") == set()
    assert free(t) == {A}


def test_a_status_of_another_process_tells_the_end_of_the_one_before_it() -> None:
    t = table()
    assert t.unheard_end(status(process=7)) is None  # it is new here
    t.on_status(status(A, "f", process=7), 0.0)
    assert t.unheard_end(status(A, process=7)) is None
    end = t.unheard_end(status(A, "f", process=8, reconnections=3))
    assert end == status(process=8, running=False)
    assert t.unheard_end(status(process=8, running=False)) is None  # it says so itself


def test_a_late_status_of_a_process_that_ended_is_known_for_what_it_is() -> None:
    t = table()
    t.on_status(status(A, "f", process=7), 0.0)
    assert not t.is_of_the_ended(status(process=7))
    t.on_status(status(process=8, running=False), 1.0)
    t.on_status(status(process=8), 1.0)
    assert t.is_of_the_ended(status(A, "f", process=7))
    assert not t.is_of_the_ended(status(process=8))
    t.on_status(status(process=8, running=False), 2.0)  # it leaves
    assert not t.is_of_the_ended(status(process=8))
    assert not t.is_of_the_ended(status())


def test_the_first_process_has_no_number_and_the_next_one_tells_its_end() -> None:
    t = table()
    t.on_status(status(A, "f"), 0.0)
    assert t.unheard_end(status(A)) is None
    assert t.unheard_end(status(A, process=7)) is not None
    t.on_status(status(process=7, running=False), 1.0)
    t.on_status(status(process=7), 1.0)
    t.on_status(status(A, "f"), 1.1)  # of the first, on its way for longer
    assert t.unheard_end(status(process=7)) is None


def test_a_copy_knows_which_process_reported() -> None:
    t, copy = table(), table()
    t.on_status(status(A, "f", process=7), 0.0, 1)
    record = t.record(A)
    assert record is not None
    copy.apply(record)
    assert copy.unheard_end(status(A, process=8)) is not None
    # Where the word of another one comes this way first, its own status tells the end all the same.
    copy.apply(dataclasses.replace(record, process=8, seq=2))
    assert copy.unheard_end(status(A, process=8)) is not None


def test_what_calls_depend_on_is_pressing_until_it_is_told_and_one_executor_more_is_not() -> None:
    t = table()
    publisher = Publisher(t, epoch=1)

    def presses(*happening: Any) -> bool:
        """Whether it is to be told at once; then it is told."""
        _happens(t, happening[0], list(happening[1:]), 1.0, next(seqs))
        pressing = t.pressing
        publisher.next_update(1.0)
        assert not t.pressing
        return pressing

    seqs = itertools.count(1)
    assert presses("status", status(A))  # it came
    assert presses("status", status(B, "f"))
    assert presses("status", status(A, "g"))  # it is taken
    assert not presses("again", A, 0.1)
    assert not presses("status", status(A, "g", "f"))  # f has one more
    assert presses("status", status(A, "g", "f", "h"))  # h had none
    assert presses("status", status(A, "g", "f"))
    assert not presses("pinned", B, "g", True)
    assert presses("unpinned", B, "g")
    assert presses("status", status(A))  # it is free
    assert presses("called", A)
    assert presses("status", status(A))
    t.book(t.executors[A], 1000)
    assert t.pressing
    publisher.next_update(1.0)
    t.booked(A, 1001)  # it is taken already, which whoever took it does not know
    assert (t.pressing, A in t.dirty) == (True, True)
    publisher.next_update(1.0)
    t.on_status(status(A), 1.0, 1002)
    publisher.next_update(1.0)
    t.booked(A, 1001)  # that has ended
    assert (t.pressing, A in t.dirty, t.executors[A].free) == (True, True, True)
    publisher.next_update(1.0)
    assert presses("told of it", A)  # it is free, which whoever took it unheard of here does not know
    assert not presses("told of it", B)  # it holds functions
    assert presses("status", status(A, running=False))
    assert presses("gossip", ("10.0.0.9", 0), "f")


def test_a_status_that_names_a_function_twice_counts_it_once() -> None:
    t = table()
    t.on_status(status(A, "f", "f"), 0.0)
    t.on_status(status(A), 2.0)
    assert holders(t, "f") == set()
    t.validate()


def test_running_false_removes_the_executor_everywhere() -> None:
    t = table()
    t.on_status(status(A, "f"), 0.0)
    t.on_status(status(B), 0.0)
    t.cached_keys.set(A[0], ["k"])
    assert t.on_status(status(A, running=False), 1.0)
    assert holders(t, "f") == set()
    assert A not in t.executors
    assert t.cached_keys.ips == {}
    assert not t.on_status(status(A, running=False), 2.0)


def test_gpu_executors_are_free_for_gpu_functions_alone() -> None:
    t = table()
    t.on_status(status(A, gpu=True), 0.0)
    assert (free(t), free(t, gpu=True)) == (set(), {A})
    t.on_status(status(A, gpu=False), 1.0)
    assert (free(t), free(t, gpu=True)) == ({A}, set())


@pytest.mark.parametrize(("utilization", "overloaded"), [(0.7, False), (0.71, True)])
def test_a_high_utilization_puts_an_executor_into_backoff(utilization: float, overloaded: bool) -> None:
    t = table()
    t.on_status(status(B, "f"), 0.0)
    t.on_status(status(A, "f", utilization=utilization), 0.0)
    assert t.executors[A].overloaded == overloaded


def test_a_backoff_lasts_five_seconds_even_when_the_load_falls() -> None:
    t = table()
    t.on_status(status(A, utilization=0.9), 0.0)
    t.on_status(status(A, utilization=0.1), 1.0)
    t.age(4.9)
    assert t.executors[A].overloaded
    t.age(5.0)
    assert not t.executors[A].overloaded


@pytest.mark.parametrize("backs_off", [False, True])
def test_the_only_executor_of_a_function_backs_off_as_configured(backs_off: bool) -> None:
    t = table(backoff_lone_executor=backs_off)
    t.on_status(status(A, "f", utilization=0.9), 0.0)
    assert t.executors[A].overloaded == backs_off


@pytest.mark.parametrize("backs_off", [False, True])
@pytest.mark.parametrize("how", ["it is pinned there", "the other one loses it", "the other one leaves"])
def test_who_becomes_the_only_executor_of_a_function_backs_off_no_more(how: str, backs_off: bool) -> None:
    t = table(backoff_lone_executor=backs_off)
    if how == "it is pinned there":
        t.on_status(status(A, utilization=0.9), 0.0)
    else:
        t.on_status(status(B, "f"), 0.0)
        t.on_status(status(A, "f", utilization=0.9), 0.0)
    assert t.executors[A].overloaded
    copy = table(backoff_lone_executor=backs_off)
    for record in t.records():
        copy.apply(record)
    t.dirty.clear()
    if how == "it is pinned there":
        t.pinned(A, "f", 1.0)
    elif how == "the other one loses it":
        t.on_status(status(B), 1.0)
    else:
        t.remove(B)
    assert t.executors[A].overloaded == backs_off
    assert backs_off or A in t.dirty
    copy.apply(t.record(A) or pytest.fail("A is known"))
    if record := t.record(B):
        copy.apply(record)
    assert copy.executors[A].overloaded == backs_off
    t.age(5.0)
    assert not t.executors[A].overloaded
    t.validate()


def test_more_than_1000_calls_in_five_seconds_overload_an_executor() -> None:
    t = table()
    t.age(100.0)
    t.on_status(status(A, "f"), 100.0)
    executor = t.executors[A]
    for _ in range(1000):
        t.note_calls([executor])
    assert not executor.overloaded
    t.note_calls([executor])
    assert executor.overloaded
    t.age(104.0)
    assert executor.overloaded
    t.age(105.5)
    assert not executor.overloaded
    assert executor.recent == 0


def test_without_a_limit_no_number_of_calls_overloads() -> None:
    t = table(max_recent_calls=0)
    t.on_status(status(A, "f"), 0.0)
    for _ in range(2000):
        t.note_calls([t.executors[A]])
    assert not t.executors[A].overloaded


def test_silence_removes_an_executor() -> None:
    t = table()
    t.on_status(status(A, "f"), 0.0)
    t.on_status(status(B, "f"), 0.0)
    gone = [
        (second, t.remove_silent(float(second), 1.0))
        for second in range(17)
        if second != 10 or not t.on_seen([B], 10.0)
    ]
    # The look after it would come after the time-out.
    assert [(second, silent) for second, silent in gone if silent] == [(15, [A])]
    assert holders(t, "f") == {B}


def test_time_in_which_the_table_itself_stood_still_is_nobodys_silence() -> None:
    t = table()
    t.on_status(status(A, "f"), 0.0)
    t.remove_silent(1.0)
    assert t.remove_silent(100.0) == []
    assert t.remove_silent(101.0) == []


def test_time_in_which_nobody_could_be_heard_is_nobodys_silence() -> None:
    t = table()
    t.on_status(status(A, "f"), 0.0)
    for second in range(15):
        t.remove_silent(float(second))
    t.excuse(10.0, 15.0)
    assert t.remove_silent(16.0) == []


def test_a_look_that_comes_late_makes_nobody_silent() -> None:
    t = table()
    t.on_status(status(A, "f"), 0.0)
    for now in (11.0, 11.5, 13.4):
        assert t.remove_silent(now, 0.5) == []
    assert t.remove_silent(14.6, 0.5) == [A]


def test_who_is_seen_is_suspected_no_more_and_never_seen_earlier_than_before() -> None:
    t = table()
    t.on_status(status(A, "f"), 5.0)
    t.suspect(A)
    t.on_seen([A, B], 4.0)
    assert not t.executors[A].suspected
    assert not t.executors[A].overloaded
    assert t.executors[A].last_seen == 5.0


def test_an_end_of_backoff_reaches_the_copies() -> None:
    t, copy = table(), table()
    t.on_status(status(A, utilization=0.9), 0.0, seq=1)
    for now in (0.0, 5.0):
        t.age(now)
        for address in t.dirty:
            record = t.record(address)
            assert record is not None
            copy.apply(record)
        t.dirty.clear()
        assert copy.executors[A].overloaded == (now == 0.0)


def test_what_is_no_change_here_may_be_one_for_a_copy_that_is_ahead() -> None:
    policy, copy = table(), table()
    for t in (policy, copy):
        t.on_status(status(A), 0.0, seq=1)
    copy.book(copy.executors[A], 2)  # the policy never hears of it
    policy.on_status(status(A), 0.1, seq=3)
    policy.informed(A, 3)
    record = policy.record(A)
    assert record is not None
    copy.apply(record)
    assert free(copy) == {A}


def test_a_fresh_pin_survives_a_status_that_was_sent_before_it() -> None:
    t = table()
    t.on_status(status(A), 0.0)
    t.pinned(A, "f", 1.0)
    t.on_status(status(A), 1.5)
    assert holders(t, "f") == {A}
    assert free(t) == set()
    t.on_status(status(A), 2.0)
    assert holders(t, "f") == set()
    assert free(t) == {A}


def test_a_pin_of_ours_that_an_older_status_confirms_keeps_its_grace() -> None:
    t = table()
    t.on_status(status(A), 0.0)
    t.pinned(A, "f", 1.0, named=True)
    for at in (1.1, 1.2):  # from when it was pinned there before,
        assert t.on_status(status(A, "f"), at)  # and news for whoever waits for it
    t.on_status(status(A), 3.9)  # and unpinned
    assert holders(t, "f") == {A}
    t.on_status(status(A), 1.0 + OURS_GRACE_S)
    assert holders(t, "f") == set()


def test_a_confirmed_pin_has_no_grace() -> None:
    t = table()
    t.on_status(status(A), 0.0)
    t.pinned(A, "f", 1.0)
    t.on_status(status(A, "f"), 1.1)
    t.on_status(status(A), 1.2)
    assert holders(t, "f") == set()


def test_a_one_shot_call_books_a_free_executor_until_its_next_status() -> None:
    t = table()
    t.on_status(status(A), 0.0)
    t.book(t.executors[A], 1)
    assert free(t) == set()
    t.on_status(status(A), 0.1, seq=2)
    assert free(t) == {A}


def test_a_booking_that_is_heard_of_after_the_next_status_changes_nothing() -> None:
    t = table()
    t.on_status(status(A), 0.0, seq=5)
    t.book(t.executors[A], 4)
    assert free(t) == {A}


def test_in_local_mode_nothing_is_booked() -> None:
    t = table(local=True)
    t.on_status(status(A), 0.0)
    t.book(t.executors[A], 1)
    assert free(t) == {A}


def test_locations_of_another_scheduler_are_merged() -> None:
    t = table()
    t.on_status(status(A), 0.0)
    t.merge_locations([("f", A), ("f", B)], 1.0)
    assert holders(t, "f") == {A, B}
    assert free(t) == set()


def test_the_word_of_a_peer_is_not_believed_against_the_executors_own_of_the_same_moment() -> None:
    t = table()
    t.on_status(status(A, "f"), 0.0)
    t.on_status(status(A), 2.0)
    t.merge_locations([("f", A)], 2.9)  # on its way since before it was unpinned
    assert holders(t, "f") == set() and free(t) == {A}
    t.merge_locations([("g", A)], 3.0)
    assert holders(t, "g") == {A} and free(t) == set()


def test_gossip_does_not_revive_an_executor_that_left() -> None:
    t = table()
    t.on_status(status(A, "f"), 0.0)
    t.on_status(status(A, running=False), 1.0)
    t.merge_locations([("f", A)], 2.0)
    assert A not in t.executors
    t.on_status(status(A, "f"), 3.0)
    assert holders(t, "f") == {A}


def test_peers_are_told_what_is_known_here_and_not_what_they_said() -> None:
    t = table()
    t.on_status(status(A, "f"), 0.0)
    t.merge_locations([("f", A), ("g", A), ("f", B)], 1.0)
    assert sorted(t.told_locations()) == [("f", A)]
    t.pinned(A, "g", 1.5)
    assert sorted(t.told_locations()) == [("f", A), ("g", A)]
    t.on_status(status(B, "f"), 2.0)
    assert sorted(t.told_locations()) == [("f", A), ("f", B), ("g", A)]
    t.unpinned(A, "g")
    t.merge_locations([("g", A)], 3.0)  # told before it was unpinned
    assert sorted(t.told_locations()) == [("f", A), ("f", B)]


def test_who_hears_only_of_changes_learns_that_an_executor_confirmed_what_peers_said() -> None:
    policy, ingress = table(), table()
    policy.merge_locations([("f", A)], 1.0)
    for record in policy.records():
        ingress.apply(record)
    if ingress.on_status(status(A, "f"), 2.0):
        policy.on_status(status(A, "f"), 2.0)
    assert list(policy.told_locations()) == [("f", A)]
    assert not ingress.on_status(status(A, "f"), 3.0)


def test_schedulers_do_not_keep_alive_for_each_other_what_was_given_up() -> None:
    one, other = table(), table()
    for t in (one, other):
        t.on_status(status(A, "f"), 0.0)
        t.on_status(status(A), 2.0)
    other.merge_locations([("f", A)], 4.5)  # on its way since before it was unpinned
    one.merge_locations([("g", B)], 4.5)  # one that a third scheduler knew, which is gone
    for period in range(1, 5):
        now = 5.0 * period
        for t in (one, other):
            t.on_status(status(A), now)
        # Shortly before the next status: what is fresh then is left alone.
        other.merge_locations(list(one.told_locations()), now + 4.4)
        one.merge_locations(list(other.told_locations()), now + 4.6)
        for second in range(5):
            for t in (one, other):
                t.remove_silent(now + second)
    for t in (one, other):
        assert holders(t, "f") == set() and free(t) == {A}
        assert B not in t.executors


def test_cached_keys_are_replaced_as_a_whole() -> None:
    t = table()
    t.on_status(status(A), 0.0)
    t.cached_keys.set("10.0.0.1", ["a", "b"])
    t.cached_keys.set("10.0.0.2", ["b"])
    t.cached_keys.set("10.0.0.1", ["b", "c"])
    assert t.cached_keys.ips == {"b": {"10.0.0.1", "10.0.0.2"}, "c": {"10.0.0.1"}}
    t.cached_keys.set("10.0.0.1", [])
    t.validate()
    assert t.cached_keys.ips == {"b": {"10.0.0.2"}}


def test_a_suspected_executor_is_left_out_until_it_reports() -> None:
    t = table()
    t.on_status(status(A, "f"), 0.0)
    t.suspect(A)
    assert t.executors[A].overloaded
    t.on_status(status(A, "f"), 1.0)
    assert not t.executors[A].overloaded


def test_a_suspected_executor_is_left_out_until_it_takes_messages_again() -> None:
    t = table(max_recent_calls=1)
    t.on_status(status(A, "f"), 0.0)
    t.suspect(A)
    t.relieve(A)
    t.relieve(B)
    assert not t.executors[A].overloaded
    t.suspect(A, full=True)
    t.on_status(status(A, "f"), 1.0)
    t.on_status(status(A, "f", "g"), 1.0)
    t.on_seen([A], 1.0)
    assert t.executors[A].overloaded, "what it was sent waits for room all the same"
    t.relieve(A)
    assert not t.executors[A].overloaded
    t.note_calls([t.executors[A]] * 2)
    t.suspect(A)
    t.relieve(A)
    assert t.executors[A].overloaded, "it has had too many calls all the same"
    t.validate()


def test_a_copy_does_not_fall_back_behind_a_status_that_it_saw_itself() -> None:
    policy, copy = table(), table()
    for t in (policy, copy):
        t.on_status(status(A, "f"), 0.0, seq=1)
    old = policy.record(A)
    assert old is not None
    copy.on_status(status(A), 5.0, seq=2)
    copy.apply(old)
    assert holders(copy, "f") == set()


class Copies(RuleBasedStateMachine):
    """Whatever happens, the table agrees with itself, and a copy that is told everything agrees with it."""

    addresses = st.tuples(st.sampled_from(["10.0.0.1", "10.0.0.2"]), st.integers(0, 2))
    functions = st.sampled_from(["f", "g", "h"])

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.seq = 0
        self.table = table(max_recent_calls=3)
        self.copy = table(max_recent_calls=3)

    @rule(
        address=addresses,
        functions=st.lists(functions, max_size=3),
        utilization=st.sampled_from([0.0, 0.9]),
        running=st.booleans(),
        gpu=st.booleans(),
    )
    def on_status(
        self, address: tuple[str, int], functions: list[str], utilization: float, running: bool, gpu: bool
    ) -> None:
        self.seq += 1
        self.table.on_status(
            Status(*address, tuple(functions), utilization, running, gpu), self.now, self.seq
        )

    @rule(address=addresses, function=functions)
    def pin(self, address: tuple[str, int], function: str) -> None:
        self.table.pinned(address, function, self.now)

    @rule(address=addresses, function=functions)
    def unpin(self, address: tuple[str, int], function: str) -> None:
        self.table.unpinned(address, function)

    @rule(address=addresses, function=functions)
    def gossip(self, address: tuple[str, int], function: str) -> None:
        self.table.merge_locations([(function, address)], self.now)

    @rule(ip=st.sampled_from(["10.0.0.1", "10.0.0.2"]), keys=st.sets(st.sampled_from("abc")))
    def cache(self, ip: str, keys: set[str]) -> None:
        self.table.cached_keys.set(ip, keys)

    @rule(address=addresses)
    def call(self, address: tuple[str, int]) -> None:
        if address in self.table.executors:
            self.table.note_calls([self.table.executors[address]])
            self.seq += 1
            self.table.book(self.table.executors[address], self.seq)

    @rule(seconds=st.floats(0.1, 20))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.table.age(self.now)
        self.table.remove_silent(self.now)

    @invariant()
    def agrees_with_itself(self) -> None:
        self.table.validate()

    @invariant()
    def copy_agrees(self) -> None:
        for address in self.table.dirty:
            record = self.table.record(address)
            if record is None:
                self.copy.remove(address)
            else:
                self.copy.apply(record)
        self.table.dirty.clear()
        self.copy.validate()
        assert sorted(self.copy.locations()) == sorted(self.table.locations())
        for gpu in (False, True):
            assert free(self.copy, gpu) == free(self.table, gpu)


Copies.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestCopies = Copies.TestCase


WITHOUT_SHORT_CUT = type("WithoutShortCut", (ExecutorTable,), {"on_repeated": lambda *_: False})
HAPPENINGS = st.lists(
    st.one_of(
        # Most often nothing else than before: that is what the short cut is for.
        st.tuples(st.just("again"), st.sampled_from([A, B]), st.sampled_from([0.0, 0.1, 0.9])),
        st.builds(
            lambda *told: ("status", Status(*told)),
            st.sampled_from(["10.0.0.1", "10.0.0.2"]),
            st.integers(0, 1),
            st.lists(st.sampled_from("fg"), max_size=2).map(tuple),
            st.sampled_from([0.0, 0.9]),
            st.sampled_from([True, True, True, False]),
            st.sampled_from([False, False, True]),
            st.sampled_from([0, 0, 1, 2]),
        ),
        st.tuples(st.just("pinned"), st.sampled_from([A, B]), st.sampled_from("fg"), st.booleans()),
        st.tuples(
            st.sampled_from(["unpinned", "gossip", "pin told", "unpin told"]),
            st.sampled_from([A, B]),
            st.sampled_from("fg"),
        ),
        st.tuples(
            st.sampled_from(["called", "suspected", "full", "relieved", "told of it"]),
            st.sampled_from([A, B]),
        ),
        st.tuples(st.just("time"), st.sampled_from([0.1, 3.0, 6.0])),
    ),
    min_size=2,
    max_size=40,
)


@given(HAPPENINGS, st.booleans())
@settings(max_examples=200, deadline=None)
def test_the_short_cut_for_what_a_status_says_again_changes_nothing(
    happenings: list[tuple[Any, ...]], local: bool
) -> None:
    policy = PolicyConfig(max_recent_calls=2)
    both = [
        cls(policy, local=local, pin_grace_s=1.0, executor_timeout_s=15.0, overtaking=True)
        for cls in (ExecutorTable, WITHOUT_SHORT_CUT)
    ]
    now = 0.0
    for seq, (what, *told) in enumerate(happenings, 1):
        now += told[0] if what == "time" else 0.0
        outcomes = [_happens(t, what, told, now, seq) for t in both]
        assert outcomes[0] == outcomes[1]
        short, long = (
            {e.address: {name: getattr(e, name) for name in Executor.__slots__} for e in t.executors.values()}
            for t in both
        )
        assert short == long
        assert both[0].dirty == both[1].dirty


def _happens(t: ExecutorTable, what: str, told: list[Any], now: float, seq: int) -> object:
    if what == "status":
        status = told[0]
        return t.unheard_end(status), t.is_of_the_ended(status), t.on_status(status, now, seq)
    if what == "time":
        t.age(now)
        return t.remove_silent(now)
    address, *rest = told
    executor = t.executors.get(address)
    if what == "gossip":
        return t.merge_locations([(rest[0], address)], now)
    if what == "pinned":
        return t.pinned(address, rest[0], now, named=rest[1])
    if executor is None:
        return None
    if what == "again":
        again = Status(
            *address, tuple(executor.functions), rest[0], gpu=executor.gpu, process=executor.process
        )
        return t.on_status(again, now, seq)
    if what == "called":
        t.note_calls([executor])
        return t.book(executor, seq)
    if what == "told of it":
        return t.informed(address, seq)
    if what == "suspected":
        return t.suspect(address)
    if what == "full":
        return t.suspect(address, full=True)
    if what == "relieved":
        return t.relieve(address)
    if what == "unpinned":
        return t.unpinned(address, rest[0])
    return t.told_to_pin(address, rest[0], unpin=what == "unpin told")


def test_an_older_record_does_not_bring_back_who_was_seen_to_leave() -> None:
    policy, copy = table(), table()
    for t in (policy, copy):
        t.on_status(status(A, "f"), 0.0, seq=1)
    old = policy.record(A)
    assert old is not None
    copy.on_status(status(A, running=False), 1.0, seq=2)
    copy.apply(old)
    assert A not in copy.executors
    policy.on_status(status(A, running=False), 1.0, seq=2)
    policy.on_status(status(A), 2.0, seq=3)
    new = policy.record(A)
    assert new is not None
    copy.apply(new)
    assert A in copy.executors


@pytest.mark.parametrize("local", [False, True])
def test_one_that_is_being_started_anew_holds_and_takes_nothing_until_it_reports(local: bool) -> None:
    t = table(local=local)
    t.on_status(status(A, "f"), 0.0, 1)
    t.died(A, 2)
    t.validate()
    assert holders(t, "f") == free(t) == set()
    assert not t.has_left(A), "what is on its way to it is for its next process"
    assert t.on_status(status(A), 1.0, 3)
    assert free(t) == {A}


def test_what_the_authority_may_never_have_heard_the_next_status_tells_again() -> None:
    authority, copy = table(), table()
    copy.on_status(Status(*A, ("f",)), 100.0, seq=10)  # told to the authority, and lost on its way
    authority.on_status(Status(*A), 99.0, seq=9)
    older = authority.record(A)
    assert older is not None
    copy.apply(older)
    assert copy.executors[A].functions == {"f"}
    assert copy.on_status(Status(*A, ("f",)), 105.0, seq=11)
    assert not copy.on_status(Status(*A, ("f",)), 110.0, seq=12)


def test_no_address_has_more_cached_keys_than_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_sched.core.cached_keys.MAX_KEYS", 3)
    t = table()
    t.cached_keys.set("10.0.0.1", (f"k{number}" for number in range(10)))
    assert len(t.cached_keys) == 3
