"""What the key-value store holds is not unpickled by a group that starts on it, nor keeps it from starting.

The control plane's own actors, in this process, on a file that a stranger has written to: each type of
lattice with the bait in it, at every key that they read of their own accord. There are no executors: whoever
reads the bait here is the control plane.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import pytest

from ray_sched.actors import names
from ray_sched.actors.catalog import DAG_INDEX, FUNCTION_INDEX, FUNCTIONS
from ray_sched.actors.policy import CACHED_KEYS
from ray_sched.config import Config
from ray_sched.kvs.client import KvsClient
from ray_sched.kvs.lattices import LWW, Lattice, SetLattice, SingleCausal, parse
from ray_sched.kvs.store import Store
from ray_sched.kvs.timestamps import HIGHEST
from ray_sched.wire import anna_pb2 as anna
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire import internal_pb2, ports, shared_pb2
from tests.actors.in_process import group
from tests.security.bait import Bait, hostile, lattices
from tests.system.conftest import eventually
from tests.wire.players import LegacyClient, Pusher, messages

HOST = "127.0.18.3"
GOOD_NODE = "127.0.18.200"
MAX_EXECUTORS = 50
MAX_NAME_BYTES = 1024
FUNCTION = "store_good"


def payloads(bait: Bait) -> list[bytes]:
    """As text, as bytes, and as a value that calls and results have."""
    raw = pickle.dumps(bait, 4)
    return [pickle.dumps(bait, 0), raw, cb.Value(body=raw).SerializeToString()]


def of_each_type(bait: Bait) -> dict[str, Lattice]:
    """By names that keys can have: `LWW_0`, `SET_2`."""
    found = {
        f"{anna.LatticeType.Name(kind)}_{number}": parse(kind, payload)
        for number, raw in enumerate(payloads(bait))
        for kind, payload in lattices(raw)
    }
    assert {lattice.type for lattice in found.values()} == set(anna.LatticeType.values()) - {anna.NONE}
    return found


def dag(name: str, *functions: str) -> cb.Dag:
    chain = functions or (FUNCTION,)
    return cb.Dag(
        name=name,
        functions=[cb.Dag.FunctionReference(name=function, invalid_results=[b"x"]) for function in chain],
        connections=[cb.Dag.Link(source=a, sink=b) for a, b in pairwise(chain)],
        colocated=chain[:1],
    )


def written(message: cb.Dag | shared_pb2.StringSet) -> LWW:
    return LWW(1, message.SerializeToString())


def dags_with(bait: Bait) -> dict[str, LWW]:
    """DAGs whose bytes parse, by name, with the bait in one field, or in all."""
    found: dict[str, LWW] = {}
    sane = dag("store_field", FUNCTION, "store_other")
    *whole, _, _, _ = hostile(sane, bait)  # without the last ones, which are no messages
    for number, body in enumerate(whole):
        message = cb.Dag.FromString(body)
        if message.name == sane.name:
            message.name = f"{sane.name}_{number}"
        found.setdefault(
            message.name, written(message)
        )  # the one with the bait as its name alone stays valid
    return found


def config(folder: Path) -> Config:
    return Config(host=HOST, start_timeout_s=20.0).replace(
        **{
            "kvs.path": str(folder / "store"),
            "kvs.consistency": "causal",
            "executor.runtime_dir": str(folder / "runtime"),
            "scheduler.max_executors": MAX_EXECUTORS,
            "scheduler.max_name_bytes": MAX_NAME_BYTES,
            "stats.policy_period_s": 0.1,
        }
    )


def fill(folder: Path, content: Mapping[str, Lattice]) -> None:
    store = Store(config(folder).kvs.path)
    with store.batch():
        for key, lattice in content.items():
            store.put(key, lattice)
    store.close()


def test_a_group_starts_on_hostile_entries_beside_good_ones(
    bait: Bait, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text, raw, value = payloads(bait)
    bodies = {f"body_{name}": lattice for name, lattice in of_each_type(bait).items()}
    no_dags = {f"dag_{name}": lattice for name, lattice in of_each_type(bait).items()}
    hostile_dags = dags_with(bait)
    no_keys = {f"127.0.18.{100 + n}": lattice for n, lattice in enumerate(of_each_type(bait).values())}
    no_entries = [
        text.decode(), f"{text.decode()} x", "", " ", "1", "1 ", "-1 x", f"1 {'x' * (MAX_NAME_BYTES + 1)}",
        f"{'9' * 5000} good", f"{MAX_EXECUTORS + 1} greedy",
    ]  # fmt: skip
    entries = [f"1 {name}" for name in ("good", *no_dags, *hostile_dags)]
    too_long = FUNCTIONS.encode() + b"x" * (MAX_NAME_BYTES + 1)
    index = [f"{FUNCTIONS}{FUNCTION}".encode(), text, raw, value, too_long]
    index += [FUNCTIONS.encode() + payload for payload in (text, raw, value)]
    fill(
        tmp_path,
        {
            FUNCTION_INDEX: SetLattice(frozenset(index)),
            DAG_INDEX + HOST: written(shared_pb2.StringSet(keys=[*no_entries, *entries])),
            **{name: written(dag(name)) for name in ("good", "greedy", "learned", "erased")},
            **no_dags,
            **hostile_dags,
            **{FUNCTIONS + name: lattice for name, lattice in bodies.items()},
            f"{FUNCTIONS}last": SingleCausal({"base": 2**32 - 1}, frozenset([raw])),
            **{CACHED_KEYS + ip: lattice for ip, lattice in no_keys.items()},
            CACHED_KEYS + GOOD_NODE: written(shared_pb2.StringSet(keys=["cached", text.decode()])),
        },
    )
    with (
        caplog.at_level(logging.WARNING, "ray_sched"),
        group(config(tmp_path)) as actors,
        LegacyClient(HOST) as client,
        KvsClient(HOST, HOST) as kvs,
        contextlib.closing(Pusher()) as pusher,
    ):
        scheduler, policy = actors[names.SCHEDULER], actors[names.POLICY]
        functions, dags = scheduler.status()["functions"], scheduler.status()["dags"]
        assert FUNCTION in functions
        assert max(map(len, functions)) <= MAX_NAME_BYTES
        assert "good" in dags
        assert text.decode() in dags, "no name is too strange for a DAG"
        assert not {"greedy", "learned", "erased", *no_dags} & set(dags)
        assert caplog.text.count("has an entry that names no DAG") == len(no_entries)
        assert [name for name in no_dags if f"key={name} holds no DAG" not in caplog.text] == []

        # Bodies are looked at where a DAG names what is not in the index, and where they are replaced.
        chain = list(pairwise(bodies))
        assert client.create_dag("of_bodies", list(bodies), chain).error == messages.NO_RESOURCES
        for name, lattice in bodies.items():
            reply = client.create_function(name, b"never run")
            assert reply.success == isinstance(lattice, SingleCausal), name
            assert reply.success or reply.error == messages.NO_RESOURCES
        assert client.create_function("last", b"never run").error == messages.NO_RESOURCES

        told = internal_pb2.SchedulerStatus(dags=[*no_dags, "learned", "erased"])
        pusher.push(ports.tcp(HOST, ports.SCHEDULER_UPDATE), told.SerializeToString())
        for ip in (GOOD_NODE, *no_keys):
            status = internal_pb2.ThreadStatus(ip=ip, tid=0, functions=["busy"], running=True)
            pusher.push(ports.tcp(HOST, ports.STATUS), status.SerializeToString())
        eventually(lambda: "learned" in scheduler.status()["dags"], "a DAG is learned beside what is none")
        eventually(lambda: policy.status()["cached_keys"] == 2, "what a node has cached is known")
        eventually(
            lambda: all(f"key={CACHED_KEYS}{ip} holds no set of" in caplog.text for ip in no_keys),
            "no other node's keys are taken for a set",
        )

        # What changes while the group runs: all learned DAGs are looked at together.
        kvs.put_many({"learned": LWW(HIGHEST, raw), "erased": LWW(HIGHEST, b"")})
        kvs.put(FUNCTION_INDEX, SetLattice(frozenset([b"funcs/later", b"funcs/again" + raw])))
        eventually(lambda: "erased" not in scheduler.status()["dags"], "an erased DAG is forgotten")
        assert "learned" in scheduler.status()["dags"]
        assert "later" in client.list()
        unread = [scheduler.get(f"dag_{kind}_2") for kind in ("LWW", "SINGLE_CAUSAL", "MULTI_CAUSAL")]
        kvs.put(DAG_INDEX + HOST, LWW(HIGHEST, raw))

    with caplog.at_level(logging.WARNING, "ray_sched"), group(config(tmp_path)) as actors:
        assert "is no index of DAGs: create them again" in caplog.text
        status = actors[names.SCHEDULER].status()
        assert (status["dags"], "later" in status["functions"]) == ({}, True)
    assert not bait.readers()
    for sealed in unread:
        pickle.loads(pickle.dumps(sealed))
    assert bait.readers() == {os.getpid()}, "the bait is live"


@pytest.mark.parametrize("kind", sorted(set(anna.LatticeType.keys()) - {"NONE"}))
def test_a_group_starts_where_its_indexes_are_none(
    kind: str, bait: Bait, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    index = of_each_type(bait)[f"{kind}_1"]
    fill(
        tmp_path,
        {
            FUNCTION_INDEX: index,
            DAG_INDEX + HOST: index,
            f"{DAG_INDEX}{HOST}/damaged": SetLattice(frozenset(payloads(bait))),
            "good": written(dag("good")),
        },
    )
    with (
        caplog.at_level(logging.WARNING, "ray_sched"),
        group(config(tmp_path)) as actors,
        LegacyClient(HOST) as client,
    ):
        assert client.list() == []
        told = "is no index of DAGs" if kind == "LWW" else f"holds a {kind} lattice, not LWW: no DAGs are"
        assert told in caplog.text
        assert (f"key={FUNCTION_INDEX} holds no set of functions" in caplog.text) == (kind != "SET")
        # Its name can be looked up, if not listed.
        actors[names.SCHEDULER].learn_dags(["good"])
        assert list(actors[names.SCHEDULER].status()["dags"]) == ["good"]
    assert not bait.readers()
    pickle.loads(pickle.dumps(bait))
    assert bait.readers() == {os.getpid()}, "the bait is live"
