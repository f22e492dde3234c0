"""Arguments and results: Python objects to and from the wire's `Value`, and the legacy error value.

Reading a value unpickles it, which runs whatever its writer put there: only executors and clients
import `from_value` and `loads`, never an actor of the control plane.
"""

from __future__ import annotations

import pickle
from typing import Any

import cloudpickle

from ray_sched.errors import BadMessageError, RefusedError
from ray_sched.reference import CloudburstReference as CloudburstReference  # pickles of references need it
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire.codec import error_meant, parse

PROTOCOL = 4
"""One fixed pickle protocol: MULTIEXEC compares results by their bytes."""

_PLAIN = frozenset((int, float, bool, bytes, type(None)))
_IN_PLAIN = _PLAIN | {str}
_FEW = 100
"""Items of a container that are looked at: a longer one takes so long that it matters little how."""


def to_value(obj: Any) -> cb.Value:
    """STRING for a str, cloudpickle for everything else. Raises what pickling the object raises."""
    if type(obj) is str:
        try:
            return cb.Value(body=obj.encode(), type=cb.STRING)
        except UnicodeEncodeError:  # lone surrogates have no UTF-8, but a pickle
            pass
    # For what has no code in it both write the same; cloudpickle takes ten times as long.
    pickler = pickle if _is_plain(obj) else cloudpickle
    return cb.Value(body=pickler.dumps(obj, protocol=PROTOCOL), type=cb.DEFAULT)


def _is_plain(obj: Any) -> bool:
    kind = type(obj)
    if kind in (list, tuple):
        return len(obj) <= _FEW and all([type(item) in _IN_PLAIN for item in obj])
    return kind in _PLAIN


def from_value(value: cb.Value) -> Any:
    """The object; the raw bytes where a DEFAULT value is no pickle.

    Raises:
        BadMessageError: a NUMPY value, text that is not UTF-8, or a whole pickle that does not load
            here, for instance because a module is missing.
    """
    body = value.body
    if value.type == cb.STRING:
        try:
            return body.decode()
        except UnicodeDecodeError as error:
            raise BadMessageError(f"a STRING value is not UTF-8: {error}") from error
    if value.type == cb.DEFAULT:
        return _unpickle(body)
    if value.type == cb.NUMPY:
        raise BadMessageError(
            "a NUMPY value is in an Arrow format that no pyarrow reads: send arrays as DEFAULT"
        )
    raise BadMessageError(f"a value has the unknown type {value.type}: send DEFAULT or STRING")


def dumps(obj: Any) -> bytes:
    """A serialized `Value`: what functions, results and `invalid_results` are on the wire and in the KVS."""
    return to_value(obj).SerializeToString(deterministic=True)


def loads(raw: bytes) -> Any:
    """The object in a serialized `Value`. Raises BadMessageError, as `from_value` does."""
    return from_value(parse(cb.Value, raw))


def error_value(text: str, code: cb.CloudburstError) -> tuple[str, bytes]:
    """What stands for a result where there is none: ('ERROR: <text>', a serialized GenericResponse)."""
    return f"ERROR: {text}", cb.GenericResponse(success=False, error=code).SerializeToString()


def as_error(obj: Any) -> RefusedError | None:
    """The exception that a legacy error value stands for; None for any other object."""
    if not (type(obj) is tuple and len(obj) == 2 and isinstance(obj[0], str) and isinstance(obj[1], bytes)):
        return None
    return error_meant(*obj)


def _unpickle(body: bytes) -> Any:
    try:
        return cloudpickle.loads(body)
    except (pickle.UnpicklingError, EOFError):
        return body
    except Exception as error:
        # Bytes that only look like a pickle at first fail in many ways; a whole one that fails is one.
        if body[:1] == b"\x80" and body[-1:] == b".":
            hint = ""
            if isinstance(error, ModuleNotFoundError):
                hint = (
                    "; make the module importable here (PYTHONPATH where the executors are started), or have "
                    "it pickled by value (cloudpickle.register_pickle_by_value)"
                )
            raise BadMessageError(
                f"a pickled value does not load here: {type(error).__name__}: {error}{hint}"
            ) from error
        return body
