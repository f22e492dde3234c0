"""An executor thread's decisions; what it runs is played, and lasts until `finish`, `invalid` or `fail`."""

from __future__ import annotations

import pickle
from collections import deque
from typing import cast

from ray_sched.core.dags import plan_of
from ray_sched.core.destination import Destination
from ray_sched.core.execution import (
    AnswerPin,
    CallArrived,
    CallRequest,
    DagRequest,
    DepartArrived,
    Drop,
    Event,
    Execution,
    Fail,
    Finished,
    Forget,
    Leave,
    Load,
    Loaded,
    PinArrived,
    Report,
    Run,
    ScheduleArrived,
    Tick,
    TriggerArrived,
    UnpinArrived,
)
from ray_sched.errors import BadMessageError
from ray_sched.executor.user_library import UserLibrary
from ray_sched.kvs.client import KvsClient
from ray_sched.messages import check_consistency
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire import internal_pb2, ports
from tests.scenarios.language import Words, address, address_text, dag, dag_call, values, values_text

DAG_OPTIONS = ("functions", "colocated", "gpu", "batching", "multiexec", "invalid")
DEFAULTS = {
    "max_functions": 1,
    "batch_size": 20,
    "schedule_timeout_s": 600,
    "trigger_timeout_s": 60,
    "depart_timeout_s": 30,
    "depart_linger_s": 0,
    "limit": 1000,
}


class ExecutorWorld:
    def __init__(self) -> None:
        self._output: list[str] = []
        self._configure(DEFAULTS)

    def command(self, line: str) -> list[str]:
        """Carry out one line of a transcript; returns what it led to."""
        verb, *words = line.split()
        self._output = []
        getattr(self, f"_do_{verb}")(words)
        return self._output

    def _configure(self, settings: dict[str, int]) -> None:
        self._now = 0.0
        self._entries = 0
        self._missing: set[str] = set()
        self._running: Run | None = None
        self._left = False
        self._inbox: deque[bytes] = deque()
        no_store = cast(KvsClient, None)
        self._library = UserLibrary("10.0.0.1", 0, ports.CLASSIC, no_store, self._sent, self._inbox)
        self._execution = Execution(
            max_functions=settings["max_functions"],
            batch_size=settings["batch_size"],
            schedule_timeout_s=settings["schedule_timeout_s"],
            trigger_timeout_s=settings["trigger_timeout_s"],
            depart_timeout_s=settings["depart_timeout_s"],
            depart_linger_s=settings["depart_linger_s"],
            limit=settings["limit"],
        )

    def _do_config(self, words: list[str]) -> None:
        given = Words(words)
        missing = set(given.listed("missing"))
        self._configure({name: int(given.take(name, str(value))) for name, value in DEFAULTS.items()})
        self._missing = missing
        given.finish()

    # --- what arrives ---

    def _do_pin(self, words: list[str]) -> None:
        given = Words(words)
        batching = given.flag("batching")
        self._handle(PinArrived(internal_pb2.PinFunction(name=given.plain.pop(), batching=batching)))
        given.finish()

    def _do_unpin(self, words: list[str]) -> None:
        (function,) = words
        self._handle(UnpinArrived(function))

    def _do_schedule(self, words: list[str]) -> None:
        """`schedule c1 g pipeline f->g g=5 key=out`: for g, of the call c1."""
        call_id, target, *rest = words
        of_call = rest[rest.index("then") :] if "then" in rest else []
        shape = Words(rest[: len(rest) - len(of_call)])
        given = {option: value for option, value in shape.options.items() if option not in DAG_OPTIONS}
        shape.options = {option: value for option, value in shape.options.items() if option in DAG_OPTIONS}
        called = dag(shape)
        shape.finish()
        call = dag_call([called.name, *(f"{option}={value}" for option, value in given.items()), *of_call])
        (planned,) = [function for function in plan_of(called).functions if function.name == target]
        schedule = cb.DagSchedule.FromString(planned.schedule)
        schedule.MergeFrom(
            cb.DagSchedule(
                id=call_id,
                consistency=call.consistency,
                arguments=call.function_args,
                response_address=call.response_address,
                output_key=call.output_key,
                client_id=call.client_id,
                continuation=call.continuation,
            )
        )
        self._handle(ScheduleArrived(schedule, self._entry()))

    def _do_trigger(self, words: list[str]) -> None:
        """`trigger c1 g from f 5`"""
        call_id, target, _, source, *given = words
        trigger = cb.DagTrigger(id=call_id, target_function=target, source=source)
        trigger.arguments.values.extend(values(",".join(given)))
        self._handle(TriggerArrived(trigger))

    def _do_call(self, words: list[str]) -> None:
        given = Words(words)
        consistency = check_consistency(given.take("consistency", "normal"))
        call = cb.FunctionCall(
            name=given.plain.pop(0), response_key=given.take("key"), consistency=consistency
        )
        call.arguments.values.extend(values(",".join(given.plain)))
        given.plain.clear()
        given.finish()
        self._handle(CallArrived(call, self._entry()))

    def _do_message(self, words: list[str]) -> None:
        """`message 10.0.0.3:4 some words`, from that thread; `message nonsense` is none."""
        source, *content = words
        said = pickle.dumps((address(source), " ".join(content).encode())) if content else source.encode()
        self._inbox.append(said)

    def _do_depart(self, words: list[str]) -> None:
        self._handle(DepartArrived())

    def _do_later(self, words: list[str]) -> None:
        (word,) = words
        self._now += float(word.removesuffix("s"))
        self._handle(Tick())

    # --- what runs, and how it ends ---

    def _do_send(self, words: list[str]) -> None:
        dest, *content = words
        self._library.send(address(dest), " ".join(content).encode())

    def _do_recv(self, words: list[str]) -> None:
        try:
            messages = self._library.recv()
        except BadMessageError as error:
            self._say(f"raises: {error}")
            return
        for source, content in messages:
            self._say(f"receives {content.decode()!r} from {address_text(source)}")

    def _sent(self, to: str, message: bytes) -> None:
        source, content = pickle.loads(message)
        self._say(f"{to} <- {content.decode()!r} from {address_text(source)}")

    def _do_finish(self, words: list[str]) -> None:
        results = words[0].split(",") if words else []
        run = self._run_ends()
        for position, request in enumerate(run.requests):
            result = results[position] if results else "a result"
            if isinstance(request, CallRequest):
                self._say(f"{_place(Destination.of_call(request.call))} <- {result}")
                continue
            schedule = request.schedule
            sinks = [link.sink for link in schedule.dag.connections if link.source == request.function]
            if sinks:
                self._say(f"{schedule.id} goes on with {' '.join(sinks)}")
            elif schedule.continuation.name:
                self._say(f"a scheduler <- continuation {schedule.continuation.name} {schedule.id}")
            else:
                self._say(f"{_place(Destination.of_result(schedule))} <- {result}")
        self._handle(Finished(run, (True,) * len(run.requests)))

    def _do_invalid(self, words: list[str]) -> None:
        """A MULTIEXEC function gave one of its invalid results."""
        run = self._run_ends()
        self._handle(Finished(run, (False,) * len(run.requests)))

    def _do_fail(self, words: list[str]) -> None:
        run = self._run_ends()
        for request in run.requests:
            if isinstance(request, CallRequest):
                to = Destination.of_call(request.call)
            else:
                to = Destination.of_error(request.schedule)
            self._say(f"{_place(to)} <- the error")
        self._handle(Finished(run, (True,) * len(run.requests)))

    def _run_ends(self) -> Run:
        run, self._running = self._running, None
        if run is None:
            raise ValueError("nothing runs")
        self._inbox.clear()  # as the executor does
        return run

    # --- what follows ---

    def _handle(self, event: Event) -> None:
        for effect in self._execution.handle(event, self._now):
            match effect:
                case AnswerPin(pin, success, error):
                    why = f" ({cb.CloudburstError.Name(error)})" if error else ""
                    self._say(f"the scheduler <- pin {pin.name} {'accepted' if success else 'rejected'}{why}")
                case Report():
                    held = " ".join(self._execution.functions) or "nothing"
                    leaving = ", running=no" if self._execution.departing else ""
                    self._say(f"all schedulers <- holds {held}{leaving}")
                case Fail(schedule, _, reason, is_source):
                    self._say(f"{schedule.id} expires: {reason}")
                    first = "" if is_source else ", unless it has its answer"
                    self._say(f"{_place(Destination.of_error(schedule))} <- the error{first}")
                case Forget(entry):
                    self._say(f"arrival {entry} is not run")
                case Drop(kind):
                    self._say(f"dropped: {kind}")
        self._work()

    def _work(self) -> None:
        while self._running is None and not self._left and (work := self._execution.next_work()) is not None:
            match work:
                case Load(pin):
                    self._say(f"loads {pin.name}")
                    missing = pin.name in self._missing
                    error = cb.FUNC_NOT_FOUND if missing else cb.NO_CLOUDBURST_ERROR
                    self._handle(Loaded(pin, error))
                case Run(function, requests, batched):
                    self._running = work
                    each = " ".join(
                        f"{_id(request)}({values_text(request.arguments)})" for request in requests
                    )
                    self._say(f"runs {function} for {each}{' in one batch' if batched else ''}")
                case Leave():
                    self._left = True
                    self._say("leaves")

    def _entry(self) -> int:
        self._entries += 1
        return self._entries

    def _say(self, text: str) -> None:
        self._output.append(text)


def _id(request: CallRequest | DagRequest) -> str:
    return request.call.response_key if isinstance(request, CallRequest) else request.schedule.id


def _place(to: Destination) -> str:
    return to.address or f"key {to.key}{f' (causal, by {to.writer})' if to.causal else ''}"
