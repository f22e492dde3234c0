"""Nothing that was acknowledged is lost, whichever process of a group is killed, and when.

A seed gives the order of the kills, their moments, and what the clients do; on a real cluster the
operating system adds its own. `SEED` and `SECONDS` choose another one, or a longer run: `make faults`.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray

import ray_sched
from ray_sched.actors import names
from ray_sched.actors.cluster import LocalCluster
from ray_sched.actors.group import Group
from ray_sched.config import Config
from tests.faults.history import History
from tests.faults.workload import SEED, SETTINGS, check, settle, working
from tests.system.conftest import eventually

log = logging.getLogger(__name__)

SECONDS = float(os.environ.get("SECONDS") or 8)
CONFIG = Config(host="127.0.19.1").replace(**SETTINGS)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(SECONDS + 240)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        started = LocalCluster.start(CONFIG, folder)
        yield
        started.stop()


def kill(group: Group, role: str) -> None:
    """End a process as a crash would, and wait until another one answers in its place."""
    actor = names.find(group.name, role)
    old = pid_of(actor)
    if old is None:
        return
    os.kill(old, signal.SIGKILL)
    eventually(lambda: pid_of(actor) not in (None, old), f"a new {role}", 60.0)


def pid_of(actor: Any) -> int | None:
    try:
        return int(ray.get(actor.status.remote(), timeout=2.0)["pid"])
    except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
        return None


def kill_one_after_the_other(group: Group, stop: threading.Event) -> dict[str, int]:
    """How often each was killed."""
    kills: dict[str, int] = {}
    rng = random.Random(SEED)
    until = time.monotonic() + SECONDS
    roles: list[str] = []
    while time.monotonic() < until:
        if not roles:  # each as often as the others, in an order of the seed's
            roles = [role for role in group.handles]
            rng.shuffle(roles)
        role = roles.pop()
        stop.wait(rng.uniform(0.0, 0.5))
        kill(group, role)
        kind = "executor" if names.is_executor(role) else role
        kills[kind] = kills.get(kind, 0) + 1
    return kills


def test_nothing_that_was_acknowledged_is_lost(cluster: None) -> None:
    group = Group.start(CONFIG)
    history = History()
    try:
        with ray_sched.connect(CONFIG.host, timeout_s=3.0) as client:
            with working(client, history) as stop:
                kills = kill_one_after_the_other(group, stop)
            settle(client, history)
            check(client, history)
        log.info("SEED=%d kills: %s", SEED, kills)
    finally:
        group.stop(60.0)
