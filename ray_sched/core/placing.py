"""What is pinned where, or on its way there, and which executor a function is to go to.

`pinning` changes all of this; here it is only read.
"""

from __future__ import annotations

from collections import Counter

from ray_sched.core.attempts import Attempt, Transaction
from ray_sched.core.executor import Address, Executor
from ray_sched.core.executors import ExecutorTable
from ray_sched.core.pins import Pin, PinRequest
from ray_sched.core.policies import Rng
from ray_sched.core.reservations import Ledger


class Placing:
    """`functions_per_executor`: 0 is any number."""

    def __init__(self, table: ExecutorTable, rng: Rng, functions_per_executor: int) -> None:
        self._table = table
        self._rng = rng
        self._capacity = functions_per_executor
        self._transactions: dict[int, Transaction] = {}
        self._waiting: list[Attempt] = []
        self._sent: list[Attempt] = []
        self._wanted: dict[str, list[PinRequest]] = {}
        """What each created DAG needs, with repetitions for replicas."""
        self._lost: dict[str, list[tuple[PinRequest, float]]] = {}
        """Pins to be made again, and when to try."""
        self._leaving: dict[Address, dict[str, float]] = {}
        """Functions that executors were told to unpin, until a status says that they did."""
        self._returning: dict[Address, float] = {}
        """Executors that are being started anew, and how long that may take."""
        self.pins: dict[str, list[Pin]] = {}
        """The pins that hold, by DAG."""
        self.ledger = Ledger()

    def busy(self) -> bool:
        """Whether a pin is on its way."""
        return bool(self._transactions)

    def missing(self) -> dict[str, list[str]]:
        """The functions of created DAGs that are not pinned now, by DAG."""
        missing = {dag: [request.function for request in self._missing(dag)] for dag in self._wanted}
        return {dag: functions for dag, functions in missing.items() if functions}

    def _missing(self, dag: str) -> list[PinRequest]:
        held = [pin.function for pin in self.pins.get(dag, [])]
        missing = []
        for request in self._wanted.get(dag, []):
            if request.function in held:
                held.remove(request.function)
            else:
                missing.append(request)
        return missing

    def _may_fit(self, transaction: Transaction, gpu: bool) -> bool:
        """False where it is certain that not all functions of a kind find room. Then no executor is asked
        only to be told otherwise: whoever counts free room meanwhile, as an autoscaler does, would err."""
        free = [executor.address for executor in self._table.free[gpu]]
        if not self._capacity or not all(map(self.ledger.covers, free)):
            return True
        if self._leaving or self._returning or any(attempt.abandoned for attempt in self._sent):
            return True
        needed = sum(attempt.request.gpu is gpu for attempt in transaction.attempts)
        return needed <= sum(self.ledger.room(address, self._capacity) for address in free)

    def _choose(self, attempt: Attempt, owed: int) -> Executor | None:
        """None, too, while there are no more than so many that are `owed` to others."""
        candidates = [e for e in self._table.free[attempt.request.gpu] if self._may_ask(attempt, e)]
        if len(candidates) <= owed:
            return None
        if attempt.request.colocated:
            candidates = self._colocated(attempt, candidates)
        # In local mode an executor holds several functions: spread them, so that they run side by side.
        loads = [len(self._functions_at(executor)) for executor in candidates]
        least = min(loads)
        best = [executor for executor, load in zip(candidates, loads, strict=True) if load == least]
        return best[int(self._rng.random() * len(best))]

    def _may_ask(self, attempt: Attempt, executor: Executor) -> bool:
        if executor.address in attempt.tried or executor.suspected:
            return False
        if self._is_leaving(executor.address, attempt.request.function):
            return False
        if self._capacity and not self.ledger.room(executor.address, self._capacity):
            return False
        functions = self._functions_at(executor)
        if attempt.request.function in functions:
            # Ours a second time is no second replica; another DAG's is shared.
            return not self._holds(attempt.dag, attempt.request.function, executor.address) and not any(
                other.address == executor.address and other.request.function == attempt.request.function
                for other in self._sent
            )
        return not self._capacity or len(functions) < self._capacity

    def _is_leaving(self, address: Address, function: str) -> bool:
        """Whether an unpin is on its way that a new pin could overtake."""
        leaving = self._leaving.get(address)
        return leaving is not None and (bool(self._capacity) or function in leaving)

    def _functions_at(self, executor: Executor) -> set[str]:
        """What it holds, and what it was asked to hold."""
        asked = {a.request.function for a in self._sent if a.address == executor.address}
        return executor.functions | asked

    def _holds(self, dag: str, function: str, address: Address) -> bool:
        held = list(self.pins.get(dag, []))
        held += [
            a.pin
            for t in self._transactions.values()
            if t.dag == dag
            for a in t.attempts
            if a.pin is not None
        ]
        return any((pin.function, pin.address) == (function, address) for pin in held)

    def _is_held(self, address: Address, function: str, besides: Pin | None = None) -> bool:
        """Whether a DAG has, or is getting, the function on the executor."""
        getting = [a.pin for t in self._transactions.values() for a in t.attempts if a.pin is not None]
        held = [pin for pins in self.pins.values() for pin in pins]
        return any(
            pin is not besides and (pin.function, pin.address) == (function, address)
            for pin in held + getting
        )

    def _wanted_at(self, address: Address | None = None) -> set[tuple[str, Address]]:
        """The functions that DAGs have, are getting or have asked for, at one executor or at all."""
        pins = [pin for pins in self.pins.values() for pin in pins]
        pins += [a.pin for t in self._transactions.values() for a in t.attempts if a.pin is not None]
        pins += [attempt.target() for attempt in self._sent if not attempt.abandoned]
        return {(pin.function, pin.address) for pin in pins if address in (None, pin.address)}

    def _owed(self, gpu: bool) -> int:
        """How many executors lost pins still wait for."""
        if not self._capacity:
            return 0
        lost = [request for entries in self._lost.values() for request, _ in entries]
        lost += [a.request for a in self._waiting if self._transactions[a.transaction].repair]
        return sum(request.gpu is gpu for request in lost)

    def _colocated(self, attempt: Attempt, candidates: list[Executor]) -> list[Executor]:
        """Those on the node of the DAG's other colocated functions, else on the node with most room."""
        transaction = self._transactions[attempt.transaction]
        ips = {
            address[0]
            for other in transaction.attempts
            if other.request.colocated
            for address in [other.pin.address if other.pin is not None else other.address]
            if address is not None
        }
        near = [executor for executor in candidates if executor.ip in ips]
        if near:
            return near
        return self._roomiest(candidates, needed=sum(a.request.colocated for a in transaction.attempts))

    def _roomiest(self, candidates: list[Executor], needed: int) -> list[Executor]:
        """Those on the best node for so many functions: an empty one that has room for all of them,
        else any that has, else the one with most room."""
        room: dict[str, int] = {}
        for executor in candidates:
            room[executor.ip] = room.get(executor.ip, 0) + 1
        used = {executor.ip for executor in self._table.executors.values() if self._functions_at(executor)}

        def rank(ip: str) -> tuple[bool, bool, int]:
            # In local mode each executor has room for any number.
            fits = room[ip] >= needed or not self._capacity
            return fits, fits and ip not in used, room[ip]

        best = max(rank(ip) for ip in room)
        return [executor for executor in candidates if rank(executor.ip) == best]

    def _could_come_free(self, attempt: Attempt) -> bool:
        """Whether an executor that is busy leaving, or being asked, may still take the function."""
        function = attempt.request.function
        if any(a not in attempt.tried and self._is_leaving(a, function) for a in self._leaving):
            return True
        if any(address not in attempt.tried for address in self._returning):
            return True
        return any(
            other.abandoned and other.address is not None and other.address not in attempt.tried
            for other in self._sent
        )

    def _no_room(self, attempt: Attempt) -> str:
        kind = "GPU executor" if attempt.request.gpu else "executor"
        if attempt.tried:
            asked = ", ".join(f"{ip}:{tid}" for ip, tid in sorted(attempt.tried))
            function = attempt.request.function
            hint = "to see whether it loads, call it alone"
            return f"no {kind} took {function!r}: {asked} rejected it or did not answer; {hint}"
        # Of a repair nobody hears, and there may be hundreds at a time.
        states = "" if self._transactions[attempt.transaction].repair else f" ({self._states(attempt)})"
        return f"no free {kind} for {attempt.request.function!r}{states}: add executors, or delete a DAG"

    def _states(self, attempt: Attempt) -> str:
        """What the executors of the kind are at."""
        asked = {sent.address for sent in self._sent}
        states: Counter[str] = Counter()
        for executor in self._table.executors.values():
            if executor.gpu is not attempt.request.gpu:
                continue
            if executor.suspected:
                state = "not reached"
            elif executor.address in asked:
                state = "being asked"
            elif executor.functions:
                state = "holding functions"
            elif executor.free:
                state = "free, but not for this"
            else:
                state = "at a call or leaving"
            states[state] += 1
        return ", ".join(f"{number} {state}" for state, number in sorted(states.items())) or "none is known"
