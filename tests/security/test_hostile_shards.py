"""Ingress shards unpickle nothing that comes to them through the front, and strangers do not reach them.

The real actors in this process, two shards among them; the executors are played, and unpickle nothing
either: whoever reads the bait here is the control plane.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from ray_sched import keys
from ray_sched.actors import local_mode, names
from ray_sched.actors.ingress import ShardActor
from ray_sched.actors.shard_wires import CALL_PORTS
from ray_sched.actors.sharded_ingress import FrontLoop
from ray_sched.bound_ports import group_ports
from ray_sched.config import Config
from ray_sched.core.partition import owner
from ray_sched.wire import ports
from tests.actors.in_process import group
from tests.security.admission import Port, check, holders_of
from tests.security.bait import Bait, hostile
from tests.security.processes import listening
from tests.security.stranger import Stranger, pushes, requests
from tests.system.conftest import eventually
from tests.wire.players import LegacyClient, PlayedExecutor, Pusher

HOST, NODE = "127.0.18.4", "127.0.18.5"
FUNCTION, DAG = "hostile_f", "hostile_dag"
"""As the examples call them."""
SHARDS = 2
DROPPED_CALL = f"dropped_port_{ports.CALL_QUEUE}"

Actors = dict[str, Any]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    # In cluster mode, where shards also pass calls on: nobody is the management node.
    return Config(host=HOST, mgmt=NODE, start_timeout_s=20.0).replace(
        **{
            "ingress.shards": SHARDS,
            "executor.runtime_dir": str(tmp_path),
            "executor.count": 0,
            "gossip.mgmt_timeout_s": 0.1,
            "scheduler.executor_timeout_s": 600.0,
        }
    )


@pytest.fixture
def unix_sockets() -> Callable[[], set[str]]:
    """The names of those that this process has bound since."""

    def bound() -> set[str]:
        return {
            connection.laddr for connection in psutil.Process().net_connections("unix") if connection.laddr
        }

    before = bound()
    return lambda: bound() - before


@pytest.fixture
def actors(config: Config, unix_sockets: object) -> Iterator[Actors]:
    with group(config) as actors, contextlib.ExitStack() as stack:
        shards: Actors = {}
        for number in range(1, SHARDS + 1):
            role = names.shard_role(number)
            name = names.actor_name(config.group_name, role)
            shards[role] = local_mode.adapted(ShardActor, name, ShardActor.CONCURRENCY_GROUPS)(config, number)
            stack.callback(shards[role].stop)
            shards[role].ready()
        yield {**actors, **shards}


def test_shards_take_no_bait(actors: Actors, bait: Bait) -> None:
    front = actors[names.INGRESS]
    shards = [actors[names.shard_role(number)] for number in range(1, SHARDS + 1)]

    def counted(actor: Any, *what: str) -> int:
        counts = actor.status()["counts"]
        return sum(counts.get(name, 0) for name in what)

    with contextlib.ExitStack() as stack:
        pusher = stack.enter_context(contextlib.closing(Pusher()))
        stranger = stack.enter_context(contextlib.closing(Stranger(HOST)))
        client = stack.enter_context(LegacyClient(HOST))
        holder = stack.enter_context(PlayedExecutor(NODE, 9, HOST, pusher))
        # The first shard alone may give it to a call: the other one has to pass its calls on.
        tid = next(tid for tid in range(9) if owner((NODE, tid), SHARDS) == 1)
        executor = stack.enter_context(PlayedExecutor(NODE, tid, HOST, pusher))

        assert client.create_function(FUNCTION, b"never run").success
        holder.report()
        eventually(lambda: client.create_dag(DAG, [FUNCTION]).success, "the DAG is pinned")

        def heard() -> bool:
            executor.report()
            return {shard.status()["executors"] for shard in shards} == {2}

        eventually(heard, "shards hear of executors")
        eventually(lambda: all(s.status()["lease_valid"] for s in shards), "shards may decide")

        sane = {**requests(), **pushes()}
        bodies = {port: hostile(sane[port], bait) for port in (*CALL_PORTS, ports.CALL_QUEUE, ports.STATUS)}

        def all_have_decided() -> bool:
            """A call takes the executor: until it reports, nobody may know of one to pass calls on to."""
            executor.report()
            for port in CALL_PORTS:
                assert stranger.ask(port, bodies[port]) == len(bodies[port])
            passed_on = counted(shards[0], "calls") and counted(shards[1], "passed_on")
            return bool(passed_on) and all(counted(shard, "dag_calls") for shard in shards)

        eventually(all_have_decided, "shards decide calls, and pass calls on")

        def front_passes_on() -> bool:
            """It connects to the shards in its own time; until then it refuses what is queued."""
            stranger.push(ports.CALL_QUEUE, [sane[ports.CALL_QUEUE].SerializeToString()])
            return counted(front, "passed_on") > 0

        eventually(front_passes_on, "the front has found the shards")

        def came() -> int:
            return sum(counted(shard, "queued_calls", DROPPED_CALL) for shard in shards)

        eventually(lambda: came() >= counted(front, "passed_on"), "that came to the shards")
        before = came()
        stranger.push(ports.CALL_QUEUE, bodies[ports.CALL_QUEUE])
        passed = len(bodies[ports.CALL_QUEUE]) - 3  # the last ones are no messages, which the front sees
        eventually(lambda: came() >= before + passed, "queued calls came to the shards")

        assert {shard.status()["executors"] for shard in shards} == {2}
        stranger.push(ports.STATUS, bodies[ports.STATUS])
        eventually(
            lambda: all(shard.status()["executors"] == 3 for shard in shards),
            "shards hear of an executor that holds a function with a hostile name",
        )
        assert not counted(front, "calls", "dag_calls", "queued_calls")
        for actor in (front, *shards):
            assert actor.status()["loop_alive"] and not counted(actor, "failed")

        raw = pickle.dumps(bait, 4)
        eventually(lambda: client.call(FUNCTION, [{"body": raw}]).success, "an executor is free")
        eventually(
            lambda: any(raw in bodies_in(call.arguments) for call in executor.received("call")),
            "a call came through with the bait",
        )
        assert client.call_dag(DAG, {FUNCTION: [{"body": raw}]}).success
        [schedule] = holder.wait_for("schedule", where=lambda s: raw in bodies_in(s.arguments[FUNCTION]))[-1:]
        assert not bait.readers()
        pickle.loads(bodies_in(schedule.arguments[FUNCTION])[0])
        assert bait.readers() == {os.getpid()}, "the bait is live"


def bodies_in(arguments: Any) -> list[bytes]:
    return [value.body for value in arguments["values"]]


def test_what_shards_listen_on_is_their_users_alone(
    actors: Actors, config: Config, unix_sockets: Callable[[], set[str]]
) -> None:
    """It is in the file system, where no key is asked for: nobody else may open it."""
    fixed, bound = set(group_ports(config)), {port for ip, port in listening([os.getpid()]) if ip == HOST}
    assert bound >= fixed
    for port in bound - fixed:
        Port(names.SCHEDULER, HOST, port).row()  # as without shards
    paths = [Path(path) for path in unix_sockets()]
    assert len(paths) == len(CALL_PORTS) + 1 + SHARDS, paths
    folder = Path(config.executor.runtime_dir)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for path in paths:
        assert path.parent == folder
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_the_ports_before_the_shards_ask_for_keys(config: Config, tmp_path: Path) -> None:
    alice, mallory = keys.new("alice", tmp_path / "keys"), keys.new("mallory", tmp_path / "others")
    front = FrontLoop(config.replace(**{"security.curve": str(tmp_path / "keys")}), lambda: None)
    front.start()
    try:
        every = [Port(names.INGRESS, ip, port) for ip, port in listening([os.getpid()]) if ip == HOST]
        assert {port.number for port in every} == {*ports.REQUEST_PORTS, *ports.PUSH_PORTS}
        holders = holders_of(tmp_path / "keys", alice, mallory)
        for port in every:
            check(port, holders)
    finally:
        front.stop()
