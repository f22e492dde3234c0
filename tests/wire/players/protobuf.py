"""Protobuf's wire format by hand, so that the players depend on nobody's generated code.

A `Schema` says which field has which number; `encode` and `decode` turn a `Record` (a dict whose
fields read as attributes) into bytes and back. Fields are written in ascending number, maps in
ascending key and a scalar's default not at all, which is what the deterministic mode of the protobuf
library gives. Fields that no schema knows are kept and written again behind the known ones.

Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

VARINT: Final = 0
FIXED64: Final = 1
LENGTH: Final = 2
FIXED32: Final = 5


class MalformedError(ValueError):
    """The bytes are no protobuf message, or one whose fields have other types than the schema's."""


class Record(dict[str, Any]):
    """A message's fields, all of them; a message inside that was not sent is None."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


@dataclass(frozen=True)
class Field:
    name: str
    kind: str
    """string, bytes, uint, bool, double or message."""
    schema: Schema | None = None
    repeated: bool = False
    mapped: bool = False
    """A map from strings to `kind`."""


@dataclass(frozen=True)
class Schema:
    name: str
    fields: Mapping[int, Field]


UNKNOWN: Final = "unknown_fields"
"""Where a decoded record keeps (number, wire type, value) of fields that its schema does not have."""

_DEFAULTS: Final = {"string": "", "bytes": b"", "uint": 0, "bool": False, "double": 0.0, "message": None}
_WIRE_TYPES: Final = {
    "string": LENGTH,
    "bytes": LENGTH,
    "message": LENGTH,
    "uint": VARINT,
    "bool": VARINT,
    "double": FIXED64,
}


def encode(schema: Schema, fields: Mapping[str, Any]) -> bytes:
    """The message of that schema with these fields; the others have their defaults."""
    names = {field.name for field in schema.fields.values()} | {UNKNOWN}
    if not names.issuperset(fields):
        raise KeyError(f"{schema.name} has no field {sorted(set(fields) - names)}")
    parts = []
    for number, field in sorted(schema.fields.items()):
        value = fields.get(field.name)
        if value is not None:
            parts.append(_encode_field(number, field, value))
    for number, wire_type, value in fields.get(UNKNOWN, ()):
        parts.append(_tagged(number, wire_type, value))
    return b"".join(parts)


def decode(schema: Schema, raw: bytes) -> Record:
    """The fields of a message. Raises `MalformedError`."""
    record = Record()
    for field in schema.fields.values():
        record[field.name] = {} if field.mapped else [] if field.repeated else _DEFAULTS[field.kind]
    for number, wire_type, value in _split(raw):
        known = schema.fields.get(number)
        if known is None:
            record.setdefault(UNKNOWN, []).append((number, wire_type, value))
        elif known.mapped:
            entry = decode(_entry_schema(known), _typed(known, LENGTH, wire_type, value))
            record[known.name][entry.key] = Record() if entry.value is None else entry.value
        elif known.repeated and known.kind == "double" and wire_type == LENGTH:
            record[known.name].extend(_packed_doubles(value))
        elif known.repeated:
            record[known.name].append(_decode_value(known, wire_type, value))
        else:
            record[known.name] = _decode_value(known, wire_type, value)
    return record


def _encode_field(number: int, field: Field, value: Any) -> bytes:
    if field.mapped:
        entry = _entry_schema(field)
        return b"".join(
            _tagged(number, LENGTH, _encode_entry(entry, key, item)) for key, item in sorted(value.items())
        )
    if field.repeated and field.kind == "double":
        return _tagged(number, LENGTH, struct.pack(f"<{len(value)}d", *value)) if value else b""
    if field.repeated:
        return b"".join(
            _tagged(number, _WIRE_TYPES[field.kind], _encode_value(field, item)) for item in value
        )
    if field.kind != "message" and value == _DEFAULTS[field.kind]:
        return b""
    return _tagged(number, _WIRE_TYPES[field.kind], _encode_value(field, value))


def _encode_entry(entry: Schema, key: str, value: Any) -> bytes:
    # An entry writes both its fields even when they are empty.
    return b"".join(
        _tagged(number, _WIRE_TYPES[field.kind], _encode_value(field, part))
        for (number, field), part in zip(sorted(entry.fields.items()), (key, value), strict=True)
    )


def _entry_schema(field: Field) -> Schema:
    return Schema(
        f"{field.name} entry", {1: Field("key", "string"), 2: Field("value", field.kind, field.schema)}
    )


def _encode_value(field: Field, value: Any) -> bytes | int:
    if field.kind == "message":
        assert field.schema is not None
        return encode(field.schema, value)
    if field.kind == "string":
        return str(value).encode()
    if field.kind == "double":
        return struct.pack("<d", value)
    if field.kind == "bytes":
        return bytes(value)
    return int(value)


def _decode_value(field: Field, wire_type: int, value: Any) -> Any:
    value = _typed(field, _WIRE_TYPES[field.kind], wire_type, value)
    if field.kind == "message":
        assert field.schema is not None
        return decode(field.schema, value)
    if field.kind == "string":
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise MalformedError(f"{field.name} is not UTF-8") from error
    if field.kind == "double":
        return struct.unpack("<d", value)[0]
    if field.kind == "bool":
        return bool(value)
    return value


def _packed_doubles(value: bytes) -> tuple[float, ...]:
    if len(value) % 8:
        raise MalformedError("packed doubles are cut off")
    return struct.unpack(f"<{len(value) // 8}d", value)


def _typed(field: Field, expected: int, wire_type: int, value: Any) -> Any:
    if wire_type != expected:
        raise MalformedError(f"{field.name} has wire type {wire_type}, not {expected}")
    return value


def _tagged(number: int, wire_type: int, value: Any) -> bytes:
    tag = _varint(number << 3 | wire_type)
    if wire_type == VARINT:
        return tag + _varint(value)
    if wire_type == LENGTH:
        return tag + _varint(len(value)) + bytes(value)
    return tag + bytes(value)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _split(raw: bytes) -> list[tuple[int, int, Any]]:
    found: list[tuple[int, int, Any]] = []
    at = 0
    while at < len(raw):
        tag, at = _read_varint(raw, at)
        number, wire_type = tag >> 3, tag & 7
        value: Any
        if wire_type == VARINT:
            value, at = _read_varint(raw, at)
        else:
            if wire_type == LENGTH:
                size, at = _read_varint(raw, at)
            elif wire_type in (FIXED64, FIXED32):
                size = 8 if wire_type == FIXED64 else 4
            else:
                raise MalformedError(f"field {number} has the unknown wire type {wire_type}")
            value, at = raw[at : at + size], at + size
            if at > len(raw):
                raise MalformedError(f"field {number} is cut off")
        if number == 0:
            raise MalformedError("field number 0")
        found.append((number, wire_type, value))
    return found


def _read_varint(raw: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(raw):
            raise MalformedError("a number is cut off")
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise MalformedError("a number is longer than 64 bits")
