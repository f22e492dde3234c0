"""Calls that came faster than they can be decided: what waits here has an age, and none grows old.

ZeroMQ does not say when a message arrived. So once a port has more than its turn can serve, everything
that it has is taken out at once and waits here with the time. While the first in line has waited for more
than half of `max_wait_s`, or so many wait that the last in line would have to at the present rate, newcomers
are refused at once. What has waited for longer than `max_wait_s` all the same (the loop stood still) is
refused, too: its caller may have gone.

A refusal costs a few hundredths of a costly decision, and a tenth of a cheap one: docs/reliability.md has
what that comes to.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from typing import Final

import zmq

from ray_sched.errors import NoResourcesError
from ray_sched.wire.codec import refusal
from ray_sched.wire.sockets import DONTWAIT, DONTWAIT_SNDMORE, receive_part, receive_request, send_part

AT_ONCE: Final = 2000
"""Messages that are taken out of a port in one turn, so that the others have theirs."""
RATE_S: Final = 0.05
"""For how long it is counted how many are served, to know at what rate."""
RATE_KEPT: Final = 0.7
"""What is believed of a rate when the next one is lower: the loop may have stood still for a moment."""
FEWEST: Final = 64
"""That may wait at any rate: as many as one turn serves."""
MAX_BYTES: Final = 512 * 2**20
"""What may wait here, together; more stays with ZeroMQ, and then with its senders."""
OVERLOADED: Final = refusal(
    NoResourcesError("more calls come than the scheduler can take: try again later, or at another scheduler")
)
REASON: Final = OVERLOADED.reason.encode()


class Backlog:
    """Of one request port; for the loop's thread alone."""

    def __init__(self, max_wait_s: float, counts: Counter[str]) -> None:
        self._max_wait_s = max_wait_s
        self._counts = counts
        self._waiting: deque[tuple[float, list[bytes]]] = deque()
        self._bytes = 0
        self._now = 0.0
        self._served = 0
        """Since the time below."""
        self._since = 0.0
        self._rate = 0.0
        """Calls a second; 0 where it is not known yet."""

    def __len__(self) -> int:
        return len(self._waiting)

    def take_in(self, socket: zmq.Socket[bytes], now: float, *, served: int = 0) -> None:
        """Take out of the socket what is there; newcomers that would wait too long are refused. Where nobody
        waits yet, so many have been `served` since `now` already, in a turn: what the next one is sure to
        serve, too, counts as never too old. Those who were answered within a turn may have asked again."""
        self._now = now
        room = self._room(now, served)
        waiting = self._waiting
        try:
            for _ in range(min(AT_ONCE, room)):
                if self._bytes > MAX_BYTES:
                    return
                frames = receive_request(socket)
                waiting.append((now, frames))
                self._bytes += sum(map(len, frames))
        except zmq.Again:
            if len(waiting) <= served:
                self._waiting = deque((math.inf, frames) for _, frames in waiting)
            return
        if room < AT_ONCE:
            self._refuse_newcomers(socket)

    def _room(self, now: float, served: int) -> int:
        """How many more may wait."""
        waiting = self._waiting
        if not waiting:
            self._served, self._since, self._rate = served, now, 0.0
            return AT_ONCE
        if now - waiting[0][0] > self._max_wait_s / 2:
            return 0
        if now - self._since >= RATE_S:
            self._rate = max(self._served / (now - self._since), RATE_KEPT * self._rate, 1.0)
            self._served, self._since = 0, now
        if not self._rate:
            return AT_ONCE
        return max(0, max(FEWEST, int(self._rate * self._max_wait_s / 2)) - len(waiting))

    def next(self, socket: zmq.Socket[bytes]) -> list[bytes]:
        """The first in line that was not too old at the last `take_in`. Raises zmq.Again after the last."""
        waiting = self._waiting
        while waiting:
            arrived, frames = waiting.popleft()
            self._bytes -= sum(map(len, frames))
            if self._now - arrived <= self._max_wait_s:
                self._served += 1
                return frames
            self._refuse(socket, frames)
            self._counts["refused_overload"] += 1
        raise zmq.Again

    def _refuse_newcomers(self, socket: zmq.Socket[bytes]) -> None:
        """`_refuse` what is in the socket; only the way back is copied. Where more calls come than can be
        decided, the time that this takes is what the others lack."""
        refused = 0
        try:
            for _ in range(AT_ONCE):
                peer = receive_part(socket, DONTWAIT)
                refused += 1
                frame = receive_part(socket, DONTWAIT, False)
                own = b""  # of clients that tell their calls apart by a part of their own; few have more
                if len(frame) and frame.more:
                    own = frame.bytes
                    frame = receive_part(socket, DONTWAIT, False)
                if not len(frame) and frame.more:
                    frame = receive_part(socket, DONTWAIT, False)
                    if not frame.more:
                        try:
                            send_part(socket, peer, DONTWAIT_SNDMORE)
                            if own:
                                send_part(socket, own, DONTWAIT_SNDMORE)
                            send_part(socket, b"", DONTWAIT_SNDMORE)
                            send_part(socket, OVERLOADED.body, DONTWAIT)
                        except zmq.ZMQError:  # it has gone, or does not take its replies
                            self._counts["dropped_reply"] += 1
                        continue
                    way = [peer, own, b""] if own else [peer, b""]
                    self._refuse(socket, [*way, *_rest(socket, frame)])
                else:
                    way = [peer, own] if own else [peer]
                    self._refuse(socket, [*way, *_rest(socket, frame)])
        except zmq.Again:
            pass
        self._counts["refused_overload"] += refused

    def _refuse(self, socket: zmq.Socket[bytes], frames: list[bytes]) -> None:
        """NO_RESOURCES to whoever sent these frames, for as little as it can be had."""
        try:
            end = frames.index(b"", 1) + 1
        except ValueError:
            self._counts["dropped_no_envelope"] += 1
            return
        self._answer(socket, frames[:end], len(frames) > end + 1)

    def _answer(self, socket: zmq.Socket[bytes], way: list[bytes], wants_reason: bool) -> None:
        try:
            for part in way:
                send_part(socket, part, DONTWAIT_SNDMORE)
            if wants_reason:
                send_part(socket, OVERLOADED.body, DONTWAIT_SNDMORE)
                send_part(socket, REASON, DONTWAIT)
            else:
                send_part(socket, OVERLOADED.body, DONTWAIT)
        except zmq.ZMQError:  # it has gone, or does not take its replies
            self._counts["dropped_reply"] += 1


def _rest(socket: zmq.Socket[bytes], frame: zmq.Frame) -> list[bytes]:
    """The parts of a message from this one on."""
    parts = [frame.bytes]
    while frame.more:
        frame = receive_part(socket, DONTWAIT, False)
        parts.append(frame.bytes)
    return parts
