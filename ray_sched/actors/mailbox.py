"""A loop's way in for other threads: what they put is taken by the loop, which wakes at once."""

from __future__ import annotations

import os
import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """Any thread puts, one takes. `fd` becomes readable when there is something."""

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._closed = False
        self._lock = threading.Lock()
        """Between a look at `_closed` and the write the descriptor must not become somebody else's."""

    def put(self, item: T) -> None:
        self._items.append(item)
        with self._lock:
            if not self._closed:
                os.eventfd_write(self.fd, 1)

    def take(self) -> list[T]:
        """All that is there; never waits."""
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            return []
        items = []
        while self._items:
            items.append(self._items.popleft())
        return items

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self.fd)
