from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.executor.bench import Bench

_ips = itertools.cycle(f"127.0.3.{number}" for number in range(1, 100))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A store and a played scheduler on an address of the test's own, without executors yet."""
    with Bench(next(_ips), tmp_path) as bench:
        yield bench
