from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import zmq

from ray_sched.errors import NotRunningError, TimedOutError
from ray_sched.requests import READ_TRIES, Requester

IP = "127.0.4.31"
PORT = 5003
PATIENCE_S = 20.0


@pytest.fixture
def server() -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.linger = 0
        router.rcvtimeo = int(PATIENCE_S * 1000)
        router.bind(f"tcp://{IP}:{PORT}")
        yield router


@pytest.fixture
def requester() -> Iterator[Requester]:
    requester = Requester(IP)
    yield requester
    requester.close()


def test_the_earlier_try_of_a_read_may_still_be_answered(
    server: zmq.Socket[bytes], requester: Requester
) -> None:
    replies: list[list[bytes]] = []
    asker = threading.Thread(
        target=lambda: replies.append(requester.read(PORT, [b"?"], "read", timeout_s=PATIENCE_S / 4))
    )
    asker.start()
    first = server.recv_multipart()
    second = server.recv_multipart()
    assert first[-1] == second[-1] == b"?"
    assert first[0] != second[0]
    server.send_multipart([*first[:-1], b"late"])
    asker.join(PATIENCE_S)
    assert replies == [[b"late"]]


def test_a_read_is_tried_three_times(server: zmq.Socket[bytes], requester: Requester) -> None:
    with pytest.raises(TimedOutError, match=rf"read: no reply from tcp://{IP}:{PORT} within 0\.3 s"):
        requester.read(PORT, [b"?"], "read", timeout_s=0.3)
    assert [server.recv_multipart()[-1] for _ in range(READ_TRIES)] == [b"?"] * 3
    assert not server.poll(0)


def test_a_late_reply_is_not_the_next_requests(server: zmq.Socket[bytes], requester: Requester) -> None:
    with pytest.raises(TimedOutError):
        requester.ask(PORT, [b"one"], "ask", timeout_s=0.2)
    late = server.recv_multipart()
    replies: list[list[bytes]] = []
    asker = threading.Thread(
        target=lambda: replies.append(requester.ask(PORT, [b"two"], "ask", timeout_s=PATIENCE_S))
    )
    asker.start()
    request = server.recv_multipart()
    server.send_multipart([*late[:-1], b"for one"])
    server.send_multipart([*request[:-1], b"for two"])
    asker.join(PATIENCE_S)
    assert replies == [[b"for two"]]


def test_sockets_are_used_again(server: zmq.Socket[bytes], requester: Requester) -> None:
    senders = set()
    for _ in range(3):
        asker = threading.Thread(target=lambda: requester.ask(PORT, [b"?"], "ask", timeout_s=PATIENCE_S))
        asker.start()
        request = server.recv_multipart()
        senders.add(request[0])
        server.send_multipart(request)
        asker.join(PATIENCE_S)
    assert len(senders) == 1


def test_closing_ends_what_waits(server: zmq.Socket[bytes], requester: Requester) -> None:
    errors: list[Exception] = []

    def ask() -> None:
        try:
            requester.ask(PORT, [b"?"], "ask", timeout_s=PATIENCE_S)
        except NotRunningError as error:
            errors.append(error)

    asker = threading.Thread(target=ask)
    asker.start()
    server.recv_multipart()
    requester.close()
    asker.join(PATIENCE_S)
    assert [str(error) for error in errors] == ["ask: the client was closed"]
    with pytest.raises(NotRunningError):
        requester.ask(PORT, [b"?"], "ask", timeout_s=PATIENCE_S)


def test_a_socket_that_an_interrupt_left_open_holds_up_no_close() -> None:
    requester = Requester(IP)
    left = requester._socket(PORT)  # Ctrl-C came before anybody could close it
    requester.close(timeout_s=0.1)
    assert not left.closed
    left.close(0)
    requester.close()
    assert requester._context.closed
