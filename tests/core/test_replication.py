"""Copies of the table: what they take, what they ask for again, and how long they may be trusted."""

from __future__ import annotations

from ray_sched.config import PolicyConfig
from ray_sched.core.executor import Status
from ray_sched.core.executors import ExecutorTable
from ray_sched.core.replication import Batches, Outcome, Publisher, Replica

A, B = ("10.0.0.1", 0), ("10.0.0.2", 0)


def table() -> ExecutorTable:
    return ExecutorTable(PolicyConfig(), local=False, pin_grace_s=1.0, executor_timeout_s=1e9)


class Pair:
    def __init__(self, epoch: int = 1) -> None:
        self.table, self.copy = table(), table()
        self.publisher = Publisher(self.table, epoch)
        self.replica = Replica(self.copy, lease_s=2.0)
        self.replica.apply(self.publisher.whole(0.0))

    def status(
        self, address: tuple[str, int], *functions: str, now: float = 0.0, running: bool = True
    ) -> None:
        self.table.on_status(Status(*address, functions, running=running), now)


def test_changes_reach_the_copy() -> None:
    p = Pair()
    p.status(A, "f")
    p.status(B)
    p.table.cached_keys.set(A[0], ["k"])
    assert p.publisher.has_changes()
    assert p.replica.apply(p.publisher.next_update(1.0)) is Outcome.APPLIED
    assert sorted(p.copy.locations()) == [("f", A)]
    assert p.copy.cached_keys.ips == {"k": {A[0]}}
    p.status(A, running=False)
    p.replica.apply(p.publisher.next_update(1.0))
    assert set(p.copy.executors) == {B}
    assert not p.publisher.has_changes()


def test_a_copy_knows_what_only_peers_say_and_whoever_starts_anew_from_it() -> None:
    p = Pair()
    p.status(A, "f")
    p.table.merge_locations([("g", A), ("g", B)], 1.0)
    p.replica.apply(p.publisher.next_update(1.0))
    anew = table()
    for record in p.copy.records():
        anew.apply(record)
    assert sorted(anew.locations()) == [("f", A), ("g", A), ("g", B)]
    assert list(anew.told_locations()) == [("f", A)]
    anew.on_status(Status(*B, ("g",)), 2.0)
    assert sorted(anew.told_locations()) == [("f", A), ("g", B)]
    anew.validate()


def test_a_removal_leaves_alone_who_came_back_since() -> None:
    p = Pair()
    for table in (p.table, p.copy):
        table.on_status(Status(*A, ("f",)), 1.0, seq=1)
    p.replica.apply(p.publisher.next_update(1.0))
    p.table.on_status(Status(*A, running=False), 2.0, seq=2)
    # The copy sees statuses itself, and is further on.
    p.copy.on_status(Status(*A, running=False), 2.0, seq=2)
    p.copy.on_status(Status(*A, ("g",)), 3.0, seq=3)
    p.replica.apply(p.publisher.next_update(3.0))
    assert sorted(p.copy.locations()) == [("g", A)]
    assert not p.copy.has_left(A)


def test_who_fell_silent_is_removed_also_where_a_call_has_just_gone_to_it() -> None:
    p = Pair()
    for table in (p.table, p.copy):
        table.on_status(Status(*A), 1.0, seq=1)
    p.replica.apply(p.publisher.next_update(1.0))
    p.copy.book(p.copy.executors[A], seq=5)
    p.table.remove(A)
    p.replica.apply(p.publisher.next_update(3.0))
    assert p.copy.has_left(A)


def test_a_gap_is_noticed_and_the_whole_mends_it() -> None:
    p = Pair()
    p.status(A, "f")
    p.publisher.next_update(1.0)  # never arrives
    p.status(B, "g")
    assert p.replica.apply(p.publisher.next_update(1.0)) is Outcome.GAP
    assert p.replica.apply(p.publisher.whole(1.0)) is Outcome.APPLIED
    assert sorted(p.copy.locations()) == [("f", A), ("g", B)]
    p.status(A)
    assert p.replica.apply(p.publisher.next_update(1.0)) is Outcome.APPLIED


def test_an_update_that_comes_twice_changes_nothing() -> None:
    p = Pair()
    p.status(A, "f")
    update = p.publisher.next_update(1.0)
    p.replica.apply(update)
    p.status(A)
    p.replica.apply(p.publisher.next_update(1.0))
    assert p.replica.apply(update) is Outcome.OLD
    assert list(p.copy.locations()) == []


def test_a_whole_that_was_overtaken_is_old() -> None:
    p = Pair()
    p.status(A, "f")
    whole = p.publisher.whole(1.0)
    p.replica.apply(p.publisher.next_update(1.0))
    assert p.replica.apply(whole) is Outcome.OLD


def test_a_publisher_that_was_restarted_is_noticed() -> None:
    p = Pair(epoch=1)
    p.status(A, "f")
    p.replica.apply(p.publisher.next_update(1.0))
    again = Publisher(table(), epoch=2)
    assert p.replica.apply(again.next_update(9.0)) is Outcome.GAP
    p.replica.apply(again.whole(9.0))
    assert p.copy.executors == {}


def test_the_whole_does_not_drop_an_executor_that_reported_after_it_was_made() -> None:
    p = Pair()
    whole = p.publisher.whole(5.0)
    p.copy.on_status(Status(*A, ("f",)), 5.5, seq=1)
    p.replica.apply(whole)
    assert set(p.copy.executors) == {A}


def test_the_lease_runs_from_when_the_update_was_sent() -> None:
    p = Pair()
    p.replica.apply(p.publisher.next_update(10.0))
    assert p.replica.may_decide(11.9)
    assert not p.replica.may_decide(12.0)
    p.replica.apply(p.publisher.next_update(11.0))
    assert p.replica.may_decide(12.9)


def test_a_new_copy_may_decide_nothing() -> None:
    assert not Replica(table(), lease_s=2.0).may_decide(0.0)


def test_dags_travel_with_the_table() -> None:
    p = Pair()
    p.publisher.set_dag("d", b"dag")
    p.publisher.set_dag("e", b"other")
    assert p.publisher.next_update(1.0).dags == {"d": b"dag", "e": b"other"}
    p.publisher.set_dag("e", None)
    assert p.publisher.next_update(1.0).dags == {"e": None}
    assert p.publisher.whole(1.0).dags == {"d": b"dag"}


def test_a_missing_batch_is_noticed_once_the_first_ones_of_a_sender_too() -> None:
    batches = Batches()
    told = [batches.is_one_missing((7, number)) for number in (1, 2, 4, 5, 5, 4, 6)]
    assert told == [False, False, True, False, False, False, False]
    assert batches.is_one_missing((8, 2))
    assert not batches.is_one_missing((8, 3))
    assert not batches.is_one_missing((9, 1))
