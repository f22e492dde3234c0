"""Which acknowledged calls are looked after, and when."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_sched.actors.doubts import (
    BEFORE_CUT_S,
    BEFORE_DEATH_S,
    GRACE_S,
    MAX_AGAIN_S,
    MAX_OPEN,
    MAX_SPANS,
    MAX_UNSENT,
    Doubts,
)
from ray_sched.actors.ledger import Ledger
from ray_sched.core.destination import Destination
from ray_sched.core.executor import Address
from ray_sched.core.open_calls import Doubtful

TIMEOUT_S = 600.0
SILENT_S = 15.0
A: Address = ("10.0.0.1", 0)
B: Address = ("10.0.0.1", 1)


def to(key: str) -> Destination:
    return Destination(key, "", key, False, "base", False)


class Ingress:
    """One process after the other, each with the list of the one before it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "calls"

    def start(self, now: float) -> Doubts:
        self._ledger = Ledger(self._path, 1 << 16, now)
        self.doubts = Doubts(self._ledger, now, TIMEOUT_S, SILENT_S)
        return self.doubts

    def call(self, key: str, now: float, *executors: Address, continued: bool = False) -> None:
        self._ledger.add((now, executors, tuple(to(key)), continued))

    def due(self, now: float) -> list[str] | None:
        """The calls to be looked after now, each once."""
        due = self.doubts.take_due(now)
        return None if due is None else sorted({call.to.key for call in due.doubtful()})


@pytest.fixture
def ingress(tmp_path: Path) -> Ingress:
    return Ingress(tmp_path)


def test_the_calls_of_an_executor_that_is_gone_are_due_once_what_was_on_its_way_has_arrived(
    ingress: Ingress,
) -> None:
    doubts = ingress.start(100.0)
    ingress.call("at A", 101.0, A)
    ingress.call("at both", 101.0, B, A)
    ingress.call("at B", 101.0, B)
    assert ingress.due(102.0) is None
    doubts.gone(A, 102.0)
    assert ingress.due(102.0 + GRACE_S - 0.1) is None
    assert ingress.due(102.0 + GRACE_S) == ["at A", "at both"]
    doubts.looked_after(True, [], 0.0)
    assert ingress.due(200.0) is None


def test_nothing_else_is_due_until_the_last_is_looked_after_and_what_failed_is_due_again(
    ingress: Ingress,
) -> None:
    doubts = ingress.start(100.0)
    ingress.call("at A", 101.0, A)
    doubts.gone(A, 102.0)
    doubts.unsent(to("unsent"))
    assert ingress.due(105.0) == ["at A", "unsent"]
    doubts.unsent(to("later"))
    assert ingress.due(106.0) is None
    doubts.looked_after(False, [], 0.0)
    assert ingress.due(107.0) == ["at A", "later", "unsent"]
    doubts.looked_after(True, [], 0.0)
    assert ingress.due(108.0) is None


def test_an_executor_that_goes_again_while_its_calls_are_looked_after_is_due_again(ingress: Ingress) -> None:
    doubts = ingress.start(100.0)
    ingress.call("first", 101.0, A)
    doubts.gone(A, 102.0)
    assert ingress.due(105.0) == ["first"]
    ingress.call("second", 106.0, A)
    doubts.gone(A, 107.0)
    doubts.looked_after(True, [], 0.0)  # 30 s after it was due: the store was down
    assert ingress.due(135.0) == ["first", "second"]


def test_what_is_open_is_looked_at_again_and_less_and_less_often(ingress: Ingress) -> None:
    doubts = ingress.start(100.0)
    ingress.call("open", 101.0, A)
    doubts.gone(A, 102.0)
    assert ingress.due(105.0) == ["open"]
    now, pauses = 105.0, []
    for _ in range(7):
        doubts.looked_after(True, [Doubtful((A,), to("open"), False, (("g", 0),))], now)
        began = now
        while (due := doubts.take_due(now)) is None:
            now += 0.5
        assert due.doubtful() == [Doubtful((A,), to("open"), False, (("g", 0),))]
        pauses.append(now - began)
    assert pauses == [GRACE_S, 4.0, 8.0, 16.0, MAX_AGAIN_S, MAX_AGAIN_S, MAX_AGAIN_S]
    doubts.looked_after(False, [], now)  # nobody could look
    assert ingress.due(now) == ["open"]
    doubts.looked_after(True, [], now)
    assert ingress.due(now + 100.0) is None


def test_looks_at_other_calls_put_off_none_at_an_open_one(ingress: Ingress) -> None:
    doubts = ingress.start(100.0)
    ingress.call("open", 101.0, A)
    doubts.gone(A, 102.0)
    assert ingress.due(105.0) == ["open"]
    doubts.looked_after(True, [Doubtful((A,), to("open"))], 105.0)
    looks = []
    for step in range(1, 41):
        now = 105.0 + step / 2
        doubts.unsent(to("unsent"))
        due = doubts.take_due(now)
        assert due is not None
        if due.again:
            looks.append(now)
        doubts.looked_after(True, list(due.again), now)
    assert looks == [107.0, 111.0, 119.0]


def test_what_is_newly_open_has_its_second_look_soon(ingress: Ingress) -> None:
    doubts = ingress.start(100.0)
    old, new = Doubtful((A,), to("old")), Doubtful((B,), to("new"))
    doubts.unsent(old.to)
    doubts.take_due(110.0)
    doubts.looked_after(True, [old], 110.0)
    doubts.take_due(112.0)
    doubts.looked_after(True, [old], 112.0)  # from now on after 4 s
    doubts.unsent(new.to)
    doubts.take_due(113.0)
    doubts.looked_after(True, [new], 113.0)
    assert doubts.take_due(114.9) is None
    due = doubts.take_due(115.0)
    assert due is not None and set(due.again) == {old, new}


def test_two_looks_at_a_call_never_come_one_upon_the_other(ingress: Ingress) -> None:
    doubts = ingress.start(100.0)
    old, new = Doubtful((A,), to("old")), Doubtful((B,), to("new"))
    doubts.unsent(old.to)
    doubts.take_due(110.0)
    doubts.looked_after(True, [old], 110.0)
    doubts.unsent(new.to)
    doubts.take_due(111.5)
    doubts.looked_after(True, [new], 111.9)
    due = doubts.take_due(112.0)
    assert due is not None and due.again == (old,)
    doubts.looked_after(True, [old], 112.1)
    for now in (112.5, 113.5):
        assert doubts.take_due(now) is None
    looks = []
    for step in range(16):
        due = doubts.take_due(113.9 + step / 2)
        if due is not None:
            looks += [(113.9 + step / 2, call.to.key) for call in due.again]
            doubts.looked_after(True, list(due.again), 113.9 + step / 2)
    assert looks[0][0] >= 113.9 and {key for _, key in looks[:2]} == {"old", "new"}


def test_no_more_open_calls_are_kept_than_there_is_room_for(ingress: Ingress) -> None:
    doubts = ingress.start(100.0)
    doubts.unsent(to("first"))
    doubts.take_due(110.0)
    doubts.looked_after(True, [Doubtful((A,), to(f"{number}")) for number in range(MAX_OPEN + 2)], 110.0)
    due = doubts.take_due(120.0)
    assert due is not None and len(due.again) == MAX_OPEN
    assert doubts.unwatched == 2


def test_calls_that_went_nowhere_and_have_no_room_are_counted(
    ingress: Ingress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_sched.actors.doubts.MAX_UNSENT", 2)
    doubts = ingress.start(100.0)
    for number in range(5):
        doubts.unsent(to(f"{number}"))
    assert doubts.unwatched == 3


def test_of_an_executor_that_was_cut_off_the_latest_calls_are_due(ingress: Ingress) -> None:
    doubts = ingress.start(100.0)
    # It may have told so before, in a status that was lost: whoever is silent for longer is gone.
    first = 200.0 - SILENT_S - BEFORE_CUT_S
    ingress.call("long before", first, A)
    ingress.call("before", first + 0.1, A)
    ingress.call("just before", 200.0, A)
    ingress.call("after", 200.1, A)
    ingress.call("at B", 200.0, B)
    doubts.reconnected(A, 2, 200.0)
    assert ingress.due(200.0 + GRACE_S - 0.1) is None
    assert ingress.due(200.0 + GRACE_S) == ["before", "just before"]
    doubts.looked_after(True, [], 203.0)
    doubts.reconnected(A, 2, 205.0)
    assert ingress.due(210.0) is None
    ingress.call("later", 211.0, A)
    doubts.reconnected(A, 3, 212.0)
    assert ingress.due(214.0) == ["after", "just before", "later"]


def test_what_an_executor_was_cut_off_for_is_due_until_it_is_looked_after(ingress: Ingress) -> None:
    doubts = ingress.start(100.0)
    ingress.call("first", 110.0, A)
    doubts.reconnected(A, 1, 112.0)
    assert ingress.due(115.0) == ["first"]
    ingress.call("second", 130.0, A)
    doubts.reconnected(A, 2, 132.0)  # while the last is looked after, which fails
    doubts.looked_after(False, [], 133.0)
    assert ingress.due(134.0) == ["first", "second"]


def test_after_a_restart_an_executor_is_asked_as_one_that_was_cut_off(ingress: Ingress) -> None:
    ingress.start(100.0)
    ingress.call("before", 110.0, A)
    doubts = ingress.start(118.0)
    doubts.reconnected(A, 1, 119.0)
    assert ingress.due(121.0) == ["before"]


def test_an_ingress_killed_before_it_looked_tells_the_next_who_was_cut_off(ingress: Ingress) -> None:
    doubts = ingress.start(100.0)
    ingress.call("before", 105.0, A)
    ingress.call("at B", 105.0, B)
    doubts.reconnected(A, 1, 112.0)
    ingress.start(120.0)  # which is killed, too, before it hears of A
    ingress.start(150.0)
    ingress.call("later", 151.0, A)
    assert ingress.due(152.0) == ["before"]


def test_of_an_executor_that_is_cut_off_again_and_again_only_the_latest_calls_of_each_time_are_due(
    ingress: Ingress,
) -> None:
    doubts = ingress.start(100.0)
    ingress.call("first", 130.0, A)
    doubts.reconnected(A, 1, 131.0)
    ingress.call("between", 200.0, A)
    ingress.call("second", 330.0, A)
    doubts.reconnected(A, 2, 331.0)
    assert ingress.due(340.0) == ["first", "second"]
    doubts.looked_after(True, [], 340.0)
    for times in range(3, 3 + MAX_SPANS + 1):
        doubts.reconnected(A, times, 1000.0 * times)
    ingress.call("last", 1000.0 * times - 1.0, A)
    assert ingress.due(1000.0 * times + GRACE_S) == ["last"]


def test_one_that_begins_anew_counts_anew(ingress: Ingress) -> None:
    doubts = ingress.start(100.0)
    doubts.reconnected(A, 1, 101.0)
    doubts.gone(A, 120.0)
    assert ingress.due(122.0) == []
    doubts.looked_after(True, [], 122.0)
    ingress.call("to the next", 123.0, A)
    doubts.reconnected(A, 1, 124.0)
    assert ingress.due(126.0) == ["to the next"]


def test_calls_older_than_the_time_out_are_left_out(ingress: Ingress) -> None:
    doubts = ingress.start(100.0)
    ingress.call("old", 101.0, A)
    ingress.call("young", 200.0, A)
    doubts.gone(A, 300.0)
    assert ingress.due(150.0 + TIMEOUT_S) == ["young"]


def test_a_killed_ingress_had_sent_what_is_older_but_not_what_comes_back_to_it(ingress: Ingress) -> None:
    ingress.start(100.0)
    ingress.call("sent", 110.0, A)
    ingress.call("comes back", 111.0, A, continued=True)
    ingress.call("just before", 130.0 - BEFORE_DEATH_S / 2, A)
    ingress.call("the last", 130.0, A)
    ingress.start(135.0)
    assert ingress.due(135.0 + GRACE_S - 0.1) is None
    assert ingress.due(135.0 + GRACE_S) == ["comes back", "just before", "the last"]
    ingress.doubts.looked_after(True, [], 0.0)
    assert ingress.due(150.0) is None


def test_an_ingress_killed_again_before_it_could_look_leaves_all_of_it_to_the_next(ingress: Ingress) -> None:
    ingress.start(100.0)
    ingress.call("of the first", 110.0, A)
    ingress.start(120.0)
    ingress.call("of the second", 121.0, A)
    ingress.start(130.0)
    assert ingress.due(140.0) == ["of the first", "of the second"]
    ingress.doubts.looked_after(False, [], 0.0)
    assert ingress.due(141.0) == ["of the first", "of the second"]


def test_a_restart_forgets_no_call_of_an_executor_that_goes_later(ingress: Ingress) -> None:
    ingress.start(100.0)
    ingress.call("long", 101.0, A)
    ingress.call("the last", 150.0, B)
    ingress.start(160.0)
    ingress.call("new", 161.0, B)
    assert ingress.due(170.0) == ["the last"]
    ingress.doubts.looked_after(True, [], 0.0)
    ingress.doubts.gone(A, 180.0)
    assert ingress.due(190.0) == ["long"]


def test_calls_to_whoever_took_the_place_of_one_that_went_are_left_alone(ingress: Ingress) -> None:
    doubts = ingress.start(100.0)
    ingress.call("before", 101.0, A)
    doubts.gone(A, 102.0)
    ingress.call("after", 102.5, A)
    assert ingress.due(110.0) == ["before"]


def test_an_ingress_killed_before_it_looked_tells_the_next_which_executors_went(ingress: Ingress) -> None:
    doubts = ingress.start(100.0)
    ingress.call("at A", 101.0, A)
    ingress.call("at B", 101.0, B)
    doubts.gone(A, 149.0)
    ingress.call("the last", 150.0, B)
    ingress.start(152.0)
    assert ingress.due(152.5) is None
    assert ingress.due(154.0) == ["at A", "the last"]
    ingress.doubts.looked_after(True, [], 0.0)
    assert ingress.due(155.0) is None


def test_what_went_nowhere_is_bounded(ingress: Ingress) -> None:
    doubts = ingress.start(100.0)
    for number in range(MAX_UNSENT + 10):
        doubts.unsent(to(f"{number}"))
    assert len(ingress.due(101.0) or []) == MAX_UNSENT
