"""Results and errors on their way to those who wait for them.

Nothing here waits for the key-value store, unless very many writes are under way; a write that got no
answer is made again until it does. A call's journal entry is crossed out once its result is stored or
handed to its address.
"""

from __future__ import annotations

import concurrent.futures
import logging
import time
from collections import deque
from concurrent.futures import Future
from typing import Any, Final

from ray_sched.core.destination import Destination
from ray_sched.core.execution import Fail
from ray_sched.errors import BadMessageError, KvsError, NoResourcesError, TimedOutError
from ray_sched.executor.dependencies import Dependencies
from ray_sched.executor.history import History
from ray_sched.executor.journal import Journal
from ray_sched.executor.outbox import Outbox
from ray_sched.kvs.client import MAX_ANSWER_BYTES, KvsClient
from ray_sched.kvs.lattices import Lattice, MultiCausal
from ray_sched.last_resort import last_resort
from ray_sched.logs import fields
from ray_sched.values import dumps, error_value
from ray_sched.wire import cloudburst_pb2 as cb

logger = logging.getLogger(__name__)

MAX_AGAIN: Final = 100_000
"""Writes that failed and wait to be made again."""
PAUSE_S: Final = 0.05
"""Before the next result, where very many wait for a store that refuses each at once."""
WRITES: Final = 1000
"""Writes that may be under way before a further one waits for one of them."""

MAX_RESULT_BYTES: Final = MAX_ANSWER_BYTES - 2**20
"""A larger one no client could read: its connection would be closed, and with it go the results of others."""
ENDED: Final = "the executor ended while it ran this call"
NOT_FOUND: Final = ("ERROR", cb.GenericResponse(error=cb.FUNC_NOT_FOUND).SerializeToString())
"""What stands for the result of a function that does not exist; without words, as in the legacy system."""


class Answers:
    """Sends results and errors to their destinations. For the run thread alone, but for the counts."""

    def __init__(
        self, kvs: KvsClient, outbox: Outbox, journal: Journal, write_timeout_s: float, history: History
    ) -> None:
        self._history = history
        self.lost = 0
        """Results that could not be delivered."""
        self._kvs = kvs
        self._outbox = outbox
        self._journal = journal
        self._write_timeout_s = write_timeout_s
        self._writes: set[Future[Any]] = set()
        self._again: deque[tuple[Destination, str, Lattice, int]] = deque()
        self._closing = False

    def result(self, to: Destination, value: bytes, dependencies: Dependencies, entry: int) -> None:
        """Deliver a serialized `Value`."""
        if len(value) > MAX_RESULT_BYTES:
            reason = f"a result of {len(value)} bytes: the limit is {MAX_RESULT_BYTES}; return it in parts"
            value = dumps(error_value(reason, cb.EXECUTION_ERROR))
        try:
            self._deliver(to, value, dependencies, entry)
        except KvsError as error:  # the client takes no more, or not this key
            self._lose(to, error)
            self._journal.end(entry)

    def _deliver(self, to: Destination, value: bytes, dependencies: Dependencies, entry: int) -> None:
        if to.address:
            try:
                self._outbox.send(to.address, value)
                self._history.result(to, "result sent to {}", to.address)
            except (BadMessageError, NoResourcesError) as error:
                self._lose(to, error)
                self._last_resort(to, f"the result could not be sent: {error}", entry)
            else:
                self._journal.end(entry)
        elif to.causal:
            lattice = MultiCausal(*dependencies.of_write(to.key, to.writer), frozenset((value,)))
            self._put(to, to.key, lattice, entry)
        else:
            self._put(to, to.key, self._kvs.last_write(to.key, value), entry)

    def error(self, to: Destination, error: tuple[str, bytes], entry: int) -> None:
        """Deliver a legacy error value."""
        self.result(to, dumps(error), Dependencies(), entry)

    def expired(self, fail: Fail) -> None:
        """Answer a schedule that got no triggers.

        A source's call can have no other answer. For any other function the one before it may have
        failed, and answered: then nothing is overwritten, and no second answer is sent.
        """
        to = Destination.of_error(fail.schedule)
        if fail.is_source and to.address:
            self.error(to, error_value(fail.reason, cb.EXECUTION_ERROR), fail.entry)
        else:
            self._last_resort(to, fail.reason, fail.entry)

    def ended(self, to: Destination, entry: int) -> None:
        """Answer a call that a process before this one took on and did not finish.

        Its result may be stored all the same, by that process or, of a call with several branches, by
        another one.
        """
        self._history.result(to, "the process before this one ended with it: it is answered with an error")
        if to.address and not to.speculative:
            self.error(to, error_value(ENDED, cb.EXECUTION_ERROR), entry)
        else:
            self._last_resort(to, ENDED, entry)

    def _last_resort(self, to: Destination, reason: str, entry: int) -> None:
        try:
            self._put(to, *last_resort(to, reason), entry)
        except KvsError as error:
            self._lose(to, error)
            self._journal.end(entry)

    def flush(self, timeout_s: float) -> None:
        """Wait until the writes under way are done; none is made again from now on."""
        self._closing = True
        concurrent.futures.wait(self._writes.copy(), timeout_s)

    def _put(self, to: Destination, key: str, lattice: Lattice, entry: int) -> None:
        write = self._kvs.put_future(key, lattice)

        def on_done(done: Future[None]) -> None:
            self._writes.discard(done)
            failure = done.exception()
            if failure is None:
                self._history.result(to, "result stored at key {}", key)
                self._journal.end(entry)
            elif self._closing:
                self._lose(to, failure)  # its entry stays open: the next process answers
            elif isinstance(failure, TimedOutError) or type(failure) is KvsError:
                self._again.append((to, key, lattice, entry))
            else:
                self._lose(to, failure)
                self._journal.end(entry)

        self._writes.add(write)
        write.add_done_callback(on_done)
        if len(self._writes) + len(self._again) > WRITES:
            self._wait_for_one()

    def _wait_for_one(self) -> None:
        writes = self._writes.copy()
        if writes:
            concurrent.futures.wait(writes, self._write_timeout_s, concurrent.futures.FIRST_COMPLETED)
        elif self._again:  # all failed at once
            time.sleep(PAUSE_S)
        if len(self._again) > MAX_AGAIN:
            to, *_ = self._again.popleft()
            # Its call stays open in the journal: the next process answers it.
            self._lose(to, NoResourcesError("too many results wait for the store"))

    def try_again(self) -> None:
        """Make the writes again that the key-value store did not answer."""
        for _ in range(len(self._again)):
            if not self._again:  # the oldest were given up meanwhile
                return
            to, key, lattice, entry = self._again.popleft()
            try:
                self._put(to, key, lattice, entry)
            except KvsError as error:
                self._lose(to, error)

    def _lose(self, to: Destination, error: BaseException) -> None:
        self.lost += 1
        self._history.result(to, "result lost: {}", type(error).__name__)
        logger.warning("a result is lost", extra=fields(id=to.call_id, why=str(error)))
