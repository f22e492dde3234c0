"""What happened to each call here, as far back as a ring of entries goes: for `ray-sched why`."""

from __future__ import annotations

import time

from ray_sched.core.destination import Destination
from ray_sched.core.execution import (
    AnswerPin,
    CallArrived,
    CallRequest,
    DagRequest,
    Event,
    Fail,
    ScheduleArrived,
    TriggerArrived,
)
from ray_sched.core.history import Ring, serving


class History(Ring):
    """Entries of the monotonic clock, under ids of calls, result keys, functions and DAGs. Thread-safe."""

    def arrived(self, event: Event) -> None:
        now = time.monotonic()
        match event:
            case TriggerArrived(trigger):
                target = trigger.target_function
                self.note(now, (trigger.id, target), "{} is triggered by {}", target, trigger.source)
            case CallArrived(call):
                self.note(now, (call.response_key, call.name), "call of {} came", call.name)
            case ScheduleArrived(schedule):
                names = (schedule.id, schedule.output_key, schedule.target_function, schedule.dag.name)
                wanted = ", ".join(schedule.triggers)
                self.note(now, names, "{} is scheduled, and waits for {}", schedule.target_function, wanted)

    def request(
        self, request: CallRequest | DagRequest, what: str, *facts: object, at: float | None = None
    ) -> None:
        """Something about a request, that happened now unless `at` says when; the first fact of `what` is
        its function."""
        self.note(time.monotonic() if at is None else at, request.names, what, request.function, *facts)

    def result(self, to: Destination, what: str, *facts: object) -> None:
        """Something about a call's result."""
        self.note(time.monotonic(), (to.call_id, to.key), what, *facts)

    def expired(self, fail: Fail) -> None:
        schedule = fail.schedule
        names = (schedule.id, schedule.output_key, schedule.target_function, schedule.dag.name)
        self.note(time.monotonic(), names, "expired: {}", fail.reason)

    def pin(self, answer: AnswerPin) -> None:
        name = answer.pin.name
        with serving(answer.pin.request):
            self.note(
                time.monotonic(), (name,), "pin of {} {}", name, "accepted" if answer.success else "refused"
            )
