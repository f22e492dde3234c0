"""The same events with the same seed give the same picks, ids and refusals, release after release.

`picks.json` was recorded before the hot path was made fast. A change that makes it differ changes
what a seed means: say so, and record it anew with `python -m tests.core.test_same_picks`.
"""

from __future__ import annotations

import json
import pickle
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_sched.config import PolicyConfig
from ray_sched.core.arrivals import Arrivals
from ray_sched.core.dags import plan_of
from ray_sched.core.dispatch import Dispatched, Dispatcher
from ray_sched.core.executor import Status
from ray_sched.core.executors import ExecutorTable
from ray_sched.core.policies import load_policy
from ray_sched.errors import RaySchedError
from ray_sched.reference import CloudburstReference
from ray_sched.wire import cloudburst_pb2 as cb

RECORDED = Path(__file__).parent / "picks.json"
POLICIES = ["locality", "random", "round-robin"]
STEPS = 500
KEYS = [f"k{number}" for number in range(12)]
FUNCTIONS = [f"f{number}" for number in range(5)]
ADDRESSES = [(f"10.0.0.{1 + number % 3}", number) for number in range(9)]
DAGS = {
    "one": (["f0"], []),
    "chain": (["f0", "f1", "f2"], [("f0", "f1"), ("f1", "f2")]),
    "diamond": (["f4", "f1", "f2", "f3"], [("f4", "f1"), ("f4", "f2"), ("f1", "f3"), ("f2", "f3")]),
}


def dag(name: str) -> cb.Dag:
    functions, links = DAGS[name]
    return cb.Dag(
        name=name,
        functions=[cb.Dag.FunctionReference(name=function) for function in functions],
        connections=[cb.Dag.Link(source=source, sink=sink) for source, sink in links],
    )


def arguments(rng: random.Random) -> cb.Arguments:
    """None to three values, references or not."""
    made = cb.Arguments()
    for _ in range(rng.randrange(4)):
        given = CloudburstReference(rng.choice(KEYS)) if rng.random() < 0.7 else rng.random()
        made.values.add(body=pickle.dumps(given, protocol=4))
    return made


def story(policy: str) -> Iterator[str]:
    """What a busy group of nine executors does in `STEPS` steps: a line for each call."""
    config = PolicyConfig(name=policy, max_recent_calls=40, overload="keep-last")
    table = ExecutorTable(config, local=False, pin_grace_s=0.0, executor_timeout_s=1e9)
    plans = {name: plan_of(dag(name)) for name in DAGS}
    dispatcher = Dispatcher(table, plans, load_policy(config), random.Random(1234), Arrivals())
    events = random.Random(99)
    for number, address in enumerate(ADDRESSES):
        functions = tuple(FUNCTIONS[number % 5 :: 2]) if number < 7 else ()
        table.on_status(Status(*address, functions), 0.0)

    def happened(dispatched: Dispatched) -> str:
        picks = " ".join(f"{executor.tid}/{kind[0]}" for executor, kind, _ in dispatched[1])
        return f"{dispatched[0][:8]} {picks}"

    for step in range(1, STEPS):
        now = step * 0.05
        table.age(now)
        chance = events.random()
        if chance < 0.2:
            address = events.choice(ADDRESSES)
            held = sorted(table.executors[address].functions)
            table.on_status(Status(*address, tuple(held), events.random()), now, step)
        elif chance < 0.3:
            table.cached_keys.set(events.choice(ADDRESSES)[0], events.sample(KEYS, 4))
        else:
            try:
                if chance < 0.4:
                    call = cb.FunctionCall(name="f9", arguments=arguments(events))
                    yield happened(dispatcher.call(call, now))
                else:
                    dag_call = cb.DagCall(name=events.choice(list(DAGS)))
                    for function in events.sample(FUNCTIONS, 2):
                        dag_call.function_args[function].CopyFrom(arguments(events))
                    yield happened(dispatcher.call_dag(dag_call, now, 1e9 + now))
            except RaySchedError as error:
                yield type(error).__name__


@pytest.mark.parametrize("policy", POLICIES)
def test_a_seed_means_what_it_meant(policy: str) -> None:
    assert list(story(policy)) == json.loads(RECORDED.read_text())[policy]


def test_the_story_has_all_that_can_happen_in_it() -> None:
    lines = list(story("locality"))
    assert "NoResourcesError" in lines
    assert any(line.endswith("/c") for line in lines) and any(line.endswith("/t") for line in lines)
    assert len({line.partition(" ")[2] for line in lines}) > 50


if __name__ == "__main__":
    RECORDED.write_text(json.dumps({policy: list(story(policy)) for policy in POLICIES}, indent=0) + "\n")
    sys.stdout.write(f"recorded in {RECORDED}\n")
