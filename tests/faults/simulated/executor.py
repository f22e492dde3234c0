"""An executor: the core's `Execution` and the real journal; what it runs takes virtual time."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from ray_sched.core.destination import Destination
from ray_sched.core.execution import (
    AnswerPin,
    CallArrived,
    CallRequest,
    DagRequest,
    Event,
    Execution,
    Fail,
    Finished,
    Forget,
    Load,
    Loaded,
    PinArrived,
    Report,
    Run,
    ScheduleArrived,
    Tick,
    TriggerArrived,
    UnpinArrived,
    Work,
)
from ray_sched.core.executor import Status
from ray_sched.core.open_calls import OpenCalls
from ray_sched.core.pins import answer_name
from ray_sched.executor.journal import Journal
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire import internal_pb2
from tests.faults.simulated.relay import Part, Relay

if TYPE_CHECKING:
    from tests.faults.simulated.world import World

AGAIN_S = 0.5
"""After which a write that the store did not take is made again."""


class Executor(Part):
    def __init__(self, relay: Relay, world: World, number: int, folder: Path, *, capacity: int) -> None:
        super().__init__(relay, f"executor {number}")
        self.address = ("10.0.0.1", number)
        self._world = world
        self._path = folder / f"journal-{number}"
        self._capacity = capacity

    def begin(self, *, again: bool) -> None:
        self._journal = Journal(self._path)
        self._busy = False
        self._reconnections = 0
        self._arrived: deque[Event] = deque()
        self.execution = Execution(
            max_functions=self._capacity,
            batch_size=20,
            schedule_timeout_s=20.0,
            trigger_timeout_s=10.0,
            depart_timeout_s=5.0,
            limit=1000,
        )
        if again:
            self._send_status(running=False)
        self._send_status()
        for entry, to in self._journal.leftovers.items():
            self._answer(to, "error", entry)
        self.every(5.0, self._send_status)
        self.every(1.0, lambda: self._take_in(Tick()))

    def open_calls(self) -> OpenCalls:
        return self.execution.open_calls(self._journal.open_calls())

    def close(self) -> None:
        self._journal.close()

    # --- what arrives ---

    def cut_off(self) -> None:
        """Whoever sends it calls had to connect anew."""
        self._reconnections += 1

    def receive(self, kind: str, message: bytes) -> None:
        """As the receiver does: the journal knows of a call at once, the run thread when it is free.

        What comes to a busy one may lie in its socket for a tenth of a second first: until then it is on
        its way.
        """
        match kind:
            case "pin":
                self._take_in(PinArrived(internal_pb2.PinFunction.FromString(message)))
            case "unpin":
                self._take_in(UnpinArrived(message.decode()))
            case "call":
                call = cb.FunctionCall.FromString(message)
                self._take_in(CallArrived(call, self._journal.begin(Destination.of_call(call))))
            case "schedule":
                schedule = cb.DagSchedule.FromString(message)
                entry = self._journal.begin(Destination.of_error(schedule))
                self._take_in(ScheduleArrived(schedule, entry))
            case "trigger":
                self._take_in(TriggerArrived(cb.DagTrigger.FromString(message)))

    def _take_in(self, event: Event) -> None:
        self._arrived.append(event)
        self._go_on()

    def _go_on(self) -> None:
        """What the run thread does while nothing runs."""
        while not self._busy:
            while self._arrived:
                self._handle(self._arrived.popleft())
            work = self.execution.next_work()
            if work is None:
                return
            self._busy = True
            self.after(self.relay.rng.expovariate(20.0), lambda w=work: self._done(w))  # type: ignore[misc]

    def _handle(self, event: Event) -> None:
        for effect in self.execution.handle(event, self.relay.now):
            match effect:
                case AnswerPin(pin, success):
                    self._answer_pin(pin.name, success)
                case Report():
                    self._send_status()
                case Fail(schedule, entry, _, _):
                    self._answer(Destination.of_error(schedule), "error", entry)
                case Forget(entry):
                    self._journal.end(entry)

    def _done(self, work: Work) -> None:
        self._busy = False
        match work:
            case Load(pin):
                self._handle(Loaded(pin))
            case Run(_, requests, _):
                for request in requests:
                    self._end(request)
                self._handle(Finished(work, (True,) * len(requests)))
        self._go_on()

    def _end(self, request: CallRequest | DagRequest) -> None:
        if isinstance(request, CallRequest):
            self._answer(Destination.of_call(request.call), "result", request.entry)
            self._send_status()
            return
        schedule = request.schedule
        sinks = [link.sink for link in schedule.dag.connections if link.source == request.function]
        for sink in sinks:
            trigger = cb.DagTrigger(id=schedule.id, target_function=sink, source=request.function)
            target = self._world.executors[int(schedule.locations[sink].rpartition(":")[2])]
            self._world.send(self, target, "trigger", trigger.SerializeToString())
        if sinks:
            self._journal.end(request.entry)
        else:
            self._answer(Destination.of_result(schedule), "result", request.entry)

    # --- what it tells ---

    def _answer(self, to: Destination, value: str, entry: int) -> None:
        def stored() -> None:
            self._world.store.put(to.key, value)
            self.relay.tell(self._world.store, self, "stored", ended, kept=True, once=True)

        def again() -> None:
            self.after(AGAIN_S, lambda: self._answer(to, value, entry))

        ended = self.mine(lambda: self._journal.end(entry))
        self.relay.tell(self, self._world.store, f"{value} at {to.key}", stored, again, kept=True, once=True)

    def _answer_pin(self, function: str, success: bool) -> None:
        ingress, name = self._world.ingress, answer_name(self.address, function)
        word = "accepted" if success else "rejected"
        self.relay.wire(
            self,
            ingress,
            f"{function} {word}",
            lambda: ingress.on_pin_accept(success, name),
            connection="answers",
        )

    def _send_status(self, *, running: bool = True) -> None:
        ingress = self._world.ingress
        functions = self.execution.functions if running else ()
        status = Status(
            *self.address, functions, 0.1, running, process=self.life - 1, reconnections=self._reconnections
        )
        what = f"holds {' '.join(status.functions) or 'nothing'}" if running else "has ended"
        self.relay.wire(self, ingress, what, lambda: ingress.on_status(status), connection="statuses")
