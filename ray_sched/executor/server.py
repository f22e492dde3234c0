"""An executor thread: its parts put together, on two threads of its own.

The run thread joins schedules and triggers, runs user code, and sends what follows from it. While it has
nothing else to do it receives, too: from the last message of a call to user code, and from there to the
next executor, nothing is handed to another thread. The I/O thread tells how the executor is, and stands
in at the ports while the run thread is busy for long. User code runs in the run thread alone, since it may
use what belongs to one thread.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final

import zmq

from ray_sched.config import Config
from ray_sched.core.destination import Destination
from ray_sched.core.execution import (
    AnswerPin,
    CallRequest,
    DagRequest,
    DepartArrived,
    Drop,
    Effect,
    Event,
    Execution,
    Fail,
    Finished,
    Forget,
    Key,
    Leave,
    Load,
    Loaded,
    Report,
    Run,
    Tick,
    TriggerArrived,
    Work,
)
from ray_sched.core.history import serving
from ray_sched.core.open_calls import OpenCalls
from ray_sched.errors import FunctionNotFoundError, RaySchedError
from ray_sched.executor.answers import Answers
from ray_sched.executor.functions import PREFIX, Functions, kind_of
from ray_sched.executor.history import History
from ray_sched.executor.journal import Journal
from ray_sched.executor.lattices import stored_value
from ray_sched.executor.outbox import Outbox
from ray_sched.executor.receiver import Receiver
from ray_sched.executor.reports import Reports
from ray_sched.executor.runner import Runner
from ray_sched.executor.user_library import UserLibrary
from ray_sched.kvs.client import KvsClient
from ray_sched.logs import fields, teller
from ray_sched.runtime_folder import runtime_file
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire.curve import Guard, Keys

logger = logging.getLogger(__name__)

QUEUE_LIMIT: Final = 10_000
"""Events and calls that wait for the run thread before calls are left in their sockets; of twice as many,
everything is but user messages."""
WAITING_LIMIT: Final = 100_000
"""Schedules, and triggers, that may wait for each other."""
MESSAGE_LIMIT: Final = 10_000
"""User messages that wait to be received; further ones push the oldest out."""
TICK_S: Final = 1.0
POLL_S: Final = 0.2
BUSY_S: Final = 0.05
"""How long the run thread may be busy before the I/O thread stands in for it at the ports; it looks as
often as that."""


@dataclass(frozen=True)
class _Changed:
    """The functions of these names were registered again."""

    names: tuple[str, ...]


class ExecutorServer:
    """One executor thread of the wire protocol, without Ray.

    It binds its ports on `ip`, the group's host by default. `on_stuck` is called in the I/O thread when
    loading a function takes longer than `executor.load_timeout_s`: by default the process exits with
    status 1, to be started again by others. `on_departed` is called in the run thread once a departing
    executor has nothing left to do; `stop` is still to be called.

    The constructor raises ConfigError when the journal's folder cannot be used.
    """

    def __init__(
        self,
        config: Config,
        tid: int,
        *,
        gpu: bool = False,
        ip: str | None = None,
        on_stuck: Callable[[], None] = lambda: os._exit(1),
        on_departed: Callable[[], None] = lambda: None,
    ) -> None:
        self.ip = ip or config.host
        self.tid = tid
        self.gpu = gpu
        self._config = config
        self._on_stuck = on_stuck
        self._on_departed = on_departed
        self._events: deque[Event | _Changed] = deque()
        """What the run thread has not taken in yet."""
        self._busy_since: float | None = None
        """When the run thread began to do something else than to receive."""
        self._takes_calls = True
        self._triggers: deque[Key] = deque()
        """Of those that have arrived, or are among the events: a run takes as long as user code does."""
        self._inbox: deque[bytes] = deque(maxlen=MESSAGE_LIMIT)
        self._journal_path = runtime_file(config, f"{self.ip}-{tid}.journal")
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()
        self._abandoned = False
        self._loading: Load | None = None
        self._last_work = time.monotonic()
        self.history = History(config.remembered)
        """What happened to calls here."""
        self.history.heard = teller(logger, logging.DEBUG)
        self._counts = {"calls": 0, "dag_runs": 0, "dropped": 0, "expired": 0, "recovered": 0}

    def start(self) -> None:
        """Bind the ports, answer what a process before this one left, and begin to work.

        Raises PortTakenError or ConfigError when a port cannot be bound.
        """
        config, executor = self._config, self._config.executor
        keys = Keys.of_executor(config.security.curve)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._kvs = KvsClient(
            config.kvs_host,
            self.ip,
            timeout_s=config.kvs.timeout_s,
            retries=config.kvs.retries,
            routing_ports=config.kvs.routing_ports,
            tid=self.tid,
            keys=keys,
        )
        self._guard = Guard(self._context, keys)
        try:
            self._receiver = Receiver(
                self._context,
                self.ip,
                self.tid,
                config.ports,
                self._begin,
                self._inbox,
                self._on_arrival,
                max_message_bytes=2 * config.scheduler.max_message_bytes,
                max_control_bytes=config.scheduler.max_control_bytes,
                max_name_bytes=config.scheduler.max_name_bytes,
                keys=keys,
            )
            # Whoever holds the ports holds the journal.
            self._journal = Journal(self._journal_path)
        except BaseException:
            self._kvs.close()
            self._guard.close()
            self._context.destroy(0)
            raise
        follows = self._journal.was_there
        self._reports = Reports(config, self.ip, self.tid, self.gpu, time.monotonic(), keys, follows=follows)
        self._outbox = Outbox(self._context, keys)
        patience_s = config.kvs.timeout_s * (config.kvs.retries + 1)
        self._answers = Answers(self._kvs, self._outbox, self._journal, patience_s, self.history)
        library = UserLibrary(
            self.ip,
            self.tid,
            config.ports,
            self._kvs,
            self._outbox.send,
            self._inbox,
            self._receiver.take_messages,
        )
        self._functions = Functions(self._kvs, library)
        self._execution = Execution(
            max_functions=config.functions_per_executor,
            batch_size=executor.batch_size,
            schedule_timeout_s=executor.schedule_timeout_s,
            trigger_timeout_s=executor.trigger_timeout_s,
            depart_timeout_s=executor.depart_timeout_s,
            depart_linger_s=executor.depart_linger_s,
            limit=WAITING_LIMIT,
        )
        self._runner = Runner(
            library=library,
            functions=self._functions,
            kvs=self._kvs,
            outbox=self._outbox,
            answers=self._answers,
            journal=self._journal,
            reports=self._reports,
            layout=config.ports,
            scheduler_ips=config.scheduler_ips,
            max_message_bytes=config.scheduler.max_message_bytes,
            reference_timeout_s=executor.reference_timeout_s,
            rng=random.Random(),
            history=self.history,
        )
        self._busy_since = time.monotonic()
        for name, target in (("io", self._watch), ("run", self._work)):
            thread = threading.Thread(target=target, name=f"executor-{self.tid}-{name}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def status(self) -> dict[str, Any]:
        """What it is, what is pinned here, and what it has counted since its start."""
        return {
            "ip": self.ip,
            "tid": self.tid,
            "type": "gpu" if self.gpu else "cpu",
            "functions": list(self._reports.functions),
            "utilization": self._reports.last_utilization,
            "running": self._reports.running,
            "queued": self._execution.queued,
            "waiting": self._execution.waiting,
            **self._counts,
            "errors": self._runner.errors,
            "lost_results": self._answers.lost,
            "bad_messages": self._receiver.bad_messages,
        }

    @property
    def idle_s(self) -> float:
        """Seconds since it last had anything to do or to hold."""
        if self._reports.functions or self._execution.queued or self._execution.waiting:
            return 0.0
        return 0.0 if self._reports.utilization.working else time.monotonic() - self._last_work

    def depart(self) -> None:
        """Take no more pins, finish what is here, and leave, as when the management node says so."""
        self._tell(DepartArrived())

    def open_calls(self) -> OpenCalls:
        """How it stands with the calls that were taken on and are not done."""
        begun = self._journal.open_calls()
        if not self._takes_calls:  # a trigger may be left in the socket, as may further calls
            return OpenCalls([to.key for to in begun.values()], [], True)
        return self._execution.open_calls(begun, set(self._triggers.copy()))

    def stop(self, timeout_s: float = 3.0) -> None:
        """Free the ports and end the threads; calls that are not done are answered with an error.

        User code that is running is not waited for longer than that: its thread goes on until it
        returns, and its call is answered by the next process. Again is harmless.
        """
        if self._stopping.is_set() or not self._threads:
            return
        self._stopping.set()
        deadline = time.monotonic() + timeout_s
        self._receiver.wake()
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if self._threads[-1].is_alive():
            self._abandoned = True
            self._let_go()

    def _on_arrival(self, event: Event) -> None:
        if isinstance(event, TriggerArrived):
            self._triggers.append((event.trigger.id, event.trigger.target_function))
        self._events.append(event)

    def _tell(self, event: Event | _Changed) -> None:
        """Something that did not come over a port. From any thread."""
        self._events.append(event)
        self._receiver.wake()

    def _begin(self, destination: Destination) -> int:
        return self._journal.begin(destination)

    def _let_go(self) -> None:
        self._journal.close()
        self._reports.close(self._config.executor.linger_ms)
        self._kvs.close()

    # The I/O thread.

    def _watch(self) -> None:
        try:
            self._watch_until_stopped()
            # What came while the run thread was busy is answered with the rest.
            self._receiver.stand_in(0.0, calls=True, control=True)
        except zmq.ContextTerminated:
            pass  # the run thread was not busy, and has ended
        except Exception:
            logger.exception("The I/O thread of executor %s:%d ends", self.ip, self.tid)
        finally:
            self._receiver.close()

    def _watch_until_stopped(self) -> None:
        config = self._config.executor
        now = time.monotonic()
        next_report, next_reload = now + config.status_period_s, now + config.reload_period_s
        while not self._stopping.is_set():
            try:
                busy_since = self._busy_since
                if busy_since is not None and now - busy_since >= BUSY_S:
                    self._receiver.stand_in(POLL_S, **self._wanted())
                else:
                    self._stopping.wait(BUSY_S)
                now = time.monotonic()
                if now >= next_report:
                    next_report = now + config.status_period_s
                    self._reports.reconnections = self._receiver.reconnections
                    self._reports.period(now)
                if now >= next_reload:
                    next_reload = now + config.reload_period_s
                    self._look_for_changes()
                since = self._functions.loading_since
                if since is not None and now - since > config.load_timeout_s:
                    self._give_up_loading()
                    return
            except Exception:
                if not self._stopping.is_set():
                    logger.exception("The I/O thread of executor %s:%d goes on", self.ip, self.tid)

    def _wanted(self) -> dict[str, bool]:
        """What may be received, so that not too much is queued."""
        queued = len(self._events)
        self._takes_calls = queued + self._execution.queued <= QUEUE_LIMIT
        return {"calls": self._takes_calls, "control": queued <= 2 * QUEUE_LIMIT}

    def _look_for_changes(self) -> None:
        names = {PREFIX + name: name for name in self._functions.names()}

        def on_read(read: Future[Any]) -> None:
            if read.exception() is None:
                changed = tuple(
                    names[key]
                    for key, lattice in read.result().items()
                    if lattice is not None and self._functions.is_stale(names[key], stored_value(lattice))
                )
                if changed:
                    self._tell(_Changed(changed))

        if names:
            self._kvs.get_many_future(names).add_done_callback(on_read)

    def _give_up_loading(self) -> None:
        logger.error(
            "Loading a function took longer than %g s: executor %s:%d ends",
            self._config.executor.load_timeout_s,
            self.ip,
            self.tid,
        )
        loading = self._loading
        if loading is not None:
            self._reports.answer_pin(loading.pin, False, cb.EXECUTION_ERROR)
        self._reports.close(self._config.executor.linger_ms)
        self._on_stuck()

    # The run thread.

    def _work(self) -> None:
        try:
            self._work_until_stopped()
        finally:
            if not self._abandoned:
                for entry, destination in self._journal.open_calls().items():
                    self._answers.ended(destination, entry)
                self._answers.flush(self._config.kvs.timeout_s)
                self._let_go()
            self._outbox.close(self._config.executor.linger_ms)
            self._guard.close()
            self._context.term()

    def _work_until_stopped(self) -> None:
        left = False
        if self._journal.was_there:
            # Whoever sent something to the process before this one had better look what became of it.
            self._reports.ended()
        self._reports.status()
        for entry, destination in self._journal.leftovers.items():
            self._counts["recovered"] += 1
            self._answers.ended(destination, entry)
        next_tick = time.monotonic() + TICK_S
        while not self._stopping.is_set():
            try:
                if not self._events:
                    self._await_events(next_tick)
                self._take_in_all()
                now = time.monotonic()
                if now >= next_tick:
                    next_tick = now + TICK_S
                    self._handle(Tick())
                    self._answers.try_again()
                while (
                    not (left or self._stopping.is_set())
                    and (work := self._execution.next_work()) is not None
                ):
                    if isinstance(work, Leave) and self._takes_more():
                        continue
                    self._do(work)
                    left = isinstance(work, Leave)
                    self._take_in_all()
            except Exception:
                if not self._stopping.is_set():
                    logger.exception("The run thread of executor %s:%d goes on", self.ip, self.tid)

    def _await_events(self, until: float) -> None:
        """Receive, until then at the longest."""
        timeout_s = min(POLL_S, max(0.0, until - time.monotonic()))
        self._busy_since = None
        try:
            if self._receiver.closed:
                self._stopping.wait(timeout_s)
            else:
                self._receiver.receive(timeout_s, **self._wanted(), pending=self._events)
        except Exception:
            # Of a message that could not be noted. What else there is to do does not wait for the next one.
            if not self._stopping.is_set():
                logger.exception("Executor %s:%d goes on receiving", self.ip, self.tid)
        finally:
            self._busy_since = time.monotonic()

    def _takes_more(self) -> bool:
        """Take in what came meanwhile; whether there was anything."""
        self._await_events(0.0)
        if not self._events:
            return False
        self._take_in_all()
        return True

    def _take_in_all(self) -> None:
        for _ in range(QUEUE_LIMIT):
            if not self._events:
                return
            self._take_in(self._events.popleft())

    def _take_in(self, event: Event | _Changed) -> None:
        if isinstance(event, TriggerArrived):
            try:
                self._handle(event)
            finally:
                self._triggers.popleft()
            return
        if not isinstance(event, _Changed):
            self._handle(event)
            return
        for name in event.names:
            try:
                self._functions.reload(name)
            except RaySchedError as error:
                logger.warning(
                    "a function stays as it was", extra=fields(function=name, error=kind_of(error))
                )

    def _handle(self, event: Event) -> None:
        self.history.arrived(event)
        for effect in self._execution.handle(event, time.monotonic()):
            self._carry_out(effect)

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case AnswerPin(pin, success, error):
                self.history.pin(effect)
                with serving(pin.request):
                    answer = "accepted" if success else "refused"
                    said = {**fields(function=pin.name), "cause": (answer, pin.name)}
                    logger.info("a pin is %s", answer, extra=said)
                self._reports.answer_pin(pin, success, error)
            case Report():
                held = self._execution.functions
                for name in set(self._reports.functions) - set(held):
                    self._functions.unpin(name)
                self._reports.functions = held
                self._reports.running = not self._execution.departing
                self._reports.status()
            case Fail():
                self._counts["expired"] += 1
                self.history.expired(effect)
                logger.warning("a call expired", extra=fields(id=effect.schedule.id, reason=effect.reason))
                self._answers.expired(effect)
            case Forget(entry):
                self._journal.end(entry)
            case Drop():
                self._counts["dropped"] += 1

    def _do(self, work: Work) -> None:
        self._reports.utilization.begin(time.monotonic())
        try:
            match work:
                case Load():
                    self._load(work)
                case Run():
                    self._run(work)
                case Leave():
                    self._leave()
        finally:
            self._last_work = time.monotonic()
            self._reports.utilization.end(self._last_work)

    def _run(self, run: Run) -> None:
        ended = (True,) * len(run.requests)
        try:
            ended = self._runner.run(run)
        finally:
            # Messages that a request did not take end with it, as in the legacy system.
            try:
                self._receiver.take_messages()
                self._inbox.clear()
            finally:
                self._handle(Finished(run, ended))
        if isinstance(run.requests[0], CallRequest):
            self._counts["calls"] += 1
            self._reports.status()
        elif isinstance(run.requests[0], DagRequest):
            self._counts["dag_runs"] += len(run.requests)

    def _load(self, load: Load) -> None:
        error = cb.NO_CLOUDBURST_ERROR
        self._loading = load
        try:
            self._functions.pin(load.pin.name)
        except FunctionNotFoundError:
            error = cb.FUNC_NOT_FOUND
        except RaySchedError as failure:
            logger.warning(
                "a function cannot be pinned", extra=fields(function=load.pin.name, error=kind_of(failure))
            )
            error = cb.EXECUTION_ERROR
        finally:
            self._loading = None
        self._handle(Loaded(load.pin, error))

    def _leave(self) -> None:
        self._answers.flush(self._config.kvs.timeout_s)
        self._reports.status()
        self._reports.departed()
        self._on_departed()
