"""Results that the key-value store does not take at once."""

from __future__ import annotations

import time
from pathlib import Path

import zmq

from ray_sched.core.destination import Destination
from ray_sched.executor.answers import Answers
from ray_sched.executor.dependencies import Dependencies
from ray_sched.executor.history import History
from ray_sched.executor.journal import Journal
from ray_sched.executor.outbox import Outbox
from ray_sched.kvs.client import KvsClient
from ray_sched.kvs.server import KvsServer
from ray_sched.kvs.store import Store
from ray_sched.values import dumps, loads

IP = "127.0.36.3"
WAIT_S = 20.0


def test_a_write_that_got_no_answer_is_made_again_and_its_call_stays_open_until_then(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    to = Destination("key", "", "key", False, "base", False)
    outbox = Outbox(zmq.Context.instance())
    with KvsClient(IP, IP, timeout_s=0.1, retries=0) as kvs:
        answers = Answers(kvs, outbox, journal, 1.0, History(10))
        answers.result(to, dumps("result"), Dependencies(), journal.begin(to))
        time.sleep(0.3)  # nobody is there: it gives up
        answers.try_again()
        assert list(journal.open_calls().values()) == [to]
        server = KvsServer(IP, store := Store())
        server.start()
        until = time.monotonic() + WAIT_S
        while journal.open_calls():
            assert time.monotonic() < until
            answers.try_again()
            time.sleep(0.01)
        with KvsClient(IP, IP) as reader:
            assert loads(reader.get_bytes("key") or b"") == "result"
        assert answers.lost == 0
        answers.flush(1.0)
    server.stop()
    store.close()
    outbox.close(0)
    journal.close()


def test_a_write_that_is_under_way_at_the_end_leaves_its_call_to_the_next_process(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    to = Destination("key", "", "key", False, "base", False)
    outbox = Outbox(zmq.Context.instance())
    with KvsClient(IP, IP, timeout_s=0.1, retries=0) as kvs:
        answers = Answers(kvs, outbox, journal, 1.0, History(10))
        answers.result(to, dumps("result"), Dependencies(), journal.begin(to))
        answers.flush(WAIT_S)
        answers.try_again()
    outbox.close(0)
    journal.close()
    assert list(Journal(tmp_path / "journal").leftovers.values()) == [to]
