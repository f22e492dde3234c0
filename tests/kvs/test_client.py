"""The client over real sockets: against the server, and against peers that play an odd one."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack

import pytest

from ray_sched.errors import ConfigError, KvsError, LatticeMismatchError, PortTakenError, TimedOutError
from ray_sched.kvs.client import KvsClient
from ray_sched.kvs.lattices import (
    LWW,
    Lattice,
    MultiCausal,
    OrderedSetLattice,
    Priority,
    SetLattice,
    SingleCausal,
)
from ray_sched.kvs.server import KvsServer
from ray_sched.kvs.store import Store
from ray_sched.wire import anna_pb2 as anna

from .conftest import Peer, peer, serve

LATTICES: list[Lattice] = [
    LWW(1, b"v"),
    SetLattice(frozenset({b"a", b"b"})),
    OrderedSetLattice((b"a", b"b")),
    SingleCausal({"base": 1}, frozenset({b"x"})),
    MultiCausal({"base": 1}, {"d": {"base": 2}}, frozenset({b"x"})),
    Priority(1.5, b"v"),
]


@pytest.mark.parametrize("lattice", LATTICES, ids=lambda lattice: type(lattice).__name__)
def test_what_was_put_is_what_is_got(client: KvsClient, lattice: Lattice) -> None:
    assert client.get("k") is None
    client.put("k", lattice)
    assert client.get("k") == lattice


def test_many_keys_at_once(client: KvsClient, server: KvsServer) -> None:
    written: dict[str, Lattice] = {f"k{number}": LWW(number, b"v") for number in range(2000)}
    client.put_many(written)
    before = server.stats()["requests"]
    assert client.get_many([*written, "nope"]) == {**written, "nope": None}
    assert server.stats()["requests"] == before + 1
    assert client.get_many([]) == {}


def test_bytes_of_one_client_never_lose_against_its_own_earlier_ones(
    server: KvsServer, stack: ExitStack
) -> None:
    client = stack.enter_context(KvsClient(server.ip, server.ip, timeout_s=10.0, clock=lambda: 100.0))
    assert client.get_bytes("k") is None
    for value in (b"c", b"b", b"a"):
        client.put_bytes("k", value)
        assert client.get_bytes("k") == value
    assert client.get("k") == LWW(1002, b"a")


def test_another_type_is_refused(client: KvsClient) -> None:
    client.put("k", SetLattice(frozenset({b"a"})))
    with pytest.raises(LatticeMismatchError, match="'k' does not take a LWW lattice"):
        client.put_bytes("k", b"v")
    with pytest.raises(LatticeMismatchError, match="'k' holds a SET lattice, not LWW"):
        client.get_bytes("k")


def test_many_threads_share_a_client(client: KvsClient) -> None:
    def work(number: int) -> None:
        for turn in range(20):
            client.put_bytes(f"own-{number}", str(turn).encode())
            client.put("shared", SetLattice(frozenset({f"{number}-{turn}".encode()})))
            assert client.get_bytes(f"own-{number}") == str(turn).encode()

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))
    shared = client.get("shared")
    assert isinstance(shared, SetLattice)
    assert len(shared.values) == 16 * 20


def test_many_futures_at_once(client: KvsClient) -> None:
    puts = [client.put_bytes_future(f"k{number}", b"v") for number in range(500)]
    assert not wait(puts, timeout=60).not_done
    gets = [client.get_many_future([f"k{number}"]) for number in range(500)]
    assert [list(get.result(60)) for get in gets] == [[f"k{number}"] for number in range(500)]


def test_a_callback_may_ask_on_but_not_wait(client: KvsClient) -> None:
    outcome: list[object] = []
    done = threading.Event()

    def then(_: object) -> None:
        try:
            client.get("k")
        except KvsError as error:
            outcome.append(str(error))
        client.get_future("k").add_done_callback(lambda future: (outcome.append(future.result()), done.set()))

    client.put_future("k", LWW(1, b"v")).add_done_callback(then)
    assert done.wait(30)
    assert outcome == [
        "a future's callback waits for the client that runs it: use the _future variants",
        LWW(1, b"v"),
    ]


def test_a_cancelled_future_harms_nobody(client: KvsClient) -> None:
    futures = [client.get_future("k") for _ in range(200)]
    for future in futures:
        future.cancel()
    assert client.get("k") is None


def test_clients_of_one_address_take_the_next_free_offset(server: KvsServer, stack: ExitStack) -> None:
    peer(stack, server.ip, 6760 + 21)
    clients = [stack.enter_context(KvsClient(server.ip, server.ip, timeout_s=10.0)) for _ in range(3)]
    assert [client.offset for client in clients] == [20, 22, 23]
    clients[0].put_bytes("k", b"v")
    assert [client.get_bytes("k") for client in clients] == [b"v"] * 3
    clients[0].close()
    assert stack.enter_context(KvsClient(server.ip, server.ip)).offset == 20


def test_no_free_offset_is_an_error(ip: str, stack: ExitStack) -> None:
    peer(stack, ip, 6460 + 299)
    with pytest.raises(PortTakenError, match=rf"{ip} has no room for another client"):
        KvsClient(ip, ip, first_offset=299)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'192\.0\.2\.1'.*is it an address of this machine"):
        KvsClient("127.0.2.1", "192.0.2.1")


def test_when_nobody_answers_it_says_where_and_how_long(ip: str, stack: ExitStack) -> None:
    client = stack.enter_context(KvsClient(ip, ip, timeout_s=0.05, retries=1))
    with pytest.raises(TimedOutError, match=rf"tcp://{ip}:6450 to a PUT of 'k' in 2 tries of 0\.05 s"):
        client.put_bytes("k", b"v")
    assert isinstance(client.get_future("k").exception(20), TimedOutError)


def test_a_silent_storage_server_is_named(ip: str, stack: ExitStack) -> None:
    fake = FakeAnna(ip, stack)
    client = stack.enter_context(KvsClient(ip, ip, timeout_s=0.2, retries=0))
    future = client.get_future("k")
    fake.place(f"tcp://{ip}:6200")
    with pytest.raises(TimedOutError, match=rf"tcp://{ip}:6200 to a GET of 'k' in 1 try of 0\.2 s"):
        future.result(20)


def test_requests_survive_a_restart_of_the_server(ip: str, stack: ExitStack) -> None:
    store = Store()
    server = serve(ip, stack, store)
    client = stack.enter_context(KvsClient(ip, ip, timeout_s=0.5, retries=20))
    client.put_bytes("k", b"before")
    for turn in range(3):
        server.stop()
        meanwhile = client.put_bytes_future("k", f"turn {turn}".encode())
        server = serve(ip, stack, store)
        meanwhile.result(30)
        assert client.get_bytes("k") == f"turn {turn}".encode()


def test_closed_it_fails_what_is_in_flight_and_what_comes(ip: str) -> None:
    client = KvsClient(ip, ip, timeout_s=60.0)
    future = client.get_future("k")
    client.close()
    client.close()
    assert isinstance(future.exception(20), KvsError)
    with pytest.raises(KvsError, match="closed"):
        client.get("k")


class FakeAnna:
    """A routing tier and storage servers, answered for by the test, one message at a time."""

    def __init__(self, ip: str, stack: ExitStack) -> None:
        self.peer: Peer = peer(stack, ip, 6450, 6200, 6201)

    def place(self, *servers: str) -> anna.KeyAddressRequest:
        request = anna.KeyAddressRequest.FromString(self.peer.pull(6450))
        found = [anna.KeyAddressResponse.KeyAddress(key=key, ips=servers) for key in request.keys]
        response = anna.KeyAddressResponse(addresses=found, response_id=request.request_id)
        self.peer.push(request.response_address, response.SerializeToString())
        return request

    def answer(self, port: int, **result: object) -> anna.KeyRequest:
        request = anna.KeyRequest.FromString(self.peer.pull(port))
        response = anna.KeyResponse(type=request.type, response_id=request.request_id)
        for asked in request.tuples:
            response.tuples.add(key=asked.key, **result)  # type: ignore[arg-type]
        self.peer.push(request.response_address, response.SerializeToString())
        return request


def test_the_wrong_server_leads_to_another(ip: str, stack: ExitStack) -> None:
    fake = FakeAnna(ip, stack)
    client = stack.enter_context(KvsClient(ip, ip, timeout_s=20.0))
    future = client.get_future("k")
    fake.place(f"tcp://{ip}:6200")
    fake.answer(6200, error=anna.WRONG_THREAD)
    fake.place(f"tcp://{ip}:6201")
    fake.answer(6201, lattice_type=anna.LWW, payload=LWW(1, b"v").serialize())
    assert future.result(20) == LWW(1, b"v")


def test_an_invalidated_address_is_looked_up_for_the_next_call(ip: str, stack: ExitStack) -> None:
    fake = FakeAnna(ip, stack)
    client = stack.enter_context(KvsClient(ip, ip, timeout_s=20.0))
    first = client.put_future("k", LWW(1, b"v"))
    fake.place(f"tcp://{ip}:6200")
    request = fake.answer(6200, lattice_type=anna.LWW, invalidate=True)
    assert request.tuples[0].address_cache_size == 1
    assert first.result(20) is None
    second = client.get_future("k")
    fake.place(f"tcp://{ip}:6201", f"tcp://{ip}:6201")
    request = fake.answer(6201, error=anna.KEY_DNE)
    assert request.tuples[0].address_cache_size == 2
    assert second.result(20) is None


def test_answers_that_make_no_sense_do_no_harm(ip: str, stack: ExitStack) -> None:
    fake = FakeAnna(ip, stack)
    client = stack.enter_context(KvsClient(ip, ip, timeout_s=20.0))
    future = client.get_future("k")
    request = fake.place(f"tcp://{ip}:6200")
    for port in (6460 + client.offset, 6760 + client.offset):
        fake.peer.push(f"tcp://{ip}:{port}", b"\xff\xff")
        fake.peer.push(f"tcp://{ip}:{port}", b"")
    # The same answer again comes late.
    found = anna.KeyAddressResponse.KeyAddress(key="k", ips=["nonsense"])
    late = anna.KeyAddressResponse(addresses=[found], response_id=request.request_id)
    fake.peer.push(request.response_address, late.SerializeToString())
    fake.answer(6200, error=anna.KEY_DNE)
    assert future.result(20) is None
    # Answers to the two ports arrive in any order, those to one of them in theirs.
    stats = client.stats()
    assert stats["bad_answers"] >= 1
    assert stats["late_answers"] >= 1
    assert stats["in_flight"] == 0


def test_a_bad_address_from_the_routing_tier_is_asked_for_again(ip: str, stack: ExitStack) -> None:
    fake = FakeAnna(ip, stack)
    client = stack.enter_context(KvsClient(ip, ip, timeout_s=0.3, retries=5))
    future = client.get_future("k")
    fake.place("nonsense")
    fake.place(f"tcp://{ip}:6200")
    fake.answer(6200, error=anna.KEY_DNE)
    assert future.result(20) is None
