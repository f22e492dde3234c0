"""One actor's way to another of its group: found by name, never waited for.

`.remote()` costs its caller up to a millisecond, and in Ray's local mode the whole call. So a link
makes it in a thread of its own where the caller says so, and hands the answer over as a future.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

import ray

from ray_sched.actors import names
from ray_sched.actors.unwrapping import plain_error
from ray_sched.errors import NotRunningError, RaySchedError, TimedOutError
from ray_sched.logs import fields

log = logging.getLogger(__name__)

Answer = Callable[[Any, BaseException | None], None]


class Link:
    """Calls to the actor of one role. Thread-safe."""

    def __init__(self, group: str, role: str, *, unanswered: int = 4) -> None:
        self.role = role
        self._group = group
        self._handle: Any = None
        self._room = threading.Semaphore(unanswered)

    def ask(self, method: str, *args: Any) -> Future[Any]:
        """Call a method; its result, or its error, comes with the future."""
        try:
            if self._handle is None:
                if not ray.is_initialized():  # looking a name up would start a cluster
                    raise NotRunningError(f"this process is not connected to Ray, so there is no {self.role}")
                self._handle = names.find_for_actor(self._group, self.role)
            future: Future[Any] = getattr(self._handle, method).remote(*args).future()
            future.add_done_callback(self._forget_if_dead)
        except (RaySchedError, ray.exceptions.RayError) as error:
            future = Future()
            future.set_exception(error)
        return future

    def get(self, method: str, *args: Any, timeout_s: float) -> Any:
        """Call a method and wait. Raises TimedOutError, NotRunningError, and what the method raised."""
        try:
            return self.ask(method, *args).result(timeout_s)
        except ray.exceptions.RayError as error:  # first: an actor's own TimedOutError is a TimeoutError, too
            raise plain_error(self.role, error) from None
        except FutureTimeoutError:
            raise TimedOutError(
                f"the {self.role} actor did not answer {method} within {timeout_s:g} s"
            ) from None

    def tell(self, method: str, *args: Any) -> bool:
        """Call a method without an interest in its result; False (and nothing is sent) while too many
        earlier ones are unanswered: the caller keeps what it has to say until there is room."""
        if not self._room.acquire(blocking=False):
            return False
        self.ask(method, *args).add_done_callback(self._answered)
        return True

    def _forget_if_dead(self, future: Future[Any]) -> None:
        """One that Ray restarts keeps its handle; one that was ended may be there anew, by its name."""
        if isinstance(future.exception(), ray.exceptions.ActorDiedError):
            self._handle = None

    def has_room(self) -> bool:
        """Whether `tell` would send now; true for whoever is the only one to call `tell`."""
        if self._room.acquire(blocking=False):
            self._room.release()
            return True
        return False

    def _answered(self, future: Future[Any]) -> None:
        error = future.exception()
        if isinstance(error, ray.exceptions.RayTaskError) and not isinstance(error, RaySchedError):
            # A fault of ours, which its caller does not look at.
            kind = type(getattr(error, "cause", error)).__name__
            log.error("an actor failed in what it was told", extra=fields(of=self.role, error=kind))
        # A peer that is restarting is told again by what its caller does next.
        self._room.release()


class Lane:
    """Threads in which calls are made, so that the caller does not pay for them.

    At most `waiting` calls wait for a thread: what comes then is not made, and its caller hears so.
    """

    def __init__(self, name: str, threads: int = 1, *, waiting: int = 1000) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._room = threading.Semaphore(waiting)

    def ask(self, link: Link, method: str, args: tuple[Any, ...], answer: Answer) -> bool:
        """Call a method; `answer(result, error)` is called once, in a thread of Ray's, if this is true.

        It must not call another actor there: Ray's replies all come through that thread, and to look
        an actor's name up waits for one. Let it `run` what has to be done.
        """

        def answered(future: Future[Any]) -> None:
            error = future.exception()
            answer(None if error else future.result(), error)

        return self.run(lambda: link.ask(method, *args).add_done_callback(answered))

    def tell(self, link: Link, method: str, *args: Any) -> bool:
        return self.run(lambda: link.tell(method, *args))

    def run(self, call: Callable[[], Any]) -> bool:
        """False where it will not be made: too many wait already, or this was closed."""
        if not self._room.acquire(blocking=False):
            return False

        def make() -> None:
            self._room.release()
            try:
                call()
            except Exception:  # a fault of ours: it costs this call and no other
                log.exception("a call in a lane failed")

        try:
            self._pool.submit(make)
        except RuntimeError:  # it was closed: nobody is interested any more
            return False
        return True

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
