"""What the Ingress's loop does around the core."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ray_sched.actors.doubts import Doubts
from ray_sched.actors.ingress_loop import PINNING, pinned_by
from ray_sched.actors.ledger import Ledger
from ray_sched.actors.lost_calls import destination_of
from ray_sched.core.dags import Plan, plan_of
from ray_sched.core.dispatch import CALL, Dispatched, seq_at
from ray_sched.core.executor import Address, Status
from ray_sched.core.executors import ExecutorTable
from ray_sched.core.open_calls import Doubtful
from ray_sched.core.replication import Outcome, Replica, Update
from ray_sched.errors import RaySchedError
from ray_sched.wire import cloudburst_pb2 as cb
from tests.faults.simulated.policy import Send
from tests.faults.simulated.relay import Act, Part, Relay

if TYPE_CHECKING:
    from tests.faults.simulated.world import World


class Ingress(Part):
    table: ExecutorTable

    def __init__(self, relay: Relay, name: str, world: World, folder: Path) -> None:
        super().__init__(relay, name)
        self._world = world
        self._path = folder / "calls"

    def begin(self, *, again: bool) -> None:
        world = self._world
        self.table = world.table()
        self.replica = Replica(self.table, world.config.scheduler.lease_s)
        self.plans: dict[str, Plan] = {}
        self.synced = False
        self._dispatcher = world.dispatcher(self.table, self.plans)
        self._ledger = Ledger(self._path, world.config.scheduler.noted_calls_bytes, self.relay.now)
        limits = world.config.scheduler
        self._doubts = Doubts(
            self._ledger, self.relay.now, limits.lost_call_timeout_s, limits.executor_timeout_s
        )
        self._seen: dict[Address, None] = {}
        self._batches = itertools.count(1)
        self.every(world.config.scheduler.heartbeat_s, self._beat)

    def close(self) -> None:
        self._ledger.close()

    def _beat(self) -> None:
        policy, now, seen = self._world.policy, self.relay.now, tuple(self._seen)
        self.table.age(now)
        self.table.dirty.clear()
        self._seen.clear()
        self._tell_policy("seen", lambda: policy.on_seen(seen, now))
        self._look_after_calls()
        if not self.replica.may_decide(now):
            self._ask_whole()

    # --- the table ---

    def apply(self, update: Update) -> None:
        known = list(self.table.executors) if update.whole else list(update.removed)
        outcome = self.replica.apply(update)
        for address in known:
            if self.table.has_left(address):
                self._doubts.gone(address, self.relay.now)
        if outcome is Outcome.GAP:
            self._ask_whole()
        if outcome is not Outcome.APPLIED:
            return
        self.synced = True
        if update.whole:
            self.plans.clear()
        for name, dag in update.dags.items():
            if dag is None:
                self.plans.pop(name, None)
            else:
                self.plans[name] = plan_of(cb.Dag.FromString(dag))

    def _ask_whole(self) -> None:
        scheduler = self._world.scheduler

        def asked() -> None:
            whole = scheduler.whole()
            if whole is not None:
                self.relay.tell(scheduler, self, "the whole table", lambda: self.apply(whole))

        self.relay.tell(self, scheduler, "the whole table?", asked)

    def snapshot(self) -> Update:
        return Update(0, 0, True, tuple(self.table.records()), {}, {}, {}, self.relay.now)

    def on_status(self, status: Status) -> None:
        now = self.relay.now
        end = self.table.unheard_end(status)
        if end is not None:
            self._take_status(end, now, seq_at(now) - 1)
        self._take_status(status, now, seq_at(now))

    def _take_status(self, status: Status, now: float, seq: int) -> None:
        policy = self._world.policy
        changed = self.table.on_status(status, now, seq)
        if not status.running and (changed or not self.synced):
            self._doubts.gone(status.address, now)
        if status.reconnections:
            self._doubts.reconnected(status.address, status.reconnections, now)
        if not changed:
            self._seen[status.address] = None
            return
        self._tell_policy("a status", lambda: policy.on_status(status, seq, now))

    def _tell_policy(self, what: str, act: Act) -> None:
        policy, batch = self._world.policy, (self.life, next(self._batches))
        self.relay.tell(self, policy, what, lambda: policy.on_batch(batch, act))

    def on_pin_accept(self, success: bool, name: str) -> None:
        policy = self._world.policy
        self._tell_policy("an answer", lambda: policy.on_answer(success, name))

    def send(self, sends: Iterable[Send]) -> None:
        for address, kind, message in sends:
            if kind in PINNING:
                if self.table.has_left(address):
                    continue
                self.table.told_to_pin(address, pinned_by(kind, message), unpin=kind == "unpin")
            self._world.send(self, self._world.executors[address[1]], kind, message)

    # --- calls ---

    def call(self, call: cb.DagCall | cb.FunctionCall, told: Callable[[str, str], object]) -> None:
        """`told(why not, id)`."""
        known = isinstance(call, cb.FunctionCall) or call.name in self.plans
        if not self.replica.may_decide(self.relay.now) or not known:
            self._hand_on(call, told)
            return
        now = self.relay.now
        try:
            if isinstance(call, cb.DagCall):
                dispatched = self._dispatcher.call_dag(call, now, now)
            else:
                dispatched = self._dispatcher.call(call, now)
        except RaySchedError as error:
            told(type(error).__name__, "")
            return
        self._carry_out(dispatched, continued=False)
        told("", dispatched[0])

    def _hand_on(self, call: cb.DagCall | cb.FunctionCall, told: Callable[[str, str], object]) -> None:
        scheduler = self._world.scheduler

        def asked() -> None:
            try:
                dispatched = scheduler.decide(call)
            except RaySchedError as error:
                why = type(error).__name__
                self.relay.tell(scheduler, self, f"refused: {why}", lambda: told(why, ""), once=True)
                return
            self.relay.tell(scheduler, self, "decided", lambda: decided(dispatched), once=True)

        def decided(dispatched: Dispatched) -> None:
            self._carry_out(dispatched, continued=True)
            told("", dispatched[0])

        told, decided = self.mine(told), self.mine(decided)  # type: ignore[assignment]
        self.relay.tell(self, scheduler, "a call", asked, once=True)

    def _carry_out(self, dispatched: Dispatched, *, continued: bool) -> None:
        policy, now = self._world.policy, self.relay.now
        sends = [(executor.address, kind, message) for executor, kind, message in dispatched[1]]
        to = next(to for _, kind, message in sends if (to := destination_of(kind, message)) is not None)
        self._ledger.add((now, tuple(address for address, _, _ in sends), tuple(to), continued))
        for address, kind, _ in sends:
            if kind == CALL and not self._world.config.local:
                seq = seq_at(now)
                self.relay.tell(
                    self,
                    policy,
                    "booked",
                    lambda a=address, s=seq: policy.on_booked(a, s),  # type: ignore[misc]
                )
        self.send(sends)

    def _look_after_calls(self) -> None:
        due, scheduler = self._doubts.take_due(self.relay.now), self._world.scheduler
        if due is None:
            return
        doubts = self._doubts

        def settled(answer: str | tuple[str, list[Doubtful]]) -> None:
            why_not, still_open = (answer, []) if isinstance(answer, str) else answer
            doubts.looked_after(not why_not, still_open, self.relay.now)

        self.relay.ask(
            self, scheduler, "doubtful calls", lambda told: scheduler.settle(due.doubtful(), told), settled
        )
