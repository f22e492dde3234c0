"""Which DAGs are refused, each with its own words, and what exists in between."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from ray_sched.core.dags import Limits, validate_dag
from ray_sched.core.registry import Registry
from ray_sched.errors import (
    DagExistsError,
    FunctionNotFoundError,
    InvalidDagError,
    NoResourcesError,
    NoSuchDagError,
)
from ray_sched.wire import cloudburst_pb2 as cb


def dag(functions: str = "abc", links: str = "ab bc", name: str = "d", colocated: str = "") -> cb.Dag:
    message = cb.Dag(name=name, colocated=list(colocated))
    for function in functions:
        message.functions.add(name=function)
    for link in links.split():
        message.connections.add(source=link[0], sink=link[1])
    return message


def check(message: cb.Dag) -> None:
    validate_dag(message, lambda name: name in "abcdef")


@pytest.mark.parametrize(
    "message",
    [dag(), dag("a", ""), dag("abcd", "ab ac bd cd"), dag("abc", "ac bc"), dag(colocated="ab")],
    ids=["chain", "one", "diamond", "two sources", "colocated"],
)
def test_what_is_valid(message: cb.Dag) -> None:
    check(message)
    registry = Registry()
    registry.begin_create(message, lambda name: True)
    registry.commit(message)
    assert registry.dag("d") == message


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (dag(name=""), "needs a name"),
        (dag("", ""), "no functions"),
        (dag("aba", "ab"), "'a' twice"),
        (dag("ab", "ax"), "links 'x'"),
        (dag("ab", "xb"), "links 'x'"),
        (dag("ab", "ab ab"), "'a' to 'b' twice"),
        (dag("ab", "aa ab"), "cycle among 'a'"),
        (dag("abc", "ab bc cb"), "cycle among 'b', 'c'"),
        (dag("ab", "ab ba"), "cycle"),
        (dag("abc", "ab ac"), r"2 sinks \('b', 'c'\)"),
        (dag("ab", "ab", colocated="x"), "colocates 'x'"),
    ],
)
def test_what_is_refused(message: cb.Dag, words: str) -> None:
    with pytest.raises(InvalidDagError, match=words):
        check(message)


def test_the_schedulers_own_name_is_no_function() -> None:
    message = cb.Dag(name="d")
    message.functions.add(name="BEGIN")
    with pytest.raises(InvalidDagError, match="BEGIN"):
        validate_dag(message, lambda name: True)


def test_functions_that_are_not_registered_are_named() -> None:
    with pytest.raises(FunctionNotFoundError, match="'y', 'z'"):
        check(dag("ayz", "ay yz"))


def test_a_dag_exists_once_also_while_it_is_being_created() -> None:
    registry = Registry()
    for function in "abc":
        registry.add_function(function)
    registry.begin_create(dag())
    with pytest.raises(DagExistsError):
        registry.begin_create(dag())
    assert not registry.has_dag("d")
    registry.commit(dag())
    with pytest.raises(DagExistsError):
        registry.begin_create(dag())


def test_a_failed_creation_leaves_nothing() -> None:
    registry = Registry()
    for function in "abc":
        registry.add_function(function)
    registry.begin_create(dag())
    registry.abort("d")
    with pytest.raises(NoSuchDagError):
        registry.dag("d")
    registry.begin_create(dag())


def test_a_deleted_dag_can_be_created_again() -> None:
    registry = Registry()
    registry.begin_create(dag(), lambda name: True)
    registry.commit(dag(), 2)
    assert registry.own_dags() == {"d": (dag(), 2)}
    registry.begin_delete("d")
    assert registry.own_dags() == {}
    registry.remove("d")
    with pytest.raises(NoSuchDagError):
        registry.begin_delete("d")
    assert registry.plans() == {}
    registry.end_delete("d")
    registry.begin_create(dag(), lambda name: True)
    assert registry.in_change() == ["d"]


def test_while_a_dag_is_being_deleted_its_name_is_taken() -> None:
    registry = Registry()
    registry.begin_create(dag(), lambda name: True)
    registry.commit(dag())
    registry.begin_delete("d")
    with pytest.raises(NoSuchDagError, match="somebody else"):
        registry.begin_delete("d")
    registry.remove("d")
    assert registry.in_change() == []
    with pytest.raises(DagExistsError, match="being deleted"):
        registry.begin_create(dag(), lambda name: True)


def test_a_deletion_that_failed_leaves_the_dag() -> None:
    registry = Registry()
    registry.begin_create(dag(), lambda name: True)
    registry.commit(dag(), 1)
    registry.begin_delete("d")
    assert registry.in_change() == ["d"]  # so that nobody takes its pins for those of a deleted one
    registry.abort_delete("d")
    assert registry.in_change() == []
    assert registry.is_own("d")
    registry.begin_delete("d")


def test_a_dag_that_was_learned_is_not_our_own() -> None:
    registry = Registry()
    registry.begin_create(dag(), lambda name: True)
    registry.commit(dag())
    assert registry.has_dag("d")
    assert not registry.is_own("d")
    assert registry.own_dags() == {}


def test_functions_are_listed_by_prefix() -> None:
    registry = Registry()
    for name in ("square", "sum", "incr"):
        registry.add_function(name)
    assert registry.functions("s") == ["square", "sum"]
    assert registry.functions() == ["incr", "square", "sum"]


NAMES = [f"f{number}" for number in range(10_000)]


def large(functions: list[str], links: Sequence[tuple[str, str]] = (), name: str = "d") -> cb.Dag:
    message = cb.Dag(name=name)
    for function in functions:
        message.functions.add(name=function)
    for source, sink in links:
        message.connections.add(source=source, sink=sink)
    return message


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (large(NAMES, list(itertools.pairwise(NAMES))), "10000 functions: the limit is 1000"),
        (large(["f"] * 10_000), "10000 functions"),
        (large(["f"], name="x" * 2**20), "too long: the limit is 1024 bytes"),
        (large(["ä" * 600]), "too long"),
        (large(["f"], name="funcs/f"), "cannot be named"),
        (large(["f"], name="ray_sched/dags/g"), "cannot be named"),
        (large(["f"], [("f", "x" * 2**20)]), "links 'x{100}'"),
        (large(NAMES[:500], [("f0", "f1")] * 20_000), "too large"),
        (large(NAMES[:900]), r"900 sinks \('f0', .{,40} and 895 more\)"),
    ],
    ids=[
        "10,000 functions",
        "one, 10,000 times",
        "1 MB name",
        "function's name",
        "a function",
        "the index",
        "1 MB link",
        "many links",
        "many sinks",
    ],
)
def test_what_is_absurd_is_refused_in_few_words(message: cb.Dag, words: str) -> None:
    with pytest.raises(InvalidDagError, match=words) as refused:
        validate_dag(message, lambda name: True)
    assert len(str(refused.value)) < 3000


def test_no_more_exists_than_is_allowed() -> None:
    registry = Registry(Limits(functions=2, dags=1))
    registry.add_function("a")
    registry.add_function("b")
    registry.check_room_for_function("b")
    with pytest.raises(NoResourcesError, match="2 functions"):
        registry.check_room_for_function("c")
    registry.begin_create(dag("a", "", name="one"))
    with pytest.raises(NoResourcesError, match="1 DAGs"):
        registry.begin_create(dag("b", "", name="two"))
    registry.abort("one")
    registry.begin_create(dag("b", "", name="two"))
