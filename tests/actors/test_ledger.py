"""The list of the latest calls: whole records whenever the process is killed, no more than its file holds."""

from __future__ import annotations

import os
import random
from pathlib import Path

from ray_sched.actors.ledger import Ledger, Noted, read
from ray_sched.core.destination import Destination


def noted(number: int, *, at: float = 0.0, continued: bool = False, length: int = 3) -> Noted:
    key = f"{number:0{length}d}"
    to = Destination(key, "", key, False, "base", False)
    return Noted(at or float(number), (("10.0.0.1", number % 3),), to, continued)


def add(ledger: Ledger, call: Noted) -> None:
    ledger.add((call.at, call.executors, tuple(call.to), call.continued))


def test_what_was_noted_is_there_in_the_next_process(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "calls", 1 << 16)
    calls = [noted(number, continued=bool(number % 2)) for number in range(50)]
    for call in calls:
        add(ledger, call)
    # The process is killed here: nothing is closed.
    assert list(read(Ledger(tmp_path / "calls", 1 << 16).copy())) == calls
    # Of a list of another size nothing is taken for a record.
    assert list(read(Ledger(tmp_path / "calls", 1 << 15).copy())) == []
    assert list(read(Ledger(tmp_path / "calls", 1 << 16).copy())) == []


def test_it_keeps_the_latest_and_never_less_than_half_of_what_it_holds(tmp_path: Path) -> None:
    rng = random.Random(3)
    ledger = Ledger(tmp_path / "calls", 1 << 13)
    calls: list[Noted] = []
    for number in range(1000):
        calls.append(noted(number, length=rng.randrange(3, 200)))
        add(ledger, calls[-1])
        found = sorted(read(ledger.copy()))
        assert found == calls[-len(found) :]
        assert number < 10 or len(found) >= 5
    assert os.path.getsize(tmp_path / "calls") == 1 << 13


def test_calls_that_are_noted_together_stay_together(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "calls", 1 << 16)
    calls = [noted(number) for number in range(50)]
    ledger.add_all([(call.at, call.executors, tuple(call.to), call.continued) for call in calls])
    assert list(read(Ledger(tmp_path / "calls", 1 << 16).copy())) == calls


def test_of_calls_that_are_too_many_for_the_file_the_latest_are_kept(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "calls", 4096)
    calls = [noted(number) for number in range(50)] + [noted(50, length=5000), noted(51)]
    ledger.add_all([(call.at, call.executors, tuple(call.to), call.continued) for call in calls])
    found = sorted(call.to.key for call in read(ledger.copy()))
    assert len(found) > 10
    assert found == [f"{n:03d}" for n in range(50 - len(found) + 1, 50)] + ["051"]


def test_a_call_that_is_too_large_is_left_out(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "calls", 4096)
    add(ledger, noted(1))
    add(ledger, noted(2, length=5000))
    add(ledger, noted(3))
    assert [call.to.key for call in read(ledger.copy())] == ["001", "003"]


def test_a_record_that_was_being_written_is_not_there(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "calls", 4096)
    add(ledger, noted(1))
    one = ledger._position
    add(ledger, noted(2))
    before_its_length = bytearray(ledger.copy())
    before_its_length[one : one + 4] = bytes(4)  # which is written last
    assert [call.to.key for call in read(bytes(before_its_length))] == ["001"]


def test_a_closed_one_leaves_nothing(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "calls", 4096)
    ledger.close()
    ledger.close()
    assert not list(tmp_path.iterdir())


def test_a_later_process_goes_on_where_the_one_before_it_was_killed(tmp_path: Path) -> None:
    size = 1 << 12
    for number in range(100):
        ledger = Ledger(tmp_path / "calls", size)
        add(ledger, noted(number))
        found = sorted(call.to.key for call in read(ledger.copy()))
        assert found == [f"{n:03d}" for n in range(number + 1 - len(found), number + 1)]
        assert len(found) == number + 1 or len(found) > 10


def test_what_was_noted_before_the_machine_last_started_is_given_up(tmp_path: Path) -> None:
    add(Ledger(tmp_path / "calls", 4096), noted(1, at=5000.0))
    ledger = Ledger(tmp_path / "calls", 4096, now=20.0)
    assert list(read(ledger.copy())) == []
    add(ledger, noted(2, at=21.0))
    assert [call.to.key for call in read(Ledger(tmp_path / "calls", 4096, now=30.0).copy())] == ["002"]
