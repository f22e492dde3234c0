from __future__ import annotations

import pytest

from ray_sched.errors import FunctionNotFoundError
from ray_sched.executor.functions import Functions, LoadError
from ray_sched.values import dumps
from tests.executor.bench import Bench


def loaded_body(number: int) -> bytes:
    return dumps(lambda library: number)


def test_pinned_functions_stay_and_others_make_room(bench: Bench) -> None:
    functions = Functions(bench.kvs, None, unpinned_limit=2)
    for name in "abcd":
        bench.register(name, lambda library: None)
    functions.pin("a")
    for name in "abcbd":
        functions.get(name)
    assert functions.names() == ["a", "b", "d"]
    functions.unpin("a")
    assert functions.names() == ["b", "d"]


def test_a_changed_body_is_loaded_when_told(bench: Bench) -> None:
    functions = Functions(bench.kvs, None)
    bench.kvs.put_bytes("funcs/f", loaded_body(1))
    functions.pin("f")
    assert not functions.is_stale("f", loaded_body(1))
    assert functions.is_stale("f", loaded_body(2))
    assert not functions.is_stale("g", loaded_body(2))
    bench.kvs.put_bytes("funcs/f", loaded_body(2))
    assert functions.get("f")(None) == 1
    functions.reload("f")
    assert functions.get("f")(None) == 2


def test_a_new_body_that_does_not_load_leaves_the_old_one(bench: Bench) -> None:
    functions = Functions(bench.kvs, None)
    bench.kvs.put_bytes("funcs/f", loaded_body(1))
    functions.pin("f")
    bench.kvs.put_bytes("funcs/f", b"\x80 no pickle")
    with pytest.raises(LoadError, match="'f' cannot be loaded"):
        functions.reload("f")
    assert functions.get("f")(None) == 1


def test_what_does_not_exist_or_is_no_function_is_told(bench: Bench) -> None:
    functions = Functions(bench.kvs, None)
    with pytest.raises(FunctionNotFoundError, match="'none'"):
        functions.get("none")
    bench.register("number", 5)
    with pytest.raises(LoadError, match="no function but a int"):
        functions.get("number")

    class Exits:
        def __init__(self, library: object) -> None:
            raise SystemExit

    bench.register("exits", (Exits, ()))
    with pytest.raises(LoadError, match="SystemExit"):
        functions.pin("exits")
    assert functions.names() == []
    assert functions.loading_since is None
