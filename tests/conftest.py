"""What tests of any part may need."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture
def logging_kept() -> Iterator[None]:
    """For tests that do in this process what configures the log of an actor's own."""
    own = logging.getLogger("ray_sched")
    before = own.handlers[:], own.level, own.propagate
    yield
    own.handlers[:], own.propagate = before[0], before[2]
    own.setLevel(before[1])
