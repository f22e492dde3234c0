"""The Policy: what is known of the executors, and where a function is pinned.

Its table is the one whose word counts; the Scheduler has a copy, and each Ingress a copy of that. They are
told within a tick on what calls depend, and the rest with the next heartbeat.
Ray's threads and a ticker share the state under one lock; nothing waits while it holds it.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, Final

import ray

from ray_sched.actors import names
from ray_sched.actors.capacity import Capacity, Told
from ray_sched.actors.link import Link
from ray_sched.actors.messages import (
    Booked,
    Event,
    PinAnswered,
    Pinned,
    Relieved,
    Seen,
    Send,
    StatusSeen,
    Suspected,
)
from ray_sched.actors.metering import Metering
from ray_sched.actors.pin_record import PinRecord
from ray_sched.actors.process import keep_alive, prepare_process, was_restarted
from ray_sched.actors.telling import Account, account
from ray_sched.config import Config
from ray_sched.core.dispatch import seq_at
from ray_sched.core.executor import MAX_FUNCTIONS, Address, ExecutorRecord
from ray_sched.core.executors import DEPARTED_KEPT, MAX_TICK_GAP_S, ExecutorTable
from ray_sched.core.history import serving
from ray_sched.core.pinning import Pinning
from ray_sched.core.pins import Demand, Effect, Finished, Forget, Pin, PinRequest, Reserve, SendPin, Unreserve
from ray_sched.core.replication import Batch, Batches, Publisher, Update
from ray_sched.errors import BadMessageError, RaySchedError
from ray_sched.kvs.client import KvsClient
from ray_sched.logs import teller
from ray_sched.metrics import Sample
from ray_sched.runtime_folder import runtime_file
from ray_sched.wire import internal_pb2, shared_pb2
from ray_sched.wire.codec import is_longer, parse
from ray_sched.wire.curve import Keys
from ray_sched.wire.ports import check_executor_address

log = logging.getLogger(__name__)

TICK_S: Final = 0.05
CACHED_KEYS: Final = "ANNA_METADATA|cache_ip|"
MISSING_PERIOD_S: Final = 1.0
TOLD: Final = 10
"""DAGs, and functions of each, that are named in the log at once."""


class PolicyActor:
    CONCURRENCY_GROUPS: Final = {"events": 1, "pins": 64}

    def __init__(self, config: Config) -> None:
        prepare_process(config, "policy")
        self._config = config
        group = config.group_name
        self._ingress = Link(group, names.INGRESS, unanswered=10_000)
        self._scheduler = Link(group, names.SCHEDULER)
        self._lock = threading.RLock()
        rng = random.Random(config.policy.seed or None)
        self._table = ExecutorTable(
            config.policy,
            local=config.local,
            pin_grace_s=config.scheduler.pin_grace_s,
            executor_timeout_s=config.scheduler.executor_timeout_s,
            overtaking=config.ingress.shards > 1,
        )
        self._pinning = Pinning(
            self._table,
            rng,
            functions_per_executor=config.functions_per_executor,
            local=config.local,
            pin_timeout_s=config.scheduler.pin_timeout_s,
            settle_s=config.scheduler.pin_grace_s,
            remembered=config.remembered,
        )
        self._pinning.history.heard = teller(log, logging.INFO)
        self._record = PinRecord(runtime_file(config, "pins"))
        if self._record.asked or was_restarted():
            self._pinning.recall(self._record.asked, time.monotonic())
        self._publisher = Publisher(self._table, epoch=random.SystemRandom().getrandbits(48))
        self._waiters: dict[int, Future[Finished]] = {}
        self._missing: dict[str, list[str]] = {}
        """The functions that were last said to be pinned nowhere, by DAG."""
        self._kvs = KvsClient(
            config.kvs_host,
            config.host,
            timeout_s=config.kvs.timeout_s,
            retries=config.kvs.retries,
            routing_ports=config.kvs.routing_ports,
            keys=Keys.of_group(config.security.curve),
        )
        self._capacity = Capacity(
            config,
            Told(self._on_reserved, self._on_covered, self._on_uncovered, self._on_died),
        )
        self._died: dict[Address, float] = {}
        """When Ray told of each executor's death: what it said before that does not count any more."""
        self._heard_at = time.monotonic()
        """When an ingress was last heard of."""
        self._batches = Batches()
        self._missed_at = 0.0
        """When it was noticed that events of the ingress got lost, until they are known; 0: none did."""
        self._told: tuple[float, Future[Update]] | None = None
        """What the ingress knows, when it has said so, and for which loss it was asked. The ticker's."""
        self._recovered = threading.Event()
        self._stopping = threading.Event()
        self._ticker = threading.Thread(
            target=keep_alive, args=(self._run,), name="policy-ticker", daemon=True
        )
        self._ticker.start()
        self._metering = Metering(config, "policy", self._samples)

    # --- the actor's methods ---

    @ray.method(concurrency_group="events")
    def on_events(self, events: Sequence[Event], batch: Batch | None = None) -> None:
        """What an ingress saw, in order."""
        now = time.monotonic()
        with self._lock:
            if batch is not None and self._batches.is_one_missing(batch):
                self._missed_at = now
            unheard_s = now - self._heard_at
            self._heard_at = now
            if unheard_s > MAX_TICK_GAP_S:
                self._table.excuse(unheard_s, now)
            urgent = False
            for event in events:
                urgent |= self._is_urgent(event)
                self._on_event(event, now)
            if urgent:
                self._publish(now)

    @ray.method(concurrency_group="events")
    def on_bookings(self, booked: Sequence[Event], batch: Batch | None = None) -> None:
        """What became of executors by calls of the Scheduler's own, or of an ingress shard's."""
        with self._lock:
            for event in booked:
                self._on_event(event, time.monotonic())

    @ray.method(concurrency_group="pins")
    def pin_dag(self, dag: str, requests: list[PinRequest], deadline: float, request: str = "") -> Pinned:
        """Pin a DAG's functions, all or none; waits until `deadline` (monotonic clock) at most.

        `request` is the id of what this is done for.
        """
        with serving(request):
            return self._pin_dag(dag, requests, deadline)

    def _pin_dag(self, dag: str, requests: list[PinRequest], deadline: float) -> Pinned:
        done: Future[Finished] = Future()
        with self._lock:
            now = time.monotonic()
            timeout_s = deadline - now
            if timeout_s <= 0:
                return Pinned((), (), "the policy heard of it too late")
            number, effects = self._pinning.create(dag, requests, now)
            self._waiters[number] = done
            self._carry_out(effects)
        try:
            finished = done.result(timeout_s)
        except FutureTimeoutError:
            with self._lock:
                reason = f"its functions were not pinned within {timeout_s:g} s"
                self._carry_out(self._pinning.cancel(number, reason, time.monotonic()))
            finished = done.result(timeout_s)  # the cancellation has set it
        with self._lock:
            records = [self._table.record(pin.address) for pin in finished.pins]
            self._publish(time.monotonic())
        return Pinned(
            finished.pins, tuple(record for record in records if record is not None), finished.reason
        )

    @ray.method(concurrency_group="pins")
    def release_dag(self, dag: str, request: str = "") -> None:
        """The DAG is deleted, for the request of that id."""
        with serving(request), self._lock:
            now = time.monotonic()
            self._carry_out(self._pinning.release(dag, now))
            self._publish(now)

    @ray.method(concurrency_group="pins")
    def reconcile(self, dags: dict[str, list[PinRequest]], creating: list[str], as_of: float) -> None:
        """The Scheduler's own DAGs, and those that it is creating, as of a time of the monotonic clock."""
        if not self._recovered.wait(self._config.answer_timeout_s):
            return
        with self._lock:
            now = time.monotonic()
            self._carry_out(self._pinning.reconcile(dags, creating, as_of, now))
            self._publish(now)
        self._capacity.reservations.know_all()

    def reservation_names(self) -> list[str] | None:
        """The placement groups that are this group's; None until that is known."""
        return self._capacity.reservations.names()

    @ray.method(concurrency_group="events")
    def merge_locations(self, locations: list[tuple[str, Address]]) -> None:
        """What a peer says of who holds what."""
        with self._lock:
            self._table.merge_locations(self._believed(locations), time.monotonic())

    def whole_table(self) -> Update | None:
        """All that is known; None until what was known before a restart has been recovered."""
        if not self._recovered.is_set():
            return None
        with self._lock:
            return self._publisher.whole(time.monotonic())

    def locations(self) -> list[tuple[str, Address]]:
        """Who holds what, for the peers."""
        with self._lock:
            return list(self._table.told_locations())

    def unknown(self, addresses: list[Address]) -> list[Address]:
        """Those of them that have not reported yet."""
        with self._lock:
            known = self._table.executors
            return [a for a in addresses if a not in known or not known[a].reported]

    def ready(self) -> dict[str, Any]:
        self._recovered.wait(self._config.start_timeout_s)
        return {"policy": self._config.policy.name}

    def status(self) -> dict[str, Any]:
        now = time.monotonic()
        with self._lock:
            pinned: dict[Address, list[str]] = {}
            for pins in self._pinning.pins.values():
                for pin in pins:
                    pinned.setdefault(pin.address, []).append(f"{pin.dag}/{pin.function}")
            executors = [
                {
                    "address": executor.name,
                    "ip": executor.ip,
                    "tid": executor.tid,
                    "type": "GPU" if executor.gpu else "CPU",
                    "functions": sorted(executor.functions),
                    "pinned_for": sorted(pinned.get(executor.address, [])),
                    "free": executor.free,
                    "overloaded": executor.overloaded,
                    "utilization": round(executor.utilization, 3),
                    "recent_calls": executor.recent,
                    "last_status_s": round(now - executor.last_seen, 1),
                }
                for executor in sorted(self._table.executors.values(), key=lambda e: e.address)
            ]
            return {
                "pid": os.getpid(),
                "policy": self._config.policy.name,
                "executors": executors,
                "missing_pins": self._pinning.missing(),
                **self._capacity.status(),
                "late_pin_answers": self._pinning.late_answers,
                "cached_keys": len(self._table.cached_keys),
            }

    def why(self, name: str) -> Account:
        """What became of the pins of a DAG, of a function, or on an executor; and how that stands."""
        with self._lock:
            history = self._pinning.history
            now = [
                f"{pin.function} is pinned on {pin.address[0]}:{pin.address[1]} for DAG {pin.dag}"
                for pins in self._pinning.pins.values()
                for pin in pins
                if name in (pin.dag, pin.function, f"{pin.address[0]}:{pin.address[1]}")
            ]
            now += [
                f"{function} of DAG {dag} has no executor yet"
                for dag, functions in self._pinning.missing().items()
                for function in functions
                if name in (dag, function)
            ]
            now += [
                f"executor {e.name} {'is free' if e.free else 'is not free'}, "
                f"{'overloaded' if e.overloaded else 'not overloaded'}, given {e.recent} calls lately; "
                f"its last status came {time.monotonic() - e.last_seen:.1f} s ago"
                for e in self._table.executors.values()
                if e.name == name
            ]
            return account(history.about(name), now, (history.since(),))

    def stop(self) -> None:
        self._stopping.set()
        self._metering.stop()
        self._ticker.join(self._config.threads_stop_timeout_s)
        self._capacity.stop(self._config.threads_stop_timeout_s)
        self._kvs.close()
        with self._lock:
            self._record.close()

    # --- inside ---

    def _samples(self) -> list[Sample]:
        with self._lock:
            executors = Counter(
                (
                    "overloaded" if executor.overloaded else "free" if executor.free else "holding",
                    "gpu" if executor.gpu else "cpu",
                )
                for executor in self._table.executors.values()
            )
            pins = sum(map(len, self._pinning.pins.values()))
            missing = sum(map(len, self._pinning.missing().values()))
        return [
            Sample("pins", pins),
            Sample("missing_pins", missing),
            *(
                Sample("executors", executors[state, kind], (state, kind))
                for state in ("free", "holding", "overloaded")
                for kind in ("cpu", "gpu")
            ),
        ]

    def _believed(self, locations: list[tuple[str, Address]]) -> list[tuple[str, Address]]:
        """Those of known executors, and of such as can be ones and have room in the table."""
        limits, known = self._config.scheduler, self._table.executors
        believed, new = [], set[Address]()
        told: dict[Address, int] = {}
        for function, address in locations:
            if is_longer(function, limits.max_name_bytes):
                continue
            if address not in known and address not in new:
                try:
                    check_executor_address(*address, self._config.ports)
                except BadMessageError:
                    continue
                if len(known) + len(new) >= limits.max_executors:
                    continue
                new.add(address)
            executor = known.get(address)
            held: Collection[str] = () if executor is None else executor.functions
            if function not in held:  # what is held is said again and again: that keeps it
                told[address] = told.get(address, len(held)) + 1
                if told[address] > MAX_FUNCTIONS:
                    continue
            believed.append((function, address))
        return believed

    def _is_urgent(self, event: Event) -> bool:
        """Whether the others are to hear of it before the next tick: of who comes and who goes."""
        if not isinstance(event, StatusSeen):
            return False
        known = self._table.executors.get(event.address)
        return known is None or not known.reported or not event.status.running

    def _on_event(self, event: Event, now: float) -> None:
        match event:
            case StatusSeen(status, _, at) if at < self._died.get(status.address, 0.0):
                pass  # the last word of a process that is dead
            case StatusSeen(status, seq, at):
                known = self._table.executors.get(status.address)
                self._table.on_status(status, at, seq)
                self._table.informed(status.address, seq)
                if status.running:
                    self._carry_out(self._pinning.on_status(status.address, status.functions, now))
                elif known is not None:
                    # A process that tells the end of the one before it stays.
                    if known.process == status.process:
                        self._capacity.left(status.address)
                    self._carry_out(self._pinning.on_gone(status.address, now))
            case PinAnswered(success, name):
                self._carry_out(self._pinning.on_answer(success, name, now))
            case Seen(addresses, at):
                self._table.on_seen(addresses, at)
                self._carry_out(self._pinning.on_seen(addresses, now))
            case Booked(address, seq):
                self._table.booked(address, seq)
            case Suspected(address):
                self._table.suspect(address)
            case Relieved(address):
                self._table.relieve(address)

    def _carry_out(self, effects: list[Effect]) -> None:
        sends: list[Send] = []
        for effect in effects:
            if isinstance(effect, Finished):
                waiter = self._waiters.pop(effect.transaction, None)
                if waiter is not None:
                    waiter.set_result(effect)
                continue
            if isinstance(effect, Reserve | Unreserve | Demand):
                self._capacity.carry_out(effect)
                continue
            if isinstance(effect, Forget):
                self._record.discard(effect.address, effect.function)
                continue
            ip, tid = effect.address
            self._record.add(effect.address, effect.function)
            if isinstance(effect, SendPin):
                message = internal_pb2.PinFunction(
                    name=effect.function, response_address=self._config.host, batching=effect.batching
                )
                if effect.origin and self._is_ours(effect.address):
                    message.request = effect.origin
                sends.append((ip, tid, "pin", message.SerializeToString()))
            else:
                sends.append((ip, tid, "unpin", effect.function.encode()))
        if sends:
            self._ingress.tell("send", tuple(sends))

    def _is_ours(self, address: Address) -> bool:
        """Whether what only our own executors know may be sent there."""
        known = self._table.executors.get(address)
        return self._pinning.ledger.covers(address) or (known is not None and known.is_ours)

    # --- what Ray tells, in threads of the capacity's ---

    def _on_reserved(self, pin: Pin, success: bool) -> None:
        with self._lock:
            self._carry_out(self._pinning.on_reserved(pin, success, time.monotonic()))

    def _on_covered(self, address: Address, gpu: bool) -> None:
        with self._lock:
            self._carry_out(self._pinning.on_covered(address, gpu))

    def _on_uncovered(self, address: Address) -> None:
        with self._lock:
            self._carry_out(self._pinning.on_uncovered(address))

    def _on_died(self, address: Address, returns: bool) -> None:
        """Sooner than its silence tells: nobody is sent there any more, and its pins are made again."""
        with self._lock:
            now = time.monotonic()
            self._died[address] = now
            if len(self._died) > DEPARTED_KEPT:
                del self._died[next(iter(self._died))]
            if address in self._table.executors:
                forget = self._table.died if returns else self._table.remove
                forget(address, seq_at(now))
                self._carry_out(self._pinning.on_gone(address, now, returns=returns))
                self._publish(now)

    def _publish(self, now: float, heartbeat: bool = False) -> bool:
        """Tell the Scheduler what changed; whether it could be told. While it does not answer, what changed
        stays to be told."""
        if not self._recovered.is_set() or not (heartbeat or self._publisher.has_changes()):
            return False
        if not self._scheduler.has_room():
            return False
        self._scheduler.tell("on_executors", self._publisher.next_update(now))
        return True

    def _run(self) -> None:
        self._recover()
        self._capacity.start()
        next_heartbeat = next_keys = next_table_tick = next_missing = 0.0
        while not self._stopping.wait(TICK_S):
            now = time.monotonic()
            with self._lock:
                self._carry_out(self._pinning.tick(now))
                if now >= next_table_tick:
                    self._table.age(now)
                    self._remove_silent(now)
                    next_table_tick = now + self._config.scheduler.heartbeat_s
                due = now >= next_heartbeat
                if (due or self._table.pressing) and self._publish(now, heartbeat=True):
                    next_heartbeat = now + self._config.scheduler.heartbeat_s
            if now >= next_missing:
                self._catch_up()
                self._tell_missing()
                next_missing = now + MISSING_PERIOD_S
            if now >= next_keys:
                self._read_cached_keys()
                next_keys = now + self._config.stats.policy_period_s

    def _remove_silent(self, now: float) -> None:
        if now - self._heard_at > MAX_TICK_GAP_S:
            return  # the ingress is silent itself: nothing is known of the executors
        for address in self._table.remove_silent(now, self._config.scheduler.heartbeat_s):
            log.warning("executor=%s:%d is silent and counts as gone", *address)
            self._carry_out(self._pinning.on_gone(address, now, silent=True))

    def _tell_missing(self) -> None:
        """Pins that were lost and find no room are said once, and again when that has changed."""
        with self._lock:
            missing = {} if self._pinning.busy() else self._pinning.missing()
            if self._pinning.busy() or missing == self._missing:
                return
            before, self._missing = self._missing, missing
        for dag in [dag for dag in missing if missing[dag] != before.get(dag)][:TOLD]:
            functions = ",".join(missing[dag][:TOLD])
            log.warning("dag=%s functions=%s are pinned nowhere: there is no free executor", dag, functions)
        for dag in [dag for dag in before if dag not in missing][:TOLD]:
            log.info("dag=%s misses no pin any more", dag)

    def _recover(self) -> None:
        """After a restart, begin with what the Ingress knows."""
        if not was_restarted():
            self._recovered.set()
            return
        try:
            snapshot: Update = self._ingress.get("snapshot", timeout_s=self._config.answer_timeout_s)
        except RaySchedError as error:
            log.info("no executors recovered: %s", error)
        else:
            with self._lock:
                for record in snapshot.executors:
                    self._table.apply(record)
                    self._table.dirty[record.ip, record.tid] = None
                for ip, keys in snapshot.keys.items():
                    self._table.cached_keys.set(ip, keys)
        self._recovered.set()

    def _catch_up(self) -> None:
        """Where events of the ingress got lost, ask what is known there; the answer is taken in later.

        Not in the thread that brings it: that is Ray's, and must neither wait nor call other actors.
        """
        if self._told is not None:
            asked_for, told = self._told
            if not told.done():
                return
            self._told = None
            self._on_snapshot(told, asked_for)
        with self._lock:
            missed_at = self._missed_at
        if missed_at:
            log.warning("events of the ingress got lost: it is asked what it knows")
            self._told = (missed_at, self._ingress.ask("snapshot"))

    def _on_snapshot(self, told: Future[Update], asked_for: float) -> None:
        error = told.exception()
        if error is not None:
            log.info("the ingress does not say what it knows, and is asked again: %s", error)
            return
        now = time.monotonic()
        with self._lock:
            if self._missed_at == asked_for:
                self._missed_at = 0.0
            since = now - self._config.scheduler.executor_timeout_s
            for event in missed(self._table, told.result().executors, since):
                self._on_event(event, now)
            self._publish(now)

    def _read_cached_keys(self) -> None:
        """Ask the key-value store what is cached at each executor's IP; the answer comes later."""
        with self._lock:
            ips = sorted(self._table.ips())
        if ips:
            future = self._kvs.get_many_future([CACHED_KEYS + ip for ip in ips])
            future.add_done_callback(self._on_cached_keys)

    def _on_cached_keys(self, future: Future[Any]) -> None:
        error = future.exception()
        if error is not None:
            log.warning("the cached keys stay as they were: %s", error)
            return
        with self._lock:
            for key, lattice in future.result().items():
                try:
                    keys = parse(shared_pb2.StringSet, lattice.value).keys if lattice is not None else ()
                except (RaySchedError, AttributeError) as wrong:
                    log.warning("key=%s holds no set of cached keys: %s", key, wrong)
                    continue
                self._table.cached_keys.set(key.removeprefix(CACHED_KEYS), keys)


def missed(table: ExecutorTable, records: Iterable[ExecutorRecord], since: float) -> Iterator[Event]:
    """What the ingress, whose records these are, has seen of executors and the table does not have.

    Not of those that it last heard before `since`: they are about to be gone, if they are not already.
    """
    for record in records:
        address = (record.ip, record.tid)
        known = table.executors.get(address)
        if record.last_seen < since or record.seq <= (table.left_at(address) if known is None else known.seq):
            continue
        status = record.status()
        booked = not record.free and not status.functions
        # Not where it was booked since, and that is all: a status would free it meanwhile.
        same = known is not None and (known.functions, known.process) == (
            set(status.functions),
            status.process,
        )
        if not (booked and same):
            end = table.unheard_end(status)
            if end is not None:
                yield StatusSeen(end, record.seq - 1, record.last_seen)
            yield StatusSeen(status, record.seq, record.last_seen)
        if booked:
            yield Booked(address, record.seq)
