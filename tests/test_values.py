from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import cloudpickle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_sched.errors import (
    BadMessageError,
    ExecutionError,
    FunctionNotFoundError,
    NoResourcesError,
    NotPinnedError,
)
from ray_sched.reference import CloudburstReference
from ray_sched.values import as_error, dumps, error_value, from_value, loads, to_value
from ray_sched.wire import cloudburst_pb2 as cb

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
OBJECTS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(OBJECTS)
def test_every_object_comes_back(obj: Any) -> None:
    back = from_value(to_value(obj))
    assert back == obj
    assert type(back) is type(obj)
    assert loads(dumps(obj)) == obj


def test_text_is_utf8_and_the_rest_is_a_pickle_of_protocol_4() -> None:
    assert to_value("héllo") == cb.Value(body="héllo".encode(), type=cb.STRING)
    assert to_value(2) == cb.Value(body=pickle.dumps(2, protocol=4))
    assert to_value(b"raw").body == pickle.dumps(b"raw", protocol=4)


def test_plain_objects_have_the_bytes_that_cloudpickle_gives_them() -> None:
    for obj in (0, -(2**70), 1.5, True, None, b"", b"x" * 70_000):
        assert to_value(obj).body == cloudpickle.dumps(obj, protocol=4)


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.binary(max_size=70) | st.text(max_size=9)
)
FLAT = st.lists(SCALARS, max_size=120) | st.lists(SCALARS, max_size=120).map(tuple)


@given(FLAT | st.lists(FLAT, max_size=3) | st.dictionaries(st.text(), FLAT, max_size=3))
def test_containers_have_the_bytes_that_cloudpickle_gives_them(obj: Any) -> None:
    assert to_value(obj).body == cloudpickle.dumps(obj, protocol=4)
    repeated = [obj, obj]  # what is there twice is written once
    assert to_value(repeated).body == cloudpickle.dumps(repeated, protocol=4)


def test_text_without_utf8_comes_back_as_well() -> None:
    assert from_value(to_value("\ud800")) == "\ud800"


def test_functions_of_the_callers_own_module_travel_by_value() -> None:
    factor = 3

    def scale(library: object, x: int) -> int:
        return factor * x

    assert loads(dumps(scale))(None, 2) == 6


def test_equal_objects_have_equal_bytes() -> None:
    def make() -> Any:
        return {"a": [1, 2.5, None], "b": ("x" * 3, b"y")}

    assert dumps(make()) == dumps(make())


def test_references_come_back() -> None:
    assert from_value(to_value((1, CloudburstReference("k", False)))) == (1, CloudburstReference("k", False))


@pytest.mark.parametrize(
    "raw", [b"", b"\x80\x04garbage", b"plain", b"config\nx\ny", b"I1x\n.", b"\x80\x04K."]
)
def test_what_is_no_pickle_comes_back_raw(raw: bytes) -> None:
    assert from_value(cb.Value(body=raw)) == raw


@given(st.binary(max_size=60))
def test_the_wrong_bytes_raise_nothing_but_bad_message(raw: bytes) -> None:
    try:
        loads(raw)
    except BadMessageError:
        pass


def test_a_pickle_whose_module_is_missing_says_so() -> None:
    missing = b"\x80\x04\x8c\x0eno_such_module\x8c\x01f\x93."
    with pytest.raises(BadMessageError, match="no_such_module"):
        from_value(cb.Value(body=missing))


def test_numpy_values_are_refused_with_the_way_out() -> None:
    with pytest.raises(BadMessageError, match="send arrays as DEFAULT"):
        from_value(cb.Value(body=b"arrow", type=cb.NUMPY))


def test_unknown_types_and_bad_text_are_refused() -> None:
    with pytest.raises(BadMessageError, match="unknown type 9"):
        from_value(cb.Value.FromString(b"\x10\x09"))
    with pytest.raises(BadMessageError, match="not UTF-8"):
        from_value(cb.Value(body=b"\xff", type=cb.STRING))
    with pytest.raises(BadMessageError, match="not a Value"):
        loads(b"\xff\xff\xff")


def test_the_error_value_is_the_legacy_one() -> None:
    assert error_value("boom", cb.EXECUTION_ERROR) == ("ERROR: boom", bytes.fromhex("1803"))


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (cb.EXECUTION_ERROR, ExecutionError),
        (cb.FUNC_NOT_FOUND, FunctionNotFoundError),
        (cb.NOT_PINNED, NotPinnedError),
        (cb.NO_RESOURCES, NoResourcesError),
    ],
)
def test_an_error_value_is_read_as_its_exception(code: cb.CloudburstError, kind: type[Exception]) -> None:
    error = as_error(loads(dumps(error_value("division by zero", code))))
    assert type(error) is kind
    assert str(error) == "division by zero"


def test_the_bare_legacy_error_is_read_too() -> None:
    error = as_error(("ERROR", cb.GenericResponse(error=cb.FUNC_NOT_FOUND).SerializeToString()))
    assert type(error) is FunctionNotFoundError


@pytest.mark.parametrize(
    "obj",
    [
        None,
        "ERROR: text",
        ("ERROR: text", "not bytes"),
        ("ERROR: text", b""),
        ("ERROR: text", b"\xff\xff"),
        ("fine", bytes.fromhex("1803")),
        ("ERROR: text", bytes.fromhex("1803"), 1),
        ["ERROR: text", bytes.fromhex("1803")],
        ("ERROR: text", cb.GenericResponse(success=True, error=cb.EXECUTION_ERROR).SerializeToString()),
    ],
)
def test_nothing_else_is_an_error(obj: Any) -> None:
    assert as_error(obj) is None


def test_bytes_do_not_depend_on_the_hash_seed() -> None:
    code = "from ray_sched.values import dumps; print(dumps({'a': (1, 'x'), 'b': [None]}).hex())"
    seeds = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert seeds[0] == seeds[1] != ""
