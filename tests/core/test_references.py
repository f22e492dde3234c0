from __future__ import annotations

import json
import pickle
import pickletools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ray_sched.core import references
from ray_sched.core.references import MAX_OPCODES, parse_references, references_of
from ray_sched.reference import CloudburstReference
from ray_sched.wire import cloudburst_pb2 as cb

VECTORS = Path(__file__).parents[1] / "wire" / "vectors.json"
ARGUMENTS = json.loads(VECTORS.read_text())["arguments"]
CLASS = b"\x8c\x1bcloudburst.shared.reference\x8c\x13CloudburstReference\x93"


def by_definition(obj: Any) -> list[tuple[str, bool]]:
    members = obj if type(obj) is tuple else (obj,)
    return [(member.key, member.deserialize) for member in members if type(member) is CloudburstReference]


@pytest.mark.parametrize("entry", ARGUMENTS, ids=[entry["name"] for entry in ARGUMENTS])
def test_recorded_arguments(entry: dict[str, Any]) -> None:
    body = bytes.fromhex(entry["hex"])
    expected = [(entry["reference"], entry["deserialize"])] if entry["reference"] else []
    assert parse_references(body) == expected
    value = cb.Value(body=body, type=cb.SerializerType.Value(entry["type"]))
    assert references_of([value]) == [key for key, _ in expected]


def test_hostile_pickles_are_not_executed() -> None:
    hostile = bytes.fromhex(next(entry["hex"] for entry in ARGUMENTS if entry["name"] == "hostile_reduce"))
    with pytest.raises(SystemExit, match="pickle executed"):
        pickle.loads(hostile)  # the premise: unpickling would
    # In a tuple with a reference it passes the first look at the bytes, and the machine reads it.
    in_tuple = b"\x80\x04" + hostile[11:-1] + pickle.dumps(CloudburstReference("k"), 4)[11:-1] + b"\x86."
    assert parse_references(in_tuple.replace(b"\x94", b"")) == [("k", True)]
    called_as_class = b"\x80\x04" + CLASS + b"\x8c\x08builtins\x8c\x04exec\x93\x8c\x01x\x85R\x86."
    assert parse_references(called_as_class) == []


def test_a_string_value_that_looks_like_a_reference_is_none() -> None:
    body = pickle.dumps(CloudburstReference("k"), 2)
    assert references_of([cb.Value(body=body, type=cb.STRING)]) == []


def test_keys_come_in_order_and_as_often_as_they_are_there() -> None:
    given = [(CloudburstReference("b"), 1, CloudburstReference("a")), 5, CloudburstReference("b")]
    assert references_of(cb.Value(body=cloudpickle.dumps(item)) for item in given) == ["b", "a", "b"]


class Subclass(CloudburstReference):
    pass


class SubTuple(tuple):  # type: ignore[type-arg]
    pass


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "obj",
    [
        CloudburstReference("key"),  # the key's string is the attribute name's: a memo is read
        CloudburstReference("deserialize", False),
        CloudburstReference("k" * 255),
        CloudburstReference("k" * 256),
        CloudburstReference("ключ\n"),
        CloudburstReference(5),  # type: ignore[arg-type]
        Subclass("k"),
        (),
        ((CloudburstReference("nested"),),),
        [CloudburstReference("in-list")],
        {"k": CloudburstReference("in-dict")},
        (CloudburstReference("a"), CloudburstReference("a", False), [CloudburstReference("b")]),
        tuple(CloudburstReference(str(number)) for number in range(100)),
        (b"x" * 100_000, CloudburstReference("beside a large argument")),
        (CloudburstReference, "the class itself"),
    ],
    ids=lambda obj: repr(obj)[:40],
)
def test_shapes(obj: Any, protocol: int) -> None:
    body = pickle.dumps(obj, protocol=protocol)
    expected = [found for found in by_definition(obj) if isinstance(found[0], str)]
    assert parse_references(body) == expected
    assert parse_references(pickletools.optimize(body)) == expected


def test_one_reference_twice_in_a_tuple_counts_twice() -> None:
    reference = CloudburstReference("k")
    assert parse_references(pickle.dumps((reference, reference), protocol=4)) == [("k", True)] * 2


def test_subclasses_of_tuple_are_not_flattened() -> None:
    assert parse_references(cloudpickle.dumps(SubTuple([CloudburstReference("k")]))) == []


KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
REFERENCES = st.builds(CloudburstReference, KEYS, st.booleans())
LEAVES = REFERENCES | st.none() | st.booleans() | st.integers() | st.floats() | KEYS | st.binary(max_size=20)
NESTED = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=3)
        | st.builds(lambda item: (item, item, [item]), inner)
    ),
    max_leaves=12,
)


@given(NESTED, st.integers(0, 5), st.sampled_from([pickle.dumps, cloudpickle.dumps]))
def test_agrees_with_unpickling(obj: Any, protocol: int, dump: Callable[..., bytes]) -> None:
    body = dump(obj, protocol=protocol)
    assert parse_references(body) == by_definition(pickle.loads(body))


@given(st.binary(max_size=200))
def test_random_bytes_never_raise(raw: bytes) -> None:
    parse_references(raw + b"CloudburstReference")
    parse_references(b"CloudburstReference" + raw)


@given(NESTED, st.integers(0, 5), st.data())
def test_damaged_pickles_never_raise(obj: Any, protocol: int, data: st.DataObject) -> None:
    body = bytearray(pickle.dumps((obj, CloudburstReference("k")), protocol=protocol))
    for _ in range(data.draw(st.integers(1, 5))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    parse_references(bytes(body))
    parse_references(bytes(body[: data.draw(st.integers(0, len(body)))]))


OPCODES = st.sampled_from([opcode.code.encode("latin-1") for opcode in pickletools.opcodes])
PIECES = OPCODES | st.sampled_from(
    [CLASS, b"\x8c\x01k", b"\x8c\x03key", b")", b"}", b"(", b"\x88", b"h\x00", b"0\n"]
)


@given(st.lists(PIECES, max_size=60))
@example([CLASS, b")", b"\x81", b"0"])
def test_any_order_of_opcodes_never_raises(pieces: list[bytes]) -> None:
    parse_references(b"\x80\x04" + CLASS + b"".join(pieces) + b".")


@pytest.mark.parametrize(
    "attack",
    [
        b"r" + struct.pack("<I", 0xFFFFFFFF),  # LONG_BINPUT: a memo of 4 billion places
        b"\x8e" + struct.pack("<Q", 2**63),  # BINBYTES8
        b"\x8d" + struct.pack("<Q", 2**62),  # BINUNICODE8
        b"\x96" + struct.pack("<Q", 2**62),  # BYTEARRAY8
        b"\x8b" + struct.pack("<i", -5),  # LONG4
        b"\x8a\xff",  # LONG1 past the end
        b"I" + b"9" * 100_000 + b"\n",
        b"p" + b"9" * 100_000 + b"\n",
        b"p-1\n",
        b"L" + b"9" * 100_000 + b"L\n",
        b"(" * 100_000,
        b")\x85" * 50_000,
        b"]\x94" + b"(h\x00h\x00l\x94" * 30_000,
        (b")" + b"2\x86" * 60),  # a tuple of itself twice, sixty times: 2**60 leaves
        b"\x82\xff",
        b"Pid\n",
        b"\x97\x98",
        b"\x81",
        b"b",
        b"\x93",
    ],
    ids=lambda attack: repr(attack[:12]),
)
def test_attacks_are_harmless(attack: bytes) -> None:
    reference = pickle.dumps(CloudburstReference("k"), 2)[2:-1]
    for body in (attack + reference + b"\x86.", reference + attack + b"\x86.", CLASS + attack):
        found = parse_references(b"\x80\x04" + body)
        assert set(found) <= {("k", True)}


def test_a_pickle_that_is_too_long_has_no_references() -> None:
    short = (list(range(MAX_OPCODES // 2)), CloudburstReference("k"))
    long = (list(range(MAX_OPCODES)), CloudburstReference("k"))
    assert parse_references(pickle.dumps(short, 4)) == [("k", True)]
    assert parse_references(pickle.dumps(long, 4)) == []


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_plain_reference_needs_no_machine(protocol: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(references, "_Machine")
    for key in ("k", "k" * 300, "ключ"):
        assert parse_references(pickle.dumps(CloudburstReference(key, False), protocol)) == [(key, False)]


def test_a_wrong_length_is_not_taken_for_a_key() -> None:
    body = bytearray(pickle.dumps(CloudburstReference("some-key"), 4))
    body[body.index(b"\x08some-key")] = 5
    assert parse_references(bytes(body)) == []


def test_the_opcodes_of_all_arguments_of_a_call_are_counted_together() -> None:
    odd = pickle.dumps((*range(1000), CloudburstReference("k")), 4)  # its shape is no standard one
    arguments = [cb.Value(body=odd)] * 20
    found = references_of(arguments)
    assert found
    assert len(found) < 10
