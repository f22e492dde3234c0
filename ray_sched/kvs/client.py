"""The client of Anna's protocol that everything here uses, for the embedded store and a real Anna alike.

One thread does all input and output; any number of threads ask it, and wait for a future or go on.
What is sent and what answers mean is decided in `ray_sched.kvs.exchange`.
"""

from __future__ import annotations

import concurrent.futures
import logging
import os
import random
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Final, TypeVar

import zmq

from ray_sched.errors import BadMessageError, KvsError, LatticeMismatchError, PortTakenError, TimedOutError
from ray_sched.kvs.exchange import Call, Effect, Exchange, Reconnect, Send
from ray_sched.kvs.lattices import LWW, Lattice, type_name
from ray_sched.kvs.timestamps import Timestamps
from ray_sched.logs import Complaints
from ray_sched.wire.curve import FROM_GROUP, Guard, Keys
from ray_sched.wire.ports import KVS_CLIENT_ADDRESS, KVS_CLIENT_OFFSETS, KVS_CLIENT_RESPONSE, tcp
from ray_sched.wire.sockets import PushSockets, bind_pull

logger = logging.getLogger(__name__)

T = TypeVar("T")
Future = concurrent.futures.Future
Results = dict[str, Lattice | None]

FIRST_OFFSET: Final = 20
"""Lower ones are left to legacy programs, which choose theirs by thread id."""
CLIENT_SOCKETS: Final = 256
BATCH: Final = 256
"""Answers that are taken from a socket before what else is due has its turn."""
MAX_ANSWER_BYTES: Final = 1 << 29
"""The connection of a server that sends a larger one is closed."""
MAX_CALLS: Final = 100_000
"""Calls that may be in flight at once; a further one fails."""


class KvsClient:
    """Reads and writes keys. Thread-safe; every wait ends.

    `routing_host` is the address of the routing tier, `routing_ports` how many threads it has (1,
    or 4 in Anna's cluster mode); `local_ip` is the address of this machine where answers are taken,
    on ports 6460 + offset and 6760 + offset for the first free offset. One try of a request takes
    at most `timeout_s` seconds and is followed by up to `retries` more, each of which looks up the
    servers anew. `tid` and `clock` (Unix seconds) make the timestamps of `put_bytes`.

    Every method that reads or writes raises TimedOutError when nobody answered any of the tries,
    LatticeMismatchError when a key holds another lattice type, BadMessageError when what a server
    answered makes no sense, and KvsError when the store refused or the client is closed. The
    variants that end in `_future` do not wait: the future has the result or one of these errors,
    and its callbacks run in the client's own thread, which they must not block. The others must not
    be called there.

    The constructor raises PortTakenError when no offset is free, ConfigError when `local_ip` is not
    an address of this machine.
    """

    def __init__(
        self,
        routing_host: str,
        local_ip: str,
        *,
        timeout_s: float = 3.0,
        retries: int = 2,
        routing_ports: int = 1,
        tid: int = 0,
        clock: Callable[[], float] = time.time,
        first_offset: int = FIRST_OFFSET,
        cached_addresses: int = 100_000,
        keys: Keys | None = None,
    ) -> None:
        self._patience_s = (timeout_s + 1.0) * (retries + 1)
        self._timestamps = Timestamps(tid, clock)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._keys = keys
        self._guard = Guard(self._context, keys)
        try:
            self.offset, self._responses, self._addresses = _bind(self._context, local_ip, first_offset, keys)
        except BaseException:
            self._guard.close()
            self._context.destroy(0)
            raise
        answers_at = keys.answers_at if keys is not None else str
        self._exchange = Exchange(
            routing_host,
            f"{local_ip}:{uuid.uuid4().hex[:12]}",
            answers_at(tcp(local_ip, KVS_CLIENT_RESPONSE + self.offset)),
            answers_at(tcp(local_ip, KVS_CLIENT_ADDRESS + self.offset)),
            routing_ports=routing_ports,
            timeout_s=timeout_s,
            retries=retries,
            cached_addresses=cached_addresses,
            rng=random.Random(),
        )
        self._futures: dict[Call, tuple[Future[Any], Callable[[Results], Any]]] = {}
        self._submitted: deque[tuple[Call, Future[Any], Callable[[Results], Any]]] = deque()
        self._complaints = Complaints(logger)
        self._lock = threading.Lock()
        self._closed = False
        self._pid = os.getpid()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name=f"kvs-client-{local_ip}", daemon=True)
        self._thread.start()

    def get(self, key: str) -> Lattice | None:
        """The key's lattice; None where there is none."""
        return self._wait(self.get_future(key))

    def get_many(self, keys: Iterable[str]) -> Results:
        """The lattices of all keys, None where there is none; one request for each server."""
        return self._wait(self.get_many_future(keys))

    def put(self, key: str, lattice: Lattice) -> None:
        """Merge a lattice into the key's."""
        self._wait(self.put_future(key, lattice))

    def put_many(self, lattices: Mapping[str, Lattice]) -> None:
        """Merge each lattice into its key's; on an error, some may have been and others not."""
        self._wait(self.put_many_future(lattices))

    def get_bytes(self, key: str) -> bytes | None:
        """The value of a last-writer-wins key; None where there is none."""
        lattice = self.get(key)
        if lattice is None:
            return None
        if not isinstance(lattice, LWW):
            raise LatticeMismatchError(f"the key {key!r} holds a {type_name(lattice.type)} lattice, not LWW")
        return lattice.value

    def put_bytes(self, key: str, value: bytes) -> None:
        """Write a last-writer-wins key, with a higher timestamp than this client wrote or read before."""
        self._wait(self.put_bytes_future(key, value))

    def get_future(self, key: str) -> Future[Lattice | None]:
        """As `get`, without waiting."""
        return self._submit(Call.to_get([key]), lambda results: self._seen(results)[key])

    def get_many_future(self, keys: Iterable[str]) -> Future[Results]:
        """As `get_many`, without waiting."""
        return self._submit(Call.to_get(keys), self._seen)

    def put_future(self, key: str, lattice: Lattice) -> Future[None]:
        """As `put`, without waiting."""
        return self.put_many_future({key: lattice})

    def put_many_future(self, lattices: Mapping[str, Lattice]) -> Future[None]:
        """As `put_many`, without waiting."""
        return self._submit(Call.to_put(lattices), lambda results: None)

    def put_bytes_future(self, key: str, value: bytes) -> Future[None]:
        """As `put_bytes`, without waiting."""
        return self.put_future(key, self.last_write(key, value))

    def last_write(self, key: str, value: bytes) -> LWW:
        """What `put_bytes` writes, for a caller that may have to write it again. Raises KvsError."""
        return LWW(self._timestamps.next(key), value)

    def stats(self) -> dict[str, int]:
        """Calls in flight, and how many answers were late or did not parse. From any thread."""
        return {
            "in_flight": self._exchange.in_flight,
            "late_answers": self._exchange.late_answers,
            "bad_answers": self._exchange.bad_answers,
        }

    def close(self, timeout_s: float = 5.0) -> None:
        """Fail what is in flight with KvsError, free the ports, end the thread. Again is harmless."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.eventfd_write(self._wake, 1)
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)

    def __enter__(self) -> KvsClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _seen(self, results: Results) -> Results:
        for key, lattice in results.items():
            if isinstance(lattice, LWW):
                self._timestamps.seen(key, lattice.timestamp)
        return results

    def _submit(self, call: Call, extract: Callable[[Results], T]) -> Future[T]:
        future: Future[T] = Future()
        if not call.tuples:
            future.set_result(extract({}))
            return future
        if os.getpid() != self._pid:  # nor does the thread that would answer, or a lock that it held
            raise KvsError("a key-value client does not outlive a fork: connect in the new process")
        with self._lock:
            if self._closed:
                raise KvsError("the key-value client is closed")
            if len(self._submitted) + len(self._futures) >= MAX_CALLS:
                raise KvsError(f"{MAX_CALLS} calls wait for the key-value store already: try again")
            self._submitted.append((call, future, extract))
            os.eventfd_write(self._wake, 1)
        return future

    def _wait(self, future: Future[T]) -> T:
        if threading.current_thread() is self._thread:
            raise KvsError("a future's callback waits for the client that runs it: use the _future variants")
        try:
            return future.result(self._patience_s)
        except concurrent.futures.TimeoutError as error:
            if future.done():
                raise
            raise TimedOutError(
                f"the key-value client did not finish within {self._patience_s:g} s"
            ) from error

    def _run(self) -> None:
        servers = PushSockets(self._context, CLIENT_SOCKETS, keys=self._keys)
        poller = zmq.Poller()
        for source in (self._responses, self._addresses, self._wake):
            poller.register(source, zmq.POLLIN)
        try:
            while not self._closed:
                due = self._exchange.next_due()
                timeout_ms = None if due is None else max(0, int((due - time.monotonic()) * 1000) + 1)
                ready = dict(poller.poll(timeout_ms))
                effects: list[Effect] = []
                now = time.monotonic()
                if self._wake in ready:
                    os.eventfd_read(self._wake)
                    effects += self._take_submitted(now)
                if self._responses in ready:
                    effects += self._take_in(self._responses, self._exchange.take_response, now)
                if self._addresses in ready:
                    effects += self._take_in(self._addresses, self._exchange.take_addresses, now)
                effects += self._exchange.tick(now)
                for effect in effects:
                    self._carry_out(effect, servers)
        except Exception:
            logger.exception("The key-value client ends: what it was doing fails.")
        finally:
            with self._lock:
                self._closed = True
                os.close(self._wake)
            servers.close()
            self._guard.close()
            self._context.destroy(0)
            self._fail_all()

    def _take_submitted(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        while self._submitted:
            call, future, extract = self._submitted.popleft()
            if future.set_running_or_notify_cancel():
                self._futures[call] = (future, extract)
                effects += self._exchange.submit(call, now)
        return effects

    def _take_in(
        self, socket: zmq.Socket[bytes], take: Callable[[bytes, float], list[Effect]], now: float
    ) -> list[Effect]:
        effects: list[Effect] = []
        for message in _take(socket):
            try:
                effects += take(message, now)
            except Exception:  # a fault of ours: it costs this answer, and its call asks again
                logger.exception("The key-value client could not take in an answer.")
        return effects

    def _carry_out(self, effect: Effect, servers: PushSockets) -> None:
        if isinstance(effect, Send):
            try:
                sent = servers.send(effect.address, effect.message)
            except BadMessageError as error:
                self._complaints.add("The routing tier named a bad address", error)
                return
            if not sent:
                # As if it had been lost on the way: the try times out, and the next one sends again.
                self._complaints.add(
                    "The key-value client could not send", f"{effect.address} is not taking more"
                )
        elif isinstance(effect, Reconnect):
            servers.drop(effect.address, effect.older_than)
        else:
            future, extract = self._futures.pop(effect.call)
            if effect.error is not None:
                future.set_exception(effect.error)
            else:
                future.set_result(extract(effect.call.results))

    def _fail_all(self) -> None:
        futures = [future for future, _ in self._futures.values()]
        futures += [future for _, future, _ in self._submitted if future.set_running_or_notify_cancel()]
        self._futures.clear()
        self._submitted.clear()
        for future in futures:
            future.set_exception(KvsError("the key-value client was closed before the answer came"))


def _bind(
    context: zmq.Context[zmq.Socket[bytes]], ip: str, first_offset: int, keys: Keys | None
) -> tuple[int, zmq.Socket[bytes], zmq.Socket[bytes]]:
    """The first offset of which both ports are free, and its sockets for responses and addresses."""

    def bound(port: int) -> zmq.Socket[bytes]:
        return bind_pull(
            context,
            ip,
            port,
            "another client",
            max_message_bytes=MAX_ANSWER_BYTES,
            keys=keys,
            admits=FROM_GROUP,
        )

    for offset in range(first_offset, KVS_CLIENT_OFFSETS):
        try:
            responses = bound(KVS_CLIENT_RESPONSE + offset)
        except PortTakenError:
            continue
        try:
            return offset, responses, bound(KVS_CLIENT_ADDRESS + offset)
        except PortTakenError:
            responses.close(0)
    raise PortTakenError(
        f"{ip} has no room for another client of the key-value store: in each pair of ports from "
        f"{KVS_CLIENT_RESPONSE + first_offset} and {KVS_CLIENT_ADDRESS + first_offset} on, at least one "
        "is taken; use another address"
    )


def _take(socket: zmq.Socket[bytes]) -> list[bytes]:
    messages: list[bytes] = []
    while len(messages) < BATCH:
        try:
            messages.append(socket.recv_multipart(zmq.DONTWAIT)[-1])
        except zmq.Again:
            break
    return messages
