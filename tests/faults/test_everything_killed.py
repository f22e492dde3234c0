"""All processes of a group killed at once: with a store in a file, nothing that was acknowledged is lost."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import ray_sched
from ray_sched.client import Client
from tests.commands import Up, assert_nothing_left, runs
from tests.faults.history import History
from tests.faults.workload import SEED, SETTINGS, check, settle, working
from tests.system.conftest import eventually

HOST = "127.0.19.2"
QUEUED = 50
WAYS = [True, False] if os.environ.get("SECONDS") else [True]
"""Whether Ray and the command are killed, too; the other way is for `make faults`."""

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


@pytest.fixture
def flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("RAY_SCHED_STATE_DIR", str(tmp_path / "state"))
    for name, value in SETTINGS.items():
        monkeypatch.setenv("RAY_SCHED_" + name.upper().replace(".", "_"), str(value))
    return ["--host", HOST, "--kvs-path", str(tmp_path / "kvs.db")]


@pytest.fixture
def ups(flags: list[str]) -> Iterator[list[Up]]:
    started: list[Up] = []
    yield started
    for up in started:
        if up.process.poll() is None:
            up.signal(signal.SIGINT)
            up.wait()


def up(flags: list[str], ups: list[Up]) -> Up:
    started = Up(*flags)
    ups.append(started)
    started.wait_for("Stop it with Ctrl-C")
    return started


def kill_all(processes: list[psutil.Process]) -> None:
    """All are stopped first, so that none sees another one die."""
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for process in processes:
            try:
                os.kill(process.pid, number)
            except ProcessLookupError:
                continue
    eventually(lambda: not any(map(runs, processes)), "all of them end")


def actors_of(up: Up) -> list[psutil.Process]:
    return [
        process
        for process in psutil.Process(up.process.pid).children(recursive=True)
        if "Actor" in process.name()  # Ray's own agents are not meant
    ]


def prepare(client: Client) -> None:
    def wait(library: Any, x: int) -> int:
        import time

        time.sleep(0.1)
        return x

    client.register(wait, "wait")
    client.register_dag("waiting", ["wait"])


def queue_calls(client: Client, history: History, what: str) -> None:
    for x in range(QUEUED):
        future = client.call_dag("waiting", {"wait": [x]}, direct_response=x % 2 == 0)
        history.called(what, x, future)


@pytest.mark.parametrize("ray_too", WAYS, ids=lambda ray_too: "Ray, too" if ray_too else "all actors")
def test_nothing_that_was_acknowledged_is_lost(
    flags: list[str], ups: list[Up], tmp_path: Path, ray_too: bool
) -> None:
    group = up(flags, ups)
    history = History()
    with ray_sched.connect(HOST, timeout_s=3.0) as client:
        with working(client, history) as stop:
            stop.wait(2.0 + random.Random(SEED).random())
            prepare(client)
            queue_calls(client, history, "calls that executors have taken on")
            actors = actors_of(group)
            assert len(actors) == 9, actors
            for process in actors:
                if "Executor" in process.name():
                    process.suspend()
            queue_calls(client, history, "calls that wait in executors' sockets")
            if ray_too:
                holder = psutil.Process(group.process.pid)
                kill_all([*holder.children(recursive=True), holder])
                up(flags, ups)
            else:
                kill_all(actors)
            stop.wait(2.0)
        settle(client, history)
        check(client, history)
    ups[-1].signal(signal.SIGINT)
    assert ups[-1].wait() == 0, ups[-1].lines
    assert_nothing_left(tmp_path / "state", HOST)
