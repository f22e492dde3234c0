"""The Ingress loop: every scheduler port of the group, and the hot path behind it.

One thread owns the sockets, the copy of the dispatch table, and the dispatcher; nothing else
touches them. Other threads (Ray's, those that make actor calls) only put into its mailbox.

- Calls and continuations are decided here while the lease runs. Otherwise, and for a DAG that is
  not known here, the Scheduler decides; after `forward_timeout_s` the answer is NO_RESOURCES.
- Every other request is an actor call to the Scheduler, whose reply is matched when it comes.
- Statuses and pin answers are applied here and forwarded to the Policy in batches, in order.
- A request gets exactly one reply, also where its bytes do not parse, and nobody waits for another.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final

import zmq

from ray_sched.actors import names
from ray_sched.actors.backlog import Backlog
from ray_sched.actors.forwarding import EventForwarding, RequestForwarding
from ray_sched.actors.front import (
    Answer,
    Handlers,
    Limit,
    Outbox,
    Peer,
    push_handler,
    reply_to,
    request_handler,
)
from ray_sched.actors.link import Lane, Link
from ray_sched.actors.lost_calls import LostCalls, destination_of
from ray_sched.actors.mailbox import Mailbox
from ray_sched.actors.messages import Booked, PinAnswered, Send, StatusSeen
from ray_sched.actors.metering import is_wanted
from ray_sched.actors.telling import Account, account
from ray_sched.config import Config
from ray_sched.core.arrivals import Arrivals
from ray_sched.core.dags import Plan, plan_of
from ray_sched.core.destination import Destination, of_one_shot, without_continuation
from ray_sched.core.dispatch import CALL, Dispatched, Dispatcher, seq_at
from ray_sched.core.executor import MAX_FUNCTIONS, Address, Status
from ray_sched.core.executors import ExecutorTable
from ray_sched.core.history import Ring
from ray_sched.core.partition import FRONT, Part
from ray_sched.core.policies import load_policy
from ray_sched.core.replication import Outcome, Replica, Update
from ray_sched.errors import BadMessageError, NoResourcesError, RaySchedError
from ray_sched.logs import Complaints, fields, teller
from ray_sched.metrics import REFUSED, Histogram, Sample, refusals
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire import internal_pb2, ports
from ray_sched.wire.addresses import check_response_address
from ray_sched.wire.codec import WANTS_REASON, Reply, accepted, check_names, error_name, is_longer, parse
from ray_sched.wire.curve import Guard, Keys, admitted_to
from ray_sched.wire.ports import check_executor_address
from ray_sched.wire.readiness import Readiness
from ray_sched.wire.sockets import batching_context, bind

log = logging.getLogger(__name__)

GPU: Final = internal_pb2.GPU
FAREWELL_MS: Final = 100
"""How long what was sent to an executor just before it left may still be on its way out, in milliseconds."""
CALL_KINDS: Final = {
    "function": "calls",
    "dag": "dag_calls",
    "queued": "queued_calls",
    "continuation": "continuations",
}
"""What metrics call the kinds of call, and how they are counted here."""
SWEEP_S: Final = 0.05
PINNING: Final = ("pin", "unpin")
POLL_S: Final = 0.02
CONTROL: Final = frozenset(
    {ports.CONNECT, ports.LIST, ports.DAG_DELETE, ports.STATUS, ports.SCHEDULER_UPDATE, ports.PIN_ACCEPT}
)
"""Ports whose messages are small."""
PORT_HOLDERS: Final = "another scheduler on this address, ours or a legacy one,"


class IngressLoop:
    def __init__(self, config: Config, on_failure: Callable[[], None], *, part: Part | None = None) -> None:
        """Binds all ports; raises PortTakenError, ConfigError.

        `on_failure` is called if the loop ends without having been stopped. `part` is this loop's where
        several decide calls (see `sharded_ingress`).
        """
        self._config = config
        self._on_failure = on_failure
        self._max_name_bytes = config.scheduler.max_name_bytes
        self.counts: Counter[str] = Counter()
        self.synced = threading.Event()
        """Set once a first dispatch table is here."""
        self.mailbox: Mailbox[Callable[[float], None]] = Mailbox()
        self._complaints = Complaints(log)

        group = config.group_name
        self._scheduler = Link(group, names.SCHEDULER)
        self._stats = Link(group, names.STATS)
        self._gossip = Link(group, names.GOSSIP, unanswered=64)
        self._events_lane = Lane("events")
        self._gossip_lane = Lane("gossip", waiting=64)

        self._arrivals = Arrivals(of_some=part is not None)
        self._plans: dict[str, Plan] = {}
        self._table = ExecutorTable(
            config.policy,
            local=config.local,
            pin_grace_s=config.scheduler.pin_grace_s,
            executor_timeout_s=config.scheduler.executor_timeout_s,
            owns=None if part is None or config.local else part.owns,
            overtaking=part is not None,
        )
        self._replica = Replica(self._table, config.scheduler.lease_s)
        self._dispatcher = Dispatcher(
            self._table,
            self._plans,
            load_policy(config.policy),
            random.Random(seed(config, part)),
            self._arrivals,
            config.remembered,
        )
        self._handed_on = Ring(config.remembered)
        """What the Scheduler was asked: calls to be decided, and requests."""
        self._handed_on.heard = teller(log, logging.DEBUG)
        self._debug = log.isEnabledFor(logging.DEBUG)
        self._books = not config.local
        self._asked_whole_at = float("-inf")
        self._stopping = threading.Event()
        self._placed = 0
        """Calls that were decided here."""
        self._notes: list[tuple[Any, ...]] = []
        """The calls of this turn that nobody has heard of yet."""
        self._turns = Histogram("turn")

        self._context: zmq.Context[zmq.Socket[bytes]] = batching_context()
        self._keys = Keys.of_group(config.security.curve)
        self._guard = Guard(self._context, self._keys)
        self.out = Outbox(
            self._context,
            config.ports,
            self._on_unsendable,
            self.drop,
            self._on_unsent,
            self._keys,
            self._on_full,
            self._on_room,
        )
        self._has_ports = part is None or part.number == FRONT
        self._events = EventForwarding(
            Link(group, names.POLICY, unanswered=8),
            # Of what executors do the Policy hears from the one that has the ports.
            "on_events" if self._has_ports else "on_bookings",
            self._events_lane,
            self.mailbox,
            self.drop,
        )
        self._forwarding = RequestForwarding(
            config.scheduler,
            self._scheduler,
            self.mailbox,
            self.counts,
            self.out,
            self._answer,
            self._note,
            self._refused_unheard,
            self._handed_on,
        )
        self._handlers: Handlers = {}
        self._backlogs: dict[int, Backlog] = {}
        try:
            self._bind()
            self._lost = LostCalls(config, self._scheduler, self.mailbox, part)
        except BaseException:
            self._close()
            raise
        self._readiness = Readiness(self._handlers, self.mailbox.fd)
        self._thread = threading.Thread(target=self._run, name="ingress-loop", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """From any thread; returns once the ports are free."""
        self._stopping.set()
        self.mailbox.put(lambda now: None)
        self._thread.join(self._config.threads_stop_timeout_s)
        self._forwarding.close()
        self._events_lane.close()
        self._gossip_lane.close()
        self._lost.close()

    def status(self, now: float) -> dict[str, Any]:
        """What `ray-sched status` tells of it. From any thread."""
        return {
            "counts": dict(self.counts),
            "executors": len(self._table.executors),
            "dags": len(self._plans),
            "lease_valid": self._replica.may_decide(now),
            "table_age_s": round(self._replica.age_s(now), 3),
            "waiting_requests": len(self._forwarding),
            "waiting_calls": sum(map(len, self._backlogs.values())),
            "held_messages": self.out.held,
            "loop_alive": self._thread.is_alive(),
        }

    def samples(self) -> Iterator[Sample]:
        """Its metrics. From any thread."""
        counts = dict(self.counts)
        for kind, key in CALL_KINDS.items():
            yield Sample("calls", counts.get(key, 0), (kind,))
        yield Sample("forwarded", counts.get("forwarded", 0))
        yield from refusals(counts)
        yield Sample("errors", counts.get("failed", 0), ("failed",))
        dropped = sum(number for key, number in counts.items() if key.startswith("dropped_"))
        yield Sample("errors", dropped, ("dropped",))
        yield from self._turns.samples()
        yield from self._forwarding.took.samples()
        if self.synced.is_set():
            yield Sample("table_age_seconds", self._replica.age_s(time.monotonic()))
        yield Sample("waiting_requests", len(self._forwarding))

    def why(self, name: str) -> Account:
        """What is remembered under that name. From any thread."""
        decisions, handed_on = self._dispatcher.decisions, self._handed_on
        told = decisions.about(name, self._config.policy.name, self._table)
        return account([*told, *handed_on.about(name)], (), (decisions.since(), handed_on.since()))

    def _hand_on(
        self,
        port: int,
        name: str,
        key: str,
        body: bytes,
        peer: Peer | None,
        now: float,
        why: str = "not known here",
    ) -> None:
        if not self._replica.may_decide(now):
            why = "no valid lease here"
        told = "the Scheduler was asked to decide a call of {}: {}"
        self._handed_on.note(now, (name, key), told, name, why)
        self._forwarding.forward(port, body, peer, now)

    # --- the loop ---

    def _bind(self) -> None:
        for port in ports.REQUEST_PORTS:
            self._serve(port, self._bound(zmq.ROUTER, port))
        for port in ports.PUSH_PORTS:
            self._listen(port, self._bound(zmq.PULL, port))

    def _serve(self, port: int, socket: zmq.Socket[bytes]) -> None:
        """Answer the requests that come to a port."""
        requests: dict[int, Callable[[bytes, Peer, float], Answer | None]] = {
            ports.CONNECT: self._on_connect,
            ports.FUNCTION_CALL: self._on_call,
            ports.DAG_CALL: self._on_dag_call,
        }
        # A reply that cannot go out is an error, and so counted.
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        handle = requests.get(port) or self._forward_to(port)
        backlog = None
        if port in (ports.FUNCTION_CALL, ports.DAG_CALL):
            backlog = self._backlogs[port] = Backlog(self._config.scheduler.max_wait_s, self.counts)
        self._handlers[socket] = request_handler(
            handle, self._limit(port), self.counts, self.drop, backlog, self._keep_notes
        )

    def _listen(self, port: int, socket: zmq.Socket[bytes]) -> None:
        """Take what is pushed to a port."""
        pushed: dict[int, Callable[[bytes, float], None]] = {
            ports.CALL_QUEUE: self._on_queued_call,
            ports.STATUS: self._on_status,
            ports.SCHEDULER_UPDATE: self._on_scheduler_update,
            ports.PIN_ACCEPT: self._on_pin_accept,
            ports.CONTINUATION: self._on_continuation,
        }
        take = pushed[port]
        self._handlers[socket] = push_handler(port, take, self._limit(port), self.counts, self.drop)

    def _bound(self, kind: int, port: int) -> zmq.Socket[bytes]:
        limit = self._limit(port).hard_bytes
        return bind(
            self._context,
            kind,
            self._config.host,
            port,
            PORT_HOLDERS,
            max_message_bytes=limit,
            keys=self._keys,
            admits=admitted_to(port),
        )

    def _limit(self, port: int) -> Limit:
        setting = "max_control_bytes" if port in CONTROL else "max_message_bytes"
        return Limit(getattr(self._config.scheduler, setting), setting)

    def _run(self) -> None:
        next_sweep = next_tick = next_flush = 0.0
        placed, measured = 0, is_wanted(self._config)
        readiness = self._readiness
        try:
            while not self._stopping.is_set():
                sockets, woken = readiness.wait(POLL_S)
                now = time.monotonic()
                if woken:
                    for act in self.mailbox.take():
                        act(now)
                self.out.flush(now)
                for socket in sockets:
                    if self._handlers[socket](socket, now):
                        readiness.check(socket)
                    self._keep_notes()
                    self.out.flush(now)
                if measured and self._placed != placed:  # one look at the clock for all that came at once
                    self._turns.observe(time.monotonic() - now, self._placed - placed)
                    placed = self._placed
                self._events.flush_if_due(now)
                if now >= next_sweep:
                    self._sweep(now)
                    readiness.check_all()  # should a descriptor ever have said nothing
                    next_sweep = now + SWEEP_S
                if now >= next_tick:
                    self._tick(now)
                    next_tick = now + self._config.scheduler.heartbeat_s
                if now >= next_flush:
                    self._flush_statistics()
                    next_flush = now + self._config.stats.flush_s
        except BaseException:
            log.exception("the ingress loop ended")
            if not self._stopping.is_set():
                self._on_failure()
        finally:
            self.out.close()
            self._readiness.close()
            self.mailbox.close()
            self._close()

    def _sweep(self, now: float) -> None:
        """What is done each SWEEP_S."""
        self._forwarding.sweep(now)

    def _close(self) -> None:
        """Free the ports."""
        self._guard.close()
        self._context.destroy(0)

    def drop(self, what: str, why: object) -> None:
        """Count and log (at most once in a while) a message that leads to nothing."""
        self.counts[f"dropped_{what}"] += 1
        self._complaints.add(f"dropped a message ({what})", why)

    # --- requests ---

    def _on_connect(self, body: bytes, peer: Peer, now: float) -> Reply | None:
        reply = Reply(self._config.kvs_host.encode())
        if body == WANTS_REASON:
            socket, envelope, _ = peer
            self._reply((socket, envelope, True), reply)
            return None
        return reply

    def _on_call(self, body: bytes, peer: Peer, now: float) -> Answer | None:
        call = parse(cb.FunctionCall, body)
        if len(body) > self._max_name_bytes:  # else no name in it can be longer
            check_names(self._max_name_bytes, call.name, call.response_key)
        if not self._replica.may_decide(now):
            self._hand_on(ports.FUNCTION_CALL, call.name, call.response_key, body, peer, now)
            return None
        self.counts["calls"] += 1
        dispatched = self._dispatcher.call(call, now)
        return self._carry_out(dispatched, now, of_one_shot(call, dispatched[0]))

    def _on_dag_call(self, body: bytes, peer: Peer, now: float) -> Answer | None:
        call = parse(cb.DagCall, body)
        if call.response_address:
            check_response_address(call.response_address)
        continued = call.HasField("continuation")
        if continued or len(body) > self._max_name_bytes:
            self._check_dag_call(call)
        if not self._replica.may_decide(now) or call.name not in self._plans:
            self._hand_on(ports.DAG_CALL, call.name, call.output_key, body, peer, now)
            return None
        self.counts["dag_calls"] += 1
        dispatched = self._dispatcher.call_dag(call, now, time.time())
        if continued:
            return self._carry_out(dispatched, now, Destination.of_dag_call(call, dispatched[0]), True)
        return self._carry_out(dispatched, now, without_continuation(call, dispatched[0]))

    def _on_queued_call(self, body: bytes, now: float) -> None:
        call = parse(cb.FunctionCall, body)
        if len(body) > self._max_name_bytes:
            with self._telling_whoever_waits(ports.CALL_QUEUE, body):
                check_names(self._max_name_bytes, call.name, call.response_key)
        if not self._replica.may_decide(now):
            self._hand_on(ports.CALL_QUEUE, call.name, call.response_key, body, None, now)
            return
        self.counts["queued_calls"] += 1
        with self._telling_whoever_waits(ports.CALL_QUEUE, body):
            dispatched = self._dispatcher.call(call, now)
        self._carry_out(dispatched, now, of_one_shot(call, dispatched[0]))

    def _on_continuation(self, body: bytes, now: float) -> None:
        continuation = parse(cb.Continuation, body)
        if len(body) > self._max_name_bytes:
            with self._telling_whoever_waits(ports.CONTINUATION, body):
                check_names(self._max_name_bytes, continuation.name, continuation.id)
                self._check_dag_call(continuation.call)
        if not self._replica.may_decide(now) or continuation.name not in self._plans:
            self._hand_on(ports.CONTINUATION, continuation.name, continuation.id, body, None, now)
            return
        self.counts["continuations"] += 1
        try:
            dispatched = self._dispatcher.continue_dag(continuation, now, time.time())
        except RaySchedError:
            # Nobody hears a refusal here. The Scheduler can tell whoever waits for the result.
            self._hand_on(
                ports.CONTINUATION, continuation.name, continuation.id, body, None, now, "refused here"
            )
            return
        to = Destination.of_continuation(continuation)
        self._carry_out(dispatched, now, to, bool(continuation.call.continuation.name))

    @contextlib.contextmanager
    def _telling_whoever_waits(self, port: int, body: bytes) -> Iterator[None]:
        """What is refused within gets an error value: nobody hears a refusal."""
        try:
            yield
        except RaySchedError:
            self._refused_unheard(port, body)
            raise

    def _check_dag_call(self, call: cb.DagCall) -> None:
        """Raises BadMessageError for a name that is too long, in the call and in what is to follow it: later
        nobody could hear of that."""
        check_names(self._max_name_bytes, call.name, call.output_key, call.client_id)
        while call.HasField("continuation"):
            check_names(self._max_name_bytes, call.continuation.name, call.continuation.id)
            call = call.continuation.call
            check_names(self._max_name_bytes, call.name, call.output_key, call.client_id)
            if call.response_address:
                check_response_address(call.response_address)

    def _forward_to(self, port: int) -> Callable[[bytes, Peer, float], Reply | None]:
        return lambda body, peer, now: self._forwarding.forward(port, body, peer, now)

    def _carry_out(
        self, dispatched: Dispatched, now: float, to: tuple[Any, ...], continued: bool = False
    ) -> bytes:
        response_id, sends = dispatched
        self._placed += 1
        executors = tuple([executor.address for executor, _, _ in sends])
        self._notes.append((now, executors, tuple(to), continued))
        if self._debug:
            log.debug("a call is placed", extra=fields(**self._dispatcher.decisions.last().ids()))
        self.out.put_calls(sends)
        if self._books:
            for executor, kind, _ in sends:
                if kind == CALL:
                    self._events.add(Booked(executor.address, seq_at(now)))
        return accepted(response_id)

    def _keep_notes(self) -> None:
        """Before anybody hears that a call is taken: whatever ends then, somebody knows of it."""
        if self._notes:
            self._lost.note(self._notes)
            self._notes = []

    def _answer(self, peer: Peer | None, reply: Reply) -> None:
        """The reply to a request that was forwarded."""
        if reply.reason:
            self.counts["refused"] += 1
            self.counts[f"{REFUSED}{error_name(reply)}"] += 1
        if peer is not None:
            self._reply(peer, reply)
        elif reply.reason:
            self.drop("call", reply.reason)

    def _refused_unheard(self, port: int, body: bytes) -> None:
        """Nobody waits for a reply to these, but somebody may wait for the result."""
        if port == ports.CONTINUATION:
            self._lost.unsent(Destination.of_continuation(parse(cb.Continuation, body)))
        elif port == ports.CALL_QUEUE:
            to = Destination.of_call(parse(cb.FunctionCall, body))
            if to.key:
                self._lost.unsent(to)

    def _book(self, sends: tuple[Send, ...], now: float) -> None:
        """The Scheduler's one-shot calls take executors here, too, before the Policy's word of it has come: a
        short call ends sooner, and the status that says so would be taken for no news."""
        for ip, tid, kind, _ in sends:
            if kind == CALL:
                self._table.booked((ip, tid), seq_at(now))

    def _note(self, sends: tuple[Send, ...], now: float) -> None:
        """What the Scheduler decided is about to be sent."""
        self._book(sends, now)
        noted: dict[Destination, list[Address]] = {}
        for ip, tid, kind, message in sends:
            to = destination_of(kind, message)
            if to is not None:
                noted.setdefault(to, []).append((ip, tid))
        if noted:
            self._lost.note([(now, tuple(executors), tuple(to), True) for to, executors in noted.items()])

    def _on_unsent(self, kind: str, message: bytes) -> None:
        to = destination_of(kind, message)
        if to is not None:
            self._lost.unsent(to)

    def _reply(self, peer: Peer, reply: Reply) -> None:
        self._keep_notes()
        reply_to(peer, reply, self.drop)
        self._readiness.check(peer[0])

    # --- what executors and peers tell ---

    def _on_status(self, body: bytes, now: float) -> None:
        message = parse(internal_pb2.ThreadStatus, body)
        address, is_gpu = (message.ip, message.tid), message.type == GPU
        if self._table.on_repeated(
            address, message.functions, message.utilization, message.running, is_gpu, message.process, now
        ):
            if message.reconnections:
                self._lost.reconnected(address, message.reconnections, now)
            self._events.seen(address, now)
            self.counts["statuses"] += 1
        else:
            self._take_status(self._status_of(message, len(body)), now, seq_at(now))

    def _status_of(self, message: internal_pb2.ThreadStatus, size: int) -> Status:
        """Of a message of that many bytes. Raises BadMessageError, NoResourcesError."""
        ip, tid, listed, utilization = message.ip, message.tid, message.functions, message.utilization
        if (ip, tid) not in self._table.executors:
            check_executor_address(ip, tid, self._config.ports)
            if len(self._table.executors) >= self._config.scheduler.max_executors:
                raise NoResourcesError("scheduler.max_executors are known: no room for another one")
        if len(listed) > MAX_FUNCTIONS:
            raise BadMessageError(f"a status that names {len(listed)} functions")
        functions = tuple(listed)
        if size > self._max_name_bytes:  # what nobody can call here is left out
            functions = tuple(name for name in functions if not is_longer(name, self._max_name_bytes))
        if not 0.0 <= utilization <= 1.0:
            utilization = 1.0 if utilization > 1.0 else 0.0  # NaN, too, becomes 0
        return Status(
            ip, tid, functions, utilization, message.running, message.type == GPU, message.process,
            message.reconnections,
        )  # fmt: skip

    def _take_status(self, status: Status, now: float, seq: int) -> None:
        if self._table.is_of_the_ended(status):
            return
        end = self._table.unheard_end(status)
        if end is not None:
            self._take_status(end, now, seq - 1)
        changed = self._table.on_status(status, now, seq)
        # Which executors there are, a new process does not know yet; but it has the calls of the one before.
        if not status.running and (changed or not self.synced.is_set()):
            self.out.give_up(status.address, FAREWELL_MS)
            self._lost.gone(status.address, now)
        if status.running and status.reconnections:
            self._lost.reconnected(status.address, status.reconnections, now)
        self._tell_status(status, now, seq, changed)
        self.counts["statuses"] += 1

    def _tell_status(self, status: Status, now: float, seq: int, changed: bool) -> None:
        if changed:
            self._events.status(StatusSeen(status, seq, now))
        else:
            self._events.seen(status.address, now)

    def _on_pin_accept(self, body: bytes, now: float) -> None:
        answer = parse(cb.GenericResponse, body)
        self._events.add(PinAnswered(answer.success, answer.response_id), urgent=True)

    def _on_scheduler_update(self, body: bytes, now: float) -> None:
        parse(internal_pb2.SchedulerStatus, body)
        if not self._gossip_lane.tell(self._gossip, "on_wire_update", body):
            self.drop("scheduler_update", "other schedulers tell more than can be taken in")

    def _on_unsendable(self, address: Address) -> None:
        self._table.suspect(address)
        self._events.suspected(address)

    def _on_full(self, address: Address) -> None:
        self.counts["full"] += 1
        ip, tid = address
        self._complaints.add("an executor is left out", f"{ip}:{tid} takes no more messages for now")
        self._table.suspect(address, full=True)
        self._events.suspected(address)

    def _on_room(self, address: Address) -> None:
        self._table.relieve(address)
        if self._has_ports:  # what a shard says may not hold for the others
            self._events.relieved(address)

    # --- the table ---

    def apply(self, update: Update, now: float) -> None:
        """Take an update in. In the loop's thread."""
        known = list(self._table.executors) if update.whole else update.removed
        outcome = self._replica.apply(update)
        for address in known:
            if self._table.has_left(address):
                self.out.give_up(address)
                self._lost.gone(address, now)
        if outcome is Outcome.GAP:
            self._ask_whole(now)
        if outcome is not Outcome.APPLIED:
            return
        if update.whole:
            self._plans.clear()
        for name, dag in update.dags.items():
            if dag is None:
                self._plans.pop(name, None)
                self._arrivals.forget_dag(name)
            else:
                self._plans[name] = plan_of(parse(cb.Dag, dag))
        self.synced.set()

    def send(self, sends: tuple[Send, ...], now: float) -> None:
        """Messages from the Policy or the Scheduler. In the loop's thread.

        The Policy may not have heard yet who left, and whoever comes after it is not to be pinned for it.
        """
        self._book(sends, now)
        for ip, tid, kind, message in sends:
            if kind in PINNING:
                if self._table.has_left((ip, tid)):
                    continue
                self._table.told_to_pin((ip, tid), pinned_by(kind, message), unpin=kind == "unpin")
            self.out.put((ip, tid), kind, message)

    def snapshot(self, now: float) -> Update:
        """What is known of the executors. In the loop's thread."""
        keys = self._table.cached_keys.all()
        return Update(0, 0, True, tuple(self._table.records()), {}, keys, {}, now)

    def _tick(self, now: float) -> None:
        self._table.age(now)
        # Nobody is told from here what changed in this copy: the events say it.
        self._table.dirty.clear()
        self._table.cached_keys.dirty.clear()
        self._events.beat(now)
        self._lost.tick(now)
        if not self._replica.may_decide(now):
            self._ask_whole(now)

    def _ask_whole(self, now: float) -> None:
        if now - self._asked_whole_at < self._config.scheduler.heartbeat_s:
            return
        self._asked_whole_at = now

        def got(update: Update | None, error: BaseException | None) -> None:
            if update is not None:
                self.mailbox.put(lambda now: self.apply(update, now))

        self._events_lane.ask(self._scheduler, "whole_table", (), got)

    def _flush_statistics(self) -> None:
        batch = self._arrivals.take()
        if batch is not None:
            self._events_lane.tell(self._stats, "record", batch)


def pinned_by(kind: str, message: bytes) -> str:
    """The function of a message to pin it, or to unpin it."""
    return message.decode() if kind == "unpin" else internal_pb2.PinFunction.FromString(message).name


def seed(config: Config, part: Part | None) -> int | str | None:
    """Of the random picks and ids: never the same for two shards."""
    own = config.policy.seed or None
    return own if part is None or own is None else f"{own}, shard {part.number}"
