"""What every function gets as its first argument."""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable
from typing import Any

from ray_sched.errors import BadMessageError
from ray_sched.executor.lattices import revealed
from ray_sched.kvs.client import KvsClient
from ray_sched.messages import check_name
from ray_sched.values import PROTOCOL, dumps
from ray_sched.wire.ports import Layout, tcp

Address = tuple[str, int]
"""An executor thread: its IP and thread id."""


class UserLibrary:
    """The key-value store and messages between executor threads, for functions.

    Functions may start threads that use it, too. `send` hands bytes to an address without waiting;
    `inbox` is where messages arrive, and `look` puts there those that nobody has received yet.
    """

    def __init__(
        self,
        ip: str,
        tid: int,
        layout: Layout,
        kvs: KvsClient,
        send: Callable[[str, bytes], None],
        inbox: deque[bytes],
        look: Callable[[], None] = lambda: None,
    ) -> None:
        self._id = (ip, tid)
        self._port = layout.user_message
        self._kvs = kvs
        self._send = send
        self._inbox = inbox
        self._look = look

    def get(self, ref: str | list[str], deserialize: bool = True) -> Any:
        """The value at a key, None where there is none; for a list of keys a dictionary.

        With `deserialize` false the raw bytes that are stored. Raises TimedOutError or KvsError when
        the store does not answer, BadMessageError when a value does not load.
        """
        keys = [check_name("a key", key) for key in (ref if isinstance(ref, list) else [ref])]
        found = self._kvs.get_many(keys)
        values = {
            key: None if lattice is None else revealed(lattice, deserialize) for key, lattice in found.items()
        }
        return values if isinstance(ref, list) else values[ref]

    def put(self, key: str, value: Any) -> bool:
        """Store a value; true once it is stored. Raises as `get` does, and what pickling it raises."""
        self._kvs.put_bytes(check_name("a key", key), dumps(value))
        return True

    def getid(self) -> Address:
        """Where this runs: the executor's IP and thread id."""
        return self._id

    def send(self, dest: Address, bytestr: bytes) -> None:
        """Send a message to the function that runs on another executor thread; never waits.

        Raises NoResourcesError when that takes no more, BadMessageError when it has no such address.
        """
        if not isinstance(dest, tuple | list) or len(dest) != 2:
            raise BadMessageError(
                f"{dest!r} is no executor: give its address as `getid` does, (ip, thread id)"
            )
        ip, tid = dest
        message = pickle.dumps((self._id, bytestr), protocol=PROTOCOL)
        self._send(tcp(ip, self._port + int(tid)), message)

    def recv(self) -> list[tuple[Address, bytes]]:
        """All messages that have come since this function was called, oldest first; never waits.

        Raises BadMessageError when one of them is no message of a function; it is taken out.
        """
        messages: list[tuple[Address, bytes]] = []
        self._look()
        while True:
            try:
                raw = self._inbox.popleft()
            except IndexError:  # or another thread of the function has the last one
                return messages
            try:
                (ip, tid), content = pickle.loads(raw)
            except Exception as error:
                raise BadMessageError(f"{len(raw)} bytes are not a user message: {error}") from error
            messages.append(((ip, tid), content))
