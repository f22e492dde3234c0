"""Groups in Ray's local mode, with a version of Ray that has it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

import ray_sched.local
from ray_sched.actors.group import Group
from ray_sched.config import Config

STOP_S = 30.0
BASE = Config().replace(
    **{
        "policy.max_recent_calls": 0,
        "gossip.period_s": 0.3,
        "executor.status_period_s": 0.5,
        "stats.flush_s": 0.1,
    }
)

Start = Callable[[Config], Group]


@pytest.fixture(scope="package")
def start_group() -> Iterator[Start]:
    """Starts a group; all of them are stopped at the end."""
    groups: list[Group] = []

    def remembered(group: Group) -> Group:
        groups.append(group)
        return group

    yield lambda config: remembered(ray_sched.local.start(config))
    for group in reversed(groups):
        ray_sched.local.stop(group, STOP_S)


@pytest.fixture(scope="package")
def group(start_group: Start) -> Group:
    return start_group(BASE.replace(host="127.0.16.1", **{"executor.count": 3, "policy.name": "round-robin"}))
