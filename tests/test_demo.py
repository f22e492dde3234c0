"""`make demo` that does not come to its end: nothing is left behind. (That all goes well, `.ci/run` sees.)"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ray_sched
from ray_sched.wire.ports import CONNECT
from tests.commands import Foreground, assert_nothing_left

DEMO = Path(__file__).parents[1] / "examples" / "demo.py"
HOST = "127.0.5.61"

pytestmark = pytest.mark.cluster


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAY_SCHED_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    monkeypatch.setenv("RAY_SCHED_EXECUTOR_COUNT", "1")
    return tmp_path / "state"


@pytest.fixture
def demo(state: Path) -> Iterator[Foreground]:
    demo = Foreground(sys.executable, str(DEMO), HOST)
    yield demo
    if demo.process.poll() is None:
        demo.signal(signal.SIGINT)
        demo.wait()


def test_ctrl_c_stops_everything(state: Path, demo: Foreground) -> None:
    demo.wait_for("Functions, over ZeroMQ")
    demo.signal(signal.SIGINT)
    assert demo.wait() == 130, demo.lines
    assert_nothing_left(state, HOST)


def test_a_failure_in_its_middle_stops_everything(state: Path, demo: Foreground) -> None:
    demo.wait_for("Functions, over ZeroMQ")
    os.kill(demo.process.pid, signal.SIGSTOP)
    with ray_sched.connect(HOST) as client:
        client.register(lambda _, x: x + 1, "incr")  # as the demo's, whoever comes first
        client.register_dag("pipeline", ["incr"])
    os.kill(demo.process.pid, signal.SIGCONT)
    assert demo.wait() == 1, demo.lines
    assert "DagExistsError" in demo.lines[-1]
    assert_nothing_left(state, HOST)


def test_a_port_that_is_taken_stops_everything(state: Path) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, CONNECT))
        taken.listen()
        demo = Foreground(sys.executable, str(DEMO), HOST)
        assert demo.wait() == 1, demo.lines
    assert f"port {CONNECT} " in "".join(demo.lines)
    assert_nothing_left(state, HOST)
