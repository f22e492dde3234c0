"""Results that the key-value store does not take at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq

from ray_sched.core.destination import Destination
from ray_sched.executor import answers as answers_module
from ray_sched.executor.answers import Answers
from ray_sched.executor.dependencies import Dependencies
from ray_sched.executor.history import History
from ray_sched.executor.journal import Journal
from ray_sched.executor.outbox import Outbox
from ray_sched.kvs.client import KvsClient
from ray_sched.kvs.server import KvsServer
from ray_sched.kvs.store import Store
from ray_sched.values import dumps, loads
from ray_sched.wire import sockets

IP = "127.0.36.3"
WAIT_S = 20.0


@contextmanager
def delivering(folder: Path) -> Iterator[tuple[Answers, Journal, Outbox, KvsClient]]:
    """With a store that answers, and a reader of it."""
    server = KvsServer(IP, store := Store())
    server.start()
    journal, outbox = Journal(folder / "journal"), Outbox(zmq.Context.instance())
    with KvsClient(IP, IP) as kvs, KvsClient(IP, IP) as reader:
        yield Answers(kvs, outbox, journal, 1.0, History(10)), journal, outbox, reader
    server.stop()
    store.close()
    outbox.close(0)
    journal.close()


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


@pytest.mark.parametrize("address", ["tcp://client.example:6460", "tcp://127.0.36.9:1"])
def test_a_result_that_cannot_be_sent_leaves_an_error_value_at_its_key(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One address is none; the other one's queue is full."""
    monkeypatch.setattr(sockets, "HIGH_WATER_MARK", 1)
    with delivering(tmp_path) as (answers, journal, outbox, reader):
        if "example" not in address:
            outbox.send(address, b"nobody takes this one")
        to = Destination("id", address, "id", False, "base", False)
        answers.result(to, dumps("result"), Dependencies(), journal.begin(to))
        answers.flush(WAIT_S)
        text, _ = loads(reader.get_bytes("id") or b"")
        assert text.startswith("ERROR: the result could not be sent: ") and address in text
        assert journal.open_calls() == {}
        assert answers.lost == 1


def test_a_result_that_is_too_large_to_be_read_is_an_error_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers_module, "MAX_RESULT_BYTES", 1000)
    with delivering(tmp_path) as (answers, journal, _, reader):
        to = Destination("key", "", "key", False, "base", False)
        answers.result(to, dumps("x" * 1000), Dependencies(), journal.begin(to))
        answers.flush(WAIT_S)
        text, _ = loads(reader.get_bytes("key") or b"")
        assert text.startswith("ERROR: a result of ") and "the limit is 1000; return it in parts" in text


def test_of_more_results_than_can_wait_for_a_store_the_oldest_are_left_to_the_next_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("WRITES", 2), ("MAX_AGAIN", 5), ("PAUSE_S", 0.001)):
        monkeypatch.setattr(answers_module, name, value)
    journal, outbox = Journal(tmp_path / "journal"), Outbox(zmq.Context.instance())
    with KvsClient(IP, IP, timeout_s=0.01, retries=0) as kvs:  # nobody is there
        answers = Answers(kvs, outbox, journal, 1.0, History(10))
        for number in range(20):
            to = Destination(f"{number}", "", f"{number}", False, "base", False)
            answers.result(to, dumps(number), Dependencies(), journal.begin(to))
        assert answers.lost > 0
        assert len(answers._again) <= 6
        assert len(journal.open_calls()) == 20
        answers.flush(WAIT_S)
    outbox.close(0)
    journal.close()
