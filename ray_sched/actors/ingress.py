"""The Ingress: every scheduler port of the group, and the hot path behind it.

One thread owns the sockets, the copy of the dispatch table, and the dispatcher; nothing else
touches them. Other threads (Ray's, those that make actor calls) only put into its mailbox.

- Calls and continuations are decided here while the lease runs. Otherwise, and for a DAG that is
  not known here, the Scheduler decides; after `forward_timeout_s` the answer is NO_RESOURCES.
- Every other request is an actor call to the Scheduler, whose reply is matched when it comes.
- Statuses and pin answers are applied here and forwarded to the Policy in batches, in order.
- A request gets exactly one reply, also where its bytes do not parse, and nobody waits for another.
"""

from __future__ import annotations

import itertools
import logging
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import ray
import zmq

from ray_sched.actors import names
from ray_sched.actors.link import Lane, Link
from ray_sched.actors.mailbox import Mailbox
from ray_sched.actors.messages import Booked, Decision, Event, PinAnswered, Seen, Send, StatusSeen, Suspected
from ray_sched.actors.process import leave_for_restart, prepare_process
from ray_sched.config import Config
from ray_sched.core.arrivals import Arrivals
from ray_sched.core.dags import Plan, plan_of
from ray_sched.core.dispatch import CALL, Dispatched, Dispatcher, seq_at
from ray_sched.core.executors import Address, ExecutorTable, Status
from ray_sched.core.policies import load_policy
from ray_sched.core.replication import Outcome, Replica, Update
from ray_sched.errors import BadMessageError, NoResourcesError, RaySchedError, TimedOutError
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire import internal_pb2, ports
from ray_sched.wire.codec import WANTS_REASON, Reply, accepted, parse, refusal
from ray_sched.wire.sockets import Complaints, PushSockets, bind

log = logging.getLogger(__name__)

BATCH: Final = 64
"""Messages that one port may have handled before the others have their turn."""
EVENTS_FLUSH_MS: Final = 20
SWEEP_S: Final = 0.05
IDLE_POLL_MS: Final = 50
MAX_FORWARDED: Final = 512
"""Requests that may wait for the Scheduler; more are refused at once."""
MAX_EVENTS: Final = 50_000
"""Events that wait for a Policy that does not answer; the oldest go."""
MAX_SOCKETS: Final = 20_000
PORT_HOLDERS: Final = "another scheduler on this address, ours or a legacy one,"


@dataclass(frozen=True)
class Peer:
    """Where a reply goes."""

    socket: zmq.Socket[bytes]
    envelope: list[bytes]
    wants_reason: bool


@dataclass
class Forwarded:
    """A request that waits for the Scheduler."""

    peer: Peer | None
    deadline: float
    timeout_s: float


class IngressActor:
    CONCURRENCY_GROUPS: Final = {"events": 1}

    def __init__(self, config: Config) -> None:
        prepare_process(config, "ingress")
        self._config = config
        self._layout = config.ports
        group = config.group_name
        self._scheduler = Link(group, names.SCHEDULER)
        self._policy = Link(group, names.POLICY, unanswered=8)
        self._stats = Link(group, names.STATS)
        self._gossip = Link(group, names.GOSSIP, unanswered=64)
        self._requests_lane = Lane("requests", config.scheduler.request_threads)
        self._events_lane = Lane("events")

        seed = config.policy.seed or None
        self._arrivals = Arrivals()
        self._plans: dict[str, Plan] = {}
        self._table = ExecutorTable(
            config.policy,
            local=config.local,
            pin_grace_s=config.scheduler.pin_grace_s,
            executor_timeout_s=config.scheduler.executor_timeout_s,
        )
        self._replica = Replica(self._table, config.scheduler.lease_s)
        self._dispatcher = Dispatcher(
            self._table, self._plans, load_policy(config.policy), random.Random(seed), self._arrivals
        )

        self._mailbox: Mailbox[Callable[[float], None]] = Mailbox()
        self._forwarded: dict[int, Forwarded] = {}
        self._cookies = itertools.count()
        self._events: list[Event] = []
        self._seen: dict[Address, None] = {}
        self._urgent = False
        self._handing_over = False
        self._asked_whole_at = float("-inf")
        self.counts: Counter[str] = Counter()
        self._complaints = Complaints()
        self._synced = threading.Event()
        self._stopping = threading.Event()
        self._failure = ""

        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, MAX_SOCKETS + 64)
        self._out = PushSockets(self._context, MAX_SOCKETS)
        self._handlers: dict[Any, Callable[[zmq.Socket[bytes], float], None]] = {}
        try:
            self._bind()
        except BaseException:
            self._context.destroy(0)
            raise
        self._thread = threading.Thread(target=self._run, name="ingress-loop", daemon=True)
        self._thread.start()

    # --- the actor's methods, in Ray's threads ---

    @ray.method(concurrency_group="events")
    def apply(self, update: Update) -> None:
        """An update of the dispatch table; returns once the loop has taken it in."""
        self._in_loop(lambda now: self._apply(update, now))

    @ray.method(concurrency_group="events")
    def send(self, sends: tuple[Send, ...]) -> None:
        """Messages to executors, from the Policy or the Scheduler."""
        self._mailbox.put(lambda now: self._send_all(sends))

    def snapshot(self) -> Update:
        """All that is known of the executors here: a restarted Policy begins with it."""
        found: list[Update] = []
        self._in_loop(lambda now: found.append(self._snapshot(now)))
        return found[0]

    def ready(self) -> dict[str, Any]:
        """Waits for the first table; raises TimedOutError when none comes."""
        if not self._synced.wait(self._config.start_timeout_s):
            raise TimedOutError(
                f"no dispatch table within start_timeout_s = {self._config.start_timeout_s:g} s"
            )
        return {"address": f"{self._config.host}:{ports.CONNECT}-{ports.DAG_DELETE}"}

    def status(self) -> dict[str, Any]:
        now = time.monotonic()
        return {
            "pid": os.getpid(),
            "counts": dict(self.counts),
            "executors": len(self._table.executors),
            "dags": len(self._plans),
            "lease_valid": self._replica.may_decide(now),
            "table_age_s": round(self._replica.age_s(now), 3),
            "waiting_requests": len(self._forwarded),
            "loop_alive": self._thread.is_alive(),
        }

    def stop(self) -> None:
        self._stopping.set()
        self._mailbox.put(lambda now: None)
        self._thread.join(5.0)
        self._requests_lane.close()
        self._events_lane.close()

    def _in_loop(self, action: Callable[[float], None]) -> None:
        done = threading.Event()

        def act(now: float) -> None:
            try:
                action(now)
            finally:
                done.set()

        self._mailbox.put(act)
        if not done.wait(5.0):
            raise TimedOutError("the ingress loop did not take it within 5 s")

    # --- the loop ---

    def _bind(self) -> None:
        requests: dict[int, Callable[[bytes, Peer, float], Reply | None]] = {
            ports.CONNECT: self._on_connect,
            ports.FUNCTION_CALL: self._on_call,
            ports.DAG_CALL: self._on_dag_call,
        }
        for port in ports.REQUEST_PORTS:
            handle = requests.get(port) or self._forwarding(port)
            socket = bind(self._context, zmq.ROUTER, self._config.host, port, PORT_HOLDERS)
            self._handlers[socket] = self._request_handler(handle)
        pushed: dict[int, Callable[[bytes, float], None]] = {
            ports.CALL_QUEUE: self._on_queued_call,
            ports.STATUS: self._on_status,
            ports.SCHEDULER_UPDATE: self._on_scheduler_update,
            ports.PIN_ACCEPT: self._on_pin_accept,
            ports.CONTINUATION: self._on_continuation,
        }
        for port, take in pushed.items():
            socket = bind(self._context, zmq.PULL, self._config.host, port, PORT_HOLDERS)
            self._handlers[socket] = self._push_handler(port, take)

    def _run(self) -> None:
        poller = zmq.Poller()
        for socket in self._handlers:
            poller.register(socket, zmq.POLLIN)
        poller.register(self._mailbox.fd, zmq.POLLIN)
        next_sweep = next_tick = next_flush = next_stats = 0.0
        try:
            while not self._stopping.is_set():
                waiting = bool(self._events)
                ready = poller.poll(EVENTS_FLUSH_MS if waiting else IDLE_POLL_MS)
                now = time.monotonic()
                for socket, _ in ready:
                    if socket == self._mailbox.fd:
                        for act in self._mailbox.take():
                            act(now)
                    else:
                        self._handlers[socket](socket, now)
                if self._urgent or (self._events and now >= next_flush):
                    self._flush_events()
                    next_flush = now + EVENTS_FLUSH_MS / 1000
                if now >= next_sweep:
                    self._sweep(now)
                    next_sweep = now + SWEEP_S
                if now >= next_tick:
                    self._tick(now)
                    next_tick = now + self._config.scheduler.heartbeat_s
                if now >= next_stats:
                    self._flush_statistics()
                    next_stats = now + self._config.stats.flush_s
        except BaseException:
            log.exception("the ingress loop ended; the actor is restarted")
            if not self._stopping.is_set():
                leave_for_restart()
        finally:
            self._out.close()
            self._mailbox.close()
            self._context.destroy(0)

    def _request_handler(
        self, handle: Callable[[bytes, Peer, float], Reply | None]
    ) -> Callable[[zmq.Socket[bytes], float], None]:
        def on_readable(socket: zmq.Socket[bytes], now: float) -> None:
            for _ in range(BATCH):
                try:
                    frames = socket.recv_multipart(zmq.DONTWAIT)
                except zmq.Again:
                    return
                # As a REP socket has it: all up to the first empty frame is the way back.
                try:
                    end = frames.index(b"", 1) + 1
                except ValueError:
                    self._drop("no_envelope", "a request without an empty delimiter frame")
                    continue
                body = frames[end:]
                peer = Peer(socket, frames[:end], len(body) > 1 and body[1] == WANTS_REASON)
                try:
                    if len(body) != 1 + peer.wants_reason:
                        raise BadMessageError(f"a request of {len(body)} parts: send one")
                    reply = handle(body[0], peer, now)
                except RaySchedError as error:
                    self.counts["refused"] += 1
                    reply = refusal(error)
                if reply is not None:
                    self._reply(peer, reply)

        return on_readable

    def _push_handler(
        self, port: int, take: Callable[[bytes, float], None]
    ) -> Callable[[zmq.Socket[bytes], float], None]:
        def on_readable(socket: zmq.Socket[bytes], now: float) -> None:
            for _ in range(BATCH):
                try:
                    frames = socket.recv_multipart(zmq.DONTWAIT)
                except zmq.Again:
                    return
                try:
                    if len(frames) != 1:
                        raise BadMessageError(f"a message of {len(frames)} parts: send one")
                    take(frames[0], now)
                except RaySchedError as error:
                    self._drop(f"port_{port}", error)

        return on_readable

    def _reply(self, peer: Peer, reply: Reply) -> None:
        parts = [*peer.envelope, reply.body]
        if peer.wants_reason:
            parts.append(reply.reason.encode())
        try:
            peer.socket.send_multipart(parts, zmq.DONTWAIT)
        except zmq.ZMQError as error:
            self._drop("reply", error)

    def _drop(self, what: str, why: object) -> None:
        self.counts[f"dropped_{what}"] += 1
        self._complaints.add(f"dropped a message ({what})", why)

    # --- requests ---

    def _on_connect(self, body: bytes, peer: Peer, now: float) -> Reply | None:
        reply = Reply(self._config.kvs_host.encode())
        if body != WANTS_REASON:
            return reply
        self._reply(replace(peer, wants_reason=True), reply)
        return None

    def _on_call(self, body: bytes, peer: Peer, now: float) -> Reply | None:
        call = parse(cb.FunctionCall, body)
        if not self._replica.may_decide(now):
            return self._forward(ports.FUNCTION_CALL, body, peer, now)
        self.counts["calls"] += 1
        return self._carry_out(self._dispatcher.call(call, now), now)

    def _on_dag_call(self, body: bytes, peer: Peer, now: float) -> Reply | None:
        call = parse(cb.DagCall, body)
        if not self._replica.may_decide(now) or call.name not in self._plans:
            return self._forward(ports.DAG_CALL, body, peer, now)
        self.counts["dag_calls"] += 1
        return self._carry_out(self._dispatcher.call_dag(call, now, time.time()), now)

    def _on_queued_call(self, body: bytes, now: float) -> None:
        call = parse(cb.FunctionCall, body)
        if not self._replica.may_decide(now):
            self._forward(ports.CALL_QUEUE, body, None, now)
            return
        self.counts["queued_calls"] += 1
        self._carry_out(self._dispatcher.call(call, now), now)

    def _on_continuation(self, body: bytes, now: float) -> None:
        continuation = parse(cb.Continuation, body)
        if not self._replica.may_decide(now) or continuation.name not in self._plans:
            self._forward(ports.CONTINUATION, body, None, now)
            return
        self.counts["continuations"] += 1
        self._carry_out(self._dispatcher.continue_dag(continuation, now, time.time()), now)

    def _carry_out(self, dispatched: Dispatched, now: float) -> Reply:
        for executor, kind, message in dispatched.sends:
            self._send(executor.address, kind, message)
            if kind == CALL and not self._config.local:
                self._events.append(Booked(executor.address, seq_at(now)))
        return Reply(accepted(dispatched.response_id))

    # --- what the Scheduler decides ---

    def _forwarding(self, port: int) -> Callable[[bytes, Peer, float], Reply | None]:
        return lambda body, peer, now: self._forward(port, body, peer, now)

    def _forward(self, port: int, body: bytes, peer: Peer | None, now: float) -> Reply | None:
        """Ask the Scheduler; the reply goes out when its answer, or the time-out, comes."""
        if len(self._forwarded) >= MAX_FORWARDED:
            raise NoResourcesError(f"{MAX_FORWARDED} requests wait for the scheduler already: try again")
        decides_calls = port in (ports.FUNCTION_CALL, ports.DAG_CALL, ports.CALL_QUEUE, ports.CONTINUATION)
        times = self._config.scheduler
        timeout_s = times.forward_timeout_s if decides_calls else times.request_timeout_s
        cookie = next(self._cookies)
        self._forwarded[cookie] = Forwarded(peer, now + timeout_s, timeout_s)
        self.counts["forwarded"] += 1
        method = "decide" if decides_calls else "request"
        self._requests_lane.ask(
            self._scheduler,
            method,
            (port, body),
            lambda decision, error: self._mailbox.put(lambda now: self._decided(cookie, decision, error)),
        )
        return None

    def _decided(self, cookie: int, decision: Decision | None, error: BaseException | None) -> None:
        request = self._forwarded.pop(cookie, None)
        if request is None:  # it was refused meanwhile: what was decided for it must not happen
            self.counts["late_decisions"] += 1
            return
        if decision is None:
            self._answer(
                request, refusal(NoResourcesError(f"the scheduler is not there, try again: {error}"))
            )
            return
        self._send_all(decision.sends)
        self._answer(request, decision.reply)

    def _answer(self, request: Forwarded, reply: Reply) -> None:
        if reply.reason:
            self.counts["refused"] += 1
        if request.peer is not None:
            self._reply(request.peer, reply)
        elif reply.reason:
            self._drop("call", reply.reason)

    def _sweep(self, now: float) -> None:
        for cookie in [c for c, request in self._forwarded.items() if now >= request.deadline]:
            request = self._forwarded.pop(cookie)
            waited = f"the scheduler did not answer within {request.timeout_s:g} s: try again"
            self._answer(request, refusal(NoResourcesError(waited)))

    # --- what executors and peers tell ---

    def _on_status(self, body: bytes, now: float) -> None:
        message = parse(internal_pb2.ThreadStatus, body)
        if not message.ip:
            raise BadMessageError("a status without an IP address")
        status = Status(
            message.ip,
            message.tid,
            tuple(message.functions),
            min(max(0.0, message.utilization), 1.0),  # in this order NaN becomes 0
            message.running,
            message.type == internal_pb2.GPU,
        )
        self.counts["statuses"] += 1
        seq = seq_at(now)
        if self._table.on_status(status, now, seq):
            self._events.append(StatusSeen(status, seq, now))
        else:
            self._seen[status.address] = None

    def _on_pin_accept(self, body: bytes, now: float) -> None:
        answer = parse(cb.GenericResponse, body)
        self._events.append(PinAnswered(answer.success, answer.response_id))
        self._urgent = True

    def _on_scheduler_update(self, body: bytes, now: float) -> None:
        parse(internal_pb2.SchedulerStatus, body)
        self._events_lane.tell(self._gossip, "on_wire_update", body)

    def _flush_events(self) -> None:
        """Hand the events to the Policy; they stay here while it does not answer."""
        if self._handing_over:
            return
        self._urgent = False
        if len(self._events) > MAX_EVENTS:
            self._drop("events", f"the policy does not answer, {len(self._events)} events wait")
            del self._events[: len(self._events) - MAX_EVENTS]
        events, self._events = self._events, []
        self._handing_over = True

        def hand_over() -> None:
            taken = self._policy.tell("on_events", events)
            self._mailbox.put(lambda now: self._handed_over(events, taken))

        self._events_lane.run(hand_over)

    def _handed_over(self, events: list[Event], taken: bool) -> None:
        self._handing_over = False
        if not taken:
            self._events = events + self._events

    # --- the table ---

    def _tick(self, now: float) -> None:
        self._table.tick(now)
        self._table.dirty.clear()
        self._table.dirty_ips.clear()
        if self._seen:
            self._events.append(Seen(tuple(self._seen), now))
            self._seen.clear()
        if not self._replica.may_decide(now):
            self._ask_whole(now)

    def _apply(self, update: Update, now: float) -> None:
        outcome = self._replica.apply(update)
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
        self._synced.set()

    def _ask_whole(self, now: float) -> None:
        if now - self._asked_whole_at < self._config.scheduler.heartbeat_s:
            return
        self._asked_whole_at = now

        def got(update: Update | None, error: BaseException | None) -> None:
            if update is not None:
                self._mailbox.put(lambda now: self._apply(update, now))

        self._events_lane.ask(self._scheduler, "whole_table", (), got)

    def _snapshot(self, now: float) -> Update:
        keys = {ip: self._table.cached_keys(ip) for ip in self._table.ips_with_keys()}
        return Update(0, 0, True, tuple(self._table.records()), (), keys, {}, now)

    def _flush_statistics(self) -> None:
        batch = self._arrivals.take()
        if batch is not None:
            self._events_lane.tell(self._stats, "record", batch)

    # --- out ---

    def _send_all(self, sends: tuple[Send, ...]) -> None:
        for ip, tid, kind, message in sends:
            self._send((ip, tid), kind, message)

    def _send(self, address: Address, kind: str, message: bytes) -> None:
        ip, tid = address
        base: int = getattr(self._layout, kind)
        try:
            sent = self._out.send(f"tcp://{ip}:{base + tid}", message)
        except BadMessageError as error:
            self._drop("send", error)
            return
        if not sent:
            self._drop("send", f"executor {ip}:{tid} takes no more messages")
            self._table.suspect(address)
            self._events.append(Suspected(address))
