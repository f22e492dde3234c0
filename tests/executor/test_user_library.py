"""Messages between functions, as bytes on the wire: `((sender's ip, sender's tid), content)`, pickled."""

from __future__ import annotations

import pickle
from collections import deque
from typing import cast

import pytest

from ray_sched.errors import BadMessageError
from ray_sched.executor.user_library import UserLibrary
from ray_sched.kvs.client import KvsClient
from ray_sched.wire.ports import CLASSIC

NO_STORE = cast(KvsClient, None)


class Library(UserLibrary):
    def __init__(self, *arrived: bytes) -> None:
        self.sent: list[tuple[str, bytes]] = []
        super().__init__(
            "10.0.0.1", 2, CLASSIC, NO_STORE, lambda *sent: self.sent.append(sent), deque(arrived)
        )


def message(content: bytes, protocol: int = 4) -> bytes:
    return pickle.dumps((("10.0.0.3", 4), content), protocol=protocol)


def test_a_message_goes_to_the_port_of_its_thread_and_names_its_sender() -> None:
    library = Library()
    library.send(("10.0.0.3", 4), b"hello")
    ((address, raw),) = library.sent
    assert address == "tcp://10.0.0.3:5504"
    assert pickle.loads(raw) == (("10.0.0.1", 2), b"hello")
    # Legacy executors may run a Python that knows no later one.
    assert raw[:2] == b"\x80\x04"


def test_all_messages_that_have_come_are_received_once_in_their_order() -> None:
    library = Library(message(b"first", protocol=2), message(b"second"))
    assert library.recv() == [(("10.0.0.3", 4), b"first"), (("10.0.0.3", 4), b"second")]
    assert library.recv() == []


def test_what_is_no_message_is_told_and_costs_no_other() -> None:
    library = Library(b"nonsense", message(b"whole"))
    with pytest.raises(BadMessageError, match="8 bytes are not a user message"):
        library.recv()
    assert library.recv() == [(("10.0.0.3", 4), b"whole")]
