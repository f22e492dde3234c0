"""The little of protobuf's encoding that is written by hand, where a message is put together from parts.

Serialized parts that are joined are one message: fields that come again add to what was there, and
an entry of a map is a field like any other. Source: the protobuf encoding guide.
"""

from __future__ import annotations

LENGTH_DELIMITED = 2


def varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


LENGTHS = [varint(length) for length in range(1024)]
"""The lengths of short fields, ready made."""


def delimited(field: int, payload: bytes) -> bytes:
    """A field that holds a string, bytes or a message."""
    return varint(field << 3 | LENGTH_DELIMITED) + varint(len(payload)) + payload
