"""Whether a result is the legacy error value, told without unpickling it.

The error value is a pickled pair: a text that starts with ERROR, and a serialized
`GenericResponse`. Its pickle consists of a handful of opcodes, which are read here as a small
language of their own; whatever does not fit is a result like any other.
"""

from __future__ import annotations

import pickletools
from typing import Any

from ray_sched.errors import RefusedError
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire.codec import error_meant

MAX_ERROR_BYTES = 1_000_000
_STRINGS = frozenset({"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"})
_BYTES = frozenset({"SHORT_BINBYTES", "BINBYTES", "BINBYTES8"})
_WITHOUT_EFFECT = frozenset({"PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT"})


def error_in(value: cb.Value) -> RefusedError | None:
    """The exception that a result stands for; None where it is no error value."""
    body = value.body
    if value.type != cb.DEFAULT or len(body) > MAX_ERROR_BYTES or b"ERROR" not in body[:32]:
        return None
    pair = _pair_in(body)
    return error_meant(*pair) if pair is not None else None


def _pair_in(body: bytes) -> tuple[str, bytes] | None:
    stack: list[Any] = []
    try:
        for opcode, argument, _ in pickletools.genops(body):
            name = opcode.name
            if name in _STRINGS or name in _BYTES:
                stack.append(argument)
            elif name == "TUPLE2":
                text, raw = stack
                return (text, raw) if isinstance(text, str) and isinstance(raw, bytes) else None
            elif name not in _WITHOUT_EFFECT:
                return None
    except ValueError:  # not a pickle, or another number of things on the stack
        return None
    return None
