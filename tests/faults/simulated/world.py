"""The control plane's parts, put together as the actors put them together, and what ties them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from pathlib import Path

from ray_sched.actors.doubts import Doubts
from ray_sched.actors.ledger import Ledger
from ray_sched.actors.lost_calls import destination_of
from ray_sched.actors.pin_record import PinRecord
from ray_sched.config import Config
from ray_sched.core.arrivals import Arrivals
from ray_sched.core.dags import Plan, plan_of
from ray_sched.core.destination import Destination
from ray_sched.core.dispatch import CALL, Dispatched, Dispatcher, seq_at
from ray_sched.core.executors import Address, ExecutorRecord, ExecutorTable, Status
from ray_sched.core.pinning import Pinning
from ray_sched.core.pins import Effect, Finished, Forget, PinRequest, SendPin, SendUnpin, pin_requests
from ray_sched.core.policies import load_policy
from ray_sched.core.registry import Registry
from ray_sched.core.replication import Outcome, Publisher, Replica, Update
from ray_sched.errors import NoResourcesError, RaySchedError
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire import internal_pb2
from tests.faults.simulated.executor import Executor
from tests.faults.simulated.relay import Act, Part, Relay

Send = tuple[Address, str, bytes]
Pinned = tuple[Finished, list[ExecutorRecord | None]]
Told = Callable[[str], object]
"""What a client is told: empty for success, else why not."""
Change = dict[str, tuple[cb.Dag, int] | None]
FUNCTIONS = ("f", "g", "h", "i")


def config(*, local: bool) -> Config:
    return Config().replace(
        **{
            "mgmt": "" if local else "10.0.0.200",
            "policy.max_recent_calls": 0,
            "scheduler.pin_timeout_s": 3.0,
            "scheduler.executor_timeout_s": 12.0,
            "scheduler.noted_calls_bytes": 1 << 16,
        }
    )


class World:
    def __init__(self, seed: int, folder: Path) -> None:
        self.relay = Relay(seed)
        rng = self.relay.rng
        self.config = config(local=rng.random() < 0.3)
        capacity = 0 if self.config.local else 1
        self.store = Store(self.relay, "store")
        self.scheduler = Scheduler(self.relay, "scheduler", self)
        self.policy = Policy(self.relay, "policy", self, folder, capacity)
        self.ingress = Ingress(self.relay, "ingress", self, folder)
        self.executors = [
            Executor(self.relay, self, number, folder, capacity=capacity)
            for number in range(rng.randrange(4, 9))
        ]
        self.parts: list[Part] = [self.store, self.scheduler, self.policy, self.ingress, *self.executors]
        for part in self.parts:
            part.start()

    def close(self) -> None:
        self.ingress.close()
        self.policy.close()
        for executor in self.executors:
            executor.close()

    def table(self) -> ExecutorTable:
        limits = self.config.scheduler
        return ExecutorTable(
            self.config.policy,
            local=self.config.local,
            pin_grace_s=limits.pin_grace_s,
            executor_timeout_s=limits.executor_timeout_s,
        )

    def dispatcher(self, table: ExecutorTable, plans: dict[str, Plan]) -> Dispatcher:
        rng = random.Random(self.relay.rng.getrandbits(32))
        return Dispatcher(table, plans, load_policy(self.config.policy), rng, Arrivals())

    def epoch(self) -> int:
        return self.relay.rng.getrandbits(48)

    def send(self, source: Part, target: Executor, kind: str, message: bytes) -> None:
        """A call's way to its executor is not to be lost while both live: who would know of it?"""
        may_drop = kind not in ("call", "schedule")
        self.relay.wire(
            source, target, kind, lambda: target.receive(kind, message), may_drop=may_drop, connection=kind
        )

    def validate(self) -> None:
        """What holds at any moment."""
        for part in (self.scheduler, self.policy, self.ingress):
            if part.up:
                part.table.validate()
        if self.policy.up:
            self.policy.pinning.validate()
        for executor in self.executors:
            if executor.up and not self.config.local:
                assert len(executor.execution.functions) <= 1, f"{executor.name} holds too much"


class Store(Part):
    """What it holds outlives it, as a file would."""

    def __init__(self, relay: Relay, name: str) -> None:
        super().__init__(relay, name)
        self.values: dict[str, str] = {}
        self.dags: dict[str, tuple[cb.Dag, int]] = {}

    def begin(self, *, again: bool) -> None:
        pass

    def put(self, key: str, value: str) -> None:
        """An error outranks no result."""
        if self.values.get(key) != "result":
            self.values[key] = value


class Policy(Part):
    table: ExecutorTable
    pinning: Pinning

    def __init__(self, relay: Relay, name: str, world: World, folder: Path, capacity: int) -> None:
        super().__init__(relay, name)
        self._world = world
        self._capacity = capacity
        self._path = folder / "pins"

    def close(self) -> None:
        self._record.close()

    def begin(self, *, again: bool) -> None:
        world = self._world
        limits = world.config.scheduler
        self.table = world.table()
        self.pinning = Pinning(
            self.table,
            random.Random(self.relay.rng.getrandbits(32)),
            functions_per_executor=self._capacity,
            local=world.config.local,
            pin_timeout_s=limits.pin_timeout_s,
            settle_s=limits.pin_grace_s,
        )
        self._record = PinRecord(self._path, keep=again)
        if again:
            self.pinning.recall(self._record.asked, self.relay.now)
        self.publisher = Publisher(self.table, world.epoch())
        self.recovered = not again
        self._waiters: dict[int, Callable[[Pinned], object]] = {}
        if again:
            self._recover()
        self.every(0.05, lambda: self.carry_out(self.pinning.tick(self.relay.now)))
        self.every(limits.heartbeat_s, self._beat)

    def _recover(self) -> None:
        ingress = self._world.ingress

        def ask() -> None:
            snapshot = ingress.snapshot()
            self.relay.tell(ingress, self, "a snapshot", lambda: took(snapshot))

        def took(snapshot: Update) -> None:
            for record in snapshot.executors:
                self.table.apply(record)
                self.table.dirty[record.ip, record.tid] = None
            self.recovered = True

        def failed() -> None:
            self.recovered = True

        self.relay.tell(self, ingress, "snapshot?", ask, lambda: self.after(0.0, failed))

    def _beat(self) -> None:
        now = self.relay.now
        self.table.age(now)
        for address in self.table.remove_silent(now):
            self.carry_out(self.pinning.on_gone(address, now, silent=True))
        self.publish(heartbeat=True)

    def publish(self, *, heartbeat: bool = False) -> None:
        if not self.recovered or not (heartbeat or self.publisher.has_changes()):
            return
        scheduler, update = self._world.scheduler, self.publisher.next_update(self.relay.now)
        self.relay.tell(self, scheduler, "executors", lambda: scheduler.on_executors(update))

    def on_status(self, status: Status, seq: int, at: float) -> None:
        known = status.address in self.table.executors
        self.table.on_status(status, at, seq)
        self.table.informed(status.address, seq)
        if status.running:
            self.carry_out(self.pinning.on_status(status.address, status.functions, self.relay.now))
        elif known:
            self.carry_out(self.pinning.on_gone(status.address, self.relay.now))
        self.publish()

    def on_seen(self, addresses: tuple[Address, ...], at: float) -> None:
        self.table.on_seen(addresses, at)
        self.carry_out(self.pinning.on_seen(addresses, self.relay.now))

    def on_answer(self, success: bool, name: str) -> None:
        self.carry_out(self.pinning.on_answer(success, name, self.relay.now))
        self.publish()

    def on_booked(self, address: Address, seq: int) -> None:
        if executor := self.table.executors.get(address):
            self.table.book(executor, seq)

    def pin_dag(self, dag: str, requests: list[PinRequest], done: Callable[[Pinned], object]) -> None:
        number, effects = self.pinning.create(dag, requests, self.relay.now)
        self._waiters[number] = done

        def too_late() -> None:
            self.carry_out(self.pinning.cancel(number, "not pinned in time", self.relay.now))

        self.after(20.0, too_late)
        self.carry_out(effects)

    def _finished(self, done: Callable[[Pinned], object], result: Finished) -> None:
        done((result, [self.table.record(pin.address) for pin in result.pins]))
        self.publish()

    def release(self, dag: str) -> None:
        self.carry_out(self.pinning.release(dag, self.relay.now))
        self.publish()

    def reconcile(self, dags: dict[str, list[PinRequest]], creating: list[str], as_of: float) -> None:
        if self.recovered:
            self.carry_out(self.pinning.reconcile(dags, creating, as_of, self.relay.now))
            self.publish()

    def carry_out(self, effects: Iterable[Effect]) -> None:
        sends: list[Send] = []
        for effect in effects:
            match effect:
                case Finished(transaction):
                    if waiter := self._waiters.pop(transaction, None):
                        self.after(0.0, lambda w=waiter, e=effect: self._finished(w, e))  # type: ignore[misc]
                case Forget(address, function):
                    self._record.discard(address, function)
                case SendPin(address, function):
                    self._record.add(address, function)
                    message = internal_pb2.PinFunction(name=function).SerializeToString()
                    sends.append((address, "pin", message))
                case SendUnpin(address, function):
                    sends.append((address, "unpin", function.encode()))
        if sends:
            ingress = self._world.ingress
            self.relay.tell(self, ingress, "pins to send", lambda: ingress.send(sends))


class Scheduler(Part):
    table: ExecutorTable
    registry: Registry

    def __init__(self, relay: Relay, name: str, world: World) -> None:
        super().__init__(relay, name)
        self._world = world

    def begin(self, *, again: bool) -> None:
        world = self._world
        self.registry = Registry()
        for function in FUNCTIONS:
            self.registry.add_function(function)
        self.table = world.table()
        self.replica = Replica(self.table, world.config.scheduler.lease_s)
        self.publisher = Publisher(self.table, world.epoch())
        self._dispatcher = world.dispatcher(self.table, self.registry.plans())  # type: ignore[arg-type]
        self._policy_epoch = -1
        self.recovered = False
        self._recover()
        self.every(world.config.scheduler.heartbeat_s, self._beat)
        self.every(5.0, self._reconcile)

    def _recover(self) -> None:
        store = self._world.store

        def asked() -> None:
            dags = dict(store.dags)
            self.relay.tell(store, self, "the DAGs", lambda: took(dags))

        def took(dags: dict[str, tuple[cb.Dag, int]]) -> None:
            for dag, replicas in dags.values():
                self.registry.begin_create(dag)
                self.registry.commit(dag, replicas)
                self.publisher.set_dag(dag.name, dag.SerializeToString())
            self.recovered = True
            self._reconcile()
            self._ask_policy()

        self.relay.tell(self, store, "DAGs?", asked, lambda: self.after(1.0, self._recover))

    def _beat(self) -> None:
        self.table.age(self.relay.now)
        if not self.replica.may_decide(self.relay.now):
            self._ask_policy()
        self.publish(heartbeat=True)

    # --- the table ---

    def on_executors(self, update: Update) -> None:
        outcome = self.replica.apply(update)
        if outcome is Outcome.GAP:
            self._ask_policy()
        elif outcome is Outcome.APPLIED:
            for record in update.executors:
                self.table.dirty[record.ip, record.tid] = None
            self.table.dirty.update(dict.fromkeys(update.removed))
            new_policy, self._policy_epoch = update.epoch != self._policy_epoch, update.epoch
            if new_policy and self.recovered:
                self._reconcile()
            self.publish()

    def _ask_policy(self) -> None:
        policy = self._world.policy

        def asked() -> None:
            if policy.recovered:
                whole = policy.publisher.whole(self.relay.now)
                self.relay.tell(policy, self, "all executors", lambda: self.on_executors(whole))

        self.relay.tell(self, policy, "all executors?", asked)

    def _reconcile(self) -> None:
        if not self.recovered:
            return
        policy, as_of = self._world.policy, self.relay.now
        dags = {name: pin_requests(*own) for name, own in self.registry.own_dags().items()}
        creating = self.registry.in_creation()
        self.relay.tell(self, policy, "reconcile", lambda: policy.reconcile(dags, creating, as_of))

    def may_decide(self) -> bool:
        return self.recovered and self.replica.may_decide(self.relay.now)

    def whole(self) -> Update | None:
        return self.publisher.whole(self.relay.now) if self.may_decide() else None

    def publish(self, *, heartbeat: bool = False, always: bool = False, taken: Act | None = None) -> None:
        """`taken`: once the ingress has it, or has lost its lease."""
        if not self.may_decide():
            if taken:
                taken()
            return
        if not (heartbeat or always or self.publisher.has_changes()):
            return
        ingress, update = self._world.ingress, self.publisher.next_update(self.relay.now)
        answered: list[Act] = [taken] if taken else []

        def finish() -> None:
            if answered:
                answered.pop()()

        def applied() -> None:
            ingress.apply(update)
            if taken:
                self.relay.tell(ingress, self, "applied", finish)

        self.relay.tell(self, ingress, "an update", applied)
        if taken:
            self.after(self._world.config.scheduler.lease_s, finish)

    # --- DAGs ---

    def create(self, dag: cb.Dag, replicas: int, told: Told) -> None:
        policy = self._world.policy
        if not self.recovered:
            told("not recovered")
            return
        try:
            self.registry.begin_create(dag)
        except RaySchedError as error:
            told(type(error).__name__)
            return
        requests = pin_requests(dag, replicas)

        def pinned(answer: Pinned | str) -> None:
            if isinstance(answer, str):
                fail(answer)
                return
            result, records = answer
            if result.reason:
                fail(result.reason)
            else:
                self._store({dag.name: (dag, replicas)}, lambda: stored(records), fail)

        def stored(records: list[ExecutorRecord | None]) -> None:
            for record in records:
                if record is not None:
                    self.table.apply(record)
                    self.table.dirty[record.ip, record.tid] = None
            self.registry.commit(dag, replicas)
            self.publisher.set_dag(dag.name, dag.SerializeToString())
            self.publish(always=True, taken=lambda: told(""))

        def fail(reason: str) -> None:
            self.registry.abort(dag.name)
            self.relay.tell(self, policy, f"release {dag.name}", lambda: policy.release(dag.name))
            told(reason)

        self.relay.ask(
            self, policy, f"pin {dag.name}", lambda done: policy.pin_dag(dag.name, requests, done), pinned
        )

    def delete(self, name: str, told: Told) -> None:
        if not self.recovered:
            told("not recovered")
            return
        try:
            self.registry.begin_delete(name)
        except RaySchedError as error:
            told(type(error).__name__)
            return

        def gone() -> None:
            policy = self._world.policy
            self.registry.remove(name)
            self.publisher.set_dag(name, None)
            self.relay.tell(self, policy, f"release {name}", lambda: policy.release(name))
            self.registry.end_delete(name)
            self.publish(always=True, taken=lambda: told(""))

        def failed(reason: str) -> None:
            self.registry.abort_delete(name)
            told(reason)

        self._store({name: None}, gone, failed)

    def _store(self, change: Change, done: Act, failed: Told) -> None:
        store = self._world.store

        def write() -> None:
            for name, dag in change.items():
                if dag is None:
                    store.dags.pop(name, None)
                else:
                    store.dags[name] = dag
            self.relay.tell(store, self, "stored", done)

        def lost() -> None:
            self.after(0.0, lambda: failed("the store did not answer"))

        self.relay.tell(self, store, "DAGs", write, lost)

    # --- calls ---

    def decide(self, call: cb.DagCall | cb.FunctionCall) -> Dispatched:
        """Raises RaySchedError."""
        now = self.relay.now
        if not self.may_decide():
            raise NoResourcesError("the scheduler does not know the executors (yet): try again")
        if isinstance(call, cb.DagCall):
            return self._dispatcher.call_dag(call, now, now)
        return self._dispatcher.call(call, now)

    def settle(self, doubtful: list[tuple[tuple[Address, ...], Destination]], told: Told) -> None:
        store = self._world.store
        held = {key for executor in self._world.executors for key in executor.open_keys()}
        lost = [to.key for _, to in doubtful if to.key not in held]

        def write() -> None:
            for key in lost:
                store.values.setdefault(key, "error")
            self.relay.tell(store, self, "errors stored", lambda: told(""))

        self.relay.tell(self, store, f"errors for {' '.join(lost)}", write, lambda: told("no store"))


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
        self._dispatcher = world.dispatcher(self.table, self.plans)
        self._ledger = Ledger(self._path, world.config.scheduler.noted_calls_bytes, keep=again)
        timeout_s = world.config.scheduler.lost_call_timeout_s
        self._doubts = Doubts(self._ledger, timeout_s, self.relay.now, was_restarted=again)
        self._seen: dict[Address, None] = {}
        self.every(world.config.scheduler.heartbeat_s, self._beat)

    def close(self) -> None:
        self._ledger.close()

    def _beat(self) -> None:
        policy, now, seen = self._world.policy, self.relay.now, tuple(self._seen)
        self.table.age(now)
        self.table.dirty.clear()
        self._seen.clear()
        self.relay.tell(self, policy, "seen", lambda: policy.on_seen(seen, now))
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
        policy, now = self._world.policy, self.relay.now
        seq = seq_at(now)
        if not self.table.on_status(status, now, seq):
            self._seen[status.address] = None
            return
        if not status.running:
            self._doubts.gone(status.address, now)
        self.relay.tell(self, policy, "a status", lambda: policy.on_status(status, seq, now))

    def on_pin_accept(self, success: bool, name: str) -> None:
        policy = self._world.policy
        self.relay.tell(self, policy, "an answer", lambda: policy.on_answer(success, name))

    def send(self, sends: Iterable[Send]) -> None:
        for address, kind, message in sends:
            if kind not in ("pin", "unpin") or not self.table.has_left(address):
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
        told("", dispatched.response_id)

    def _hand_on(self, call: cb.DagCall | cb.FunctionCall, told: Callable[[str, str], object]) -> None:
        scheduler = self._world.scheduler

        def asked() -> None:
            try:
                dispatched = scheduler.decide(call)
            except RaySchedError as error:
                why = type(error).__name__
                self.relay.tell(scheduler, self, f"refused: {why}", lambda: told(why, ""))
                return
            self.relay.tell(scheduler, self, "decided", lambda: decided(dispatched))

        def decided(dispatched: Dispatched) -> None:
            self._carry_out(dispatched, continued=True)
            told("", dispatched.response_id)

        self.relay.tell(self, scheduler, "a call", asked)

    def _carry_out(self, dispatched: Dispatched, *, continued: bool) -> None:
        policy, now = self._world.policy, self.relay.now
        sends = [(executor.address, kind, message) for executor, kind, message in dispatched.sends]
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

        def settled(why_not: str) -> None:
            doubts.looked_after(not why_not)

        self.relay.ask(
            self, scheduler, "doubtful calls", lambda told: scheduler.settle(due.doubtful(), told), settled
        )
