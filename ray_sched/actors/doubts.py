"""Which acknowledged calls may be lost, out of what the ingress noted and what it hears of the executors.

No thread, no clock, no other actor: `lost_calls` has what is due looked after, one batch after the other,
and says what came of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ray_sched.actors.ledger import Ledger, Noted, read
from ray_sched.core.destination import Destination
from ray_sched.core.executor import Address
from ray_sched.core.open_calls import Doubtful

GRACE_S: Final = 2.0
"""How long what still was on its way to an executor has to arrive at the one that takes its place."""
BEFORE_DEATH_S: Final = 5.0
"""A killed ingress had sent what is older; but not what comes back to it, as a continuation does."""
MAX_UNSENT: Final = 50_000
MAX_OPEN: Final = 150_000
"""What the list of calls has room for by default: after a kill each call with a continuation is open once."""
MAX_AGAIN_S: Final = 30.0
"""How long the calls that are found open may go without another look, which comes less and less often."""
BEFORE_CUT_S: Final = 5.0
"""What was sent longer before an executor was cut off and connected anew had arrived there."""
MAX_SPANS: Final = 16
"""Of one executor; more are joined."""
Span = tuple[float, float]
"""After the first time, and until the second."""
GONE: Final = Destination("", "", "", False, "gone", False)
"""What stands among the noted calls where an executor was found gone, for the process after this one."""
CUT: Final = Destination("", "", "", False, "cut", False)
"""And where one said that it had been cut off."""


@dataclass(frozen=True)
class Due:
    """What is to be looked after now."""

    young: float
    """Calls before that time are left out."""
    past: bytes
    noted: bytes
    gone: dict[Address, float]
    """The executors that went, and when: later calls went to those that took their place."""
    cut: dict[Address, tuple[Span, ...]]
    """The executors that were cut off: of the calls sent in these some may not have arrived."""
    unsent: tuple[Destination, ...]
    again: tuple[Doubtful, ...]
    """What was open at the last look."""

    def doubtful(self) -> list[Doubtful]:
        """Reads all that was noted: not for a loop that has calls to decide."""
        doubtful = [*self.again, *(Doubtful((), to) for to in self.unsent)]
        for call in read(self.noted):
            if call.at > self.young and call.to not in (GONE, CUT):
                gone = any(call.at <= self.gone.get(executor, 0.0) for executor in call.executors)
                if gone or any(self._was_cut(executor, call.at) for executor in call.executors):
                    doubtful.append(Doubtful(call.executors, call.to, call.continued, cut=not gone))
        doubtful += [
            Doubtful(call.executors, call.to, call.continued)
            for call in unsent_by_the_dead(self.past, self.young)
        ]
        return doubtful

    def _was_cut(self, executor: Address, sent_at: float) -> bool:
        return any(since < sent_at <= until for since, until in self.cut.get(executor, ()))


class Doubts:
    """For one thread."""

    def __init__(self, ledger: Ledger, now: float, timeout_s: float, executor_timeout_s: float) -> None:
        """Who is silent for `executor_timeout_s` is gone: what one tells happened no longer ago."""
        self._ledger = ledger
        self._timeout_s = timeout_s
        self._executor_timeout_s = executor_timeout_s
        self._due_at = now + GRACE_S
        self._gone: dict[Address, float] = {}
        self._reconnections: dict[Address, int] = {}
        """How often executors have said that they were connected anew, since each began."""
        self._cut: dict[Address, tuple[Span, ...]] = {}
        self._unsent: dict[Destination, None] = {}
        self._again: dict[Destination, tuple[Doubtful, float]] = {}
        """The calls that were open at the last look, and when that was."""
        self._again_at, self._again_after_s = 0.0, GRACE_S
        self.unwatched = 0
        """Open calls for which there was no room to look at them again."""
        self._asking: Due | None = None
        past = ledger.copy()
        unsent = unsent_by_the_dead(past, now - timeout_s)
        self._past = past if unsent else b""
        """What a killed process before this one noted, until it was looked after."""
        # Should this process be killed, too, before that: the next one does not leave them out as old.
        for call in unsent:
            if not call.continued:
                ledger.add((call.at, call.executors, tuple(call.to), True))
        for call in read(past):
            if call.at <= now - timeout_s:
                continue
            if call.to == GONE:
                self._gone[call.executors[0]] = max(call.at, self._gone.get(call.executors[0], 0.0))
            elif call.to == CUT:
                self._note_cut(call.executors[0], call.at)

    def gone(self, address: Address, now: float) -> None:
        """An executor is not the one that it was."""
        self._gone[address] = now
        self._reconnections.pop(address, None)
        self._cut.pop(address, None)
        self._ledger.add((now, (address,), tuple(GONE), False))

    def reconnected(self, address: Address, times: int, now: float) -> None:
        """So often since it began was the executor connected anew, it says."""
        if times != self._reconnections.get(address, 0):
            self._reconnections[address] = times
            self._note_cut(address, now)
            # Should this process be killed before it has looked.
            self._ledger.add((now, (address,), tuple(CUT), False))

    def _note_cut(self, address: Address, told_at: float) -> None:
        spans = *self._cut.get(address, ()), (told_at - self._executor_timeout_s - BEFORE_CUT_S, told_at)
        if len(spans) > MAX_SPANS:
            (since, _), (_, until), *rest = spans
            spans = ((since, until), *rest)
        self._cut[address] = spans

    def unsent(self, to: Destination) -> None:
        """This call went nowhere."""
        if len(self._unsent) < MAX_UNSENT:
            self._unsent[to] = None
        else:
            self.unwatched += 1

    def take_due(self, now: float) -> Due | None:
        """What is to be looked after; None while there is nothing, or the last is not `looked_after`."""
        if self._asking is not None:
            return None
        started = now >= self._due_at
        gone = {a: at for a, at in self._gone.items() if started and now >= at + GRACE_S}
        cut = {a: due for a, spans in self._cut.items() if started and (due := _until(spans, now - GRACE_S))}
        past = self._past if started else b""
        again: tuple[Doubtful, ...] = ()
        if now >= self._again_at:  # two looks that come one upon the other say no more than one
            again = tuple(call for call, looked_at in self._again.values() if now - looked_at >= GRACE_S)
        if not (gone or cut or past or self._unsent or again):
            return None
        noted = self._ledger.copy() if gone or cut else b""
        self._asking = Due(now - self._timeout_s, past, noted, gone, cut, tuple(self._unsent), again)
        self._unsent = {}
        return self._asking

    def looked_after(self, done: bool, still_open: Sequence[Doubtful], now: float) -> None:
        """The last that was due, of which some are open; where it could not be `done`, it is due again."""
        due, self._asking = self._asking, None
        assert due is not None
        if done:
            before = {call.to for call in due.again}
            for to in before:
                self._again.pop(to, None)
            # What is newly open has its second look soon, and nothing puts off that of the others.
            if any(call.to not in before for call in still_open):
                self._again_after_s = GRACE_S
                at = now + GRACE_S
                self._again_at = min(at, self._again_at) if self._again else at
            elif before:
                self._again_after_s = min(2 * self._again_after_s, MAX_AGAIN_S)
                self._again_at = now + self._again_after_s
            for call in still_open:
                if len(self._again) < MAX_OPEN:
                    self._again[call.to] = (call, now)
                else:
                    self.unwatched += 1
            # One that went again meanwhile is due again.
            self._gone = {a: at for a, at in self._gone.items() if at > due.gone.get(a, 0.0)}
            for address, looked_at in due.cut.items():
                left = tuple(span for span in self._cut.pop(address, ()) if span not in looked_at)
                if left:
                    self._cut[address] = left
            self._past = b"" if due.past else self._past
        else:
            self._unsent.update(dict.fromkeys(due.unsent))


def _until(spans: tuple[Span, ...], at: float) -> tuple[Span, ...]:
    """Those that had ended by then."""
    return tuple(span for span in spans if span[1] <= at)


def unsent_by_the_dead(noted: bytes, young: float) -> list[Noted]:
    """The calls that a killed ingress may have left unsent, but for those before `young`."""
    calls = list(read(noted))
    last = max((call.at for call in calls), default=0.0)
    return [
        call
        for call in calls
        if call.at > young
        and call.to not in (GONE, CUT)
        and (call.continued or call.at > last - BEFORE_DEATH_S)
    ]
