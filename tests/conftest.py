"""What tests of any part may need, and how they are shared out where several processes run them (`-n 2`)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import pytest

BY_FILE = ("actors", "faults")
"""Folders whose files share neither a cluster nor an address."""
FIRST = (
    # Two more suites keep the cores busy beside these at first; the long ones need them more.
    "tests/fuzz",
    "tests/actors/test_floods.py",
    "tests/faults/test_kills.py",
    "tests/security",
    # The longest, so that no process is left alone with one at the end.
    "tests/test_cli.py",
    "tests/wire",
    "tests/nodes",
    "tests/system",
    "tests/actors/test_group.py",
    "tests/test_demo.py",
    "tests/faults/test_everything_killed.py",
    "tests/sim",
    "tests/faults/test_simulated.py",
)


@pytest.fixture
def logging_kept() -> Iterator[None]:
    """For tests that do in this process what configures the log of an actor's own."""
    own = logging.getLogger("ray_sched")
    before = own.handlers[:], own.level, own.propagate
    yield
    own.handlers[:], own.propagate = before[0], before[2]
    own.setLevel(before[1])


def part(nodeid: str) -> str:
    """What one process has to run as a whole: tests that share a cluster, or use the same addresses."""
    file = PurePosixPath(nodeid.partition("::")[0])
    by_file = file.parent.name in BY_FILE
    return str(file if by_file else PurePosixPath(*file.parts[:2]))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        rank = {name: number for number, name in enumerate(FIRST)}
        items.sort(key=lambda item: rank.get(part(item.nodeid), len(rank)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class ByPart(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return part(nodeid)

    config.option.loadscopereorder = False
    return ByPart(config, log)
