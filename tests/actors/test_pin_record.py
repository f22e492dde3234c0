"""What executors were told to pin is known to the next process."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_sched.actors.pin_record import PinRecord

A, B = ("10.0.0.1", 0), ("10.0.0.2", 1)


def test_a_killed_process_leaves_what_it_asked_for_and_did_not_forget(tmp_path: Path) -> None:
    record = PinRecord(tmp_path / "pins")
    record.add(A, "f")
    record.add(A, "g")
    record.add(B, "f")
    record.add(B, "f")
    record.discard(A, "g")
    record.discard(A, "never")
    # It is killed here: nothing is closed.
    assert list(PinRecord(tmp_path / "pins").asked) == [(A, "f"), (B, "f")]
    assert list(PinRecord(tmp_path / "pins").asked) == [(A, "f"), (B, "f")]


def test_a_line_that_was_being_written_costs_no_other(tmp_path: Path) -> None:
    PinRecord(tmp_path / "pins").add(A, "f")
    with (tmp_path / "pins").open("ab") as file:
        file.write(b'["10.0.0.2", 1, "g')
    assert list(PinRecord(tmp_path / "pins").asked) == [(A, "f")]


def test_a_file_that_has_grown_is_made_small(tmp_path: Path) -> None:
    record = PinRecord(tmp_path / "pins", shrink_at_bytes=1000)
    record.add(B, "stays")
    for _ in range(200):
        record.add(A, "f")
        record.discard(A, "f")
    assert (tmp_path / "pins").stat().st_size < 1200
    assert list(PinRecord(tmp_path / "pins").asked) == [(B, "stays")]


def test_a_closed_one_leaves_nothing(tmp_path: Path) -> None:
    record = PinRecord(tmp_path / "pins")
    record.add(A, "f")
    record.close()
    record.close()
    assert not list(tmp_path.iterdir())


def test_no_more_is_remembered_than_without_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_sched.actors.pin_record.ASKED_KEPT", 2)
    record = PinRecord(tmp_path / "pins")
    for name in "abc":
        record.add(A, name)
    assert list(record.asked) == [(A, "b"), (A, "c")]
    assert list(PinRecord(tmp_path / "pins").asked) == [(A, "b"), (A, "c")]
