"""The sockets' side of the Ingress: requests with their way back, pushed messages, and what goes out.

Rules: whatever arrives on a request port gets exactly one reply; whatever does not parse is a
refusal or a counted drop, never an exception of the loop; nothing here waits.
"""

from __future__ import annotations

import itertools
import logging
import resource
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

import zmq

from ray_sched.actors.backlog import Backlog
from ray_sched.actors.messages import Send
from ray_sched.core.dispatch import CALL, SCHEDULE, TRIGGER
from ray_sched.core.executor import Address, Executor
from ray_sched.errors import BadMessageError, RaySchedError
from ray_sched.metrics import REFUSED
from ray_sched.wire.codec import WANTS_REASON, Reply, error_name, refusal
from ray_sched.wire.curve import Keys
from ray_sched.wire.ports import Layout, tcp
from ray_sched.wire.readiness import has_message
from ray_sched.wire.sockets import (
    DONTWAIT,
    DONTWAIT_SNDMORE,
    PushSockets,
    receive,
    receive_request,
    send_part,
)

log = logging.getLogger(__name__)

BATCH: Final = 64
"""Messages that one port may have handled before the others have their turn."""
ANSWERED_TOGETHER: Final = 8
"""Requests whose replies go out in one go. One by one each wakes ZeroMQ's thread; where all of a turn go out
at its end, those who wait for them and whoever is to write them stand idle until then."""
ANSWERED_FIRST: Final = 4
"""The same of a turn's first ones: where few wait, it begins with hardly more."""
MAX_SOCKETS: Final = 20_000
"""Addresses that are kept connected; less where the process may not open three files for each."""

HELD: Final = (CALL, SCHEDULE, TRIGGER)
"""What waits for room, in this order: of lost pins the Policy hears, and one that comes late does harm."""
MAX_HELD: Final = 10_000
"""Messages that wait for one executor."""
HOLD_S: Final = 4.0
"""How long one waits. Of what was decided longer ago than 5 s a new Ingress takes it that it was sent."""
RETRY_S: Final = 0.02
"""How often it is looked whether there is room again. There is once half of what was in the socket is out."""
RETRIES: Final = 100
"""Executors that are looked at in one go, since that costs 10 us each."""
SLICE: Final = 500
"""Of the messages that are held for one, as many are sent at once."""

EXECUTOR_PORTS: Final = ("pin", "unpin", "call", "schedule", "trigger")
"""Those that a scheduler sends to, by their names in a layout."""

Drop = Callable[[str, object], None]
Handlers = dict[Any, Callable[[zmq.Socket[bytes], float], bool]]
"""What to do when a socket may have something, at a time of the monotonic clock; True if more may follow."""


Peer = tuple[zmq.Socket[bytes], list[bytes], bool]
"""Where a reply goes: by which socket, the way back, and whether it is to have the reason of a refusal."""
Answer = Reply | bytes
"""Bytes for what needs no reason. A named tuple takes several times as long, and each request has both."""


class Limit(NamedTuple):
    """How large a message of a port may be: what is larger is refused in words, and the connection of
    whoever sends more than `hard_bytes` is closed by ZeroMQ."""

    max_bytes: int
    setting: str

    @property
    def hard_bytes(self) -> int:
        return 2 * self.max_bytes

    def exceeded(self, size: int) -> BadMessageError:
        return BadMessageError(
            f"a message of {size} bytes: the limit is {self.max_bytes} (scheduler.{self.setting})"
        )


def request_handler(
    handle: Callable[[bytes, Peer, float], Answer | None],
    limit: Limit,
    counts: Counter[str],
    drop: Drop,
    backlog: Backlog | None = None,
    before_replies: Callable[[], None] = lambda: None,
) -> Callable[[zmq.Socket[bytes], float], bool]:
    """For a ROUTER socket with REQ peers. `handle` returns the reply, or None if it comes later.

    What a turn does not get to waits in `backlog`, where there is one, else in the socket. A few replies go
    out together, after `before_replies`: what these calls came to is kept once for all of them, and ZeroMQ's
    thread is woken once.
    """
    max_bytes = limit.max_bytes

    def answer(replies: list[tuple[Peer, Answer]]) -> None:
        before_replies()
        for peer, reply in replies:
            reply_to(peer, reply, drop)
        replies.clear()

    def on_readable(socket: zmq.Socket[bytes], now: float) -> bool:
        fetch, overloaded, answered = receive_request, False, False
        replies: list[tuple[Peer, Answer]] = []
        if backlog:
            backlog.take_in(socket, now)
            fetch, overloaded = backlog.next, True
        for number in range(BATCH):
            try:
                if number == 1 and not overloaded and not has_message(socket):
                    exhausted = True
                    break
                frames = fetch(socket)
            except zmq.Again:
                exhausted = True
                break
            # As a REP socket has it: all up to the first empty frame is the way back.
            try:
                end = frames.index(b"", 1) + 1
            except ValueError:
                drop("no_envelope", "a request without an empty delimiter frame")
                continue
            body = frames[end:]
            wants_reason = len(body) > 1 and body[1] == WANTS_REASON
            peer = socket, frames[:end], wants_reason
            reply: Answer | None
            try:
                if len(body) != 1 + wants_reason:
                    raise BadMessageError(f"a request of {len(body)} parts: send one")
                if len(body[0]) > max_bytes:
                    raise limit.exceeded(len(body[0]))
                reply = handle(body[0], peer, now)
            except RaySchedError as error:
                counts["refused"] += 1
                reply = refused = refusal(error)
                counts[f"{REFUSED}{error_name(refused)}"] += 1
            except Exception as error:  # a fault of ours: it costs this request and no other
                log.exception("a request failed")
                counts["failed"] += 1
                reply = refusal(error)
            if reply is not None:
                replies.append((peer, reply))
                if len(replies) == (ANSWERED_TOGETHER if answered else ANSWERED_FIRST):
                    answer(replies)
                    answered = True
        else:
            exhausted = False
        if replies:
            answer(replies)
            answered = True
        if not exhausted and backlog is not None and not overloaded:
            backlog.take_in(socket, now, served=BATCH)
        # To write a reply may have taken the word that something came meanwhile (see `Readiness`).
        return overloaded or not exhausted or answered

    return on_readable


def push_handler(
    port: int, take: Callable[[bytes, float], None], limit: Limit, counts: Counter[str], drop: Drop
) -> Callable[[zmq.Socket[bytes], float], bool]:
    """For a PULL socket, whose peers hear nothing back."""
    max_bytes = limit.max_bytes

    def on_readable(socket: zmq.Socket[bytes], now: float) -> bool:
        for _ in range(BATCH):
            try:
                frames = receive(socket)
            except zmq.Again:
                return False
            try:
                if len(frames) != 1:
                    raise BadMessageError(f"a message of {len(frames)} parts: send one")
                if len(frames[0]) > max_bytes:
                    raise limit.exceeded(len(frames[0]))
                take(frames[0], now)
            except RaySchedError as error:
                drop(f"port_{port}", error)
            except Exception as error:  # a fault of ours: it costs this message and no other
                log.exception("a message on port %d failed", port)
                counts["failed"] += 1
                drop(f"port_{port}", error)
        return True

    return on_readable


def reply_to(peer: Peer, reply: Answer, drop: Drop) -> None:
    socket, envelope, wants_reason = peer
    body, reason = (reply, "") if isinstance(reply, bytes) else reply
    try:
        for part in envelope:
            send_part(socket, part, DONTWAIT_SNDMORE)
        if wants_reason:
            send_part(socket, body, DONTWAIT_SNDMORE)
            send_part(socket, reason.encode(), DONTWAIT)
        else:
            send_part(socket, body, DONTWAIT)
    except zmq.ZMQError as error:
        drop("reply", error)


class Outbox:
    """Messages to executors, sent without waiting, all of a turn of the loop at once.

    Those for one port of one executor go one after the other: ZeroMQ's thread, which sleeps while it has
    nothing to do, is woken once for them and writes them together, where each message by itself would cost
    a wake-up and a system call. A reply to a client does not wait for them.

    A call's message that finds no room in its socket, since the executor does not keep up, is held until
    there is, and those that follow behind it; whoever decides is to leave that executor out meanwhile.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        layout: Layout,
        on_unsendable: Callable[[Address], None],
        drop: Drop,
        on_unsent: Callable[[str, bytes], None] = lambda kind, message: None,
        keys: Keys | None = None,
        on_full: Callable[[Address], None] = lambda address: None,
        on_room: Callable[[Address], None] = lambda address: None,
    ) -> None:
        """`on_full` is told from when on something is held for an executor, `on_room` from when on nothing is
        any more and there is room; `on_unsent` of each message (and its kind) that was dropped, and
        `on_unsendable` to whom none could be sent.
        """
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        most = MAX_SOCKETS if files == resource.RLIM_INFINITY else min(MAX_SOCKETS, files // 3)
        context.set(zmq.MAX_SOCKETS, most + 64)
        # Peers name the addresses: to look a host name up would hold up everybody.
        self._sockets = PushSockets(context, most, host_names=False, keys=keys)
        self._layout = layout
        self._on_unsendable = on_unsendable
        self._drop = drop
        self._on_unsent = on_unsent
        self._on_full = on_full
        self._on_room = on_room
        self._held: dict[Address, dict[str, deque[tuple[float, bytes]]]] = {}
        """By executor and kind, each with the time; those that were looked at longest ago first."""
        self.held = 0
        """How many these are. Any thread may look."""
        self._retry_at = 0.0
        # In this order they are sent: a schedule had better arrive before its trigger.
        self._waiting: dict[str, dict[Address, list[bytes]]] = {CALL: {}, SCHEDULE: {}, TRIGGER: {}}

    def put(self, address: Address, kind: str, message: bytes) -> None:
        """To be sent with the next `flush`; `kind` is the port's name in the layout."""
        self._waiting.setdefault(kind, {}).setdefault(address, []).append(message)

    def put_calls(self, sends: Iterable[tuple[Executor, str, bytes]]) -> None:
        """`put` for what a dispatcher gave."""
        for executor, kind, message in sends:
            executors = self._waiting[kind]
            messages = executors.get(executor.address)
            if messages is None:
                executors[executor.address] = [message]
            else:
                messages.append(message)

    def put_all(self, sends: Iterable[Send]) -> None:
        for ip, tid, kind, message in sends:
            self.put((ip, tid), kind, message)

    def flush(self, now: float) -> None:
        """Send what waits; `now` as time.monotonic() gives it."""
        held = self._held
        if held and now >= self._retry_at:
            self._retry(now)
        for kind, executors in self._waiting.items():
            base: int = getattr(self._layout, kind)
            for address, messages in executors.items():
                if address in held and kind in HELD:
                    self._hold(address, kind, messages, now)
                    continue
                left = self._send(address, kind, base, messages)
                if left and kind in HELD:
                    held[address] = {kind: deque() for kind in HELD}
                    self._hold(address, kind, left, now)
                    self._on_full(address)
                elif left:
                    self._on_unsendable(address)
                    self._give_back(address, kind, left)
            executors.clear()

    def _send(self, address: Address, kind: str, base: int, messages: list[bytes]) -> list[bytes]:
        """Those for which there was no room."""
        ip, tid = address
        try:
            sent = self._sockets.send_all(tcp(ip, base + tid), messages)
        except BadMessageError as error:
            self._drop("send", error)
            self._on_unsendable(address)
            for message in messages:
                self._on_unsent(kind, message)
            return []
        return messages[sent:]

    def _hold(self, address: Address, kind: str, messages: list[bytes], now: float) -> None:
        of_executor = self._held[address]
        room = max(0, MAX_HELD - sum(map(len, of_executor.values())))
        of_executor[kind].extend([(now, message) for message in messages[:room]])
        self.held += min(room, len(messages))
        self._give_back(address, kind, messages[room:])

    def _give_back(self, address: Address, kind: str, messages: Iterable[bytes]) -> None:
        for message in messages:
            self._drop("send", f"executor {address[0]}:{address[1]} takes no more messages")
            self._on_unsent(kind, message)

    def _retry(self, now: float) -> None:
        """Send what is held as far as there is room, and give back what has waited for too long."""
        self._retry_at = now + RETRY_S
        held = self._held
        for address in list(itertools.islice(held, RETRIES)):
            of_executor = held.pop(address)
            blocked = False
            for kind, messages in of_executor.items():
                base: int = getattr(self._layout, kind)
                left: list[bytes] = []
                while messages and not left and not (kind == TRIGGER and blocked):
                    some = [message for _, message in itertools.islice(messages, SLICE)]
                    left = self._send(address, kind, base, some)
                    for _ in range(len(some) - len(left)):
                        messages.popleft()
                    self.held -= len(some) - len(left)
                while messages and now - messages[0][0] > HOLD_S:
                    self._give_back(address, kind, (messages.popleft()[1],))
                    self.held -= 1
                if kind == SCHEDULE:
                    blocked = bool(left)
            if any(of_executor.values()) or not self._has_room(address, of_executor):
                held[address] = of_executor
            else:
                self._on_room(address)

    def _has_room(self, address: Address, kinds: Iterable[str]) -> bool:
        """Whether an executor's sockets take more: that nothing is held any more may be because it was given
        back."""
        ip, tid = address
        return all([self._sockets.has_room(tcp(ip, getattr(self._layout, kind) + tid)) for kind in kinds])

    def give_up(self, address: Address, linger_ms: int = 0) -> None:
        """The executor left: what waits for it is not for whoever may come after it at its address.

        One that says so itself still does what it was sent: that goes out until `linger_ms` have passed.
        """
        ip, tid = address
        held = self._held.pop(address, {})
        for kind in EXECUTOR_PORTS:
            base: int = getattr(self._layout, kind)
            messages = [message for _, message in held.get(kind, ())]
            self.held -= len(messages)
            messages += self._waiting.get(kind, {}).pop(address, ())
            if messages and linger_ms:
                messages = self._send(address, kind, base, messages)
            self._give_back(address, kind, messages)
            self._sockets.drop(tcp(ip, base + tid), linger_ms=linger_ms)

    def push(self, address: str, message: bytes) -> None:
        """To a whole ZeroMQ address."""
        try:
            sent = self._sockets.send(address, message)
        except BadMessageError as error:
            self._drop("push", error)
            return
        if not sent:
            self._drop("push", f"{address} takes no more messages")

    def close(self) -> None:
        self._sockets.close()
