"""The embedded store on the network, in the protocol of Anna: routing tier and storage server in one.

One thread takes what has come in, applies it, commits it once, and only then answers, so that an
answered write is a durable one. An answer never waits for its receiver: when its queue is full it
is dropped and counted, and the client asks again.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Final, TypeVar

import zmq
from google.protobuf.message import DecodeError, Message

from ray_sched.errors import BadMessageError, KvsError, LatticeMismatchError
from ray_sched.kvs.lattices import parse
from ray_sched.kvs.store import Store
from ray_sched.logs import Complaints
from ray_sched.wire import anna_pb2 as anna
from ray_sched.wire.curve import FROM_ALL, Guard, Keys
from ray_sched.wire.ports import KVS_ROUTING, KVS_STORAGE, tcp
from ray_sched.wire.sockets import PushSockets, bind_pull

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)
Answer = tuple[str, Message]
"""Where to, and what."""

BATCH: Final = 256
"""Messages that are taken from a socket before what they wrote is committed and answered."""
HOLDERS: Final = "another scheduler group or an Anna on the same address, or one that is still stopping,"


@dataclass
class Counters:
    """What the server has seen since its start."""

    address_requests: int = 0
    requests: int = 0
    gets: int = 0
    puts: int = 0
    bad_messages: int = 0
    bad_addresses: int = 0
    dropped_answers: int = 0
    failed_batches: int = 0


class KvsServer:
    """Serves a store on ports 6450 (routing) and 6200 (storage) of one address.

    The store is used by the server's thread alone between `start` and `stop`; it stays its owner's,
    who closes it. It may be given as a function that opens it, called once the ports are bound: so
    whoever holds the ports holds the file. `max_sockets` bounds the clients that are kept connected
    for answers, `max_answer_bytes` what the answers of one batch hold: further keys are to be asked
    for again.
    """

    def __init__(
        self,
        ip: str,
        store: Store | Callable[[], Store],
        *,
        max_sockets: int = 1000,
        max_message_bytes: int = 1 << 29,
        max_answer_bytes: int = 1 << 28,
        keys: Keys | None = None,
    ) -> None:
        self._keys = keys
        self.ip = ip
        self._open = store if callable(store) else lambda: store
        self._max_sockets = max_sockets
        self._max_message_bytes = max_message_bytes
        self._counters = Counters()
        self._complaints = Complaints(logger)
        self._max_answer_bytes = self._room = max_answer_bytes
        self._wake = -1
        self._stopping = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Bind the ports and serve in a thread of its own.

        Raises PortTakenError or ConfigError when a port cannot be bound, KvsError when it was started
        before, and what opening the store raises.
        """
        if self._thread is not None:
            raise KvsError("the key-value server was started already")
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        context.set(zmq.MAX_SOCKETS, self._max_sockets + 16)
        self._guard = Guard(context, self._keys)
        try:
            routing = self._bound(context, KVS_ROUTING)
            storage = self._bound(context, KVS_STORAGE)
            self._store = self._open()
        except BaseException:
            self._guard.close()
            context.destroy(0)
            raise
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(
            target=self._serve, args=(context, routing, storage), name=f"kvs-server-{self.ip}", daemon=True
        )
        self._thread.start()

    def _bound(self, context: zmq.Context[zmq.Socket[bytes]], port: int) -> zmq.Socket[bytes]:
        limit = self._max_message_bytes
        return bind_pull(
            context, self.ip, port, HOLDERS, max_message_bytes=limit, keys=self._keys, admits=FROM_ALL
        )

    def stop(self, timeout_s: float = 5.0) -> None:
        """Finish the batch at hand, free the ports, end the thread. Again is harmless.

        Answers still on their way are lost; clients ask again.
        """
        if self._thread is None or self._stopping:
            return
        self._stopping = True
        os.eventfd_write(self._wake, 1)
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            logger.warning("The key-value server on %s did not stop within %s s.", self.ip, timeout_s)
        else:
            os.close(self._wake)

    def stats(self) -> dict[str, int]:
        """The counters since the start, and how many keys the store has. From any thread."""
        return {**asdict(self._counters), "keys": len(self._store)}

    def _serve(
        self, context: zmq.Context[zmq.Socket[bytes]], routing: zmq.Socket[bytes], storage: zmq.Socket[bytes]
    ) -> None:
        # Clients name the addresses: to look a host name up would hold up everybody's answers.
        answers = PushSockets(context, self._max_sockets, host_names=False, keys=self._keys)
        poller = zmq.Poller()
        for source in (routing, storage, self._wake):
            poller.register(source, zmq.POLLIN)
        try:
            while not self._stopping:
                poller.poll()
                self._answer(answers, self._find, _take(routing))
                self._answer(answers, self._apply, _take(storage))
        finally:
            answers.close()
            self._guard.close()
            context.destroy(0)

    def _answer(
        self, sockets: PushSockets, handle: Callable[[list[bytes]], list[Answer]], messages: list[bytes]
    ) -> None:
        try:
            for address, response in handle(messages):
                self._send(sockets, address, response.SerializeToString())
        except Exception:
            # One batch that goes wrong for a reason nobody thought of must not end the service.
            self._counters.failed_batches += 1
            logger.exception("The key-value server on %s gave up a batch of requests.", self.ip)

    def _find(self, messages: list[bytes]) -> list[Answer]:
        answers: list[Answer] = []
        servers = [tcp(self.ip, KVS_STORAGE)]
        for message in messages:
            request = self._parse(anna.KeyAddressRequest, message)
            if request is not None:
                self._counters.address_requests += 1
                addresses = [anna.KeyAddressResponse.KeyAddress(key=key, ips=servers) for key in request.keys]
                response = anna.KeyAddressResponse(addresses=addresses, response_id=request.request_id)
                answers.append((request.response_address, response))
        return answers

    def _apply(self, messages: list[bytes]) -> list[Answer]:
        """Carry out all requests and commit; the answers, which are errors where the commit failed."""
        answers: list[tuple[str, anna.KeyResponse]] = []
        self._room = self._max_answer_bytes
        try:
            with self._store.batch():
                for message in messages:
                    request = self._parse(anna.KeyRequest, message)
                    if request is not None:
                        answers.append((request.response_address, self._response(request)))
        except KvsError as error:
            self._counters.failed_batches += 1
            self._complaints.add("A batch of writes was not committed", error)
            for _, response in answers:
                for answer in response.tuples:
                    # The protocol has no better word for "not now, try again".
                    answer.CopyFrom(anna.KeyTuple(key=answer.key, error=anna.TIMEOUT))
        return list(answers)

    def _response(self, request: anna.KeyRequest) -> anna.KeyResponse:
        self._counters.requests += 1
        response = anna.KeyResponse(type=request.type, response_id=request.request_id)
        for asked in request.tuples:
            answer = response.tuples.add(key=asked.key)
            if request.type == anna.GET:
                self._counters.gets += 1
                self._get(answer)
            else:
                self._counters.puts += 1
                self._put(asked, answer)
            # There is one server: a client that knows another number of them has an old list.
            answer.invalidate = asked.address_cache_size > 1
        return response

    def _get(self, answer: anna.KeyTuple) -> None:
        lattice = self._store.get(answer.key)
        if lattice is None:
            answer.error = anna.KEY_DNE
            return
        payload = lattice.serialize()
        if len(payload) > self._room < self._max_answer_bytes:
            # A small request may name a large key ten thousand times.
            answer.error = anna.TIMEOUT
            return
        self._room -= len(payload)
        answer.lattice_type = lattice.type
        answer.payload = payload

    def _put(self, asked: anna.KeyTuple, answer: anna.KeyTuple) -> None:
        answer.lattice_type = asked.lattice_type
        try:
            self._store.put(asked.key, parse(asked.lattice_type, asked.payload))
        except LatticeMismatchError:
            answer.error = anna.LATTICE
        except BadMessageError as error:
            answer.error = anna.LATTICE
            self._bad_message(f"a PUT of {asked.key[:100]!r}: {error}")

    def _parse(self, kind: type[M], message: bytes) -> M | None:
        request = kind()
        try:
            request.ParseFromString(message)
        except (DecodeError, ValueError) as error:
            self._bad_message(f"{len(message)} bytes are not a {kind.__name__}: {error}")
            return None
        if isinstance(request, anna.KeyRequest) and request.type not in (anna.GET, anna.PUT):
            self._bad_message(f"there is no request type {request.type}")
            return None
        return request

    def _bad_message(self, why: str) -> None:
        self._counters.bad_messages += 1
        self._complaints.add("The key-value server dropped what a peer sent", why)

    def _send(self, sockets: PushSockets, address: str, answer: bytes) -> None:
        try:
            sent = sockets.send(address, answer)
        except BadMessageError as error:
            self._counters.bad_addresses += 1
            self._complaints.add("The key-value server cannot answer", error)
            return
        if not sent:
            self._counters.dropped_answers += 1
            self._complaints.add("The key-value server dropped an answer", f"{address} does not take it")


def _take(socket: zmq.Socket[bytes]) -> list[bytes]:
    """What has come in, up to a batch; of a message with several parts, which no peer has, the last."""
    messages: list[bytes] = []
    while len(messages) < BATCH:
        try:
            messages.append(socket.recv_multipart(zmq.DONTWAIT)[-1])
        except zmq.Again:
            break
    return messages
