"""Several shards, each with its copy of the table: no free executor is booked by two of them."""

from __future__ import annotations

from collections import Counter, deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ray_sched.config import PolicyConfig
from ray_sched.core.executor import Address, Status
from ray_sched.core.executors import ExecutorTable
from ray_sched.core.partition import FRONT, Part, owner
from ray_sched.core.replication import Publisher, Replica, Update

ADDRESSES = st.tuples(st.ip_addresses(v=4).map(str), st.integers(0, 149))
EXECUTORS = [(f"127.34.0.{ip}", tid) for ip in range(1, 4) for tid in range(3)]


@given(ADDRESSES, st.integers(1, 16))
def test_an_executor_belongs_to_one_shard_and_never_to_the_front(address: Address, shards: int) -> None:
    owners = [number for number in range(FRONT, shards + 1) if Part(number, shards).owns(address)]
    assert owners == [owner(address, shards)]
    assert owners != [FRONT]


@pytest.mark.parametrize("shards", [2, 3, 4, 16])
@pytest.mark.parametrize("threads", [1, 10, 150])
def test_about_as_many_belong_to_each(shards: int, threads: int) -> None:
    addresses = [(f"10.0.{n // threads // 250}.{1 + n // threads % 250}", n % threads) for n in range(3000)]
    counted = Counter(owner(address, shards) for address in addresses)
    assert len(counted) == shards
    assert max(counted.values()) < 1.3 * 3000 / shards


def test_a_few_executors_of_one_address_do_not_all_belong_to_one() -> None:
    assert {owner(("127.0.0.1", tid), 2) for tid in range(3)} == {1, 2}


def table(owned_by: Part | None) -> ExecutorTable:
    owns = owned_by.owns if owned_by else None
    return ExecutorTable(
        PolicyConfig(), local=False, pin_grace_s=1.0, executor_timeout_s=15.0, owns=owns, overtaking=True
    )


class Shards(RuleBasedStateMachine):
    """The front and the shards take statuses in at once, each shard books its own executors. The authority
    hears of each of them in order, but of one sooner or later than of the other; and tells all of them."""

    @initialize(shards=st.integers(2, 4))
    def begin(self, shards: int) -> None:
        self.shards = shards
        self.tables = {number: table(Part(number, shards)) for number in range(FRONT, shards + 1)}
        self.authority = table(None)
        self.seq = 0
        self.events: dict[int, deque[tuple[Status | Address, int]]] = {n: deque() for n in self.tables}
        self.updates: dict[int, deque[Update]] = {n: deque() for n in self.tables}
        self.publisher = Publisher(self.authority, 1)
        self.replicas = {n: Replica(one, 10.0) for n, one in self.tables.items()}
        for replica in self.replicas.values():
            replica.apply(self.publisher.whole(0.0))
        self.busy: set[Address] = set()

    @rule(
        address=st.sampled_from(EXECUTORS),
        functions=st.sampled_from([(), ("f",), ("f", "g")]),
        running=st.sampled_from([True, True, True, False]),
    )
    def status(self, address: Address, functions: tuple[str, ...], running: bool) -> None:
        self.seq += 1
        status = Status(*address, functions, 0.0, running)
        told = self.tables[FRONT].on_status(status, float(self.seq), self.seq) or not functions
        seq = self.seq if told else 0
        if told:
            self.tables[FRONT].informed(address, seq)
            self.events[FRONT].append((status, seq))
        for number in range(1, self.shards + 1):
            self.tables[number].on_status(status, float(self.seq), seq)
            if told:
                self.tables[number].informed(address, seq)
        self.busy.discard(address)

    @rule(number=st.integers(1, 4), position=st.integers(0, 8))
    def book(self, number: int, position: int) -> None:
        number = 1 + number % self.shards
        pool = self.tables[number].free[False]
        if len(pool):
            executor = pool.at(position % len(pool))
            assert executor.address not in self.busy, "booked twice"
            self.seq += 1
            self.busy.add(executor.address)
            self.tables[number].book(executor, self.seq)
            self.events[number].append((executor.address, self.seq))

    @rule(address=st.sampled_from(EXECUTORS))
    def pin(self, address: Address) -> None:
        if address in self.authority.executors:
            self.authority.pinned(address, "pinned", 0.0)

    @rule(number=st.integers(0, 4))
    def authority_hears(self, number: int) -> None:
        events = self.events[number % len(self.events)]
        if not events:
            return
        event, seq = events.popleft()
        if isinstance(event, Status):
            self.authority.on_status(event, 0.0, seq)
            self.authority.informed(event.address, seq)
        else:
            self.authority.booked(event, seq)

    @rule()
    def authority_tells(self) -> None:
        update = self.publisher.next_update(0.0)
        for updates in self.updates.values():
            updates.append(update)

    @rule(number=st.integers(0, 4))
    def somebody_hears(self, number: int) -> None:
        number %= len(self.updates)
        if self.updates[number]:
            self.replicas[number].apply(self.updates[number].popleft())

    @invariant()
    def no_executor_is_free_in_two_parts(self) -> None:
        if hasattr(self, "tables"):
            free = [e.address for one in self.tables.values() for e in one.free[False]]
            assert len(free) == len(set(free))
            assert not self.busy.intersection(free)
            for one in self.tables.values():
                one.validate()

    def teardown(self) -> None:
        """Once all is told, all know the same."""
        if not hasattr(self, "tables"):
            return
        for number, events in self.events.items():
            while events:
                self.authority_hears(number)
        self.authority_tells()
        for number, updates in self.updates.items():
            while updates:
                self.somebody_hears(number)
        for number, one in self.tables.items():
            for address, executor in self.authority.executors.items():
                copy = one.executors[address]
                assert (copy.functions, copy.free) == (executor.functions, executor.free), (number, address)
            assert one.executors.keys() == self.authority.executors.keys()


TestShards = Shards.TestCase
TestShards.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
