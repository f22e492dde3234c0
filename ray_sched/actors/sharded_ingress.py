"""The loops of a group with several ingress shards: one that has the ports, and those that decide calls.

- The front binds every port. Calls go from it to the shards without its loop (see `shard_wires`); all the
  rest it does as an ingress without shards does: other requests, statuses, pin answers, continuations.
- A shard decides calls, each under a lease of its own. It has no ports.
- In cluster mode a one-shot call takes a free executor until its next status. So a shard gives only those
  that are its own (see `core.partition`). Has it none, while others may, it passes the call on to the next
  shard, until each has seen it once. Who answers it answers the client.
- Where it must not decide a one-shot call in cluster mode, the Scheduler must not either: it does not know
  what the other shards book at this moment.
- What happened to an executor has one order: a status counts from when the front had it, a booking from
  when its shard made it. A status that the front had before a booking does not free the executor.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

import zmq

from ray_sched.actors import shard_wires
from ray_sched.actors.front import Answer, Limit, Peer, push_handler, reply_to, request_handler
from ray_sched.actors.ingress_loop import PORT_HOLDERS, IngressLoop
from ray_sched.actors.shard_wires import CALL_PORTS, WAITING_CALLS
from ray_sched.config import Config
from ray_sched.core.dispatch import seq_at
from ray_sched.core.executor import Status
from ray_sched.core.partition import FRONT, Part, owner
from ray_sched.errors import NoResourcesError, RaySchedError
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire import internal_pb2, ports
from ray_sched.wire.codec import WANTS_REASON, parse, refusal
from ray_sched.wire.sockets import DONTWAIT

log = logging.getLogger(__name__)

SEQ_BYTES: Final = 8
"""In front of a status that the front tells: its place in the order of what happened to the executor;
0 where the Policy is not told of it, and so what it says of the executor later will not name that place."""


class FrontLoop(IngressLoop):
    def __init__(self, config: Config, on_failure: Callable[[], None]) -> None:
        self._proxies: shard_wires.Proxies | None = None
        shards = config.ingress.shards
        super().__init__(config, on_failure, part=Part(FRONT, shards))

    def _bind(self) -> None:
        for port in ports.REQUEST_PORTS:
            if port not in CALL_PORTS:
                self._serve(port, self._bound(zmq.ROUTER, port))
        for port in ports.PUSH_PORTS:
            self._listen(port, self._bound(zmq.PULL, port))
        shards = range(1, self._config.ingress.shards + 1)
        self._passing = shard_wires.Passing(self._context, self._config, shards)
        self._statuses = shard_wires.statuses_to_shards(self._context, self._config)
        limits = {port: self._limit(port).hard_bytes for port in CALL_PORTS}
        self._proxies = shard_wires.Proxies(self._config, limits, PORT_HOLDERS, self._on_failure)

    def _close(self) -> None:
        if self._proxies is not None:
            self._proxies.close()
        super()._close()

    def _on_queued_call(self, body: bytes, now: float) -> None:
        if self._config.local:
            super()._on_queued_call(body, now)
        elif self._passing.begin([b"", body], self._near(parse(cb.FunctionCall, body))):
            self.counts["passed_on"] += 1
        else:
            self._refused_unheard(ports.CALL_QUEUE, body)
            raise NoResourcesError("no ingress shard takes the call")

    def _near(self, call: cb.FunctionCall) -> int | None:
        """The shard of a free executor on one of the `locations` that hold the data."""
        if call.source_hint == cb.STORAGE:
            by_ip = self._table.elsewhere[False].by_ip
            for ip in call.locations:
                if ip in by_ip:
                    return owner(by_ip[ip][0].address, self._config.ingress.shards)
        return None

    def _on_status(self, body: bytes, now: float) -> None:
        status = self._status_of(parse(internal_pb2.ThreadStatus, body), len(body))
        # This turn of the loop may have begun before the booking that the status is the end of.
        now = time.monotonic()
        self._told_seq = 0
        self._take_status(status, now, seq_at(now))
        self._statuses.send(self._told_seq.to_bytes(SEQ_BYTES, "little") + body, DONTWAIT)

    def _tell_status(self, status: Status, now: float, seq: int, changed: bool) -> None:
        # A booking that is not known here yet may have ended: the Policy has to hear of it.
        may_be_free = not self._config.local and not status.functions
        if changed or may_be_free:
            self._told_seq = seq
            self._table.informed(status.address, seq)
        super()._tell_status(status, now, seq, changed or may_be_free)


class ShardLoop(IngressLoop):
    def __init__(self, config: Config, number: int, on_failure: Callable[[], None]) -> None:
        self._number = number
        limit = config.policy.max_recent_calls
        if limit:
            # The proxy gives each shard as many calls, so that together they come to the limit.
            share = max(1, limit // config.ingress.shards)
            config = config.replace(**{"policy.max_recent_calls": share})
        part = Part(number, config.ingress.shards)
        self._unanswered: list[tuple[float, Peer, Answer]] = []
        """Answers that could not go out yet, and until when they are worth it."""
        super().__init__(config, on_failure, part=part)

    def _bind(self) -> None:
        context, config = self._context, self._config
        self._calls = {port: shard_wires.calls_from_proxy(context, config, port) for port in CALL_PORTS}
        for port, socket in self._calls.items():
            self._serve(port, socket)
        shards, number = config.ingress.shards, self._number
        others = [1 + (number + step) % shards for step in range(shards - 1)]
        self._passing = shard_wires.Passing(context, config, others)
        passed_on = shard_wires.calls_passed_on(context, config, number)
        limit = self._limit(ports.FUNCTION_CALL)
        self._handlers[passed_on] = request_handler(self._on_passed_on, limit, self.counts, self.drop)
        statuses = shard_wires.statuses_from_front(context, config)
        whole = Limit(self._limit(ports.STATUS).max_bytes + SEQ_BYTES, "max_control_bytes")
        take = self._on_told_status
        self._handlers[statuses] = push_handler(ports.STATUS, take, whole, self.counts, self.drop)

    # --- one-shot calls ---

    def _on_call(self, body: bytes, peer: Peer, now: float) -> Answer | None:
        return self._place(body, peer, now, 0)

    def _on_passed_on(self, body: bytes, peer: Peer, now: float) -> None:
        """What a shard has passed on, or the front: the way back is behind the steps that it has come."""
        _, (steps, *envelope), wants_reason = peer
        peer = self._calls[ports.FUNCTION_CALL], envelope, wants_reason
        queued = len(envelope) == 1  # nobody waits for an answer
        reply: Answer | None
        try:
            reply = self._place(body, None if queued else peer, now, steps[0])
        except RaySchedError as error:
            reply = refusal(error)
            self.counts["refused"] += 1
            if queued:
                self.drop(f"port_{ports.CALL_QUEUE}", error)
        except Exception as error:  # a fault of ours: it costs this request and no other
            log.exception("a request failed")
            self.counts["failed"] += 1
            reply = refusal(error)
        if reply is not None and not queued:
            self._answer_passed_on(peer, reply, now + self._config.scheduler.max_wait_s)

    def _answer_passed_on(self, peer: Peer, reply: Answer, until: float) -> None:
        """Answer a call that came to another shard, by this one's own way to the front.

        That way may not be there yet where this shard or the front has just come: it is tried until then.
        """

        def missed(what: str, why: object) -> None:
            if time.monotonic() < until and len(self._unanswered) < WAITING_CALLS:
                self._unanswered.append((until, peer, reply))
            else:
                self.drop(what, why)

        self._keep_notes()
        reply_to(peer, reply, missed)
        self._readiness.check(peer[0])

    def _sweep(self, now: float) -> None:
        super()._sweep(now)
        unanswered, self._unanswered = self._unanswered, []
        for until, peer, reply in unanswered:
            self._answer_passed_on(peer, reply, until)

    def _place(self, body: bytes, peer: Peer | None, now: float, steps: int) -> Answer | None:
        if not self._config.local:
            may_decide = self._replica.may_decide(now)
            if not may_decide or self._others_have_more():
                _, envelope, wants_reason = peer or (None, [b""], False)
                frames = [*envelope, body, *([WANTS_REASON] if wants_reason else ())]
                if self._passing.pass_on(frames, steps):
                    self.counts["passed_on"] += 1
                    return None
            if not may_decide:
                if peer is None:
                    self._refused_unheard(ports.CALL_QUEUE, body)
                raise NoResourcesError("no ingress shard has a valid lease: try again")
        if peer is not None:
            return super()._on_call(body, peer, now)
        super()._on_queued_call(body, now)
        return None

    def _others_have_more(self) -> bool:
        return not self._table.free[False].available and bool(self._table.elsewhere[False])

    # --- what the front tells ---

    def _on_told_status(self, told: bytes, now: float) -> None:
        seq = int.from_bytes(told[:SEQ_BYTES], "little")
        body = told[SEQ_BYTES:]
        status = self._status_of(parse(internal_pb2.ThreadStatus, body), len(body))
        self._take_status(status, now, seq)

    def _tell_status(self, status: Status, now: float, seq: int, changed: bool) -> None:
        """The front tells the Policy."""
        if seq:
            self._table.informed(status.address, seq)
