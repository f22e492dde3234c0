"""How a group is started and stopped in local mode, and what is said where there is none."""

from __future__ import annotations

import logging
import socket
import threading
import time
from pathlib import Path

import pytest
import ray

import ray_sched
import ray_sched.local
from ray_sched.actors import local_mode
from ray_sched.actors.group import Group
from tests.local_mode.conftest import BASE, Start
from tests.system.conftest import eventually

pytestmark = pytest.mark.cluster

HOST = "127.0.16.3"
WAIT_S = 30.0
CONFIG = BASE.replace(host=HOST, **{"executor.count": 1})


def await_executor(group: Group) -> None:
    eventually(
        lambda: len(group.status(timeout_s=WAIT_S)["policy"]["executors"]) == 1,
        "the policy has heard of the executor",
    )


has_local_mode = pytest.mark.skipif(not local_mode.exists(), reason="this version of Ray has no local mode")


@pytest.mark.skipif(local_mode.exists(), reason="this version of Ray has local mode")
def test_a_later_ray_says_which_version_has_local_mode() -> None:
    with pytest.raises(
        ray_sched.NoLocalModeError, match=r"no local mode; the last version that has it is 2\.53"
    ):
        ray_sched.local.start(CONFIG)


@has_local_mode
def test_a_group_ends_without_a_trace_and_can_be_started_again(start_group: Start) -> None:
    for _ in range(2):
        group = ray_sched.local.start(CONFIG)
        assert HOST in ray_sched.actors.names.roles_by_group()
        ray_sched.local.stop(group)
        assert HOST not in ray_sched.actors.names.roles_by_group()
        with socket.create_server((HOST, 5000)):
            pass
    assert not [thread.name for thread in threading.enumerate() if HOST in thread.name]


@has_local_mode
def test_several_ingress_shards_are_refused(start_group: Start) -> None:
    with pytest.raises(ray_sched.ConfigError, match=r"ingress\.shards = 2 .* one process"):
        ray_sched.local.start(CONFIG.replace(**{"ingress.shards": 2}))
    assert HOST not in ray_sched.actors.names.roles_by_group()


@has_local_mode
def test_the_program_keeps_its_own_logging(start_group: Start) -> None:
    own = logging.getLogger("ray_sched")
    before = (list(own.handlers), own.level, own.propagate)
    group = ray_sched.local.start(CONFIG)
    try:
        assert (own.handlers, own.level, own.propagate) == before
    finally:
        ray_sched.local.stop(group)


@has_local_mode
def test_a_second_group_of_the_name_is_refused(start_group: Start, group: Group) -> None:
    with pytest.raises(ray_sched.AlreadyRunningError, match="runs in this Ray cluster already"):
        ray_sched.local.start(BASE.replace(host=group.name))


@has_local_mode
def test_an_actor_that_cannot_start_gives_its_own_error_and_this_process_lives(
    start_group: Start, group: Group, tmp_path: Path
) -> None:
    file = tmp_path / "store"
    file.write_bytes(b"this is no database" * 100)
    with pytest.raises(ray_sched.KvsError, match=str(file)):
        ray_sched.local.start(CONFIG.replace(**{"kvs.path": str(file)}))
    with socket.create_server((HOST, 5000)), pytest.raises(ray_sched.PortTakenError, match="5000"):
        ray_sched.local.start(CONFIG)
    assert HOST not in ray_sched.actors.names.roles_by_group()
    assert group.status(timeout_s=WAIT_S)["ingress"]["lease_valid"]


@has_local_mode
def test_a_function_that_never_loads_costs_its_executor_and_not_this_process(
    start_group: Start, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"

    class Stuck:
        def __init__(self, library: object) -> None:
            while not gate.exists():
                time.sleep(0.01)

        def run(self, library: object) -> int:
            return 1

    group = ray_sched.local.start(CONFIG.replace(**{"executor.load_timeout_s": 0.2}))
    try:
        await_executor(group)
        with ray_sched.connect(HOST) as client:
            client.register((Stuck, ()), "stuck")
            with pytest.raises(ray_sched.NoResourcesError):
                client.register_dag("never", ["stuck"])
        assert group.status(timeout_s=WAIT_S)["ingress"]["loop_alive"]
    finally:
        gate.touch()
        ray_sched.local.stop(group)


@has_local_mode
def test_an_executor_that_departs_is_no_longer_given_calls(start_group: Start) -> None:
    import zmq

    from ray_sched.wire.ports import tcp

    group = ray_sched.local.start(CONFIG)
    try:
        await_executor(group)
        with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
            socket.linger = 1000
            socket.connect(tcp(HOST, CONFIG.ports.depart))
            socket.send(b"")
            eventually(
                lambda: group.status(timeout_s=WAIT_S)["policy"]["executors"] == [],
                "the policy hears that the executor has gone",
            )
        with ray_sched.connect(HOST) as client:
            client.register(lambda _: 1, "one")
            with pytest.raises(ray_sched.NoResourcesError):
                client.function("one")()
    finally:
        ray_sched.local.stop(group)


@has_local_mode
def test_ray_is_left_as_it_was_found(start_group: Start) -> None:
    """The groups of these tests share it: it is there as long as one of them is."""
    assert ray.is_initialized()
