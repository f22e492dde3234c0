from __future__ import annotations

import concurrent.futures
import sys
import threading
from collections.abc import Iterator

import pytest
import zmq

from ray_sched.errors import BadMessageError, ConfigError, NoResourcesError, NotRunningError, TimedOutError
from ray_sched.responses import ResponsePool

IP = "127.0.4.1"
PATIENCE_S = 20.0


@pytest.fixture
def pool() -> Iterator[ResponsePool]:
    pool = ResponsePool(IP, max_waiting=4, rest_s=0)
    yield pool
    pool.close()


@pytest.fixture
def switches() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


class Executor:
    """Pushes responses, each from a socket of its own."""

    def __init__(self) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._sockets: list[zmq.Socket[bytes]] = []

    def respond(self, address: str, *messages: bytes | list[bytes]) -> None:
        socket = self._context.socket(zmq.PUSH)
        self._sockets.append(socket)
        socket.connect(address)
        for message in messages:
            socket.send_multipart(message if isinstance(message, list) else [message])

    def close(self) -> None:
        self._context.destroy(0)


@pytest.fixture
def executor() -> Iterator[Executor]:
    executor = Executor()
    yield executor
    executor.close()


def test_a_response_reaches_the_call_that_leased_the_address(pool: ResponsePool, executor: Executor) -> None:
    first, second = pool.lease(), pool.lease()
    assert first.address.startswith(f"tcp://{IP}:")
    assert first.address != second.address
    executor.respond(second.address, b"two")
    executor.respond(first.address, b"one")
    assert first.wait(PATIENCE_S) == b"one"
    assert second.wait(PATIENCE_S) == b"two"
    assert second.wait(0) == b"two"
    assert not first.cancel()


def test_it_is_a_future_with_callbacks(pool: ResponsePool, executor: Executor) -> None:
    pending = pool.lease()
    told: concurrent.futures.Future[bytes] = concurrent.futures.Future()
    pending.add_done_callback(lambda future: told.set_result(future.result()))
    executor.respond(pending.address, b"one")
    assert told.result(PATIENCE_S) == b"one"


def test_a_socket_is_used_again_after_one_clean_response(pool: ResponsePool, executor: Executor) -> None:
    first = pool.lease()
    executor.respond(first.address, b"one")
    first.wait(PATIENCE_S)
    second = pool.lease()
    assert second.address == first.address
    executor.respond(second.address, b"two")
    assert second.wait(PATIENCE_S) == b"two"


def test_a_socket_rests_before_its_next_call(executor: Executor) -> None:
    pool = ResponsePool(IP, rest_s=3600)
    first = pool.lease()
    executor.respond(first.address, b"one")
    first.wait(PATIENCE_S)
    assert pool.lease().address != first.address
    pool.close()


def test_after_a_time_out_the_address_is_never_used_again(pool: ResponsePool, executor: Executor) -> None:
    late = pool.lease()
    with pytest.raises(TimedOutError, match=rf"{late.address} within 0\.01 s"):
        late.wait(0.01)
    executor.respond(late.address, b"late")
    for _ in range(20):
        pending = pool.lease()
        assert pending.address != late.address
        executor.respond(pending.address, b"mine")
        assert pending.wait(PATIENCE_S) == b"mine"
    with pytest.raises(TimedOutError):
        late.wait(0.01)


def test_a_cancelled_call_makes_room(pool: ResponsePool) -> None:
    pending = [pool.lease() for _ in range(4)]
    with pytest.raises(NoResourcesError, match="4 direct responses"):
        pool.lease()
    assert pending[0].cancel()
    assert pending[0].cancel()  # again is harmless
    fifth = pool.lease()
    assert fifth.address not in {one.address for one in pending}
    with pytest.raises(NoResourcesError):
        pool.lease()
    with pytest.raises(TimedOutError, match="any more"):
        pending[0].wait(PATIENCE_S)


def test_a_second_response_is_not_the_next_calls(executor: Executor) -> None:
    pool = ResponsePool(IP, rest_s=3600)
    first = pool.lease()
    executor.respond(first.address, b"one", b"one again")
    assert first.wait(PATIENCE_S) == b"one"
    second = pool.lease()
    executor.respond(second.address, b"two")
    assert second.wait(PATIENCE_S) == b"two"
    pool.close()


def test_a_response_of_many_parts_is_an_error(pool: ResponsePool, executor: Executor) -> None:
    pending = pool.lease()
    executor.respond(pending.address, [b"two", b"parts"])
    with pytest.raises(BadMessageError, match="2 parts"):
        pending.wait(PATIENCE_S)
    assert pool.lease().address != pending.address


def test_a_response_that_will_not_come_fails_with_the_reason(pool: ResponsePool, executor: Executor) -> None:
    pending, answered = pool.lease(), pool.lease()
    pending.fail(NoResourcesError("nobody can"))
    pending.fail(NoResourcesError("again is harmless"))
    with pytest.raises(NoResourcesError, match="nobody can"):
        pending.wait(PATIENCE_S)
    executor.respond(answered.address, b"one")
    answered.wait(PATIENCE_S)
    answered.fail(NoResourcesError("too late"))
    assert answered.wait(0) == b"one"
    assert pool.lease().address not in {pending.address}


def test_an_abandoned_call_makes_room(pool: ResponsePool) -> None:
    pending = [pool.lease() for _ in range(4)]
    pending[2].abandon()
    assert pool.lease().address not in {one.address for one in pending}
    assert pending[2].cancelled()


def test_threads_that_lease_at_once_share_what_is_abandoned(switches: None) -> None:
    """Of many threads that see the last abandoned call, one has it; the others find none and go on."""
    pool = ResponsePool(IP, max_waiting=64, rest_s=0)

    def lease_and_abandon() -> None:
        for _ in range(100):
            for pending in [pool.lease() for _ in range(4)]:
                pending.abandon()

    try:
        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            for done in [threads.submit(lease_and_abandon) for _ in range(8)]:
                done.result(PATIENCE_S)
    finally:
        pool.close()


def test_a_call_waits_until_closed_sockets_are_gone(pool: ResponsePool) -> None:
    others = []
    with pytest.raises(zmq.ZMQError):
        while True:
            others.append(pool._context.socket(zmq.PULL))
    with pytest.raises(NoResourcesError, match="no socket is left"):
        pool.lease()
    closing = threading.Timer(0.1, lambda: [socket.close(0) for socket in others])
    closing.start()
    assert pool.lease().address
    closing.join()


def test_closing_fails_what_waits(pool: ResponsePool) -> None:
    pending = pool.lease()
    waiter = threading.Timer(0, pool.close)
    waiter.start()
    with pytest.raises(NotRunningError):
        pending.wait(PATIENCE_S)
    waiter.join()
    pool.close()
    with pytest.raises(NotRunningError):
        pool.lease()
    assert not pending.cancel()


def test_a_foreign_address_is_refused() -> None:
    pool = ResponsePool("192.0.2.1")
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1"):
        pool.lease()
    pool.close()


def test_many_threads_get_their_own_responses(executor: Executor) -> None:
    pool = ResponsePool(IP, rest_s=0)
    wrong: list[bytes] = []

    def call(number: int) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        for turn in range(20):
            mine = f"{number}/{turn}".encode()
            pending = pool.lease()
            if turn % 5 == 4:
                pending.cancel()
                continue
            with context.socket(zmq.PUSH) as socket:
                socket.linger = 10_000
                socket.connect(pending.address)
                socket.send(mine)
            if (got := pending.wait(PATIENCE_S)) != mine:
                wrong.append(got)
        context.term()

    threads = [threading.Thread(target=call, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    pool.close()
