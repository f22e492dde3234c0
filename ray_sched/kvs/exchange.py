"""The client's side of Anna's protocol: what to send for a call, and what an answer means for it.

Rule 1: no socket, no clock, no thread: calls, answers and times come in, effects go out.
Rule 2: an answer belongs to a request by its id, and may answer some of its keys only (Anna keeps
keys whose servers it does not know yet for later); a key that is not waited for is late, and dropped.
Rule 3: each try asks again for what is still open, under new ids, after a pause that is partly
random. Merges are idempotent, so that a write may be sent again.
"""

from __future__ import annotations

import heapq
import random
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message

from ray_sched.errors import BadMessageError, KvsError, LatticeMismatchError, RaySchedError, TimedOutError
from ray_sched.kvs.lattices import Lattice, parse, type_name
from ray_sched.wire import anna_pb2 as anna
from ray_sched.wire.ports import KVS_ROUTING, tcp

M = TypeVar("M", bound=Message)

PAUSE_S: Final = 0.02
"""The mean pause after the first try, doubled after each further one up to `LONGEST_PAUSE_S`."""
LONGEST_PAUSE_S: Final = 0.5
ASK_AGAIN: Final = (anna.WRONG_THREAD, anna.TIMEOUT, anna.NO_SERVERS)


@dataclass(frozen=True)
class Send:
    """Hand a message to an address, without waiting."""

    address: str
    message: bytes


@dataclass(frozen=True)
class Reconnect:
    """An address did not answer: give up its connection if it was made before that time (s)."""

    address: str
    older_than: float


@dataclass(frozen=True)
class Finished:
    """A call has its results, or failed."""

    call: Call
    error: RaySchedError | None


Effect = Send | Reconnect | Finished


@dataclass(eq=False)
class Call:
    """One get or put of any number of keys.

    `tuples` are what is asked, by key, without addresses; `results` fill up as answers come: the
    lattice of a key that was read, None for one that does not exist or was written.
    """

    type: anna.RequestType
    tuples: dict[str, anna.KeyTuple]
    results: dict[str, Lattice | None] = field(default_factory=dict)
    errors: list[RaySchedError] = field(default_factory=list)
    number: int = 0
    tries: int = 0
    tried_at: float = 0.0
    due: float = 0.0
    """When the try times out, or the next one starts."""
    open: dict[str, str] = field(default_factory=dict)
    """The keys without a result, and the address that each waits for; empty once it refused."""
    unplaced: set[str] = field(default_factory=set)
    """The open keys whose servers are asked for."""
    places: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The servers of the other open keys, as this try knows them."""
    request_ids: list[str] = field(default_factory=list)
    refusal: str = ""

    @classmethod
    def to_get(cls, keys: Iterable[str]) -> Call:
        return cls(anna.GET, {key: anna.KeyTuple(key=key) for key in keys})

    @classmethod
    def to_put(cls, lattices: Mapping[str, Lattice]) -> Call:
        return cls(
            anna.PUT,
            {
                key: anna.KeyTuple(key=key, lattice_type=lattice.type, payload=lattice.serialize())
                for key, lattice in lattices.items()
            },
        )


class Exchange:
    """The calls in flight, and the addresses of the servers that hold each key.

    `client_id` starts every request id and must not be any other client's; `respond_to` and
    `respond_addresses_to` are the addresses where this client takes answers. Times are seconds on
    one monotonic clock.
    """

    def __init__(
        self,
        routing_host: str,
        client_id: str,
        respond_to: str,
        respond_addresses_to: str,
        *,
        routing_ports: int,
        timeout_s: float,
        retries: int,
        cached_addresses: int,
        rng: random.Random,
    ) -> None:
        self.late_answers = 0
        self.bad_answers = 0
        self._routing = [tcp(routing_host, KVS_ROUTING + thread) for thread in range(routing_ports)]
        self._client_id = client_id
        self._respond_to = respond_to
        self._respond_addresses_to = respond_addresses_to
        self._timeout_s = timeout_s
        self._retries = retries
        self._cached_addresses = cached_addresses
        self._rng = rng
        self._addresses: OrderedDict[str, tuple[str, ...]] = OrderedDict()
        self._calls: dict[int, Call] = {}
        self._requests: dict[str, Call] = {}
        self._timers: list[tuple[float, int]] = []
        self._numbers = 0

    @property
    def in_flight(self) -> int:
        """How many calls are not finished."""
        return len(self._calls)

    def next_due(self) -> float | None:
        """When `tick` has something to do; None when nothing is in flight."""
        while self._timers and self._stale(*self._timers[0]):
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def submit(self, call: Call, now: float) -> list[Effect]:
        """Start a call of at least one key."""
        self._numbers += 1
        call.number = self._numbers
        call.open = dict.fromkeys(call.tuples, "")
        self._calls[call.number] = call
        return self._try(call, now)

    def tick(self, now: float) -> list[Effect]:
        """What is due by now: tries that timed out, and pauses that are over."""
        effects: list[Effect] = []
        while (due := self.next_due()) is not None and due <= now:
            call = self._calls[heapq.heappop(self._timers)[1]]
            waited_for = {address for address in call.open.values() if address}
            if not waited_for:
                effects += self._try(call, now)
                continue
            # A server that is gone may have a successor elsewhere, and a connection may be dead
            # without knowing it.
            for key in call.open:
                self._addresses.pop(key, None)
            effects += [Reconnect(address, call.tried_at) for address in sorted(waited_for)]
            effects += self._again(call, now)
        return effects

    def take_addresses(self, message: bytes, now: float) -> list[Effect]:
        """An answer of the routing tier."""
        answer = self._parse(anna.KeyAddressResponse, message)
        call = self._requests.get(answer.response_id) if answer is not None else None
        if answer is None or call is None:
            self.late_answers += answer is not None
            return []
        for found in answer.addresses:
            if found.key not in call.unplaced:
                self.late_answers += 1
            elif found.ips and answer.error == anna.NO_ERROR:
                call.unplaced.discard(found.key)
                call.places[found.key] = tuple(found.ips)
                self._remember(found.key, call.places[found.key])
            else:
                self._no_server(call, found.key)
        if answer.error != anna.NO_ERROR:
            for key in list(call.unplaced):
                self._no_server(call, key)
        if call.unplaced:
            # Anna's routing tier answers for one key alone when it has to ask around for it, and
            # forgets those that were asked for together with it.
            together = len(call.request_ids) == 1 and len(call.tuples) > 1
            return self._ask_addresses(call, sorted(call.unplaced), each=True) if together else []
        return self._ask_servers(call) + self._settle(call, now)

    def take_response(self, message: bytes, now: float) -> list[Effect]:
        """An answer of a storage server."""
        answer = self._parse(anna.KeyResponse, message)
        call = self._requests.get(answer.response_id) if answer is not None else None
        if answer is None or call is None:
            self.late_answers += answer is not None
            return []
        for result in answer.tuples:
            if result.invalidate or result.error == anna.WRONG_THREAD:
                self._addresses.pop(result.key, None)
            if not call.open.get(result.key):
                self.late_answers += 1
            elif result.error in ASK_AGAIN:
                reason = anna.AnnaError.Name(result.error)
                self._refused(
                    call, result.key, f"{call.open[result.key]} answered {reason} for {result.key!r}"
                )
            else:
                self._result(call, result)
        return self._settle(call, now)

    def _try(self, call: Call, now: float) -> list[Effect]:
        call.tries += 1
        call.tried_at = now
        call.refusal = ""
        self._set_timer(call, now + self._timeout_s)
        self._forget_requests(call)
        call.places = {key: self._addresses[key] for key in call.open if key in self._addresses}
        for key in call.places:
            self._addresses.move_to_end(key)
        call.unplaced = call.open.keys() - call.places.keys()
        if call.unplaced:
            return self._ask_addresses(call, sorted(call.unplaced), each=call.tries > 1)
        return self._ask_servers(call)

    def _ask_addresses(self, call: Call, keys: list[str], *, each: bool) -> list[Effect]:
        effects: list[Effect] = []
        for group in [[key] for key in keys] if each else [keys]:
            address = self._rng.choice(self._routing)
            call.open.update(dict.fromkeys(group, address))
            request = anna.KeyAddressRequest(
                response_address=self._respond_addresses_to, keys=group, request_id=self._request_id(call)
            )
            effects.append(Send(address, request.SerializeToString()))
        return effects

    def _ask_servers(self, call: Call) -> list[Effect]:
        """One request for each server; servers of keys that are held several times are picked at random."""
        requests: dict[str, anna.KeyRequest] = {}
        for key, addresses in call.places.items():
            address = addresses[0] if len(addresses) == 1 else self._rng.choice(addresses)
            call.open[key] = address
            request = requests.get(address)
            if request is None:
                request = requests[address] = anna.KeyRequest(
                    type=call.type, response_address=self._respond_to, request_id=self._request_id(call)
                )
            asked = request.tuples.add()
            asked.CopyFrom(call.tuples[key])
            asked.address_cache_size = len(addresses)
        return [Send(address, request.SerializeToString()) for address, request in requests.items()]

    def _result(self, call: Call, result: anna.KeyTuple) -> None:
        del call.open[result.key]
        call.results[result.key] = None
        if result.error == anna.LATTICE:
            given = type_name(call.tuples[result.key].lattice_type)
            call.errors.append(
                LatticeMismatchError(f"the key {result.key!r} does not take a {given} lattice")
            )
        elif result.error == anna.KEY_DNE and call.type == anna.GET:
            pass
        elif result.error != anna.NO_ERROR:
            call.errors.append(
                KvsError(f"the key-value store answered error {result.error} for {result.key!r}")
            )
        elif call.type == anna.GET:
            try:
                call.results[result.key] = parse(result.lattice_type, result.payload)
            except BadMessageError as error:
                call.errors.append(BadMessageError(f"the value of the key {result.key!r}: {error}"))

    def _no_server(self, call: Call, key: str) -> None:
        call.unplaced.discard(key)
        self._refused(call, key, f"the routing tier at {call.open[key]} knows no server for {key!r}")

    def _refused(self, call: Call, key: str, why: str) -> None:
        call.open[key] = ""
        call.refusal = why

    def _settle(self, call: Call, now: float) -> list[Effect]:
        """Finish a call that waits for no answer any more, or try again what was refused."""
        if not call.open:
            return self._finish(call)
        return [] if any(call.open.values()) else self._again(call, now)

    def _again(self, call: Call, now: float) -> list[Effect]:
        if call.tries > self._retries:
            call.errors.append(self._gave_up(call))
            return self._finish(call)
        call.open = dict.fromkeys(call.open, "")
        call.unplaced = set()
        self._forget_requests(call)
        pause_s = min(PAUSE_S * 2 ** (call.tries - 1), LONGEST_PAUSE_S)
        self._set_timer(call, now + pause_s * self._rng.uniform(0.5, 1.5))
        return []

    def _gave_up(self, call: Call) -> RaySchedError:
        silent = sorted({address for address in call.open.values() if address})
        keys = ", ".join(repr(key) for key in list(call.open)[:3]) + (", ..." if len(call.open) > 3 else "")
        tries = f"{call.tries} {'try' if call.tries == 1 else 'tries'}"
        if not silent:
            return KvsError(f"the key-value store could not serve {keys} in {tries}: {call.refusal}")
        what = "PUT" if call.type == anna.PUT else "GET"
        return TimedOutError(
            f"no answer from the key-value store at {', '.join(silent)} to a {what} of {keys} "
            f"in {tries} of {self._timeout_s:g} s; is it running, and is its address right?"
        )

    def _finish(self, call: Call) -> list[Effect]:
        self._forget_requests(call)
        del self._calls[call.number]
        return [Finished(call, call.errors[0] if call.errors else None)]

    def _remember(self, key: str, addresses: tuple[str, ...]) -> None:
        self._addresses[key] = addresses
        self._addresses.move_to_end(key)
        if len(self._addresses) > self._cached_addresses:
            self._addresses.popitem(last=False)

    def _request_id(self, call: Call) -> str:
        self._numbers += 1
        request_id = f"{self._client_id}:{self._numbers}"
        call.request_ids.append(request_id)
        self._requests[request_id] = call
        return request_id

    def _forget_requests(self, call: Call) -> None:
        for request_id in call.request_ids:
            del self._requests[request_id]
        call.request_ids = []

    def _set_timer(self, call: Call, due: float) -> None:
        call.due = due
        heapq.heappush(self._timers, (due, call.number))

    def _stale(self, due: float, number: int) -> bool:
        call = self._calls.get(number)
        return call is None or call.due != due

    def _parse(self, kind: type[M], message: bytes) -> M | None:
        answer = kind()
        try:
            answer.ParseFromString(message)
        except (DecodeError, ValueError):
            self.bad_answers += 1
            return None
        return answer
