"""A mailbox wakes its loop and loses nothing."""

from __future__ import annotations

import os
import select
import threading

import pytest

from ray_sched.actors.mailbox import Mailbox


def readable(mailbox: Mailbox[int], timeout_s: float = 5.0) -> bool:
    return bool(select.select([mailbox.fd], [], [], timeout_s)[0])


def test_what_was_put_is_taken_in_order_and_once() -> None:
    mailbox: Mailbox[int] = Mailbox()
    for number in range(3):
        mailbox.put(number)
    assert readable(mailbox)
    assert mailbox.take() == [0, 1, 2]
    assert mailbox.take() == []
    assert not readable(mailbox, 0.0)
    mailbox.close()


def test_many_threads_put_and_nothing_is_lost() -> None:
    mailbox: Mailbox[int] = Mailbox()
    threads = [
        threading.Thread(target=lambda first=first: [mailbox.put(first + n) for n in range(500)])
        for first in range(0, 4000, 500)
    ]
    for thread in threads:
        thread.start()
    taken: list[int] = []
    while len(taken) < 4000:
        assert readable(mailbox)
        taken += mailbox.take()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(4000))
    mailbox.close()


def test_putting_after_the_end_touches_nobody_elses_descriptor() -> None:
    mailbox: Mailbox[int] = Mailbox()
    mailbox.close()
    reused = os.eventfd(0, os.EFD_NONBLOCK)  # the lowest free number, which the mailbox had
    try:
        mailbox.put(1)
        mailbox.close()
        with pytest.raises(BlockingIOError):
            os.eventfd_read(reused)
    finally:
        os.close(reused)
