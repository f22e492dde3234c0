"""The little of protobuf's encoding that is written by hand, where a message is put together from parts.

Serialized parts that are joined are one message: fields that come again add to what was there, and
an entry of a map is a field like any other. Source: the protobuf encoding guide.
"""

from __future__ import annotations

FIXED_64 = 1
LENGTH_DELIMITED = 2


def varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


# Ready made, as nearly all fields are of low numbers and short, and `varint` is a loop.
_TAGS = [varint(field << 3 | LENGTH_DELIMITED) for field in range(16)]
_LENGTHS = [varint(length) for length in range(1024)]


def delimited(field: int, payload: bytes) -> bytes:
    """A field, of number 1 to 15, that holds a string, bytes or a message."""
    length = len(payload)
    return _TAGS[field] + (_LENGTHS[length] if length < 1024 else varint(length)) + payload
