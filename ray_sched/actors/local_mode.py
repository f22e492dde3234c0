"""Ray's local mode: every actor of a group in the one process of the program that started it.

Ray 2.53 is the last version that has it. It runs a call inside `.remote()`, in the caller's thread, and two
calls at once, from two threads, take each other's actor and end the process. So the calls of a program
go through Ray as ever, and those between actors, which come from many threads, go straight to the actor here.
What Ray would have given an actor in a process of its own, it gets here:

- threads for each of its concurrency groups, in which calls wait in line, so that nobody waits for
  somebody who waits for him;
- arguments and results of its own, through a pickle, so that no two actors change one object;
- a constructor whose error is told, where Ray would abort the process.
"""

from __future__ import annotations

import pickle
import threading
import traceback
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

import ray
from ray import cloudpickle  # loaded with Ray in any case
from ray.exceptions import RayTaskError

_MODE: Final = getattr(ray, "LOCAL_MODE", None)
_here: dict[str, _Actor] = {}
_lock: Final = threading.Lock()


def exists() -> bool:
    """Whether this version of Ray has it."""
    return _MODE is not None


def is_on() -> bool:
    """Whether this process is in it."""
    return _MODE is not None and ray.is_initialized() and ray.get_runtime_context().worker.mode == _MODE


def adapted(cls: type[Any], name: str, groups: Mapping[str, int]) -> type[Any]:
    """The actor's class as local mode needs it: its instance is found by the actor's name from now on."""
    return type(cls.__name__, (_Adapter, cls), {"_name": name, "_groups": dict(groups)})


def actor_names() -> list[str]:
    """The names of the actors that are here."""
    with _lock:
        return list(_here)


def find(name: str) -> Any:
    """What calls the actor of that name as its handle would, from any thread; None where none is here."""
    return _here.get(name)


class _Adapter:
    """Before the actor's class in the order of bases."""

    _name: str
    _groups: dict[str, int]
    _failure: Exception | None = None

    def __init__(self, *args: Any) -> None:
        try:
            super().__init__(*args)
        except Exception as error:
            self._failure = error
            return
        with _lock:
            _here[self._name] = _Actor(self, self._groups)

    def ready(self) -> Any:
        if self._failure is not None:
            raise self._failure
        return super().ready()  # type: ignore[misc]

    def stop(self) -> None:
        with _lock:
            actor = _here.pop(self._name, None)
        if actor is not None:
            super().stop()  # type: ignore[misc]
            actor.close()


class _Actor:
    """Looks like an actor's handle as far as `Link` uses one: `actor.method.remote(...).future()`."""

    def __init__(self, instance: Any, groups: Mapping[str, int]) -> None:
        self._instance = instance
        self._pools = {
            group: ThreadPoolExecutor(threads, thread_name_prefix=f"local-{type(instance).__name__}-{group}")
            for group, threads in {"": 1, **groups}.items()
        }

    def __getattr__(self, method: str) -> _Method:
        return _Method(self, method)

    def submit(self, method: str, args: tuple[Any, ...]) -> Future[Any]:
        bound = getattr(self._instance, method)
        sent = cloudpickle.dumps(args)
        pool = self._pools[getattr(bound, "__ray_concurrency_group__", "")]
        answer: Future[Any] = Future()
        try:
            pool.submit(_run, bound, method, sent).add_done_callback(lambda ran: _answer(answer, ran))
        except RuntimeError:
            answer.set_exception(ray.exceptions.ActorDiedError())
        return answer

    def close(self) -> None:
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)


class _Method:
    def __init__(self, actor: _Actor, method: str) -> None:
        self._actor = actor
        self._method = method

    def remote(self, *args: Any) -> _Ref:
        return _Ref(self._actor.submit(self._method, args))


class _Ref:
    def __init__(self, future: Future[Any]) -> None:
        self._future = future

    def future(self) -> Future[Any]:
        return self._future


def _answer(answer: Future[Any], ran: Future[Any]) -> None:
    """What came of a call; as with Ray, one that the actor ended before is told so."""
    error = ray.exceptions.ActorDiedError() if ran.cancelled() else ran.exception()
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(ran.result())


def _run(bound: Any, method: str, args: bytes) -> Any:
    try:
        return pickle.loads(cloudpickle.dumps(bound(*pickle.loads(args))))
    except Exception as error:
        # As callers of actors know it.
        told = RayTaskError(method, traceback.format_exc(), error, proctitle=method, ip="127.0.0.1")
        raise told.as_instanceof_cause() from None
