"""What a process remembers: bounded, found by any of its names, and told in words only when asked."""

from __future__ import annotations

import random

import pytest

from ray_sched.config import PolicyConfig
from ray_sched.core.arrivals import Arrivals
from ray_sched.core.dags import plan_of
from ray_sched.core.dispatch import Dispatcher
from ray_sched.core.executor import Status
from ray_sched.core.executors import ExecutorTable
from ray_sched.core.history import TOLD, Ring, serving
from ray_sched.core.policies import load_policy
from ray_sched.errors import NoResourcesError
from ray_sched.wire import cloudburst_pb2 as cb


def test_a_ring_tells_what_has_a_name_and_how_far_back_it_goes() -> None:
    ring = Ring(3)
    assert ring.since() is None
    for number in range(5):
        ring.note(float(number), ("all", f"n{number}"), "number {}", number)
    assert ring.since() == 2.0
    assert ring.about("n3") == [(3.0, "number 3")]
    assert ring.about("n1") == []
    assert [what for _, what in ring.about("all")] == ["number 2", "number 3", "number 4"]


def test_an_answer_has_the_latest_entries_and_not_too_many() -> None:
    ring = Ring(10 * TOLD)
    for number in range(5 * TOLD):
        ring.note(float(number), ("x",), "{}", number)
    assert len(ring.about("x")) == TOLD
    assert ring.about("x")[-1] == (5 * TOLD - 1, str(5 * TOLD - 1))


def test_what_is_noted_for_a_request_is_found_by_its_id() -> None:
    ring = Ring(10)
    with serving("r1"):
        ring.note(1.0, ("dag",), "DAG {} is created", "dag")
        with serving(""):
            ring.note(2.0, ("other",), "done for nobody")
    ring.note(3.0, ("dag",), "DAG {} is deleted", "dag")
    assert ring.about("r1") == [(1.0, "DAG dag is created (request r1)")]
    assert ring.about("dag") == [(1.0, "DAG dag is created (request r1)"), (3.0, "DAG dag is deleted")]
    assert ring.about("other") == [(2.0, "done for nobody")]


class World:
    def __init__(self, remembered: int = 100) -> None:
        policy = PolicyConfig(random_threshold=0.0, max_recent_calls=0)
        self.table = ExecutorTable(policy, local=True, pin_grace_s=1.0, executor_timeout_s=15.0)
        dag = cb.Dag(
            name="line",
            functions=[cb.Dag.FunctionReference(name=name) for name in ("first", "second")],
            connections=[cb.Dag.Link(source="first", sink="second")],
        )
        self.dispatcher = Dispatcher(
            self.table, {"line": plan_of(dag)}, load_policy(policy), random.Random(1), Arrivals(), remembered
        )

    def executor(self, tid: int, *functions: str) -> None:
        self.table.on_status(Status("127.0.18.20", tid, functions), 0.0)

    def told(self, name: str) -> list[str]:
        return [what for _, what in self.dispatcher.decisions.about(name, "locality", self.table)]


def test_a_dag_call_is_told_by_id_key_function_dag_and_executor() -> None:
    world = World()
    world.executor(0, "first")
    world.executor(1, "second")
    world.executor(2, "second")
    world.table.suspect(("127.0.18.20", 2))
    world.dispatcher.call_dag(cb.DagCall(name="line", output_key="out"), 5.0, 100.0, "id-1")
    story = [
        "call id-1 of line came, result to key out",
        "first: policy locality picked 127.0.18.20:0 of 1 available and 0 overloaded candidates",
        "second: policy locality picked 127.0.18.20:1 of 1 available and 1 overloaded candidates",
    ]
    for name in ("id-1", "out", "line", "second", "127.0.18.20:1"):
        assert world.told(name) == story
    assert world.told("127.0.18.20:2") == []

    world.table.remove(("127.0.18.20", 1))
    assert "127.0.18.20:1, which is gone by now, of" in world.told("id-1")[2]


def test_a_refusal_says_where_it_got_stuck() -> None:
    world = World()
    world.executor(0, "first")
    with pytest.raises(NoResourcesError):
        world.dispatcher.call_dag(cb.DagCall(name="line"), 5.0, 100.0, "id-2")
    assert world.told("line")[1:] == [
        "first: policy locality picked 127.0.18.20:0 of 1 available and 0 overloaded candidates",
        "second: policy locality picked nobody of 0 available and 0 overloaded candidates",
        "refused: no executor can take 'second' of DAG 'line' now: try again",
    ]
    world.table.remove(("127.0.18.20", 0))
    with pytest.raises(NoResourcesError):
        world.dispatcher.call(cb.FunctionCall(name="f", response_key="id-3"), 6.0)
    assert world.told("id-3")[-1] == "refused: no free executor for 'f': try again, or add executors"


def test_only_the_last_decisions_are_kept() -> None:
    world = World(remembered=2)
    world.executor(0)
    for number in range(3):
        world.dispatcher.call(cb.FunctionCall(name="f", response_key=f"id-{number}"), float(number))
    assert world.told("id-0") == []
    assert world.told("id-1")[0] == "call id-1 of f came"
    assert world.dispatcher.decisions.since() == 1.0
