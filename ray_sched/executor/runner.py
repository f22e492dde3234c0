"""Runs functions: arguments in, user code, results out.

Rule 1: nothing that user code does gets past `run`: it may raise anything, `SystemExit` too, and
its pickles run code of its own.
Rule 2: every request that ends is answered or passed on exactly once.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from ray_sched.core.destination import Destination
from ray_sched.core.execution import CallRequest, DagRequest, Run, Sink
from ray_sched.errors import BadMessageError, ExecutionError, FunctionNotFoundError, TimedOutError
from ray_sched.executor.answers import NOT_FOUND, Answers
from ray_sched.executor.dependencies import Dependencies
from ray_sched.executor.functions import Functions, describe, kind_of, place_of
from ray_sched.executor.history import History
from ray_sched.executor.journal import Journal
from ray_sched.executor.lattices import clock_of, revealed
from ray_sched.executor.outbox import Outbox
from ray_sched.executor.reports import Reports
from ray_sched.kvs.client import KvsClient
from ray_sched.kvs.lattices import Lattice
from ray_sched.logs import fields
from ray_sched.reference import CloudburstReference
from ray_sched.values import as_error, error_value, from_value, to_value
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire.ports import CONTINUATION, Layout, tcp

logger = logging.getLogger(__name__)

FIRST_PAUSE_S: Final = 0.002
LONGEST_PAUSE_S: Final = 0.1
"""Between two looks for a key that an argument refers to."""

Request = CallRequest | DagRequest


class Runner:
    """For the run thread alone. `reference_timeout_s`: how long a request waits for its references."""

    def __init__(
        self,
        *,
        library: object,
        functions: Functions,
        kvs: KvsClient,
        outbox: Outbox,
        answers: Answers,
        journal: Journal,
        reports: Reports,
        layout: Layout,
        scheduler_ips: Sequence[str],
        max_message_bytes: int,
        reference_timeout_s: float,
        rng: random.Random,
        history: History,
    ) -> None:
        self._history = history
        self.errors = 0
        """Requests that were answered with an error."""
        self._library = library
        self._functions = functions
        self._kvs = kvs
        self._outbox = outbox
        self._answers = answers
        self._journal = journal
        self._reports = reports
        self._layout = layout
        self._scheduler_ips = scheduler_ips
        self._max_message_bytes = max_message_bytes
        self._reference_timeout_s = reference_timeout_s
        self._rng = rng

    def run(self, run: Run) -> tuple[bool, ...]:
        """Run a function for its requests; for each, whether that was its end (see `Finished`)."""
        began = time.monotonic()
        dependencies = [
            Dependencies(request.triggers if isinstance(request, DagRequest) else ())
            for request in run.requests
        ]
        for request in run.requests:
            self._history.request(request, "{} runs")
        results = self._results(run, dependencies)
        ended = tuple(map(self._conclude, run.requests, results, dependencies))
        runtime_s = (time.monotonic() - began) / len(run.requests)
        for _ in run.requests:
            self._reports.function_ran(run.function, runtime_s)
        return ended

    def _results(self, run: Run, dependencies: list[Dependencies]) -> list[Any]:
        """What the function gives for each request, or a `_Failed`."""
        try:
            function = self._functions.get(run.function)
            prepared = [self._arguments(request, spread=not run.batched) for request in run.requests]
            self._resolve(prepared, dependencies)
        except BaseException as error:
            return [_Failed(error)] * len(run.requests)
        if not run.batched:
            arguments = prepared[0]
            if isinstance(arguments, _Failed):
                return [arguments]
            return [_call(function, self._library, arguments)]
        good = [arguments for arguments in prepared if not isinstance(arguments, _Failed)]
        given = _call_batch(function, self._library, good) if good else []
        return [item if isinstance(item, _Failed) else given.pop(0) for item in prepared]

    def _arguments(self, request: Request, spread: bool) -> list[Any] | _Failed:
        """The arguments as objects; the legacy system spreads a tuple into several of them."""
        arguments: list[Any] = []
        try:
            for value in request.arguments:
                argument = from_value(value)
                if spread and type(argument) is tuple:
                    arguments += argument
                else:
                    arguments.append(argument)
        except BaseException as error:
            return _Failed(error)
        return arguments

    def _resolve(self, prepared: list[list[Any] | _Failed], dependencies: list[Dependencies]) -> None:
        """Put values in the place of references; all in one read, again until all of them are there."""
        keys = {
            argument.key
            for arguments in prepared
            if not isinstance(arguments, _Failed)
            for argument in arguments
            if isinstance(argument, CloudburstReference)
        }
        if not keys:
            return
        found = self._wait_for(keys)
        for index, arguments in enumerate(prepared):
            if isinstance(arguments, _Failed):
                continue
            try:
                for position, argument in enumerate(arguments):
                    if isinstance(argument, CloudburstReference):
                        lattice = found[argument.key]
                        if lattice is None:
                            raise TimedOutError(
                                f"the key {argument.key!r}, to which an argument refers, did not appear "
                                f"within {self._reference_timeout_s:g} s"
                            )
                        arguments[position] = value = revealed(lattice, argument.deserialize)
                        failure = as_error(value)
                        if failure is not None:
                            words = str(failure) or type(failure).__name__
                            raise ExecutionError(f"the argument at key {argument.key!r} failed: {words}")
                        dependencies[index].read(argument.key, clock_of(lattice))
            except BaseException as error:
                prepared[index] = _Failed(error)

    def _wait_for(self, keys: set[str]) -> dict[str, Lattice | None]:
        deadline = time.monotonic() + self._reference_timeout_s
        pause_s = FIRST_PAUSE_S
        found = self._kvs.get_many(keys)
        while (missing := [key for key in keys if found[key] is None]) and time.monotonic() < deadline:
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            found.update(self._kvs.get_many(missing))
        return found

    def _conclude(self, request: Request, result: Any, dependencies: Dependencies) -> bool:
        try:
            if isinstance(result, _Failed):
                raise result.error
            if isinstance(request, CallRequest):
                value = to_value(result).SerializeToString(deterministic=True)
                self._history.request(request, "{} is done")
                self._answers.result(Destination.of_call(request.call), value, dependencies, request.entry)
                return True
            return self._conclude_dag(request, result, dependencies)
        except FunctionNotFoundError as error:
            self._history.request(request, "{} failed: {}", type(error).__name__)
            self._fail(request, NOT_FOUND)
        except BaseException as error:
            place = place_of(error)
            told = f"{type(error).__name__}, at {place}" if place else type(error).__name__
            self._history.request(request, "{} failed: {}", told)
            logger.info(
                "a run failed",
                extra=fields(id=request.id, function=request.function, error=kind_of(error), at=place),
            )
            self._fail(request, error_value(describe(error), cb.EXECUTION_ERROR))
        return True

    def _fail(self, request: Request, error: tuple[str, bytes]) -> None:
        self.errors += 1
        if isinstance(request, CallRequest):
            to = Destination.of_call(request.call)
        else:
            to = Destination.of_error(request.schedule)
        self._answers.error(to, error, request.entry)

    def _conclude_dag(self, request: DagRequest, result: Any, dependencies: Dependencies) -> bool:
        schedule, sinks = request.schedule, request.sinks
        value = b""
        if not sinks or request.reference.type == cb.MULTIEXEC:
            value = to_value(result).SerializeToString(deterministic=True)
            if request.reference.type == cb.MULTIEXEC and value in request.reference.invalid_results:
                return False
        if sinks:
            done_at = time.monotonic()
            self._trigger(request, result, dependencies)
            # Only now, since the next function waits; but it happened before that one was triggered.
            told = ", ".join(sink.function for sink in sinks)
            self._history.request(request, "{} is done, and triggers {}", told, at=done_at)
            self._journal.end(request.entry)
            return True
        if schedule.continuation.name:
            continuation = schedule.continuation
            continuation.id = schedule.id
            continuation.result = value
            message = continuation.SerializeToString()
            if len(message) > self._max_message_bytes:
                raise BadMessageError(
                    f"a continuation of {len(message)} bytes: a scheduler takes {self._max_message_bytes} "
                    "(scheduler.max_message_bytes); put large results into the key-value store"
                )
            scheduler = self._rng.choice(self._scheduler_ips)
            self._history.request(request, "{} is done, and DAG {} is called with it", continuation.name)
            self._outbox.send(tcp(scheduler, CONTINUATION), message)
            self._journal.end(request.entry)
        else:
            self._history.request(request, "{} is done")
            self._answers.result(Destination.of_result(schedule), value, dependencies, request.entry)
        self._reports.dag_ended(schedule.dag.name, time.time() - schedule.start_time)
        return True

    def _trigger(self, request: DagRequest, result: Any, dependencies: Dependencies) -> None:
        trigger = cb.DagTrigger(id=request.id, source=request.function)
        trigger.arguments.values.extend(map(to_value, result if type(result) is tuple else (result,)))
        if request.schedule.consistency != cb.NORMAL:
            dependencies.add_to(trigger)
        addresses = [_address(sink, self._layout.trigger) for sink in request.sinks]
        for sink, address in zip(request.sinks, addresses, strict=True):
            trigger.target_function = sink.function
            self._outbox.send(address, trigger.SerializeToString())


def _address(sink: Sink, base_port: int) -> str:
    """Where its trigger goes: the executor thread 0 of its machine takes triggers on `base_port`."""
    ip, _, tid = sink.place.rpartition(":")
    if not ip or not tid.isdecimal():
        raise BadMessageError(f"the schedule names no executor for function {sink.function!r}")
    return tcp(ip, base_port + int(tid))


class _Failed:
    """In the place of arguments or a result: what went wrong."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def _call(function: Callable[..., Any], library: object, arguments: list[Any]) -> Any:
    try:
        return function(library, *arguments)
    except BaseException as error:
        return _Failed(error)


def _call_batch(function: Callable[..., Any], library: object, requests: list[list[Any]]) -> list[Any]:
    """As in the legacy system: for each argument a list with that of each request; a list of results."""
    results = _call(function, library, [list(column) for column in zip(*requests, strict=True)])
    if isinstance(results, _Failed):
        return [results] * len(requests)
    given = list(results) if isinstance(results, list) else [results]
    if len(given) != len(requests):
        wrong = BadMessageError(f"a batch of {len(requests)} requests gave {len(given)} results")
        return [_Failed(wrong)] * len(requests)
    return given
