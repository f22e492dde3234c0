"""The functions that an executor thread has loaded: pinned ones, and others that calls asked for.

A function is stored at `funcs/<name>`: a serialized `Value`, or the bare cloudpickle, of a callable or
of a tuple `(cls, args)`; `cls(library, *args)` is made once, and its method `run` is what is called.
Everything here is used by the run thread alone, but for `names`, `is_stale` and `loading_since`.
"""

from __future__ import annotations

import os
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import cloudpickle

import ray_sched
from ray_sched.errors import BadMessageError, FunctionNotFoundError, RaySchedError
from ray_sched.executor.lattices import stored_value
from ray_sched.kvs.client import KvsClient
from ray_sched.values import from_value
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire.codec import parse

_OURS: Final = os.path.dirname(ray_sched.__file__) + os.sep
PREFIX: Final = "funcs/"
UNPINNED_LIMIT: Final = 100
"""Functions that are kept for calls without a pin; the one that was not called for longest goes first."""


class LoadError(RaySchedError):
    """A function's body cannot be loaded here; the message says why."""


@dataclass(frozen=True)
class _Loaded:
    body: bytes
    call: Callable[..., Any]


class Functions:
    """Loads functions from the key-value store, and keeps them. `library` is what they get first."""

    def __init__(self, kvs: KvsClient, library: object, unpinned_limit: int = UNPINNED_LIMIT) -> None:
        self._kvs = kvs
        self._library = library
        self._unpinned_limit = unpinned_limit
        self._pinned: dict[str, _Loaded] = {}
        self._others: OrderedDict[str, _Loaded] = OrderedDict()
        self.loading_since: float | None = None
        """When the code that is being loaded now began to run, in seconds of the monotonic clock."""

    def names(self) -> list[str]:
        """All that are loaded. Any thread may ask."""
        return [*self._pinned.copy(), *self._others.copy()]

    def is_stale(self, name: str, body: bytes) -> bool:
        """Whether another body than this is loaded for the function. Any thread may ask."""
        loaded = self._pinned.get(name) or self._others.get(name)
        return loaded is not None and loaded.body != body

    def get(self, name: str) -> Callable[..., Any]:
        """The function; loaded now if it is not. Raises as `pin` does."""
        loaded = self._pinned.get(name)
        if loaded is None:
            loaded = self._others.get(name)
            if loaded is None:
                loaded = self._others[name] = self._load(name)
                if len(self._others) > self._unpinned_limit:
                    self._others.popitem(last=False)
            else:
                self._others.move_to_end(name)
        return loaded.call

    def pin(self, name: str) -> None:
        """Load the function anew and keep it.

        Raises FunctionNotFoundError when there is none, LoadError when it cannot be loaded, and
        what a read of the key-value store raises.
        """
        self._pinned[name] = self._load(name)
        self._others.pop(name, None)

    def unpin(self, name: str) -> None:
        self._pinned.pop(name, None)

    def reload(self, name: str) -> None:
        """Load anew a function that has changed, if it is still loaded. Raises as `pin` does.

        When that fails, the next call tries again.
        """
        if name in self._pinned:
            self._pinned[name] = self._load(name)
        elif name in self._others:
            del self._others[name]

    def _load(self, name: str) -> _Loaded:
        lattice = self._kvs.get(PREFIX + name)
        if lattice is None:
            raise FunctionNotFoundError(f"no function {name!r} is registered")
        body = stored_value(lattice)
        self.loading_since = time.monotonic()
        try:
            return _Loaded(body, self._make(body))
        except BaseException as error:
            # User code runs here, too: imports, constructors, whatever a pickle calls.
            raise LoadError(f"function {name!r} cannot be loaded: {describe(error)}") from error
        finally:
            self.loading_since = None

    def _make(self, body: bytes) -> Callable[..., Any]:
        # A pickle starts with 0x80, which no serialized Value does.
        made = cloudpickle.loads(body) if body[:1] == b"\x80" else from_value(parse(cb.Value, body))
        if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], type):
            cls, args = made
            made = cls(self._library, *(args if isinstance(args, tuple) else (args,))).run
        if not callable(made):
            raise BadMessageError(f"what is registered is no function but a {type(made).__name__}")
        function: Callable[..., Any] = made
        return function


def describe(error: BaseException) -> str:
    """An error of user code in words; the type where it has none of its own."""
    try:
        return str(error) or type(error).__name__
    except BaseException:
        return type(error).__name__


def place_of(error: BaseException) -> str:
    """Where user code raised it: the innermost line that is not ours; empty where there is none."""
    try:
        raised_at = BaseException.__dict__["__traceback__"].__get__(error)  # past what its class makes of it
        places = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(raised_at)]
    except BaseException:
        return ""
    users = [(file, line) for file, line in places if not file.startswith(_OURS)]
    return f"line {users[-1][1]} of {users[-1][0]}" if users else ""


def kind_of(error: BaseException) -> str:
    """What a log may say of an error: its type, and that of what caused it. Its words may hold user data."""
    causes = [error]
    while (cause := causes[-1].__cause__) is not None and len(causes) < 5:
        causes.append(cause)
    return " from ".join(type(cause).__name__ for cause in causes)
