"""An error value that takes nothing back, in whatever order it and the result are stored."""

from __future__ import annotations

import pytest

from ray_sched.core.destination import Destination
from ray_sched.kvs.lattices import LWW, Lattice, MultiCausal
from ray_sched.kvs.store import Store
from ray_sched.last_resort import is_last_resort, last_resort

RESULTS = [
    (False, LWW(2, b"")),
    (False, LWW(17_000_000_000, b"result")),
    (True, MultiCausal({"base": 1}, {}, frozenset([b"result"]))),
]


@pytest.mark.parametrize(("causal", "result"), RESULTS)
@pytest.mark.parametrize("first", ["result", "error"])
def test_the_result_wins(causal: bool, result: Lattice, first: str) -> None:
    key, error = last_resort(Destination("id", "", "key", causal, "base", False), "gone")
    store = Store()
    for lattice in (result, error) if first == "result" else (error, result):
        store.put(key, lattice)
    assert store.get("key") == result
    assert not is_last_resort(result) and is_last_resort(error)


def test_of_a_direct_response_it_stands_at_the_id() -> None:
    key, _ = last_resort(Destination("id", "tcp://10.0.0.1:9000", "id", False, "base", False), "gone")
    assert key == "id"
