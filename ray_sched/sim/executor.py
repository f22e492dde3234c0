"""A simulated executor thread: the real queue (`core.execution`) around run times that are drawn.

It takes the bytes that a dispatcher made, joins schedules and triggers, runs one thing at a time, and
reports as a real one does: each period with its utilization, and after each one-shot call.
"""

from __future__ import annotations

from typing import Protocol

from ray_sched.core.dispatch import CALL, TRIGGER
from ray_sched.core.execution import (
    CallArrived,
    CallRequest,
    DagRequest,
    Event,
    Execution,
    Finished,
    Loaded,
    PinArrived,
    Run,
    ScheduleArrived,
    TriggerArrived,
)
from ray_sched.core.executor import Address, Status
from ray_sched.core.references import references_of
from ray_sched.core.utilization import Utilization
from ray_sched.sim.caches import Cache
from ray_sched.sim.clock import Clock
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire import internal_pb2

WAITING_LIMIT = 1_000_000


class Surroundings(Protocol):
    """What an executor needs of the world that it stands in."""

    def run_s(self, number: int, function: str, misses: int) -> float:
        """How long a function runs for a call, seconds."""
        ...

    def send(self, address: Address, kind: str, message: bytes) -> None:
        """Bring a message to another executor."""
        ...

    def report(self, status: Status) -> None:
        """Bring a status to the schedulers that this executor reports to."""
        ...

    def result(self, number: int) -> None:
        """Bring a call's result to its client."""
        ...

    def ran(self, address: Address, began_s: float, hits: int, misses: int) -> None:
        """Count a run that ends now."""
        ...


class SimulatedExecutor:
    def __init__(self, address: Address, cache: Cache, clock: Clock, world: Surroundings) -> None:
        self.address = address
        self._cache = cache
        self._clock = clock
        self._world = world
        # Nothing is lost on the way here, so that nothing has to expire.
        never_s = float("inf")
        self._execution = Execution(
            max_functions=0,
            batch_size=1,
            schedule_timeout_s=never_s,
            trigger_timeout_s=never_s,
            depart_timeout_s=never_s,
            limit=WAITING_LIMIT,
        )
        self._busy = False
        self._utilization = Utilization(clock.now)

    @property
    def queued(self) -> int:
        """Runs that wait for it."""
        return self._execution.queued

    def pin(self, function: str) -> None:
        """Hold a function from now on, and say so."""
        pin = internal_pb2.PinFunction(name=function)
        self._handle(PinArrived(pin))
        self._execution.next_work()
        self._handle(Loaded(pin))
        self.report()

    def take(self, kind: str, message: bytes) -> None:
        """A message arrives at the port of that kind."""
        if kind == CALL:
            self._handle(CallArrived(cb.FunctionCall.FromString(message), 0))
        elif kind == TRIGGER:
            self._handle(TriggerArrived(cb.DagTrigger.FromString(message)))
        else:
            self._handle(ScheduleArrived(cb.DagSchedule.FromString(message), 0))
        self._work()

    def report_period(self) -> None:
        """Tell how the last period was."""
        self._report(self._utilization.take(self._clock.now))

    def report(self) -> None:
        """Tell what it holds, between two periods."""
        self._report(0.0)

    def _report(self, utilization: float) -> None:
        self._world.report(Status(*self.address, self._execution.functions, utilization))

    def _handle(self, event: Event) -> None:
        self._execution.handle(event, self._clock.now)

    def _work(self) -> None:
        if self._busy:
            return
        run = self._execution.next_work()
        if not isinstance(run, Run):
            return
        self._busy = True
        (request,) = run.requests
        number = _number(request)
        hits, misses = self._cache.read(references_of(request.arguments))
        now = self._clock.now
        self._utilization.begin(now)
        self._clock.after(
            self._world.run_s(number, run.function, misses), self._end, run, number, now, hits, misses
        )

    def _end(self, run: Run, number: int, began_s: float, hits: int, misses: int) -> None:
        self._utilization.end(self._clock.now)
        self._busy = False
        self._world.ran(self.address, began_s, hits, misses)
        (request,) = run.requests
        if isinstance(request, DagRequest):
            self._pass_on(request, number)
        else:
            self._world.result(number)
        self._handle(Finished(run, (True,)))
        if isinstance(request, CallRequest):
            self.report()
        self._work()

    def _pass_on(self, request: DagRequest, number: int) -> None:
        schedule = request.schedule
        sinks = [link.sink for link in schedule.dag.connections if link.source == request.function]
        for sink in sinks:
            ip, _, tid = schedule.locations[sink].rpartition(":")
            trigger = cb.DagTrigger(id=schedule.id, target_function=sink, source=request.function)
            self._world.send((ip, int(tid)), TRIGGER, trigger.SerializeToString())
        if not sinks:
            self._world.result(number)


def _number(request: CallRequest | DagRequest) -> int:
    """The call's number in the simulation, which clients put where a result's key goes."""
    return int(request.schedule.output_key if isinstance(request, DagRequest) else request.call.response_key)
