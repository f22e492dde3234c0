"""The hot path needs nobody else: calls go on while the Scheduler and the Policy stand still.

The processes are stopped with SIGSTOP, as a machine that swaps or a garbage collection that takes
seconds would; under the lease the ingress decides alone, and after it every call is refused in time.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.wire.conftest import Scheduler, told_of
from tests.wire.players import Stage, messages, until

pytestmark = pytest.mark.cluster

STANDING_STILL = ("policy", "scheduler")


@contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@pytest.fixture
def pids(local: Scheduler) -> list[int]:
    """The processes of the Scheduler and the Policy."""
    if not local.ray_address:
        pytest.skip("the processes of a target are not known")
    actors = told_of(local)["actors"]
    return [int(actors[role]["pid"]) for role in STANDING_STILL]


def test_calls_go_on_under_the_lease_and_are_refused_after_it(stage: Stage, pids: list[int]) -> None:
    [executor] = stage.executors(1)
    function = stage.function()
    dag = stage.create_dag([function])
    assert stage.client.call_dag(dag).success
    accepted: list[str] = []
    with stopped(pids):
        for _ in range(20):
            reply = stage.client.call_dag(dag)
            assert reply.success, f"refused under the lease after {len(accepted)} calls: {reply}"
            accepted.append(reply.response_id)
            assert stage.client.call(function).success

        def refused() -> bool:
            reply = stage.client.call_dag(dag)
            if reply.success:
                accepted.append(reply.response_id)
                return False
            assert reply.error == messages.NO_RESOURCES
            return True

        # Before the executor, which tells no status meanwhile, is taken for gone (15 s).
        until(refused, "the lease did not end", 10.0)
        # The other kind of call, and from now on every one, is refused as well, and in time: a client that
        # never gets its reply would fail here.
        assert stage.client.call(function).error == messages.NO_RESOURCES
        assert refused()
    until(lambda: stage.client.call_dag(dag).success, "calls did not go on")
    until(lambda: stage.client.call(function).success, "calls did not go on")
    executor.wait_for("schedule", len(accepted))
    ids = [schedule.id for schedule in executor.received("schedule")]
    assert set(accepted) <= set(ids)
    assert len(set(ids)) == len(ids), "a call was scheduled twice"
