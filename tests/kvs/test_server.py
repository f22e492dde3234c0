"""The server, spoken to with nothing but sockets and protobuf messages."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from ray_sched.errors import ConfigError, KvsError, PortTakenError
from ray_sched.kvs.lattices import LWW, Lattice, OrderedSetLattice, Priority, SetLattice, SingleCausal
from ray_sched.kvs.server import KvsServer
from ray_sched.kvs.store import Store
from ray_sched.wire import anna_pb2 as anna

from .conftest import Peer, peer, serve


class Anna:
    """A client made by hand."""

    def __init__(self, ip: str, stack: ExitStack) -> None:
        self.ip = ip
        self.peer: Peer = peer(stack, ip, 6460, 6760)

    def addresses(self, *keys: str) -> anna.KeyAddressResponse:
        request = anna.KeyAddressRequest(
            response_address=f"tcp://{self.ip}:6760", keys=keys, request_id="address-1"
        )
        self.peer.push(f"tcp://{self.ip}:6450", request.SerializeToString())
        return anna.KeyAddressResponse.FromString(self.peer.pull(6760))

    def ask(self, kind: anna.RequestType, *tuples: anna.KeyTuple) -> anna.KeyResponse:
        request = anna.KeyRequest(
            type=kind, tuples=tuples, response_address=f"tcp://{self.ip}:6460", request_id="request-1"
        )
        self.storage(request.SerializeToString())
        return anna.KeyResponse.FromString(self.peer.pull(6460))

    def put(self, key: str, lattice: Lattice) -> anna.KeyTuple:
        asked = anna.KeyTuple(key=key, lattice_type=lattice.type, payload=lattice.serialize())
        return self.ask(anna.PUT, asked).tuples[0]

    def get(self, key: str) -> anna.KeyTuple:
        return self.ask(anna.GET, anna.KeyTuple(key=key)).tuples[0]

    def storage(self, message: bytes) -> None:
        self.peer.push(f"tcp://{self.ip}:6200", message)


@pytest.fixture
def by_hand(server: KvsServer, stack: ExitStack) -> Anna:
    return Anna(server.ip, stack)


def test_the_routing_tier_names_the_storage_server(by_hand: Anna) -> None:
    storage = f"tcp://{by_hand.ip}:6200"
    assert by_hand.addresses("a", "b") == anna.KeyAddressResponse(
        addresses=[
            anna.KeyAddressResponse.KeyAddress(key="a", ips=[storage]),
            anna.KeyAddressResponse.KeyAddress(key="b", ips=[storage]),
        ],
        response_id="address-1",
    )


def test_what_was_put_is_what_is_got(by_hand: Anna) -> None:
    payload = LWW(10, b"v").serialize()
    full = anna.KeyTuple(key="k", lattice_type=anna.LWW, payload=payload)
    assert by_hand.ask(anna.PUT, full) == anna.KeyResponse(
        type=anna.PUT, tuples=[anna.KeyTuple(key="k", lattice_type=anna.LWW)], response_id="request-1"
    )
    assert by_hand.ask(anna.GET, anna.KeyTuple(key="k", address_cache_size=1)) == anna.KeyResponse(
        type=anna.GET, tuples=[full], response_id="request-1"
    )


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (LWW(2, b"new"), LWW(1, b"old"), LWW(2, b"new")),
        (SetLattice(frozenset({b"a"})), SetLattice(frozenset({b"b"})), SetLattice(frozenset({b"a", b"b"}))),
        (OrderedSetLattice((b"b",)), OrderedSetLattice((b"a",)), OrderedSetLattice((b"a", b"b"))),
        (
            SingleCausal({"a": 1}, frozenset({b"x"})),
            SingleCausal({"b": 1}, frozenset({b"y"})),
            SingleCausal({"a": 1, "b": 1}, frozenset({b"x", b"y"})),
        ),
        (Priority(1, b"low"), Priority(2, b"high"), Priority(1, b"low")),
    ],
    ids=lambda lattice: type(lattice).__name__,
)
def test_puts_merge(by_hand: Anna, first: Lattice, second: Lattice, expected: Lattice) -> None:
    by_hand.put("k", first)
    by_hand.put("k", second)
    got = by_hand.get("k")
    assert (got.lattice_type, got.payload) == (expected.type, expected.serialize())


def test_each_key_of_a_request_has_its_own_result(by_hand: Anna) -> None:
    by_hand.put("set", SetLattice(frozenset({b"a"})))
    lww = LWW(1, b"v").serialize()
    response = by_hand.ask(
        anna.PUT,
        anna.KeyTuple(key="set", lattice_type=anna.LWW, payload=lww),
        anna.KeyTuple(key="fine", lattice_type=anna.LWW, payload=lww),
        anna.KeyTuple(key="untyped", payload=lww),
        anna.KeyTuple(key="garbage", lattice_type=anna.LWW, payload=b"\xff\xff"),
    )
    assert {answer.key: answer.error for answer in response.tuples} == {
        "set": anna.LATTICE,
        "fine": anna.NO_ERROR,
        "untyped": anna.LATTICE,
        "garbage": anna.LATTICE,
    }
    response = by_hand.ask(
        anna.GET, *(anna.KeyTuple(key=key) for key in ("set", "fine", "untyped", "garbage"))
    )
    assert [answer.error for answer in response.tuples] == [0, 0, anna.KEY_DNE, anna.KEY_DNE]
    assert response.tuples[2] == anna.KeyTuple(key="untyped", error=anna.KEY_DNE)


def test_a_request_that_names_a_large_key_very_often_gets_no_larger_answer(ip: str, stack: ExitStack) -> None:
    by_hand = Anna(serve(ip, stack, max_answer_bytes=5_000).ip, stack)
    by_hand.put("large", LWW(1, b"x" * 1_000))
    answer = by_hand.ask(anna.GET, *[anna.KeyTuple(key="large")] * 100)
    assert [t.error for t in answer.tuples] == [anna.NO_ERROR] * 4 + [anna.TIMEOUT] * 96
    by_hand.put("larger", LWW(1, b"x" * 9_000))
    assert by_hand.get("larger").error == anna.NO_ERROR


@pytest.mark.parametrize(("known", "invalidate"), [(0, False), (1, False), (2, True)])
def test_a_client_with_another_number_of_addresses_is_told(
    by_hand: Anna, known: int, invalidate: bool
) -> None:
    by_hand.put("k", LWW(1, b"v"))
    (answer,) = by_hand.ask(anna.GET, anna.KeyTuple(key="k", address_cache_size=known)).tuples
    assert answer.invalidate is invalidate
    assert answer.payload == LWW(1, b"v").serialize()


def test_what_makes_no_sense_is_counted_and_the_next_request_served(server: KvsServer, by_hand: Anna) -> None:
    by_hand.storage(b"\xff\xff\xff")
    by_hand.peer.push(f"tcp://{server.ip}:6450", b"\xff\xff\xff")
    by_hand.storage(anna.KeyRequest(tuples=[anna.KeyTuple(key="k")]).SerializeToString())
    assert by_hand.put("k", LWW(1, b"v")).error == anna.NO_ERROR
    assert by_hand.addresses("k").response_id == "address-1"
    assert server.stats()["bad_messages"] == 3


@pytest.mark.parametrize(
    "address", ["", "nonsense", "tcp://*:6460", "ipc:///tmp/x", "tcp://127.0.0.1", "tcp://127.0.0.1:99999"]
)
def test_a_response_address_that_is_none_is_counted(server: KvsServer, by_hand: Anna, address: str) -> None:
    request = anna.KeyRequest(type=anna.GET, tuples=[anna.KeyTuple(key="k")], response_address=address)
    by_hand.storage(request.SerializeToString())
    assert by_hand.get("k").error == anna.KEY_DNE
    assert server.stats()["bad_addresses"] == 1


def test_answers_to_more_clients_than_it_keeps_connected(ip: str, stack: ExitStack) -> None:
    serve(ip, stack, max_sockets=2)
    peers = [Peer(ip, port) for port in range(6460, 6465)]
    for made in peers:
        stack.callback(made.close)
    for _ in range(2):
        for offset, made in enumerate(peers):
            request = anna.KeyRequest(
                type=anna.GET,
                tuples=[anna.KeyTuple(key="k")],
                response_address=f"tcp://{ip}:{6460 + offset}",
                request_id=str(offset),
            )
            made.push(f"tcp://{ip}:6200", request.SerializeToString())
            assert anna.KeyResponse.FromString(made.pull(6460 + offset)).response_id == str(offset)


def test_a_write_that_cannot_be_committed_is_not_acknowledged(
    ip: str, stack: ExitStack, tmp_path: Path
) -> None:
    store = Store(str(tmp_path / "store.db"))
    stack.callback(store.close)
    server = serve(ip, stack, store)
    by_hand = Anna(ip, stack)
    assert by_hand.put("small", LWW(1, b"v")).error == anna.NO_ERROR
    assert store._file is not None
    store._file.execute("PRAGMA max_page_count=10")
    assert by_hand.put("large", LWW(1, bytes(1 << 20))).error == anna.TIMEOUT
    assert by_hand.get("large").error == anna.KEY_DNE
    assert by_hand.put("small", LWW(2, b"w")).error == anna.NO_ERROR
    assert server.stats()["failed_batches"] == 1


def test_a_taken_port_is_named_with_who_could_hold_it(server: KvsServer, stack: ExitStack) -> None:
    with pytest.raises(PortTakenError, match=rf"port 6450 of {server.ip} is taken; another scheduler group"):
        KvsServer(server.ip, Store()).start()
    assert Anna(server.ip, stack).get("k").error == anna.KEY_DNE


def test_when_one_port_is_taken_the_other_is_let_go(ip: str, stack: ExitStack) -> None:
    holder = peer(stack, ip, 6200)
    server = KvsServer(ip, Store())
    with pytest.raises(PortTakenError, match="port 6200"):
        server.start()
    holder.close()
    server.start()
    stack.callback(server.stop)
    with pytest.raises(KvsError, match="started already"):
        server.start()


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on port 6450 of '192\.0\.2\.1'"):
        KvsServer("192.0.2.1", Store()).start()


def test_stopped_it_frees_its_ports_and_can_be_replaced(ip: str, stack: ExitStack) -> None:
    store = Store()
    for number in range(3):
        server = serve(ip, stack, store)
        with ExitStack() as inner:
            assert Anna(ip, inner).put("k", LWW(number, b"v")).error == anna.NO_ERROR
        server.stop()
        server.stop()
    assert store.get("k") == LWW(2, b"v")
