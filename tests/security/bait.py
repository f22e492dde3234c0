"""A pickle that leaves a mark when it is read, and messages and lattices that have it in each place."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from ray_sched.wire import anna_pb2 as anna
from ray_sched.wire import cloudburst_pb2 as cb

TEXTS: Final = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)


class Bait:
    """Its pickle, when read, makes a file that is named after the reader's process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, (f"import os, pathlib; pathlib.Path({str(self.folder)!r}, str(os.getpid())).touch()",)

    def readers(self) -> set[int]:
        return {int(file.name) for file in self.folder.iterdir()}


def fields_of(kind: Any, seen: tuple[str, ...] = ()) -> set[str]:
    """The full names of all text and bytes fields within a message type."""
    found = set()
    for field in kind.DESCRIPTOR.fields if hasattr(kind, "DESCRIPTOR") else kind.fields:
        if field.type in TEXTS:
            found.add(field.full_name)
        elif field.message_type is not None and field.message_type.full_name not in seen:
            found |= fields_of(field.message_type, (*seen, field.message_type.full_name))
    return found


def places(message: Message) -> Iterator[tuple[str, Callable[[bytes], None]]]:
    """Each text or bytes value within a message: its field's full name, and what replaces the value."""
    for field, value in message.ListFields():
        is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
        if is_map:
            key_name = f"{field.message_type.full_name}.key"
            yield key_name, lambda new, m=value: copy_entry(m, new)
            for key in list(value):
                if isinstance(value[key], Message):
                    yield from places(value[key])
                else:
                    name = f"{field.message_type.full_name}.value"
                    yield name, lambda new, m=value, k=key: m.__setitem__(k, new.decode())
        elif field.type in TEXTS:
            as_text = field.type == FieldDescriptor.TYPE_STRING

            def put(new: bytes, m: Message = message, f: Any = field, text: bool = as_text) -> None:
                given = new.decode() if text else new
                if f.label == f.LABEL_REPEATED if not hasattr(f, "is_repeated") else f.is_repeated:
                    getattr(m, f.name)[:] = [given]
                else:
                    setattr(m, f.name, given)

            yield field.full_name, put
        elif field.message_type is not None:
            for inner in value if not isinstance(value, Message) else [value]:
                yield from places(inner)


def copy_entry(entries: Any, key: bytes) -> None:
    old = next(iter(entries))
    if isinstance(entries[old], Message):
        entries[key.decode()].CopyFrom(entries[old])
    else:
        entries[key.decode()] = entries[old]


def hostile(sane: Message, bait: Bait) -> list[bytes]:
    """The message with the bait in each field, one at a time, then in all; then the bare bait."""
    text, raw = pickle.dumps(bait, 0), pickle.dumps(bait, 4)
    value = cb.Value(body=raw).SerializeToString()
    kind = type(sane)
    count = len(list(places(sane)))
    missing = fields_of(kind) - {name for name, _ in places(sane)}
    assert not missing, f"the example of a {kind.__name__} has no {missing}"
    made = []
    for number in range(count):
        for payload in (text, raw, value):
            message = kind.FromString(sane.SerializeToString())
            _, put = list(places(message))[number]
            try:
                put(payload)
            except (UnicodeDecodeError, ValueError):
                continue  # a text field cannot hold it
            made.append(message.SerializeToString())
    everywhere = kind.FromString(sane.SerializeToString())
    for _, put in list(places(everywhere)):
        put(text)
    return [*made, everywhere.SerializeToString(), text, raw, value]


def lattices(raw: bytes) -> Iterator[tuple[int, bytes]]:
    yield anna.LWW, anna.LWWValue(timestamp=1 << 40, value=raw).SerializeToString()
    yield anna.SET, anna.SetValue(values=[raw]).SerializeToString()
    yield anna.SINGLE_CAUSAL, anna.SingleKeyCausalValue(values=[raw]).SerializeToString()
    yield anna.MULTI_CAUSAL, anna.MultiKeyCausalValue(values=[raw]).SerializeToString()
    yield anna.ORDERED_SET, anna.SetValue(values=[raw]).SerializeToString()
    yield anna.PRIORITY, anna.PriorityValue(priority=0.5, value=raw).SerializeToString()
