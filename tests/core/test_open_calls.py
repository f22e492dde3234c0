"""Which calls of executors that are gone are lost, out of what the others tell of them."""

from __future__ import annotations

from ray_sched.core.destination import Destination
from ray_sched.core.executor import Address
from ray_sched.core.open_calls import Doubtful, OpenCalls, Told, Verdict, judge

A: Address = ("10.0.0.1", 0)
B: Address = ("10.0.0.2", 0)
C: Address = ("10.0.0.3", 0)
NOBODY = Told([])


def call(key: str, *stood: tuple[str, int], continued: bool = False) -> Doubtful:
    return Doubtful((A, B), Destination(key, "", key, False, "base", False), continued, stood or None)


def waits(*calls: tuple[str, str, int]) -> OpenCalls:
    return OpenCalls([], [(key, (function, triggers)) for key, function, triggers in calls])


def test_what_nobody_knows_is_lost() -> None:
    assert judge([call("k")], Told([OpenCalls(["other"], [])])) == Verdict([call("k")], [])
    assert judge([call("k")], Told([], unheard={A, B})) == Verdict([call("k")], [])


def test_what_may_be_lost_on_a_cut_connection_alone_needs_all_to_be_heard() -> None:
    cut = call("k")._replace(cut=True)
    assert judge([cut], NOBODY) == Verdict([cut], [])
    assert judge([cut], Told([], unheard={A})) == Verdict([], [cut])
    assert judge([cut], Told([], unheard={A}, foreign={A})) == Verdict([], [])
    assert judge([cut], Told([], late={A})) == Verdict([], [cut])
    assert judge([cut], Told([OpenCalls(["k"], [])])) == Verdict([], [cut])


def test_what_somebody_is_at_is_open() -> None:
    told = Told([OpenCalls(["k"], []), waits(("k", "g", 0))])
    assert judge([call("k")], told) == Verdict([], [call("k")])
    # Also where it waited for the same before: what that executor does may be what it waits for.
    assert judge([call("k", ("g", 0))], told) == Verdict([], [call("k")])


def test_what_waits_for_the_same_at_two_looks_in_a_row_is_lost() -> None:
    told = [waits(("k", "h", 1)), waits(("k", "g", 0))]
    first = judge([call("k")], Told(told))
    assert first == Verdict([], [call("k", ("g", 0), ("h", 1))])
    assert judge(first.open, Told(told[::-1])) == Verdict(first.open, [])


def test_what_got_on_between_two_looks_is_open() -> None:
    first = judge([call("k")], Told([waits(("k", "g", 0), ("k", "h", 0))]))
    for later in (waits(("k", "h", 0)), waits(("k", "g", 0), ("k", "h", 1))):
        assert judge(first.open, Told([later])).lost == []


def test_what_waits_for_an_executor_that_tells_nothing_is_open() -> None:
    told = [waits(("k", "g", 0))]
    assert judge([call("k", ("g", 0))], Told(told, unheard={B})) == Verdict([], [call("k")])
    assert judge([call("k", ("g", 0))], Told(told, unheard={C})).lost != []


def test_what_an_executor_may_be_at_that_answers_late_is_open() -> None:
    assert judge([call("k")], Told([], late={B})) == Verdict([], [call("k")])
    assert judge([call("k", ("g", 0))], Told([], late={B})) == Verdict([], [call("k")])
    assert judge([call("k")], Told([], late={C})).lost != []
    # Of a continuation nobody knows who is at it.
    assert judge([call("k", continued=True)._replace(stood=())], Told([], late={C})).lost == []


def test_where_a_continuation_may_be_under_way_nobody_is_at_it_at_two_looks_in_a_row() -> None:
    first = judge([call("k", continued=True)], NOBODY)
    assert first.lost == [] and first.open != []
    assert judge(first.open, NOBODY) == Verdict(first.open, [])
    between = judge(first.open, Told([OpenCalls(["k"], [])]))  # the next DAG runs
    assert between.lost == []
    assert judge(between.open, NOBODY).lost == []
