"""Clients, faults and the checker: what a seed comes to."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path

from ray_sched.wire import cloudburst_pb2 as cb
from tests.faults.simulated.scheduler import FUNCTIONS
from tests.faults.simulated.world import World

FAULTY_S = 30.0
SETTLE_S = 90.0
"""Longer than any time-out in it."""
DOWN_S = (0.1, 4.0)
"""How long Ray takes to start a process anew."""


@dataclass
class Outcome:
    seed: int
    story: list[str]
    faults: list[str] = field(default_factory=list)
    """All that was lost or is wrong in the end."""
    calls: int = 0
    errors: int = 0
    kills: int = 0
    dags: int = 0

    def numbers(self) -> dict[str, int]:
        return {
            "kills": self.kills,
            "DAGs created or deleted": self.dags,
            "calls": self.calls,
            "error values": self.errors,
        }


class Client:
    """One client for each DAG name, that does one thing after the other to it."""

    def __init__(self, world: World, outcome: Outcome) -> None:
        self._world = world
        self._relay = world.relay
        self._outcome = outcome
        self.dags: dict[str, str] = {}
        """Each with what is known: exists, gone, or unsure."""
        self.shapes: dict[str, cb.Dag] = {}
        self.keys: list[str] = []
        """Of acknowledged calls."""
        self._made = 0
        self._busy: set[str] = set()

    def step(self) -> None:
        rng = self._relay.rng
        existing = [name for name, state in self.dags.items() if state == "exists" and name not in self._busy]
        act = rng.random()
        if act < 0.08 or not existing:
            self.create()
        elif act < 0.11:
            self.delete(existing[int(rng.random() * len(existing))])
        elif act < 0.85:
            self.call(existing[int(rng.random() * len(existing))])
        else:
            self._call("f", cb.FunctionCall(name="f"))

    def create(self) -> None:
        rng, world = self._relay.rng, self._world
        self._made += 1
        name = f"dag{self._made}"
        functions = rng.sample(FUNCTIONS, rng.choice((1, 1, 2, 2, 3)))
        dag = cb.Dag(name=name)
        for function in functions:
            dag.functions.add(name=function)
        for source, sink in itertools.pairwise(functions):
            dag.connections.add(source=source, sink=sink)
        self.shapes[name], self.dags[name] = dag, "unsure"
        self._relay.note(f"client: create {name} {'->'.join(functions)}")
        scheduler = world.scheduler
        self._ask(lambda told: scheduler.create(dag, 1, told), name, "exists")

    def delete(self, name: str) -> None:
        self.dags[name] = "unsure"
        self._relay.note(f"client: delete {name}")
        scheduler = self._world.scheduler
        self._ask(lambda told: scheduler.delete(name, told), name, "gone")

    def _ask(self, act, name: str, state: str) -> None:  # type: ignore[no-untyped-def]
        scheduler, ingress, relay = self._world.scheduler, self._world.ingress, self._relay
        if not ingress.up:
            return

        def told(why_not: str) -> None:
            relay.tell(scheduler, ingress, f"{name}: {why_not or state}", lambda: heard(why_not), once=True)

        def heard(why_not: str) -> None:
            relay.note(f"client: {name}: {why_not or state}")
            if not why_not:
                self.dags[name] = state
                self._outcome.dags += 1

        relay.tell(ingress, scheduler, f"a request about {name}", lambda: act(told), once=True)

    def call(self, dag: str) -> None:
        self._call(dag, cb.DagCall(name=dag))

    def _call(self, name: str, call: cb.DagCall | cb.FunctionCall) -> None:
        ingress = self._world.ingress

        def told(why_not: str, key: str) -> None:
            self._relay.note(f"client: call of {name}: {why_not or key}")
            if not why_not:
                self.keys.append(key)

        if ingress.up:
            ingress.call(call, told)


def simulate(seed: int, folder: Path) -> Outcome:
    """Let clients work among faults, then without; nothing in it depends on anything but the seed."""
    world = World(seed, folder)
    relay = world.relay
    outcome = Outcome(seed, relay.story)
    client = Client(world, outcome)

    def work() -> None:
        if relay.faulty:
            client.step()
            relay.after(relay.rng.expovariate(5.0), work)

    def kill() -> None:
        if relay.faulty:
            living = [part for part in world.parts if part.up]
            for part in relay.rng.sample(living, min(len(living), relay.rng.choice((1, 1, 1, 2)))):
                part.kill(relay.rng.uniform(*DOWN_S))
                outcome.kills += 1
            relay.after(relay.rng.expovariate(0.5), kill)

    try:
        relay.run(5.0, world.validate)
        relay.faulty = True
        relay.after(0.0, work)
        relay.after(2.0, kill)
        relay.run(FAULTY_S, world.validate)
        relay.faulty = False
        relay.note("no more faults")
        relay.run(SETTLE_S, world.validate)
        _check(world, client, outcome)
    except AssertionError as error:
        outcome.faults.append(f"at {relay.now:.6f}: {error}")
    finally:
        world.close()
    return outcome


def _check(world: World, client: Client, outcome: Outcome) -> None:
    wrong = outcome.faults
    scheduler, policy, ingress, values = world.scheduler, world.policy, world.ingress, world.store.values
    outcome.calls = len(client.keys)
    outcome.errors = sum(values.get(key) == "error" for key in client.keys)
    wrong += [f"call {key} ended in silence" for key in client.keys if key not in values]
    for name, state in client.dags.items():
        if state == "exists" and name not in ingress.plans:
            wrong.append(f"DAG {name} was lost")
        if state == "gone" and name in ingress.plans:
            wrong.append(f"DAG {name} is back")
    if set(ingress.plans) != set(scheduler.registry.dags()):
        wrong.append("ingress and scheduler know different DAGs")
    # What a killed scheduler was writing may come to the store after the next one has read it.
    unsure = {name for name, state in client.dags.items() if state == "unsure"}
    if (set(ingress.plans) ^ set(world.store.dags)) - unsure:
        wrong.append("the store has other DAGs than are known")
    # Those take room that was given to others meanwhile, once they are read back.
    needed = sum(len(dag.functions) for dag in scheduler.registry.dags().values())
    crowded = bool(unsure & set(ingress.plans)) and not world.config.local and needed > len(world.executors)
    missing = policy.pinning.missing()
    if not crowded:
        wrong += [f"DAG {name} misses {functions}" for name, functions in missing.items()]
    pinned_dags = {name for name, pins in policy.pinning.pins.items() if pins}
    if pinned_dags | (set(missing) if crowded else set()) != set(ingress.plans):
        wrong.append("there are pins of other DAGs than exist")
    pinned = {(pin.address, pin.function) for pins in policy.pinning.pins.values() for pin in pins}
    for executor in world.executors:
        held = set(executor.execution.functions)
        wanted = {function for address, function in pinned if address == executor.address}
        if held != wanted:
            wrong.append(f"{executor.name} holds {sorted(held)}, pinned there are {sorted(wanted)}")
        for part in (policy, scheduler, ingress):
            known = part.table.executors.get(executor.address)
            if known is None or set(known.functions) != held:
                wrong.append(
                    f"{part.name} does not know what {executor.name} holds: {known and known.functions}"
                )
            elif known.free != (world.config.local or not held):
                wrong.append(f"{part.name} has {executor.name} as {'' if known.free else 'not '}free")
    keys = len(client.keys)
    callable_dags = set(ingress.plans) - (set(missing) if crowded else set())
    for name in sorted(callable_dags):
        client.call(name)
    if len(client.keys) != keys + len(callable_dags):
        wrong.append("a DAG that exists could not be called")
    world.relay.run(30.0, world.validate)
    wrong += [
        f"call {key} after all faults gave no result"
        for key in client.keys[keys:]
        if values.get(key) != "result"
    ]
