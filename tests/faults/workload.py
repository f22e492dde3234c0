"""Clients that do what a seed says, and the look at what became of it."""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import ray_sched
from ray_sched.client import Client
from tests.faults.history import History
from tests.system.conftest import eventually

log = logging.getLogger(__name__)

SEED = int(os.environ.get("SEED") or 1)
CLIENTS = 3
WEIGHTS = (6, 6, 3, 3, 1, 1, 1)
SETTLE_S = 60.0
CONTINUED = "continued DAG calls"
SETTINGS = {
    "executor.count": 3,
    "policy.max_recent_calls": 0,
    "executor.schedule_timeout_s": 8.0,
    "executor.trigger_timeout_s": 8.0,
    "scheduler.executor_timeout_s": 6.0,
}


class Worker:
    """A client that does one thing after the other, as its seed has it."""

    def __init__(self, client: Client, number: int, history: History) -> None:
        self.client = client
        self.rng = random.Random(SEED * 1000 + number)
        self.history = history
        self.number = number
        self.made = 0
        self.first, self.second, self.dag = f"add_{number}", f"double_{number}", f"chain_{number}"

    def prepare(self) -> None:
        client = self.client
        client.register(lambda library, x: x + 1, self.first)
        client.register(lambda library, x: x * 2, self.second)
        client.register_dag(self.dag, [self.first, self.second], [(self.first, self.second)])
        self.history.registered(self.first)
        self.history.dag_is(self.dag, "exists")

    def step(self) -> None:
        acts = (
            self.call,
            self.call_dag,
            self.call_directly,
            self.call_and_continue,
            self.make_function,
            self.make_dag,
            self.delete_dag,
        )
        act = self.rng.choices(acts, WEIGHTS)[0]
        try:
            act()
        except ray_sched.RaySchedError as error:
            self.history.refused(f"{act.__name__}: {type(error).__name__}")

    def call(self) -> None:
        x = self.rng.randrange(1000)
        function = ray_sched.RemoteFunction(self.client, self.first, "normal")
        self.history.called("calls", x + 1, function(x))

    def call_dag(self, direct: bool = False) -> None:
        x = self.rng.randrange(1000)
        future = self.client.call_dag(self.dag, {self.first: [x]}, direct_response=direct)
        self.history.called("direct DAG calls" if direct else "DAG calls", 2 * (x + 1), future)

    def call_directly(self) -> None:
        self.call_dag(direct=True)

    def call_and_continue(self) -> None:
        x = self.rng.randrange(1000)
        again = ray_sched.Continuation(self.dag, {})
        future = self.client.call_dag(self.dag, {self.first: [x]}, continuation=again)
        self.history.called(CONTINUED, 2 * (2 * (x + 1) + 1), future)

    def make_function(self) -> None:
        self.made += 1
        name = f"extra_{self.number}_{self.made}"
        self.client.register(lambda library: 0, name, timeout_s=20.0)
        self.history.registered(name)

    def make_dag(self) -> None:
        self.made += 1
        name = f"dag_{self.number}_{self.made}"
        self.history.dag_is(name, "unsure")
        self.client.register_dag(name, [self.first], timeout_s=20.0)
        self.history.dag_is(name, "exists")

    def delete_dag(self) -> None:
        mine = [
            name
            for name, state in self.history.dags.items()
            if state == "exists" and name.startswith(f"dag_{self.number}_")
        ]
        if mine:
            name = self.rng.choice(mine)
            self.history.dag_is(name, "unsure")
            self.client.delete_dag(name, timeout_s=20.0)
            self.history.dag_is(name, "gone")


@contextmanager
def working(client: Client, history: History) -> Iterator[threading.Event]:
    """Let clients work meanwhile, or until the event is set."""
    stop = threading.Event()
    workers = [Worker(client, number, history) for number in range(CLIENTS)]
    for worker in workers:
        worker.prepare()

    def work(worker: Worker) -> None:
        while not stop.is_set():
            worker.step()
            stop.wait(worker.rng.expovariate(100.0))

    threads = [threading.Thread(target=work, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    try:
        yield stop
    finally:
        stop.set()
        for thread in threads:
            thread.join(90.0)


def settle(client: Client, history: History) -> None:
    """Wait for the outcome of each acknowledged call; all of them have the same time."""
    deadline = time.monotonic() + SETTLE_S
    for call in history.calls:
        try:
            value = call.future.get(timeout_s=max(0.1, deadline - time.monotonic()))
        except ray_sched.TimedOutError:
            call.outcome = "silence"
        except ray_sched.ExecutionError as error:
            call.outcome = "error"
            # Without the command that tells more, which has the call's id.
            history.refused(f"in the end: {str(error).partition('ray-sched why')[0][-60:]}")
        except ray_sched.NoResourcesError as error:
            # Nobody but who waits for the result hears that a continuation found no executor: one that was
            # killed may not hold its function again yet. Of other calls their acknowledgement says it.
            call.outcome = "error" if call.what == CONTINUED else f"refused after all: {error}"
            history.refused(f"in the end: {error}")
        except ray_sched.FunctionNotFoundError:
            call.outcome = "an acknowledged function was not found"
        else:
            call.outcome = "result" if value == call.expected else f"{value!r} instead of {call.expected!r}"
        history.counts[call.outcome] += 1


def check(client: Client, history: History) -> None:
    def exists(name: str) -> bool:
        try:
            client.register_dag(name, ["no such function"])
        except ray_sched.DagExistsError:
            return True
        except ray_sched.FunctionNotFoundError:
            return False
        raise AssertionError("a DAG of an unknown function was accepted")

    eventually(lambda: answers(client), "the group answers again")
    functions = set(client.list(timeout_s=20.0))
    dags = {name: exists(name) for name in history.dags}
    faults = history.faults(functions, dags)
    log.info("SEED=%d %s", SEED, dict(history.counts))
    assert not faults, f"SEED={SEED}: {len(faults)} faults: {faults[:10]}"


def answers(client: Client) -> bool:
    try:
        client.register_dag("no such DAG", ["no such function"])
    except ray_sched.FunctionNotFoundError:
        return True
    except ray_sched.RaySchedError:
        return False
    return False
