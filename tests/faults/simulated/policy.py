"""What the Policy's actor does around the core."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ray_sched.actors.messages import Booked, StatusSeen
from ray_sched.actors.pin_record import PinRecord
from ray_sched.actors.policy import missed
from ray_sched.core.executor import Address, ExecutorRecord, Status
from ray_sched.core.executors import ExecutorTable
from ray_sched.core.pinning import Pinning
from ray_sched.core.pins import Effect, Finished, Forget, PinRequest, SendPin, SendUnpin
from ray_sched.core.replication import Batch, Batches, Publisher, Update
from ray_sched.wire import internal_pb2
from tests.faults.simulated.relay import Act, Part, Relay

if TYPE_CHECKING:
    from tests.faults.simulated.world import World


Send = tuple[Address, str, bytes]
Pinned = tuple[Finished, list[ExecutorRecord | None]]


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
        self._record = PinRecord(self._path)
        if again:
            self.pinning.recall(self._record.asked, self.relay.now)
        self.publisher = Publisher(self.table, world.epoch())
        self.recovered = not again
        self._waiters: dict[int, Callable[[Pinned], object]] = {}
        if again:
            self._recover()
        self.every(0.05, lambda: self.carry_out(self.pinning.tick(self.relay.now)))
        self.every(limits.heartbeat_s, self._beat)
        self._batches, self._missed_at = Batches(), 0.0
        self.every(1.0, self._catch_up)

    def _recover(self) -> None:
        ingress = self._world.ingress

        def ask() -> None:
            snapshot = ingress.snapshot()
            self.relay.tell(ingress, self, "a snapshot", lambda: took(snapshot))

        def took(snapshot: Update) -> None:
            if self.recovered:
                return
            for record in snapshot.executors:
                self.table.apply(record)
                self.table.dirty[record.ip, record.tid] = None
            self.recovered = True

        def failed() -> None:
            self.recovered = True

        took = self.mine(took)  # type: ignore[assignment]
        self.relay.tell(self, ingress, "snapshot?", ask, lambda: self.after(0.0, failed))
        self.after(self._world.config.answer_timeout_s, failed)

    def _beat(self) -> None:
        now = self.relay.now
        self.table.age(now)
        for address in self.table.remove_silent(now, self._world.config.scheduler.heartbeat_s):
            self.carry_out(self.pinning.on_gone(address, now, silent=True))
        self.publish(heartbeat=True)

    def publish(self, *, heartbeat: bool = False) -> None:
        if not self.recovered or not (heartbeat or self.publisher.has_changes()):
            return
        scheduler, update = self._world.scheduler, self.publisher.next_update(self.relay.now)
        self.relay.tell(self, scheduler, "executors", lambda: scheduler.on_executors(update))

    def on_batch(self, batch: Batch, act: Act) -> None:
        """What the ingress saw."""
        if self._batches.is_one_missing(batch):
            self._missed_at = self.relay.now
        act()

    def _catch_up(self) -> None:
        missed_at, ingress = self._missed_at, self._world.ingress
        if not missed_at:
            return

        def ask() -> None:
            snapshot = ingress.snapshot()
            self.relay.tell(ingress, self, "what it knows", lambda: told(snapshot), once=True)

        def took(snapshot: Update) -> None:
            if self._missed_at == missed_at:
                self._missed_at = 0.0
            since = self.relay.now - self._world.config.scheduler.executor_timeout_s
            for event in missed(self.table, snapshot.executors, since):
                match event:
                    case StatusSeen(status, seq, at):
                        self.on_status(status, seq, at)
                    case Booked(address, seq):
                        self.on_booked(address, seq)

        told = self.mine(took)
        self.relay.tell(self, ingress, "what do you know?", ask, once=True)

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
            # Once: an unpin and a pin that are repeated together are another order.
            self.relay.tell(self, ingress, "pins to send", lambda: ingress.send(sends), once=True)
