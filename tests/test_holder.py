"""The process that holds a group, where Ray is too slow to start."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.commands import left_behind

HOST = "127.0.5.82"
HOLD = """
import contextlib, itertools, os, sys
import ray
import ray._private.services as services
from ray_sched import holder, processes, running
from ray_sched.config import Config

folder, host = sys.argv[1:]
calls, get_node = itertools.count(), services.get_node

def slow(*arguments):
    if not next(calls):
        raise Exception("The current node timed out during startup.")
    return get_node(*arguments)

services.get_node = slow
entry = running.Running(host, "one", "", os.getpid(), processes.started(os.getpid()), folder)
os.environ[processes.MARK] = entry.mark
running.claim(entry)
try:
    with contextlib.ExitStack() as undo:
        address = holder._start_ray(Config(host=host), entry, undo, holder._Interruption(entry))
        assert running.find(host).ray_address == address
        assert [node["Alive"] for node in ray.nodes()] == [True]
finally:
    entry.clean_up(10.0)
    running.forget(entry)
"""
"""Ray says that after 30 s in which its node has not come, here at once. Its processes are there by then."""


@pytest.mark.cluster
def test_ray_is_started_once_more_and_nothing_of_the_first_try_stays(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        held = subprocess.run(
            [sys.executable, "-c", HOLD, folder, HOST],
            env={**os.environ, "RAY_SCHED_STATE_DIR": str(state)},
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )
        assert held.returncode == 0, held.stderr
        assert "Ray did not start: The current node timed out" in held.stderr
        assert "it is tried once more" in held.stderr
        assert left_behind(state) == []
        Path(folder).mkdir(exist_ok=True)  # it was removed with what was in it
