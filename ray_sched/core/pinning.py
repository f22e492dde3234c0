"""The pin transaction: all functions of a DAG are pinned, or none and everything is undone.

Events in (`create`, `on_answer`, `on_status`, `on_gone`, `tick`, `release`), effects out. The rules:

- An executor that rejects a pin, or lets it time out, is not asked again by the same transaction;
  the function goes to another one. When none is left, the transaction fails and what it pinned is
  unpinned.
- Legacy executors answer with a message that names nobody. So at most one pin is in flight to
  executors that never named themselves, or let a pin time out since: the *lane*. Ours name themselves
  and need no lane.
- A late answer counts for nobody. While a further one is still to come from whoever timed out (at
  the most for `QUARANTINE_S`), unnamed answers are not believed: the executor's own status, which
  follows each pin and does name its function, decides instead.
- Who was asked and given up is told to unpin, in case it accepts late.
- A pin belongs to a DAG. Two DAGs may hold the same function on the same executor (in local mode):
  it is unpinned when the last of them lets it go.
- A pin whose executor is gone, or reports without the function, is made again elsewhere, for as
  long as its DAG exists, also while the DAG's other functions are still being pinned.
- Where Ray counts an executor's pins, it is asked for room first (`reservations`): without it the function
  goes to another one. Whatever undoes a pin undoes its reservation.
- An executor that was taken for gone may come back with its functions. Where they are still
  missing, its pins hold again; otherwise it is told to unpin them.
- What was asked of an executor is remembered until it is certain that it does not have it, over restarts,
  too (`recall`): a function that it reports, that was asked for here and that no DAG has, it is told to
  unpin again. What was never asked for here belongs to another scheduler and is left alone. So does what
  it has anew after it rejected it by name, or after its statuses named it and, once it was unpinned, did not.
- After a restart nothing is pinned or unpinned before it is known which DAGs there are.
- Lost pins go first: a new DAG gets no room that those of another one wait for.
"""

from __future__ import annotations

from collections.abc import Iterable

from ray_sched.core.asked import Asked
from ray_sched.core.attempts import Attempt, Transaction
from ray_sched.core.executor import Address
from ray_sched.core.executors import MAX_TICK_GAP_S, ExecutorTable
from ray_sched.core.history import REQUEST, Ring, serving
from ray_sched.core.pins import (
    Effect,
    Finished,
    Forget,
    Pin,
    PinRequest,
    SendPin,
    SendUnpin,
    parse_answer_name,
)
from ray_sched.core.placing import Placing
from ray_sched.core.policies import Rng

QUARANTINE_S = 60.0
"""How long an anonymous answer that never came is still expected."""

REPAIR_PAUSE_S = 1.0
"""How long a lost pin that found no room waits before it is tried again."""

RETURN_S = 5.0
"""How long a function without room waits for an executor that Ray starts anew."""

UNPIN_TRIES = 3
"""How often an executor that goes on to report a function is told again to unpin it; another scheduler
may have pinned it there, too."""

CHANGES_KEPT = 100_000
"""How many DAGs are remembered with the time of their last creation or deletion."""

STRAYS_KEPT = 10_000
"""How many executors that are gone are remembered with the pins that they had."""

GONE_KEPT_S = 3600.0
"""How long what an executor was asked for is remembered while nobody knows the executor."""


def _name(address: Address) -> str:
    return f"{address[0]}:{address[1]}"


class Pinning(Placing):
    """The state machine. The table is read for candidates and told of what was pinned."""

    def __init__(
        self,
        table: ExecutorTable,
        rng: Rng,
        *,
        functions_per_executor: int,
        local: bool,
        pin_timeout_s: float,
        settle_s: float,
        remembered: int = 1000,
    ) -> None:
        super().__init__(table, rng, functions_per_executor)
        self.history = Ring(remembered)
        """What became of pins, by DAG, function and executor."""
        self._local = local
        self._pin_timeout_s = pin_timeout_s
        self._settle_s = settle_s
        self._next_id = 1
        self._named: set[Address] = set()
        self._unanswered: list[tuple[Address, float]] = []
        """Pins whose answer will name nobody and has not come, oldest first, and when they were sent."""
        self._strays: dict[Address, list[Pin]] = {}
        """The pins of executors that are gone, should they come back with them."""
        self._asked = Asked()
        """What executors were told to pin, and may have."""
        self._knows_dags = True
        self._changed_at: dict[str, float] = {}
        """When each DAG was last created or deleted here."""
        self.late_answers = 0
        self._last_tick: float | None = None

    # --- events ---

    def create(self, dag: str, requests: list[PinRequest], now: float) -> tuple[int, list[Effect]]:
        """Start to pin a DAG's functions; its end is a `Finished` with the number that is returned."""
        self._note_change(dag, now)
        transaction = self._begin(dag, requests, repair=False)
        for attempt in transaction.attempts if self._knows_dags else ():
            if not self._may_fit(transaction, attempt.request.gpu):
                effects = self._fail(transaction, self._no_room(attempt), now, short=True)
                return transaction.id, effects + self._advance(now)
        return transaction.id, self._advance(now)

    def cancel(self, transaction: int, reason: str, now: float) -> list[Effect]:
        """Whoever waited for the transaction gave up."""
        found = self._transactions.get(transaction)
        return self._fail(found, reason, now) + self._advance(now) if found else []

    def adopt(self, dag: str, requests: list[PinRequest], now: float) -> list[Effect]:
        """Learn of a DAG that was created before (by this policy before its restart): what the table
        says is pinned is taken over, the rest is made again once executors had time to report."""
        if dag in self._wanted:
            return []
        effects: list[Effect] = []
        self._wanted[dag] = list(requests)
        held = self.pins.setdefault(dag, [])
        for request in requests:
            for executor in self._table.functions.get(request.function, ()):
                if self._may_take_over(dag, request.function, executor.address):
                    held.append(Pin(dag, request.function, executor.address))
                    effects += self.ledger.want(held[-1])
                    break
            else:
                self._lost.setdefault(dag, []).append((request, now + REPAIR_PAUSE_S))
        return effects

    def _may_take_over(self, dag: str, function: str, address: Address) -> bool:
        """Whether the DAG may have the function that the executor holds, beside those that have it."""
        if self._local:
            # Ray counts each DAG's pin, whether or not it is known by now that it does so here.
            there = sum(pin.address == address for pins in self.pins.values() for pin in pins)
            has_room = not self._capacity or there < self._capacity
            return has_room and not self._holds(dag, function, address)
        # The table may still have what the executor has given up for another function.
        if self._capacity and len(self._wanted_at(address)) >= self._capacity:
            return False
        # What it reports may be what another DAG is just getting there.
        asked = any(a.address == address and a.request.function == function for a in self._sent)
        return not asked and not self._is_held(address, function)

    def recall(self, asked: Iterable[tuple[Address, str]], now: float) -> None:
        """Begin, after a restart, with what executors were told to pin before it.

        Nothing is pinned or unpinned until `reconcile` tells which DAGs there are.
        """
        self._knows_dags = False
        for address, function in asked:
            self._asked.note(address, function, now)
            self._strays.setdefault(address, []).append(Pin("", function, address))

    def reconcile(
        self, dags: dict[str, list[PinRequest]], creating: Iterable[str], as_of: float, now: float
    ) -> list[Effect]:
        """Learn which DAGs exist (and which are being created) as of a time: what was missed since a
        restart, a lost message or a creation that nobody waited for any more is made good.

        What happened here after that time is left alone: the list does not know of it.
        """
        effects: list[Effect] = []
        known = {*dags, *creating}
        for dag in sorted({*self._wanted, *(t.dag for t in self._transactions.values())} - known):
            if self._changed_at.get(dag, float("-inf")) < as_of:
                effects += self.release(dag, now)
        for dag, requests in dags.items():
            if self._changed_at.get(dag, float("-inf")) < as_of:
                effects += self.adopt(dag, requests, now)
        self._knows_dags = True
        effects += self._look_at_asked(now)
        return effects + self._advance(now)

    def _note_change(self, dag: str, now: float) -> None:
        self._changed_at.pop(dag, None)
        self._changed_at[dag] = now
        if len(self._changed_at) > CHANGES_KEPT:
            del self._changed_at[next(iter(self._changed_at))]

    def release(self, dag: str, now: float) -> list[Effect]:
        """The DAG is deleted: its pins go, unless another DAG has the same ones."""
        effects: list[Effect] = []
        self._note_change(dag, now)
        if self._wanted.pop(dag, None) is not None:
            effects += self.ledger.relax(dag, ())
        self._lost.pop(dag, None)
        for transaction in [t for t in self._transactions.values() if t.dag == dag]:
            effects += self._fail(transaction, f"DAG {dag!r} was deleted", now)
        for pin in self.pins.pop(dag, []):
            effects += self._undo(pin, now)
        return effects + self._advance(now)

    def on_answer(self, success: bool, name: str, now: float) -> list[Effect]:
        """An executor answered a pin; `name` is `ip:tid/function` where it names itself."""
        address, function = parse_answer_name(name)
        if address is not None:
            if address in self._table.executors:
                self._named.add(address)
            self._unanswered = [sent for sent in self._unanswered if sent[0] != address]
            for attempt in self._sent:
                asked = attempt.address == address and not attempt.reserving
                if asked and attempt.request.function == function:
                    return self._answered(attempt, success, now, said=True) + self._advance(now)
            self.late_answers += 1
            wanted = not success or self._is_held(address, function)
            if not wanted and self._asked.accepted_late(address, function, now):
                return [SendUnpin(address, function)]
            return []
        del self._unanswered[:1]
        for attempt in self._sent:
            if attempt.in_lane and attempt.alone:
                return self._answered(attempt, success, now) + self._advance(now)
        self.late_answers += 1
        return []

    def on_covered(self, address: Address, gpu: bool) -> list[Effect]:
        """An executor, which is one of ours, holds a slot of its Ray node: its pins are reserved."""
        held = {pin for pins in self.pins.values() for pin in pins}
        held |= {a.pin for t in self._transactions.values() for a in t.attempts if a.pin is not None}
        held |= {attempt.target() for attempt in self._sent}
        return self.ledger.cover(address, gpu, sorted(pin for pin in held if pin.address == address))

    def on_uncovered(self, address: Address) -> list[Effect]:
        """It holds its slot no more; when it is gone, `on_gone` says so."""
        return self.ledger.uncover(address)

    def on_reserved(self, pin: Pin, success: bool, now: float) -> list[Effect]:
        """Ray has room for a pin, or has none."""
        for attempt in self._sent:
            if attempt.reserving and attempt.target() == pin:
                attempt.reserving = False
                if success:
                    return self._send(attempt, now)
                self._sent.remove(attempt)
                attempt.address = None
                self._waiting.append(attempt)
                return self.ledger.drop(pin) + self._advance(now)
        return []

    def on_status(self, address: Address, functions: tuple[str, ...], now: float) -> list[Effect]:
        """An executor reported; the table has it already."""
        effects: list[Effect] = []
        self._returning.pop(address, None)
        leaving = self._leaving.get(address, {})
        for function in [f for f in leaving if f not in functions]:
            self._left(address, function)
        effects += self._confirmed(address, functions, now)
        effects += self._take_back(address, functions, now)
        effects += self._unpin_again(address, functions, now)
        effects += self._find_lost(now, address)
        effects += self._forget_missing(address, functions)
        return effects + self._advance(now)

    def on_seen(self, addresses: Iterable[Address], now: float) -> list[Effect]:
        """Executors reported what the table has already: that may confirm a pin of what they held before."""
        asked = {attempt.address for attempt in self._sent if attempt.in_lane and not attempt.alone}
        effects: list[Effect] = []
        for address in addresses:
            executor = self._table.executors.get(address) if address in asked else None
            if executor is not None:
                effects += self._confirmed(address, tuple(executor.functions), now)
        return effects + self._advance(now) if asked else effects

    def _confirmed(self, address: Address, functions: tuple[str, ...], now: float) -> list[Effect]:
        """The status of an executor whose answer could not be believed decides about its pin."""
        effects: list[Effect] = []
        for attempt in list(self._sent):
            if not attempt.in_lane or attempt.alone:
                continue
            if attempt.address == address and attempt.request.function in functions:
                effects += self._answered(attempt, True, now)
        return effects

    def on_gone(
        self, address: Address, now: float, *, silent: bool = False, returns: bool = False
    ) -> list[Effect]:
        """An executor left or died; the table has forgotten it already.

        One that is only silent may come back, and answer then. One that `returns` is being started anew:
        what finds no room elsewhere waits for it.
        """
        effects: list[Effect] = []
        if returns:
            self._returning[address] = now + RETURN_S
        if not silent:
            self._unanswered = [sent for sent in self._unanswered if sent[0] != address]
        self._named.discard(address)
        self._leaving.pop(address, None)
        self._asked.on_gone(address)
        for attempt in [a for a in self._sent if a.address == address]:
            self._asked.note(address, attempt.request.function, now)
            effects += self._answered(attempt, False, now)
        effects += self._find_lost(now, address)
        return effects + self._advance(now)

    def tick(self, now: float) -> list[Effect]:
        """Time passed: answers that are overdue, lost pins to be made again."""
        effects: list[Effect] = []
        self._returning = {a: until for a, until in self._returning.items() if now < until}
        gap = 0.0 if self._last_tick is None else now - self._last_tick
        self._last_tick = now
        if gap > MAX_TICK_GAP_S:  # this process stood still: the answers may be waiting for it
            for attempt in self._sent:
                attempt.deadline += gap
        for attempt in [a for a in self._sent if now >= a.deadline]:
            assert attempt.address is not None
            if attempt.reserving:
                effects += self.on_reserved(attempt.target(), False, now)
                continue
            if attempt.address in self._named:
                # The answer that named it may have been somebody else's, and its own name nobody.
                self._named.discard(attempt.address)
                self._unanswered.append((attempt.address, now))
            # Should it accept after all, its next status is reason enough to tell it.
            self._asked.note(attempt.address, attempt.request.function, now - self._settle_s)
            effects += self._recall(attempt.address, attempt.request.function)
            effects += self._answered(attempt, False, now)
        for address, leaving in list(self._leaving.items()):
            for function in [f for f, since in leaving.items() if now - since >= self._settle_s]:
                self._left(address, function)
        for dag, lost in list(self._lost.items()):
            due = [request for request, when in lost if now >= when]
            if due:
                self._lost[dag] = [(request, when) for request, when in lost if now < when]
                if not self._lost[dag]:
                    del self._lost[dag]
                for request in due:
                    self._begin(dag, [request], repair=True)
        return effects + self._advance(now)

    def validate(self) -> None:
        """Raise AssertionError where the parts contradict each other (for tests)."""
        assert sum(attempt.in_lane for attempt in self._sent) <= 1
        for attempt in self._sent:
            assert attempt.address is not None
        held_or_asked = {pin for pins in self.pins.values() for pin in pins}
        held_or_asked |= {a.pin for t in self._transactions.values() for a in t.attempts if a.pin is not None}
        held_or_asked |= {attempt.target() for attempt in self._sent}
        assert set(self.ledger.pins) == {pin for pin in held_or_asked if self.ledger.covers(pin.address)}
        for dag, pins in self.pins.items():
            assert len({(p.function, p.address) for p in pins}) == len(pins), f"{dag} holds a pin twice"
        if self._capacity:
            held: dict[Address, set[str]] = {}
            for pins in self.pins.values():
                for pin in pins:
                    held.setdefault(pin.address, set()).add(pin.function)
            assert all(len(functions) <= self._capacity for functions in held.values())

    # --- transactions ---

    def _begin(self, dag: str, requests: list[PinRequest], *, repair: bool) -> Transaction:
        origin = "" if repair else REQUEST.get()
        attempts = [Attempt(self._next_id, dag, request, origin) for request in requests]
        transaction = Transaction(self._next_id, dag, attempts, repair, origin)
        self._next_id += 1
        self._transactions[transaction.id] = transaction
        self._waiting += attempts
        return transaction

    def _advance(self, now: float) -> list[Effect]:
        """Send what can be sent now, fail what can no longer succeed, finish what is complete."""
        effects: list[Effect] = []
        if not self._knows_dags:
            return effects
        for attempt in sorted(self._waiting, key=lambda a: not self._transactions[a.transaction].repair):
            transaction = self._transactions.get(attempt.transaction)
            if transaction is None or attempt not in self._waiting:
                continue
            executor = self._choose(attempt, 0 if transaction.repair else self._owed(attempt.request.gpu))
            if executor is None:
                if self._could_come_free(attempt):
                    continue
                short = not attempt.rejected
                effects += self._fail(transaction, self._no_room(attempt), now, short=short)
                continue
            in_lane = executor.address not in self._named and not self.ledger.covers(executor.address)
            if in_lane and any(other.in_lane for other in self._sent):
                continue
            self._waiting.remove(attempt)
            attempt.address = executor.address
            attempt.tried.add(executor.address)
            attempt.in_lane = in_lane
            attempt.deadline = now + self._pin_timeout_s
            self._sent.append(attempt)
            reserve = self.ledger.want(attempt.target())
            attempt.reserving = bool(reserve)
            self._note(
                now,
                attempt,
                "pin of {} for DAG {}: {} chosen, one of {} free executors; {} were asked before",
                executor.name,
                len(self._table.free[attempt.request.gpu]),
                len(attempt.tried) - 1,
            )
            effects += reserve or self._send(attempt, now)
        return effects + self._finish_complete(now)

    def _note(self, now: float, attempt: Attempt | Pin, what: str, executor: str, *facts: object) -> None:
        function = attempt.function if isinstance(attempt, Pin) else attempt.request.function
        # What is being served now may be another request: one that made room, say.
        with serving("" if isinstance(attempt, Pin) else attempt.origin):
            self.history.note(
                now, (attempt.dag, function, executor), what, function, attempt.dag, executor, *facts
            )

    def _send(self, attempt: Attempt, now: float) -> list[Effect]:
        address, request = attempt.address, attempt.request
        assert address is not None
        if attempt.in_lane:
            self._unanswered = [sent for sent in self._unanswered if now - sent[1] < QUARANTINE_S]
            attempt.alone = not self._unanswered
            self._unanswered.append((address, now))
        attempt.deadline = now + self._pin_timeout_s
        attempt.asked_before = self._asked.note_pin(address, request.function, now)
        return [SendPin(address, request.function, request.batching, attempt.origin)]

    def _answered(self, attempt: Attempt, accepted: bool, now: float, *, said: bool = False) -> list[Effect]:
        """`said`: by the executor itself, which named itself."""
        address = attempt.address
        assert address is not None
        pin = attempt.target()
        self._note(
            now,
            attempt,
            "pin of {} for DAG {}: {} accepted it"
            if accepted
            else "pin of {} for DAG {}: {} did not take it",
            _name(address),
        )
        self._sent.remove(attempt)
        attempt.address = None
        attempt.in_lane = attempt.reserving = False
        if accepted:
            if attempt.abandoned:
                with serving(attempt.origin):
                    return self._undo(pin, now)
            attempt.pin = pin
            self._table.pinned(address, pin.function, now, named=said)
            return []
        attempt.rejected = True
        if not attempt.abandoned:
            self._waiting.append(attempt)
        effects = self.ledger.drop(pin)
        if said and not attempt.asked_before:
            effects += self._forget(address, pin.function)
        return effects

    def _finish_complete(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for transaction in list(self._transactions.values()):
            pins = tuple(attempt.pin for attempt in transaction.attempts if attempt.pin is not None)
            if len(pins) < len(transaction.attempts):
                continue
            del self._transactions[transaction.id]
            names = (transaction.dag, *(pin.function for pin in pins))
            with serving(transaction.origin):
                self.history.note(now, names, "all {} pins of DAG {} hold", len(pins), transaction.dag)
            self.pins.setdefault(transaction.dag, []).extend(pins)
            if not transaction.repair:
                self._wanted[transaction.dag] = [attempt.request for attempt in transaction.attempts]
                effects.append(Finished(transaction.id, transaction.dag, pins))
            effects += self.ledger.relax(transaction.dag, self._missing(transaction.dag))
        return effects

    def _fail(
        self, transaction: Transaction, reason: str, now: float, *, short: bool = False
    ) -> list[Effect]:
        del self._transactions[transaction.id]
        names = (transaction.dag, *(attempt.request.function for attempt in transaction.attempts))
        with serving(transaction.origin):
            self.history.note(now, names, "pins of DAG {} failed: {}", transaction.dag, reason)
        effects: list[Effect] = []
        for attempt in transaction.attempts:
            attempt.abandoned = True
            if attempt in self._waiting:
                self._waiting.remove(attempt)
            if attempt.pin is not None:
                with serving(transaction.origin):
                    effects += self._undo(attempt.pin, now)
            elif attempt.reserving:
                self._sent.remove(attempt)
                effects += self.ledger.drop(attempt.target())
            elif attempt.address is not None:
                effects += self._recall(attempt.address, attempt.request.function)
        if transaction.repair:
            if transaction.dag in self._wanted:
                lost = self._lost.setdefault(transaction.dag, [])
                lost += [(attempt.request, now + REPAIR_PAUSE_S) for attempt in transaction.attempts]
                if short:
                    effects += self.ledger.demand(transaction.dag, self._missing(transaction.dag))
            return effects
        if short:
            effects += self.ledger.demand(transaction.dag, [a.request for a in transaction.attempts])
        effects.append(Finished(transaction.id, transaction.dag, (), reason))
        return effects

    def _undo(self, pin: Pin, now: float) -> list[Effect]:
        """Unpin, unless another DAG holds the same function on the same executor."""
        effects = self.ledger.drop(pin)
        if not self._is_held(pin.address, pin.function, besides=pin):
            effects += self._unpin(pin.address, pin.function, now)
        return effects

    def _recall(self, address: Address, function: str) -> list[Effect]:
        """Take back a pin that was not answered, unless a DAG holds the function there already."""
        return [] if self._is_held(address, function) else [SendUnpin(address, function)]

    def _unpin(self, address: Address, function: str, now: float) -> list[Effect]:
        if address in self._table.executors:
            self._table.unpinned(address, function)
            self._asked.note(address, function, now)
            self._leaving.setdefault(address, {})[function] = now
        self.history.note(
            now, (function, _name(address)), "{} was told to unpin {}", _name(address), function
        )
        return [SendUnpin(address, function)]

    def _unpin_again(self, address: Address, functions: Iterable[str], now: float) -> list[Effect]:
        """An unpin may be lost while the ingress restarts: what a status says, counts."""
        effects: list[Effect] = []
        due = self._asked.due(address, functions, now - self._settle_s)
        if not due or not self._knows_dags:
            return effects
        wanted = self._wanted_at(address)
        for function in [f for f in due if (f, address) not in wanted]:
            tries = self._asked.tries(address, function)
            if tries >= UNPIN_TRIES:
                effects += self._forget(address, function)
            else:
                effects += self._unpin(address, function, now)
                self._asked.note(address, function, now, tries + 1)
        return effects

    def _look_at_asked(self, now: float) -> list[Effect]:
        """Unpin what no DAG has, forget what no executor has; where nobody knows, a later look tells."""
        effects: list[Effect] = []
        wanted = self._wanted_at()
        for address, function, since in self._asked.all():
            executor = self._table.executors.get(address)
            if executor is None and now - since >= GONE_KEPT_S:
                effects += self._forget(address, function)
            if executor is None or now - since < self._settle_s or (function, address) in wanted:
                continue
            if function in executor.functions:
                effects += self._take_back(address, (function,), now)
                effects += self._unpin_again(address, (function,), now)
            elif now - since >= QUARANTINE_S:
                effects += self._forget(address, function)
        return effects

    def _forget(self, address: Address, function: str) -> list[Effect]:
        self._asked.forget(address, function)
        return [Forget(address, function)]

    def _forget_missing(self, address: Address, functions: tuple[str, ...]) -> list[Effect]:
        """What the executor reported before and does not now, and no DAG has there: it heard its unpin."""
        missing = self._asked.on_status(address, functions)
        wanted = self._wanted_at(address) if missing else set[tuple[str, Address]]()
        effects: list[Effect] = []
        for function in [f for f in missing if (f, address) not in wanted]:
            effects += self._forget(address, function)
        return effects

    def _left(self, address: Address, function: str) -> None:
        leaving = self._leaving[address]
        del leaving[function]
        if not leaving:
            del self._leaving[address]
            self._table.assume_free(address)

    def _find_lost(self, now: float, address: Address) -> list[Effect]:
        """Pins that an executor no longer has (it restarted or is gone) are to be made again."""
        executor = self._table.executors.get(address)
        held = executor.functions if executor is not None else frozenset[str]()
        effects: list[Effect] = []
        for transaction in self._transactions.values():
            for attempt in transaction.attempts:
                pin = attempt.pin
                if pin is not None and pin.address == address and pin.function not in held:
                    attempt.pin = None
                    self._waiting.append(attempt)
                    effects += self.ledger.drop(pin)
        for dag, pins in self.pins.items():
            for pin in [p for p in pins if p.address == address and p.function not in held]:
                pins.remove(pin)
                effects += self.ledger.drop(pin)
                self._note(now, pin, "pin of {} for DAG {} on {} is lost", _name(address))
                request = next((r for r in self._wanted.get(dag, []) if r.function == pin.function), None)
                if request is not None:
                    self._lost.setdefault(dag, []).append((request, now))
                if executor is None:
                    self._strays.setdefault(address, []).append(pin)
        if len(self._strays) > STRAYS_KEPT:
            del self._strays[next(iter(self._strays))]
        return effects

    def _take_back(self, address: Address, functions: tuple[str, ...], now: float) -> list[Effect]:
        """An executor that was gone is back with these functions."""
        if not self._knows_dags or address not in self._strays:
            return []
        strays = [pin for pin in self._strays.pop(address) if pin.function in functions]
        effects: list[Effect] = []
        for pin in strays:
            for dag in [pin.dag] if pin.dag else list(self._lost):
                lost = self._lost.get(dag, [])
                missed = next((entry for entry in lost if entry[0].function == pin.function), None)
                if missed is not None and self._may_take_over(dag, pin.function, address):
                    lost.remove(missed)
                    if not lost:
                        del self._lost[dag]
                    self.pins[dag].append(Pin(dag, pin.function, address))
                    effects += self.ledger.want(self.pins[dag][-1])
        left = dict.fromkeys(pin.function for pin in strays if not self._is_held(address, pin.function))
        for function in left:
            effects += self._unpin(address, function, now)
        return effects
