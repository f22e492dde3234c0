from __future__ import annotations

import json
import math
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_sched.errors import BadMessageError, LatticeMismatchError
from ray_sched.kvs.lattices import (
    LWW,
    Lattice,
    MultiCausal,
    OrderedSetLattice,
    Priority,
    SetLattice,
    SingleCausal,
    parse,
)
from ray_sched.wire import anna_pb2 as anna

# Few different values, so that ties, domination and concurrency all come up.
values = st.binary(max_size=1)
sets = st.frozensets(values, max_size=3)
clocks = st.dictionaries(st.sampled_from("abc"), st.integers(0, 3), max_size=3)
dependencies = st.dictionaries(st.sampled_from("jk"), clocks, max_size=2)
priorities = st.sampled_from([-math.inf, -1.0, -0.0, 0.0, 1.0, math.inf, math.nan])

STRATEGIES: dict[int, st.SearchStrategy[Lattice]] = {
    anna.LWW: st.builds(LWW, st.integers(0, 3), values),
    anna.SET: st.builds(SetLattice, sets),
    anna.ORDERED_SET: st.builds(OrderedSetLattice, st.lists(values, max_size=3).map(tuple)),
    anna.SINGLE_CAUSAL: st.builds(SingleCausal, clocks, sets),
    anna.MULTI_CAUSAL: st.builds(MultiCausal, clocks, dependencies, sets),
    anna.PRIORITY: st.builds(Priority, priorities, values),
}
TYPES = [pytest.param(number, id=anna.LatticeType.Name(number)) for number in STRATEGIES]


def merged(lattices: list[Lattice]) -> Lattice:
    result = lattices[0]
    for lattice in lattices[1:]:
        result = result.merge(lattice)
    return result


@pytest.mark.parametrize("number", TYPES)
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_laws(number: int, data: st.DataObject) -> None:
    # Merged values are inputs too, as they are when a store takes in another write.
    plain = STRATEGIES[number]
    lattices = st.lists(plain, min_size=1, max_size=3).map(merged)
    a, b, c = data.draw(lattices), data.draw(lattices), data.draw(lattices)
    assert a.merge(b) == b.merge(a)
    assert a.merge(b).merge(c) == a.merge(b.merge(c))
    assert a.merge(b).merge(b) == a.merge(b)
    assert a.merge(b).serialize() == b.merge(a).serialize()
    assert hash(a.merge(b)) == hash(b.merge(a))


@pytest.mark.parametrize("number", TYPES)
@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_the_wire_keeps_a_written_value(number: int, data: st.DataObject) -> None:
    lattice = data.draw(STRATEGIES[number])
    back = parse(lattice.type, lattice.serialize())
    assert back == lattice
    assert back.serialize() == lattice.serialize()
    assert pickle.loads(pickle.dumps(lattice)) == lattice


@pytest.mark.parametrize("number", TYPES)
@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_parts_keep_a_merged_value(number: int, data: st.DataObject) -> None:
    lattice = merged(data.draw(st.lists(STRATEGIES[number], min_size=1, max_size=4)))
    parts: list[Lattice] = [parse(part.type, part.serialize()) for part in lattice.parts()]
    assert merged(parts) == lattice


def test_lww_keeps_the_higher_timestamp_and_the_greater_value_of_a_tie() -> None:
    assert LWW(2, b"a").merge(LWW(1, b"z")) == LWW(2, b"a")
    assert LWW(1, b"a").merge(LWW(1, b"b")) == LWW(1, b"b")


def test_priority_keeps_the_lowest_and_the_lesser_value_of_a_tie() -> None:
    assert Priority(2, b"a").merge(Priority(1, b"z")) == Priority(1, b"z")
    assert Priority(1, b"b").merge(Priority(1, b"a")) == Priority(1, b"a")


def test_a_priority_that_is_no_number_loses_against_every_number() -> None:
    assert Priority(math.nan, b"a").merge(Priority(1e300, b"b")) == Priority(1e300, b"b")
    assert Priority(math.nan, b"a") == Priority(math.inf, b"a")


def test_sets_unite_and_the_ordered_one_is_in_order() -> None:
    assert SetLattice(frozenset({b"b"})).merge(SetLattice(frozenset({b"a"}))).values == {b"a", b"b"}
    assert OrderedSetLattice((b"b", b"c")).merge(OrderedSetLattice((b"a", b"b"))).values == (b"a", b"b", b"c")


def test_a_causal_version_that_has_seen_another_replaces_it() -> None:
    old, new = SingleCausal({"a": 1}, frozenset({b"old"})), SingleCausal({"a": 2}, frozenset({b"new"}))
    assert old.merge(new) == new.merge(old) == new


def test_concurrent_causal_versions_are_kept_under_the_merged_clock() -> None:
    both = SingleCausal({"a": 1}, frozenset({b"x"})).merge(SingleCausal({"b": 1}, frozenset({b"y"})))
    assert both.vector_clock == {"a": 1, "b": 1}
    assert both.values == {b"x", b"y"}


def test_a_new_version_replaces_the_one_that_it_has_seen_among_concurrent_ones() -> None:
    both = SingleCausal({"a": 1}, frozenset({b"x"})).merge(SingleCausal({"b": 1}, frozenset({b"y"})))
    after = both.merge(SingleCausal({"a": 2}, frozenset({b"x2"})))
    assert after.vector_clock == {"a": 2, "b": 1}
    assert after.values == {b"x2", b"y"}


def test_a_version_that_has_seen_all_concurrent_ones_replaces_them() -> None:
    both = SingleCausal({"a": 1}, frozenset({b"x"})).merge(SingleCausal({"b": 1}, frozenset({b"y"})))
    read = parse(both.type, both.serialize())
    assert isinstance(read, SingleCausal)
    resolved = SingleCausal({**read.vector_clock, "a": 2}, frozenset({b"z"}))
    assert both.merge(resolved) == resolved


def test_concurrent_multi_causal_versions_merge_their_dependencies_key_by_key() -> None:
    left = MultiCausal({"a": 1}, {"j": {"w": 2}, "k": {"w": 1}}, frozenset({b"x"}))
    right = MultiCausal({"b": 1}, {"j": {"w": 1, "v": 1}}, frozenset({b"y"}))
    both = left.merge(right)
    assert both.vector_clock == {"a": 1, "b": 1}
    assert both.dependencies == {"j": {"w": 2, "v": 1}, "k": {"w": 1}}
    assert both.values == {b"x", b"y"}


def test_a_multi_causal_version_takes_its_dependencies_with_it_when_it_is_replaced() -> None:
    old = MultiCausal({"a": 1}, {"j": {"w": 2}}, frozenset({b"x"}))
    new = MultiCausal({"a": 2}, {"k": {"w": 1}}, frozenset({b"y"}))
    assert old.merge(new) == new.merge(old) == new


@pytest.mark.parametrize("number", TYPES)
def test_other_types_do_not_merge(number: int) -> None:
    other: Lattice = LWW(1, b"") if number != anna.LWW else SetLattice(frozenset())
    examples: dict[int, Lattice] = {
        anna.LWW: LWW(1, b""),
        anna.SET: SetLattice(frozenset()),
        anna.ORDERED_SET: OrderedSetLattice(()),
        anna.SINGLE_CAUSAL: SingleCausal({}, frozenset()),
        anna.MULTI_CAUSAL: MultiCausal({}, {}, frozenset()),
        anna.PRIORITY: Priority(0, b""),
    }
    with pytest.raises(LatticeMismatchError, match=anna.LatticeType.Name(number)):
        examples[number].merge(other)


@pytest.mark.parametrize("number", TYPES)
def test_garbage_is_refused(number: int) -> None:
    with pytest.raises(BadMessageError):
        parse(number, b"\xff\xff\xff")


@pytest.mark.parametrize("number", [anna.NONE, 7, -1])
def test_types_that_do_not_exist_are_refused(number: int) -> None:
    with pytest.raises(BadMessageError, match="lattice type"):
        parse(number, b"")


VECTORS = json.loads((Path(__file__).parents[1] / "wire" / "vectors.json").read_text())["messages"]
PAYLOADS = {
    "SetValue": anna.SET,
    "SingleKeyCausalValue": anna.SINGLE_CAUSAL,
    "MultiKeyCausalValue": anna.MULTI_CAUSAL,
    "PriorityValue": anna.PRIORITY,
    "LWWValue": anna.LWW,
}


@pytest.mark.parametrize(
    ("number", "payload"),
    [
        pytest.param(PAYLOADS[vector["message"]], bytes.fromhex(vector["hex"]), id=vector["name"])
        for vector in VECTORS
        if vector["message"] in PAYLOADS
    ],
)
def test_recorded_payloads_come_back_byte_for_byte(number: int, payload: bytes) -> None:
    assert parse(number, payload).serialize() == payload


def test_recorded_tuples_come_back_byte_for_byte() -> None:
    requests = [vector for vector in VECTORS if vector["name"] in ("anna_put", "anna_get_response")]
    assert len(requests) == 2
    for vector in requests:
        message = anna.KeyRequest() if vector["message"] == "KeyRequest" else anna.KeyResponse()
        message.ParseFromString(bytes.fromhex(vector["hex"]))
        lattice = parse(message.tuples[0].lattice_type, message.tuples[0].payload)
        assert lattice == LWW(10, b"v")
        assert lattice.serialize() == message.tuples[0].payload
