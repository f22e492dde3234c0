"""Error values are told from results without unpickling either."""

from __future__ import annotations

import pickle

import pytest

from ray_sched.core.results import error_in
from ray_sched.errors import ExecutionError, FunctionNotFoundError
from ray_sched.values import error_value, to_value
from ray_sched.wire import cloudburst_pb2 as cb


def test_an_error_value_is_the_exception_that_it_stands_for() -> None:
    error = error_in(to_value(error_value("division by zero", cb.EXECUTION_ERROR)))
    assert isinstance(error, ExecutionError)
    assert str(error) == "division by zero"


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_whatever_the_protocol(protocol: int) -> None:
    body = pickle.dumps(("ERROR", cb.GenericResponse(error=cb.FUNC_NOT_FOUND).SerializeToString()), protocol)
    found = error_in(cb.Value(body=body))
    # Protocol 2 has no opcode for bytes and calls a function instead: that is not looked into.
    assert isinstance(found, FunctionNotFoundError) == (protocol > 2)


@pytest.mark.parametrize(
    "result",
    [
        5,
        None,
        "ERROR: a text",
        ("ERROR: a text", "and another"),
        ("fine", b"\x18\x03"),
        ("ERROR", b"\x08\x01"),
        ("ERROR", b"\xff"),
        ("ERROR", b"\x18\x03", 1),
        [("ERROR", b"\x18\x03")],
    ],
)
def test_other_results_are_results(result: object) -> None:
    assert error_in(to_value(result)) is None


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('pickle executed')",))


def test_a_hostile_pickle_is_not_executed() -> None:
    assert error_in(cb.Value(body=pickle.dumps(("ERROR", Hostile())))) is None
