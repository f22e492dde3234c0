"""Which calls of executors that are gone are lost, out of what the others tell of them."""

from __future__ import annotations

from ray_sched.core.destination import Destination
from ray_sched.core.executors import Address
from ray_sched.core.open_calls import Doubtful, OpenCalls, Verdict, judge

A: Address = ("10.0.0.1", 0)
B: Address = ("10.0.0.2", 0)


def call(key: str, *stood: tuple[str, int]) -> Doubtful:
    return Doubtful((A, B), Destination(key, "", key, False, "base", False), stood)


def waits(*calls: tuple[str, str, int]) -> OpenCalls:
    return OpenCalls([], [(key, (function, triggers)) for key, function, triggers in calls])


def test_what_nobody_knows_is_lost() -> None:
    assert judge([call("k")], [OpenCalls(["other"], [])], ()) == Verdict([call("k")], [])
    assert judge([call("k")], [], {A, B}) == Verdict([call("k")], [])


def test_what_somebody_is_at_is_open() -> None:
    told = [OpenCalls(["k"], []), waits(("k", "g", 0))]
    assert judge([call("k")], told, ()) == Verdict([], [call("k")])
    # Also where it waited for the same before: what that executor does may be what it waits for.
    assert judge([call("k", ("g", 0))], told, ()) == Verdict([], [call("k")])


def test_what_waits_for_the_same_at_two_looks_in_a_row_is_lost() -> None:
    told = [waits(("k", "h", 1)), waits(("k", "g", 0))]
    first = judge([call("k")], told, ())
    assert first == Verdict([], [call("k", ("g", 0), ("h", 1))])
    assert judge(first.open, reversed(told), ()) == Verdict(first.open, [])


def test_what_got_on_between_two_looks_is_open() -> None:
    first = judge([call("k")], [waits(("k", "g", 0), ("k", "h", 0))], ())
    for later in (waits(("k", "h", 0)), waits(("k", "g", 0), ("k", "h", 1))):
        assert judge(first.open, [later], ()).lost == []


def test_what_waits_for_an_executor_that_tells_nothing_is_open() -> None:
    told = [waits(("k", "g", 0))]
    assert judge([call("k", ("g", 0))], told, {B}) == Verdict([], [call("k")])
    assert judge([call("k", ("g", 0))], told, {("10.0.0.3", 0)}).lost != []
