from __future__ import annotations

import pytest

from ray_sched.errors import KvsError
from ray_sched.kvs import timestamps
from ray_sched.kvs.timestamps import Timestamps


@pytest.mark.parametrize(
    ("tid", "expected"),
    [(0, 10_000_000), (9, 10_000_009), (10, 100_000_010), (99, 100_000_099), (100, 1_000_000_100)],
)
def test_scale_is_the_power_of_ten_above_the_thread(tid: int, expected: int) -> None:
    assert Timestamps(tid, clock=lambda: 1_000_000.0).next("k") == expected


def test_own_writes_of_a_key_never_tie() -> None:
    now = 100.0
    stamps = Timestamps(clock=lambda: now)
    assert [stamps.next("k") for _ in range(3)] == [1000, 1001, 1002]
    now = 50.0  # the clock was set back
    assert stamps.next("k") == 1003
    now = 200.0
    assert stamps.next("k") == 2000


def test_keys_do_not_push_each_other_ahead_of_the_clock() -> None:
    stamps = Timestamps(clock=lambda: 100.0)
    assert {stamps.next(f"k{number}") for number in range(50)} == {1000}


def test_what_is_forgotten_cannot_tie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timestamps, "PRUNE_AT", 10)
    now = 100.0
    stamps = Timestamps(clock=lambda: now)
    ahead = [stamps.next("hot") for _ in range(100)][-1]
    now = 101.0
    for number in range(1000):
        stamps.next(f"k{number}")
        now += 0.1 if number % 10 == 0 else 0.0
        assert stamps.next("hot") > ahead
        ahead = max(ahead, stamps.next("hot"))
    assert len(stamps._last) < 200


def test_a_key_with_the_highest_timestamp_takes_no_further_write() -> None:
    stamps = Timestamps(clock=lambda: 100.0)
    stamps.seen("k", 2**64 - 1)
    with pytest.raises(KvsError, match="highest timestamp"):
        stamps.next("k")
    assert stamps.next("other") == 1000


def test_what_was_seen_is_not_remembered_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timestamps, "SEEN_KEPT", 10)
    stamps = Timestamps(clock=lambda: 100.0)
    for number in range(100):
        stamps.seen(f"k{number}", 5000)
    assert len(stamps._last) == 10
    assert stamps.next("k99") == 5001
