"""Which executors nodes are to have: as many as they offer, and none where nobody needs them."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ray_sched.core.executor import Address
from ray_sched.core.slots import Effect, GiveUp, Holder, Node, Retire, Slots, Start

ONE = Node("one", "10.0.0.1", slots=2)
TWO = Node("two", "10.0.0.2", slots=1)
START_S = 10.0
LEAVE_S = 30.0


def slots(idle_timeout_s: float = 0.0, min_count: int = 0, threads: int = 10) -> Slots:
    return Slots(
        threads=threads,
        idle_timeout_s=idle_timeout_s,
        min_count=min_count,
        start_timeout_s=START_S,
        leave_timeout_s=LEAVE_S,
    )


def addresses(effects: list[Effect], kind: type[Start | Retire | GiveUp]) -> list[Address]:
    return [effect.address for effect in effects if isinstance(effect, kind)]


def test_each_node_gets_as_many_as_it_offers_on_its_own_address() -> None:
    effects = slots().look([ONE, TWO], {}, 0.0)
    assert effects == [
        Start(("10.0.0.1", 0), "one", False),
        Start(("10.0.0.1", 1), "one", False),
        Start(("10.0.0.2", 0), "two", False),
    ]


def test_who_is_on_the_way_or_there_is_not_started_again() -> None:
    s = slots()
    s.look([TWO], {}, 0.0)
    assert s.look([TWO], {}, 1.0) == []
    assert s.look([TWO], {("10.0.0.2", 0): Holder("")}, 2.0) == []
    assert s.look([TWO], {("10.0.0.2", 0): Holder("two")}, 3.0) == []


def test_executors_of_before_that_have_not_said_yet_where_they_are_count() -> None:
    there = {("10.0.0.1", 0): Holder(""), ("10.0.0.1", 1): Holder("")}
    assert slots().look([ONE], there, 0.0) == []


def test_one_that_died_for_good_is_started_again() -> None:
    s = slots()
    s.look([TWO], {}, 0.0)
    s.look([TWO], {("10.0.0.2", 0): Holder("two")}, 1.0)
    assert addresses(s.look([TWO], {}, 2.0), Start) == [("10.0.0.2", 0)]


def test_one_that_never_came_is_given_up_and_tried_again() -> None:
    s = slots()
    s.look([TWO], {}, 0.0)
    effects = s.look([TWO], {("10.0.0.2", 0): Holder("")}, START_S + 1)
    assert effects == [GiveUp(("10.0.0.2", 0))]
    assert addresses(s.look([TWO], {}, START_S + 2), Start) == [("10.0.0.2", 0)]


def test_another_groups_executors_count() -> None:
    theirs = {("10.0.0.1", tid): Holder("one", own=False) for tid in range(2)}
    assert slots().look([ONE], theirs, 0.0) == []


def test_nodes_that_share_an_address_count_their_threads_together() -> None:
    other = Node("other", "10.0.0.1", slots=2)
    effects = slots().look([ONE, other], {("10.0.0.1", 1): Holder("head")}, 0.0)
    assert addresses(effects, Start) == [("10.0.0.1", tid) for tid in (0, 2, 3, 4)]


def test_an_address_has_no_more_threads_than_ports() -> None:
    effects = slots(threads=3).look([Node("big", "10.0.0.1", slots=8)], {}, 0.0)
    assert len(effects) == 3


def test_some_slots_have_a_gpu() -> None:
    node = Node("gpu", "10.0.0.1", slots=3, gpu_slots=1)
    there = {("10.0.0.1", 0): Holder("gpu", gpu=False)}
    assert [e.gpu for e in slots().look([node], there, 0.0) if isinstance(e, Start)] == [False, True]


def test_one_that_left_by_itself_stays_away_until_its_node_is_wanted() -> None:
    s = slots()
    there = {("10.0.0.1", 0): Holder("one")}
    s.on_left(("10.0.0.1", 1), "one")
    assert s.look([ONE], there, 0.0) == []
    s.wake("one")
    assert addresses(s.look([ONE], there, 1.0), Start) == [("10.0.0.1", 1)]


def test_a_node_all_of_whose_executors_are_idle_loses_them_together() -> None:
    s = slots(idle_timeout_s=30.0)
    busy = {("10.0.0.1", 0): Holder("one", idle_s=99.0), ("10.0.0.1", 1): Holder("one", idle_s=29.0)}
    assert s.look([ONE], busy, 0.0) == []
    idle = {address: Holder("one", idle_s=31.0) for address in busy}
    assert addresses(s.look([ONE], idle, 1.0), Retire) == list(idle)
    assert s.look([ONE], idle, 2.0) == [], "they are told once"
    assert s.look([ONE], {}, 3.0) == [], "and stay away"
    s.wake("one")
    assert len(s.look([ONE], {}, 4.0)) == 2


def test_one_that_is_told_to_leave_and_does_not_is_given_up() -> None:
    s = slots(idle_timeout_s=5.0)
    idle = {("10.0.0.2", 0): Holder("two", idle_s=5.0)}
    assert s.look([TWO], idle, 0.0) == [Retire(("10.0.0.2", 0))]
    assert s.look([TWO], idle, LEAVE_S) == []
    assert s.look([TWO], idle, LEAVE_S + 1) == [GiveUp(("10.0.0.2", 0))]
    assert s.look([TWO], idle, LEAVE_S + 2) == []
    assert s.look([TWO], idle, 2 * LEAVE_S + 2) == [GiveUp(("10.0.0.2", 0))], "the first one may be lost, too"
    assert s.look([TWO], {}, 3 * LEAVE_S + 4) == [], "it stays away"


def test_one_that_got_something_to_do_before_it_heard_that_it_should_leave_finishes_that() -> None:
    s = slots(idle_timeout_s=5.0)
    s.look([TWO], {("10.0.0.2", 0): Holder("two", idle_s=5.0)}, 0.0)
    assert s.look([TWO], {("10.0.0.2", 0): Holder("two", idle_s=0.0)}, LEAVE_S + 1) == []


def test_one_that_is_wanted_again_is_told_anew_before_it_is_given_up() -> None:
    s = slots(idle_timeout_s=5.0)
    idle = {("10.0.0.2", 0): Holder("two", idle_s=5.0)}
    s.look([TWO], idle, 0.0)
    s.wake("two")
    assert s.look([TWO], idle, LEAVE_S + 1) == [Retire(("10.0.0.2", 0))]


def test_a_minimum_stays() -> None:
    idle = {
        ("10.0.0.1", 0): Holder("one", idle_s=99.0),
        ("10.0.0.1", 1): Holder("one", idle_s=99.0),
        ("10.0.0.2", 0): Holder("two", idle_s=99.0),
        ("10.0.0.9", 0): Holder("group's own", idle_s=99.0),
    }
    assert len(addresses(slots(30.0, min_count=1).look([ONE, TWO], idle, 0.0), Retire)) == 3
    assert addresses(slots(30.0, min_count=2).look([ONE, TWO], idle, 0.0), Retire) == [
        ("10.0.0.1", 0),
        ("10.0.0.1", 1),
    ]
    assert addresses(slots(30.0, min_count=3).look([ONE, TWO], idle, 0.0), Retire) == [("10.0.0.2", 0)]
    assert slots(30.0, min_count=4).look([ONE, TWO], idle, 0.0) == []


@pytest.mark.parametrize("own", [True, False])
def test_a_node_goes_with_what_was_known_of_it(own: bool) -> None:
    s = slots()
    s.look([ONE], {}, 0.0)
    assert len(addresses(s.look([], {}, 1.0), GiveUp)) == 2
    assert len(s.look([ONE], {}, 2.0)) == 2


class Cluster(RuleBasedStateMachine):
    """Nodes come and go, executors come, die and leave; in the end each node has what it offers."""

    nodes = st.sampled_from(["one", "two", "three"])

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.slots = slots()
        self.alive: dict[str, Node] = {}
        self.coming: dict[Address, Holder] = {}
        self.holders: dict[Address, Holder] = {}

    @rule(name=nodes, offered=st.integers(1, 3))
    def join(self, name: str, offered: int) -> None:
        address = "10.0.0.1" if name != "two" else "10.0.0.2"
        self.alive.setdefault(name, Node(name, address, offered))

    @rule(name=nodes)
    def leave(self, name: str) -> None:
        self.alive.pop(name, None)
        for of in (self.coming, self.holders):
            for address in [a for a, holder in of.items() if holder.node == name]:
                del of[address]

    @rule()
    def look(self) -> None:
        self.now += 1.0
        for effect in self.slots.look(list(self.alive.values()), self.holders, self.now):
            if isinstance(effect, Start):
                assert effect.address not in self.coming.keys() | self.holders.keys()
                self.coming[effect.address] = Holder(effect.node)
            elif isinstance(effect, GiveUp):
                self.coming.pop(effect.address, None)

    @rule()
    def come(self) -> None:
        self.holders |= self.coming
        self.coming = {}

    @rule(which=st.integers(0, 5))
    def die(self, which: int) -> None:
        if self.holders:
            del self.holders[sorted(self.holders)[which % len(self.holders)]]

    @invariant()
    def nobody_has_too_many(self) -> None:
        for node in self.alive.values():
            here = [h for h in [*self.holders.values(), *self.coming.values()] if h.node == node.id]
            assert len(here) <= node.slots

    def teardown(self) -> None:
        for _ in range(3):
            self.now += START_S  # one that came and died between two looks is given up first
            self.look()
            self.come()
        for node in self.alive.values():
            assert sum(holder.node == node.id for holder in self.holders.values()) == node.slots


Cluster.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestCluster = Cluster.TestCase
