"""What an executor thread runs next, out of what has arrived.

A DAG function runs when its schedule and its triggers are there, in whatever order they came. This
module joins them, keeps one queue of what is ready, and decides on pins. It runs nothing itself:
`handle` takes an event and gives effects, `next_work` takes the next piece of work off the queue
when the executor is free.

Rule 1: nothing waits for ever. A schedule whose triggers do not come and a trigger whose schedule
does not come expire, and at most `limit` of each wait at once.
Rule 2: a schedule that was taken on ends in exactly one of these: it is run to an end, `Fail`, or `Forget`.
Rule 3: arguments do not depend on the order of arrival: triggers stand in the order of
`DagSchedule.triggers`. With MULTIEXEC each trigger makes a run of its own, in the order of arrival.

The same call may come again under the same id with the same function (a continuation keeps the id),
so that what is finished is not remembered.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from ray_sched.core.dags import BEGIN
from ray_sched.core.destination import Destination
from ray_sched.core.open_calls import OpenCalls
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire import internal_pb2 as internal

PINS_WAITING = 1000
"""Pins whose functions are still to be loaded; further ones are rejected."""

Key = tuple[str, str]
"""The id of the call and the function that runs for it."""


# Events: what has happened. Those that come with each call are not frozen: to make a frozen object takes
# three times as long.


@dataclass(frozen=True)
class PinArrived:
    pin: internal.PinFunction


@dataclass(frozen=True)
class Loaded:
    """The function of a pin was loaded, or could not be: then `error` says why."""

    pin: internal.PinFunction
    error: cb.CloudburstError = cb.NO_CLOUDBURST_ERROR


@dataclass(frozen=True)
class UnpinArrived:
    function: str


@dataclass(slots=True)
class ScheduleArrived:
    schedule: cb.DagSchedule
    entry: int
    """The journal's number for it."""


@dataclass(slots=True)
class TriggerArrived:
    trigger: cb.DagTrigger


@dataclass(slots=True)
class CallArrived:
    call: cb.FunctionCall
    entry: int


@dataclass(slots=True)
class Finished:
    """A run has ended; for each of its requests whether that was its end.

    It was not when a MULTIEXEC function gave a result that does not count.
    """

    run: Run
    ended: tuple[bool, ...]


@dataclass(frozen=True)
class DepartArrived:
    pass


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


Event = (
    PinArrived
    | Loaded
    | UnpinArrived
    | ScheduleArrived
    | TriggerArrived
    | CallArrived
    | Finished
    | DepartArrived
    | Tick
)


# Work: what the executor shall do when it is free.


@dataclass(slots=True)
class CallRequest:
    call: cb.FunctionCall
    entry: int

    @property
    def id(self) -> str:
        return self.call.response_key

    @property
    def function(self) -> str:
        return self.call.name

    @property
    def names(self) -> tuple[str, ...]:
        """By which its history is asked for: the key of its result, which is its id, and the function."""
        return self.call.response_key, self.call.name

    @property
    def arguments(self) -> list[cb.Value]:
        return list(self.call.arguments.values)


@dataclass(slots=True)
class Sink:
    """A function that comes next in a call."""

    function: str
    place: str
    """The executor thread that the schedule has for it, `ip:tid`."""


@dataclass(slots=True)
class DagRequest:
    schedule: cb.DagSchedule
    triggers: tuple[cb.DagTrigger, ...]
    """In the order of `schedule.triggers`; one alone with MULTIEXEC."""
    reference: cb.Dag.FunctionReference
    """The function, as the DAG describes it."""
    entry: int
    names: tuple[str, ...]
    """By which its history is asked for: the call's id, the function, the key of its result, the DAG."""
    sinks: tuple[Sink, ...]

    @property
    def id(self) -> str:
        return self.schedule.id

    @property
    def function(self) -> str:
        return self.schedule.target_function

    @property
    def arguments(self) -> list[cb.Value]:
        """The call's own arguments, then those that came with the triggers."""
        given = self.schedule.arguments
        values = list(given[self.function].values) if self.function in given else []
        for trigger in self.triggers:
            values += trigger.arguments.values
        return values


@dataclass(slots=True)
class Run:
    """Run a function for these requests; all at once when `batched`, else there is only one."""

    function: str
    requests: tuple[CallRequest | DagRequest, ...]
    batched: bool


@dataclass(frozen=True)
class Load:
    """Load the function of a pin, then tell `Loaded`."""

    pin: internal.PinFunction


@dataclass(frozen=True)
class Leave:
    """The executor was asked to depart and has nothing left to do."""


Work = Run | Load | Leave


# Effects: what has to be told or counted at once.


@dataclass(frozen=True)
class AnswerPin:
    pin: internal.PinFunction
    success: bool
    error: cb.CloudburstError = cb.NO_CLOUDBURST_ERROR


@dataclass(frozen=True)
class Report:
    """What the executor holds has changed: tell the schedulers."""


@dataclass(frozen=True)
class Fail:
    """A schedule never got its triggers. Nobody else may have answered the call when `is_source`."""

    schedule: cb.DagSchedule
    entry: int
    reason: str
    is_source: bool


@dataclass(frozen=True)
class Forget:
    """A schedule that came twice is not run; its twin is."""

    entry: int


@dataclass(frozen=True)
class Drop:
    """A message is not used: count it."""

    kind: str


Effect = AnswerPin | Report | Fail | Forget | Drop


@dataclass
class _Waiting:
    """A schedule that waits for triggers, or a MULTIEXEC one that is not done."""

    schedule: cb.DagSchedule
    reference: cb.Dag.FunctionReference
    entry: int
    since_s: float
    # These are made with it: when its last trigger comes, as a rule later, there is hurry.
    names: tuple[str, ...]
    sinks: tuple[Sink, ...]
    wanted: tuple[str, ...]
    triggers: deque[cb.DagTrigger] = field(default_factory=deque)
    running: bool = False


class Execution:
    """The state of one executor thread.

    `max_functions`: how many functions may be pinned, 0 for any number. `schedule_timeout_s`,
    `trigger_timeout_s`: how long either waits for the other. `depart_timeout_s`: how long schedules
    still wait once the executor departs. `depart_linger_s`: how long it stays for calls that were sent before
    its word got about. `limit`: how many of each wait at most.
    """

    def __init__(
        self,
        *,
        max_functions: int,
        batch_size: int,
        schedule_timeout_s: float,
        trigger_timeout_s: float,
        depart_timeout_s: float,
        limit: int,
        depart_linger_s: float = 0.0,
    ) -> None:
        self._max_functions = max_functions
        self._batch_size = batch_size
        self._schedule_timeout_s = schedule_timeout_s
        self._trigger_timeout_s = trigger_timeout_s
        self._depart_timeout_s = depart_timeout_s
        self._depart_linger_s = depart_linger_s
        self._limit = limit
        self._pinned: dict[str, bool] = {}
        self._pins: deque[internal.PinFunction] = deque()
        self._ready: deque[CallRequest | DagRequest] = deque()
        # Both in the order of arrival, the oldest first.
        self._waiting: OrderedDict[Key, _Waiting] = OrderedDict()
        self._orphans: OrderedDict[Key, tuple[float, list[cb.DagTrigger]]] = OrderedDict()
        self._orphan_count = 0
        self._departing = False
        self._now = self._leaves_at = 0.0

    @property
    def functions(self) -> tuple[str, ...]:
        """The pinned functions, in the order of their pins."""
        return tuple(self._pinned)

    @property
    def departing(self) -> bool:
        return self._departing

    @property
    def queued(self) -> int:
        """Requests that are ready to run."""
        return len(self._ready)

    @property
    def waiting(self) -> int:
        """Schedules that wait for triggers."""
        return len(self._waiting)

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take in what has happened; `now` in seconds of any steady clock."""
        self._now = now
        match event:
            case TriggerArrived(trigger):
                return self._on_trigger(trigger, now)
            case ScheduleArrived(schedule, entry):
                return self._on_schedule(schedule, entry, now)
            case CallArrived(call, entry):
                self._ready.append(CallRequest(call, entry))
                return []
            case Finished(run, ended):
                return self._on_finished(run, ended, now)
            case PinArrived(pin):
                return self._on_pin(pin)
            case Loaded(pin, error):
                return self._on_loaded(pin, error)
            case UnpinArrived(function):
                return self._on_unpin(function)
            case DepartArrived():
                if self._departing:
                    return []
                self._departing = True
                self._leaves_at = now + self._depart_linger_s
                refused: list[Effect] = [AnswerPin(pin, False) for pin in self._pins]
                self._pins.clear()
                self._pinned.clear()
                return [*refused, Report()]
            case Tick():
                return list(self._expire(now))

    def open_calls(self, begun: Mapping[int, Destination], arrived: Collection[Key] = ()) -> OpenCalls:
        """How it stands with the calls that were taken on, by entry, and are not done. From any thread.

        `arrived`: for whom there are triggers that `handle` has not been given yet.
        """
        waits = {
            waiting.entry: waiting
            for waiting in list(self._waiting.values())
            if not waiting.running and (waiting.schedule.id, waiting.schedule.target_function) not in arrived
        }
        return OpenCalls(
            [to.key for entry, to in begun.items() if entry not in waits],
            [
                (to.key, (waits[entry].schedule.target_function, len(waits[entry].triggers)))
                for entry, to in begun.items()
                if entry in waits
            ],
        )

    def next_work(self) -> Work | None:
        """Take the next piece of work off the queue, or None when there is nothing to do now."""
        if self._pins:
            return Load(self._pins.popleft())
        if self._ready:
            first = self._ready.popleft()
            if isinstance(first, DagRequest) and self._pinned.get(first.function):
                return Run(first.function, (first, *self._more_for(first)), True)
            return Run(first.function, (first,), False)
        if self._departing and not self._waiting and self._now >= self._leaves_at:
            return Leave()
        return None

    def _more_for(self, first: DagRequest) -> list[DagRequest]:
        """Further queued requests that the same batch can hold, taken off the queue."""
        shape = _shape(first)
        batch: list[DagRequest] = []
        passed: list[CallRequest | DagRequest] = []
        while self._ready and len(batch) + 1 < self._batch_size:
            request = self._ready.popleft()
            if isinstance(request, DagRequest) and _shape(request) == shape:
                batch.append(request)
            else:
                passed.append(request)
        self._ready.extendleft(reversed(passed))
        return batch

    def _on_trigger(self, trigger: cb.DagTrigger, now: float) -> list[Effect]:
        key = (trigger.id, trigger.target_function)
        waiting = self._waiting.get(key)
        if waiting is not None:
            return self._join(key, waiting, trigger)
        orphan = self._orphans.get(key)
        if orphan is None:
            self._orphans[key] = (now, [trigger])
        else:
            orphan[1].append(trigger)
        self._orphan_count += 1
        return self._evict_orphans() if self._orphan_count > self._limit else []

    def _on_schedule(self, schedule: cb.DagSchedule, entry: int, now: float) -> list[Effect]:
        key = (schedule.id, schedule.target_function)
        if key in self._waiting:
            return [Forget(entry), Drop("schedule")]
        reference = next((f for f in schedule.dag.functions if f.name == schedule.target_function), None)
        if reference is None:
            reference = cb.Dag.FunctionReference(name=schedule.target_function)
        waiting = self._waiting[key] = _Waiting(
            schedule,
            reference,
            entry,
            now,
            (*key, schedule.output_key, schedule.dag.name),
            _sinks(schedule),
            tuple(schedule.triggers),
        )
        effects: list[Effect] = []
        _, orphans = self._orphans.pop(key, (now, []))
        self._orphan_count -= len(orphans)
        for trigger in orphans:
            # REGULAR: once it has all it needs it waits no longer, and what is left is a duplicate.
            effects += self._join(key, waiting, trigger) if key in self._waiting else [Drop("trigger")]
        if len(self._waiting) > self._limit:
            effects += self._evict_schedule()
        return effects

    def _join(self, key: Key, waiting: _Waiting, trigger: cb.DagTrigger) -> list[Effect]:
        if waiting.reference.type == cb.MULTIEXEC:
            if len(waiting.triggers) >= self._limit:
                return [Drop("trigger")]
            waiting.triggers.append(trigger)
            self._start_next(waiting)
            return []
        wanted, source = waiting.wanted, trigger.source
        if source not in wanted or any([t.source == source for t in waiting.triggers]):
            return [Drop("trigger")]
        waiting.triggers.append(trigger)
        if len(waiting.triggers) == len(wanted):
            del self._waiting[key]
            if len(wanted) == 1:
                self._make_ready(waiting, (trigger,))
            else:
                by_source = {trigger.source: trigger for trigger in waiting.triggers}
                self._make_ready(waiting, tuple(by_source[source] for source in wanted))
        return []

    def _start_next(self, waiting: _Waiting) -> None:
        """With MULTIEXEC: one run after the other, since a valid result makes the rest needless."""
        if waiting.triggers and not waiting.running:
            waiting.running = True
            self._make_ready(waiting, (waiting.triggers.popleft(),))

    def _make_ready(self, waiting: _Waiting, triggers: tuple[cb.DagTrigger, ...]) -> None:
        w = waiting
        self._ready.append(DagRequest(w.schedule, triggers, w.reference, w.entry, w.names, w.sinks))

    def _on_finished(self, run: Run, ended: tuple[bool, ...], now: float) -> list[Effect]:
        for request, at_end in zip(run.requests, ended, strict=True):
            if isinstance(request, CallRequest) or request.reference.type != cb.MULTIEXEC:
                continue
            key = (request.schedule.id, request.function)
            waiting = self._waiting[key]
            if at_end:
                del self._waiting[key]
            else:
                waiting.running = False
                waiting.since_s = now
                self._waiting.move_to_end(key)
                self._start_next(waiting)
        return []

    def _on_pin(self, pin: internal.PinFunction) -> list[Effect]:
        taken = {*self._pinned, *(waiting.name for waiting in self._pins)} - {pin.name}
        full = len(self._pins) >= PINS_WAITING or (self._max_functions and len(taken) >= self._max_functions)
        if self._departing or full:
            return [AnswerPin(pin, False, cb.NO_RESOURCES), Report()]
        self._pins.append(pin)
        return []

    def _on_unpin(self, function: str) -> list[Effect]:
        # A scheduler that waited too long for a pin takes it back.
        recalled = [pin for pin in self._pins if pin.name == function]
        for pin in recalled:
            self._pins.remove(pin)
        if self._pinned.pop(function, None) is None and not recalled:
            return [Drop("unpin")]
        return [*(AnswerPin(pin, False) for pin in recalled), Report()]

    def _on_loaded(self, pin: internal.PinFunction, error: cb.CloudburstError) -> list[Effect]:
        if error or self._departing:
            return [AnswerPin(pin, False, error), Report()]
        self._pinned[pin.name] = pin.batching
        return [AnswerPin(pin, True), Report()]

    def _expire(self, now: float) -> Iterator[Effect]:
        timeout_s = self._schedule_timeout_s
        if self._departing:
            timeout_s = min(timeout_s, self._depart_timeout_s)
        while self._waiting:
            key, oldest = next(iter(self._waiting.items()))
            if oldest.running:
                # It waits for nobody: look again a whole time-out after now.
                oldest.since_s = now
                self._waiting.move_to_end(key)
            if now - oldest.since_s < timeout_s:
                break
            del self._waiting[key]
            yield _failed(oldest, f"after {timeout_s:g} s")
        while self._orphans:
            key, (since_s, _) = next(iter(self._orphans.items()))
            if now - since_s < self._trigger_timeout_s:
                break
            yield from self._drop_orphans(key)

    def _evict_orphans(self) -> list[Effect]:
        return list(self._drop_orphans(next(iter(self._orphans))))

    def _drop_orphans(self, key: Key) -> Iterator[Effect]:
        _, triggers = self._orphans.pop(key)
        self._orphan_count -= len(triggers)
        for _ in triggers:
            yield Drop("trigger")

    def _evict_schedule(self) -> list[Effect]:
        for key, oldest in self._waiting.items():
            if not oldest.running:
                del self._waiting[key]
                return [_failed(oldest, f"and {self._limit} others came after it")]
        return []


def _sinks(schedule: cb.DagSchedule) -> tuple[Sink, ...]:
    source, places = schedule.target_function, schedule.locations
    sinks = (link.sink for link in schedule.dag.connections if link.source == source)
    return tuple(Sink(sink, places.get(sink, "")) for sink in sinks)


def _shape(request: DagRequest) -> tuple[str, int, int]:
    """What requests of one batch have in common: a batching function gets a list for each argument."""
    return request.function, request.schedule.consistency, len(request.arguments)


def _failed(waiting: _Waiting, why: str) -> Fail:
    schedule = waiting.schedule
    got = {trigger.source for trigger in waiting.triggers}
    missing = ", ".join(repr(source) for source in schedule.triggers if source not in got)
    gap = f"got no trigger from {missing}"
    if waiting.reference.type == cb.MULTIEXEC:
        gap = "gave no result that counts"
    reason = f"function {schedule.target_function!r} {gap} {why}"
    return Fail(schedule, waiting.entry, reason, list(schedule.triggers) == [BEGIN])
