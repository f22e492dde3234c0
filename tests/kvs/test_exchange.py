"""The client's decisions, without a socket: what it sends, and what it makes of answers."""

from __future__ import annotations

import random
from typing import Any

import pytest

from ray_sched.errors import BadMessageError, KvsError, LatticeMismatchError, TimedOutError
from ray_sched.kvs.exchange import Call, Effect, Exchange, Finished, Reconnect, Send
from ray_sched.kvs.lattices import LWW, SetLattice
from ray_sched.wire import anna_pb2 as anna

ROUTING = "tcp://10.0.0.1:6450"
ONE, TWO = "tcp://10.0.0.2:6200", "tcp://10.0.0.3:6201"


def exchange(**settings: Any) -> Exchange:
    settings = {"routing_ports": 1, "timeout_s": 3.0, "retries": 2, "cached_addresses": 100, **settings}
    return Exchange(
        "10.0.0.1", "me", "tcp://10.0.0.9:6480", "tcp://10.0.0.9:6780", rng=random.Random(1), **settings
    )


def address_requests(effects: list[Effect]) -> list[anna.KeyAddressRequest]:
    return [
        anna.KeyAddressRequest.FromString(effect.message)
        for effect in effects
        if isinstance(effect, Send) and ":645" in effect.address
    ]


def key_requests(effects: list[Effect]) -> dict[str, anna.KeyRequest]:
    return {
        effect.address: anna.KeyRequest.FromString(effect.message)
        for effect in effects
        if isinstance(effect, Send) and ":620" in effect.address
    }


def places(request: anna.KeyAddressRequest, found: dict[str, list[str]], **fields: Any) -> bytes:
    return anna.KeyAddressResponse(
        addresses=[anna.KeyAddressResponse.KeyAddress(key=key, ips=ips) for key, ips in found.items()],
        response_id=request.request_id,
        **fields,
    ).SerializeToString()


def response(request: anna.KeyRequest, *tuples: anna.KeyTuple) -> bytes:
    return anna.KeyResponse(
        type=request.type, tuples=tuples, response_id=request.request_id
    ).SerializeToString()


def held(key: str, timestamp: int = 1, value: bytes = b"v", **fields: Any) -> anna.KeyTuple:
    return anna.KeyTuple(key=key, lattice_type=anna.LWW, payload=LWW(timestamp, value).serialize(), **fields)


def finished(effects: list[Effect]) -> Finished:
    (effect,) = effects
    assert isinstance(effect, Finished)
    return effect


def locate(it: Exchange, keys: dict[str, list[str]]) -> dict[str, anna.KeyRequest]:
    """Start a get of those keys and tell where they are; the requests that it sends to the servers."""
    effects = it.submit(Call.to_get(keys), 0.0)
    (request,) = address_requests(effects)
    return key_requests(it.take_addresses(places(request, keys), 0.0))


def test_a_first_get_asks_for_the_address_and_a_second_does_not() -> None:
    it = exchange()
    call = Call.to_get(["k"])
    (ask,) = address_requests(it.submit(call, 0.0))
    assert list(ask.keys) == ["k"]
    assert ask.response_address == "tcp://10.0.0.9:6780"
    requests = key_requests(it.take_addresses(places(ask, {"k": [ONE]}), 0.0))
    assert list(requests) == [ONE]
    assert requests[ONE].response_address == "tcp://10.0.0.9:6480"
    assert list(requests[ONE].tuples) == [anna.KeyTuple(key="k", address_cache_size=1)]
    done = finished(it.take_response(response(requests[ONE], held("k")), 0.0))
    assert (done.call, done.error) == (call, None)
    assert call.results == {"k": LWW(1, b"v")}
    assert it.next_due() is None
    assert list(key_requests(it.submit(Call.to_get(["k"]), 0.0))) == [ONE]


def test_many_keys_are_one_request_for_each_server() -> None:
    it = exchange()
    requests = locate(it, {"a": [ONE], "b": [TWO], "c": [ONE]})
    assert {address: [asked.key for asked in request.tuples] for address, request in requests.items()} == {
        ONE: ["a", "c"],
        TWO: ["b"],
    }
    missing = anna.KeyTuple(key="c", error=anna.KEY_DNE)
    assert it.take_response(response(requests[ONE], held("a"), missing), 0.0) == []
    done = finished(it.take_response(response(requests[TWO], held("b")), 0.0))
    assert done.call.results == {"a": LWW(1, b"v"), "b": LWW(1, b"v"), "c": None}


def test_a_put_carries_type_and_payload() -> None:
    it = exchange()
    (ask,) = address_requests(it.submit(Call.to_put({"k": SetLattice(frozenset({b"x"}))}), 0.0))
    requests = key_requests(it.take_addresses(places(ask, {"k": [ONE, TWO]}), 0.0))
    ((_, request),) = requests.items()
    assert request.type == anna.PUT
    payload = SetLattice(frozenset({b"x"})).serialize()
    assert list(request.tuples) == [
        anna.KeyTuple(key="k", lattice_type=anna.SET, payload=payload, address_cache_size=2)
    ]
    done = finished(it.take_response(response(request, anna.KeyTuple(key="k", lattice_type=anna.SET)), 0.0))
    assert done.error is None


def test_answers_in_parts_are_put_together() -> None:
    it = exchange()
    requests = locate(it, {"a": [ONE], "b": [ONE]})
    assert it.take_response(response(requests[ONE], held("b")), 0.0) == []
    assert it.take_response(response(requests[ONE], held("b")), 0.0) == []
    assert it.late_answers == 1
    assert finished(it.take_response(response(requests[ONE], held("a")), 0.0)).error is None


def test_keys_that_the_routing_tier_left_out_are_asked_for_one_by_one() -> None:
    it = exchange()
    (ask,) = address_requests(it.submit(Call.to_get("abc"), 0.0))
    effects = it.take_addresses(places(ask, {"b": [ONE]}), 0.0)
    singles = address_requests(effects)
    assert [list(single.keys) for single in singles] == [["a"], ["c"]]
    assert it.take_addresses(places(singles[0], {"a": [ONE]}), 0.0) == []
    requests = key_requests(it.take_addresses(places(singles[1], {"c": [ONE]}), 0.0))
    assert sorted(asked.key for asked in requests[ONE].tuples) == ["a", "b", "c"]


@pytest.mark.parametrize("reason", ["invalidate", "WRONG_THREAD"])
def test_a_server_makes_the_client_look_up_the_address_again(reason: str) -> None:
    it = exchange()
    requests = locate(it, {"k": [ONE]})
    if reason == "invalidate":
        effects = it.take_response(response(requests[ONE], held("k", invalidate=True)), 0.0)
        assert finished(effects).call.results == {"k": LWW(1, b"v")}
        effects = it.submit(Call.to_get(["k"]), 0.0)
    else:
        wrong = anna.KeyTuple(key="k", error=anna.WRONG_THREAD)
        assert it.take_response(response(requests[ONE], wrong), 0.0) == []
        due = it.next_due()
        assert due is not None
        assert 0 < due < 1
        effects = it.tick(due)
    (ask,) = address_requests(effects)
    requests = key_requests(it.take_addresses(places(ask, {"k": [TWO]}), 0.1))
    assert list(requests) == [TWO]
    assert finished(it.take_response(response(requests[TWO], held("k")), 0.1)).error is None


def test_a_silent_server_is_asked_again_at_a_new_address_and_over_a_new_connection() -> None:
    it = exchange()
    first = locate(it, {"k": [ONE]})
    assert it.tick(2.9) == []
    assert it.tick(3.0) == [Reconnect(ONE, older_than=0.0)]
    due = it.next_due()
    assert due is not None
    (ask,) = address_requests(it.tick(due))
    second = key_requests(it.take_addresses(places(ask, {"k": [ONE]}), due))
    assert it.take_response(response(first[ONE], held("k", value=b"late")), due) == []
    assert it.late_answers == 1
    done = finished(it.take_response(response(second[ONE], held("k", value=b"now")), due))
    assert done.call.results == {"k": LWW(1, b"now")}


def test_what_nobody_answers_times_out_with_the_address_and_the_time() -> None:
    it = exchange(retries=1, timeout_s=0.5)
    effects = it.submit(Call.to_get(["k"]), 0.0)
    tries = 0
    while not isinstance(effects[-1] if effects else None, Finished):
        tries += len(address_requests(effects))
        due = it.next_due()
        assert due is not None
        effects = it.tick(due)
    assert tries == 2
    assert due < 1.1
    error = finished(effects[1:]).error
    assert isinstance(error, TimedOutError)
    assert str(error).startswith(
        f"no answer from the key-value store at {ROUTING} to a GET of 'k' in 2 tries of 0.5 s"
    )
    assert it.next_due() is None


def test_pauses_grow_but_stay_short() -> None:
    it = exchange(retries=30, timeout_s=1.0)
    it.submit(Call.to_get(["k"]), 0.0)
    pauses: list[float] = []
    started = 0.0
    while it.in_flight:
        due = it.next_due()
        assert due is not None
        if any(isinstance(effect, Send) for effect in it.tick(due)):
            pauses.append(due - started - 1.0)
            started = due
    assert len(pauses) == 30
    assert 0 < pauses[0] < 0.05
    assert 0.2 < max(pauses) < 1.0


def test_only_what_is_open_is_asked_for_again() -> None:
    it = exchange()
    requests = locate(it, {"a": [ONE], "b": [TWO]})
    it.take_response(response(requests[ONE], held("a")), 0.0)
    assert it.tick(3.0) == [Reconnect(TWO, older_than=0.0)]
    due = it.next_due()
    assert due is not None
    (ask,) = address_requests(it.tick(due))
    assert list(ask.keys) == ["b"]


@pytest.mark.parametrize("listed", [True, False])
def test_without_servers_it_tries_again_and_then_says_so(listed: bool) -> None:
    it = exchange(retries=1)
    effects = it.submit(Call.to_get(["a", "b"]), 0.0)
    found: dict[str, list[str]] = {"a": [], "b": []} if listed else {}
    for _ in range(2):
        answers: list[Effect] = []
        for ask in address_requests(effects):
            mine = {key: ips for key, ips in found.items() if key in ask.keys}
            answers += it.take_addresses(places(ask, mine, error=anna.NO_SERVERS), 0.0)
        due = it.next_due()
        effects = it.tick(due) if due is not None else answers
    error = finished(answers).error
    assert isinstance(error, KvsError)
    assert f"the routing tier at {ROUTING} knows no server" in str(error)


def test_another_lattice_type_is_an_error_of_its_own() -> None:
    it = exchange()
    (ask,) = address_requests(it.submit(Call.to_put({"a": LWW(1, b""), "b": LWW(1, b"")}), 0.0))
    requests = key_requests(it.take_addresses(places(ask, {"a": [ONE], "b": [ONE]}), 0.0))
    refused = anna.KeyTuple(key="a", error=anna.LATTICE)
    assert it.take_response(response(requests[ONE], refused), 0.0) == []
    error = finished(it.take_response(response(requests[ONE], held("b")), 0.0)).error
    assert isinstance(error, LatticeMismatchError)
    assert "'a' does not take a LWW lattice" in str(error)


def test_a_value_that_does_not_parse_is_an_error() -> None:
    it = exchange()
    requests = locate(it, {"k": [ONE]})
    bad = anna.KeyTuple(key="k", lattice_type=anna.LWW, payload=b"\xff\xff")
    assert isinstance(finished(it.take_response(response(requests[ONE], bad), 0.0)).error, BadMessageError)


def test_an_error_that_it_does_not_know_is_an_error() -> None:
    it = exchange()
    requests = locate(it, {"k": [ONE]})
    odd = anna.KeyTuple(key="k")
    odd.error = 77  # type: ignore[assignment]
    error = finished(it.take_response(response(requests[ONE], odd), 0.0)).error
    assert "error 77" in str(error)


def test_answers_that_are_not_for_it_are_counted_and_dropped() -> None:
    it = exchange()
    it.submit(Call.to_get(["k"]), 0.0)
    strange_request = anna.KeyRequest(type=anna.GET, request_id="somebody else's")
    assert it.take_response(response(strange_request, held("k")), 0.0) == []
    assert it.take_response(b"\xff\xff", 0.0) == []
    assert it.take_addresses(b"\xff\xff", 0.0) == []
    assert (it.late_answers, it.bad_answers) == (1, 2)


def test_the_address_cache_is_bounded_and_a_call_larger_than_it_works() -> None:
    it = exchange(cached_addresses=2)
    requests = locate(it, {"a": [ONE], "b": [ONE], "c": [ONE]})
    assert len(requests[ONE].tuples) == 3
    (ask,) = address_requests(it.submit(Call.to_get("abc"), 0.0))
    assert list(ask.keys) == ["a"]


def test_an_address_that_is_invalidated_meanwhile_does_not_leave_a_call_waiting() -> None:
    it = exchange()
    requests = locate(it, {"a": [ONE]})
    (ask,) = address_requests(it.submit(Call.to_get(["a", "b"]), 0.0))
    it.take_response(response(requests[ONE], held("a", invalidate=True)), 0.0)
    second = key_requests(it.take_addresses(places(ask, {"b": [TWO]}), 0.0))
    assert set(second) == {ONE, TWO}


def test_all_routing_threads_are_asked() -> None:
    it = exchange(routing_ports=4, cached_addresses=1)
    asked = {
        effect.address
        for number in range(100)
        for effect in it.submit(Call.to_get([f"k{number}"]), 0.0)
        if isinstance(effect, Send)
    }
    assert asked == {f"tcp://10.0.0.1:{port}" for port in range(6450, 6454)}
