"""Anna's protocol from both ends: a client by hand, and a node that routes and stores."""

from __future__ import annotations

import itertools
import threading

from . import messages as m
from . import ports
from .protobuf import Record, decode, encode
from .sockets import Mailbox, NothingCameError, Pusher


class AnnaClient:
    """Asks the routing tier for a key's servers, and a server for the key. Belongs to one thread.

    Binds 6460 + offset and 6760 + offset on its own IP.
    """

    def __init__(
        self, routing_ip: str, ip: str, pusher: Pusher, *, offset: int = 0, timeout_s: float = 5.0
    ) -> None:
        self._routing = ports.tcp(routing_ip, ports.KVS_ROUTING)
        self._pusher = pusher
        self._timeout_s = timeout_s
        self._ids = (f"{ip}:{number}" for number in itertools.count())
        self._mailbox = Mailbox(
            {
                "response": ports.tcp(ip, ports.KVS_RESPONSE + offset),
                "address": ports.tcp(ip, ports.KVS_ADDRESS + offset),
            }
        )

    def addresses(self, key: str) -> list[str]:
        """The storage servers of a key. Raises `NothingCameError`."""
        asked = next(self._ids)
        request = {
            "response_address": self._mailbox.address["address"],
            "keys": [key],
            "request_id": asked,
        }
        self._pusher.push(self._routing, encode(m.KEY_ADDRESS_REQUEST, request))
        raw = self._mailbox.wait_for(
            "address",
            where=lambda raw: decode(m.KEY_ADDRESS_RESPONSE, raw).response_id == asked,
            timeout_s=self._timeout_s,
        )[0]
        found: list[str] = next(
            entry.ips for entry in decode(m.KEY_ADDRESS_RESPONSE, raw).addresses if entry.key == key
        )
        return found

    def get(self, key: str) -> Record:
        """The key's tuple: `lattice_type`, `payload`, `error`. Raises `NothingCameError`."""
        return self._ask(key, m.GET, {"key": key})

    def put(self, key: str, lattice_type: int, payload: bytes) -> Record:
        return self._ask(key, m.PUT, {"key": key, "lattice_type": lattice_type, "payload": payload})

    def wait_for_lww(self, key: str, *, timeout_s: float = 15.0) -> bytes:
        """The value of an LWW key once it exists, which only asking again can tell."""
        pause = threading.Event()
        for _ in range(int(timeout_s / 0.05)):
            found = self.get(key)
            if found.error == m.NO_ERROR:
                assert found.lattice_type == m.LWW, found
                value: bytes = decode(m.LWW_VALUE, found.payload)["value"]
                return value
            assert found.error == m.KEY_DNE, found
            pause.wait(0.05)
        raise NothingCameError(f"{key} did not appear within {timeout_s} s")

    def close(self) -> None:
        self._mailbox.close()

    def _ask(self, key: str, kind: int, entry: dict[str, object]) -> Record:
        asked = next(self._ids)
        request = {
            "type": kind,
            "tuples": [entry],
            "response_address": self._mailbox.address["response"],
            "request_id": asked,
        }
        self._pusher.push(self.addresses(key)[0], encode(m.KEY_REQUEST, request))
        raw = self._mailbox.wait_for(
            "response",
            where=lambda raw: decode(m.KEY_RESPONSE, raw).response_id == asked,
            timeout_s=self._timeout_s,
        )[0]
        answered: Record = next(entry for entry in decode(m.KEY_RESPONSE, raw).tuples if entry.key == key)
        return answered


class PlayedAnna:
    """One node of Anna: the routing tier from 6450 on and a storage server on 6200 of one address.

    It keeps what was PUT last, whatever its lattice, except that sets are united. `stored` may be read and
    filled by a test, as lattice type and payload by key. While `silent`, it answers nothing. Its answers
    about the keys in `moved` say that the client has to look their addresses up again. A PUT of a key in
    `failing` is answered with the error that is given there.
    """

    def __init__(self, ip: str, pusher: Pusher, *, routing_threads: int = 1) -> None:
        self.stored: dict[str, tuple[int, bytes]] = {}
        self.silent = False
        self.moved: set[str] = set()
        self.failing: dict[str, int] = {}
        self._server = ports.tcp(ip, ports.KVS_STORAGE)
        self._pusher = pusher
        self.routing = [f"routing {thread}" for thread in range(routing_threads)]
        """What arrives at the routing threads, as `mailbox` names it."""
        threads = {kind: ports.tcp(ip, ports.KVS_ROUTING + n) for n, kind in enumerate(self.routing)}
        self.mailbox = Mailbox({**threads, "storage": self._server}, self._play)

    def lookups(self, key: str) -> int:
        """How often the servers of that key were asked for."""
        asked = [
            decode(m.KEY_ADDRESS_REQUEST, raw) for kind in self.routing for raw in self.mailbox.all(kind)
        ]
        return sum(key in request["keys"] for request in asked)

    def puts(self, key: str) -> list[Record]:
        """The tuples that were PUT at that key, in their order."""
        asked = [decode(m.KEY_REQUEST, raw) for raw in self.mailbox.all("storage")]
        return [entry for r in asked if r.type == m.PUT for entry in r.tuples if entry.key == key]

    def close(self) -> None:
        self.mailbox.close()

    def _play(self, kind: str, raw: bytes) -> None:
        if self.silent:
            return
        if kind in self.routing:
            request = decode(m.KEY_ADDRESS_REQUEST, raw)
            addresses = [{"key": key, "ips": [self._server]} for key in request["keys"]]
            answer = encode(
                m.KEY_ADDRESS_RESPONSE, {"addresses": addresses, "response_id": request.request_id}
            )
        else:
            request = decode(m.KEY_REQUEST, raw)
            apply = self._put if request.type == m.PUT else self._get
            tuples = [{**apply(entry), "invalidate": entry.key in self.moved} for entry in request.tuples]
            answer = encode(
                m.KEY_RESPONSE, {"type": request.type, "tuples": tuples, "response_id": request.request_id}
            )
        self._pusher.push(request.response_address, answer)

    def _get(self, entry: Record) -> dict[str, object]:
        if entry.key not in self.stored:
            return {"key": entry.key, "error": m.KEY_DNE}
        lattice_type, payload = self.stored[entry.key]
        return {"key": entry.key, "lattice_type": lattice_type, "payload": payload}

    def _put(self, entry: Record) -> dict[str, object]:
        if entry.key in self.failing:
            return {"key": entry.key, "error": self.failing[entry.key]}
        payload = entry.payload
        if entry.lattice_type == m.SET and entry.key in self.stored:
            union = {
                value
                for known in (self.stored[entry.key][1], payload)
                for value in decode(m.SET_VALUE, known)["values"]
            }
            payload = encode(m.SET_VALUE, {"values": sorted(union)})
        self.stored[entry.key] = (entry.lattice_type, payload)
        return {"key": entry.key, "lattice_type": entry.lattice_type}
