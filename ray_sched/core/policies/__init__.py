"""How an executor is picked: small classes behind one protocol, found by name.

A policy of your own is a class with `pick`, offered under the entry point group
`ray_sched.policies`; nothing here has to be changed for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import NamedTuple, Protocol

from ray_sched.config import PolicyConfig
from ray_sched.core.executor import Executor
from ray_sched.core.executors import ExecutorPool, ExecutorTable
from ray_sched.errors import ConfigError

ENTRY_POINTS = "ray_sched.policies"


class Rng(Protocol):
    """The part of `random.Random` that the core uses; who makes one chooses its seed."""

    def random(self) -> float:
        """A number in [0, 1)."""
        ...

    def getrandbits(self, bits: int, /) -> int:
        """A number of so many random bits."""
        ...


class Request(NamedTuple):
    """What a policy may know of a call."""

    function: str
    references: Sequence[str] = ()
    """The keys that its arguments refer to."""


class Policy(Protocol):
    """Picks an executor. One instance serves one dispatcher; it may keep state of its own."""

    def pick(
        self, candidates: ExecutorPool, request: Request, table: ExecutorTable, rng: Rng
    ) -> Executor | None:
        """One of the candidates, or None where none may be used now; must not change the table."""
        ...


def eligible(candidates: ExecutorPool, config: PolicyConfig, rng: Rng) -> tuple[int, bool]:
    """How many of the candidates (counted from the available ones on) may be picked, and whether
    this call belongs to the share that is placed at random.

    Overloaded candidates are avoided with probability 1 - random_threshold; where all are
    overloaded, none may be picked, or, with `overload: keep-last`, any.
    """
    at_random = rng.random() < config.random_threshold
    ready = len(candidates.available.items)
    if ready and not at_random:
        return ready, False
    if ready or config.overload == "keep-last":
        return len(candidates), at_random
    return 0, at_random


def any_of(candidates: ExecutorPool, count: int, rng: Rng) -> Executor | None:
    """One of the first `count` candidates at random; None where there are none."""
    return candidates.at(int(rng.random() * count)) if count else None


def any_eligible(candidates: ExecutorPool, config: PolicyConfig, rng: Rng) -> Executor | None:
    """`any_of` those that are `eligible`. Nearly every pick comes to this, and then to its first return."""
    at_random = rng.random() < config.random_threshold
    ready = candidates.available.items
    if ready and not at_random:
        return ready[int(rng.random() * len(ready))]
    return any_at_all(candidates, config, rng)


def any_at_all(candidates: ExecutorPool, config: PolicyConfig, rng: Rng) -> Executor | None:
    """The overloaded ones, too; none where these are all, unless `overload: keep-last`."""
    if candidates.available.items or config.overload == "keep-last":
        return any_of(candidates, len(candidates), rng)
    return None


def any_reachable(candidates: ExecutorPool, rng: Rng) -> Executor | None:
    """An available one; where there is none, an overloaded one that messages reach."""
    items = candidates.available.items or [each for each in candidates.overloaded if not each.suspected]
    return items[int(rng.random() * len(items))] if items else None


def policy_names() -> list[str]:
    """The names under which policies are installed."""
    return sorted({point.name for point in entry_points(group=ENTRY_POINTS)})


def load_policy(config: PolicyConfig) -> Policy:
    """The policy that the configuration names. Raises ConfigError where there is none of that name."""
    for point in entry_points(group=ENTRY_POINTS):
        if point.name == config.name:
            policy: Policy = point.load()(config)
            return policy
    raise ConfigError(
        f"policy.name: {config.name!r} is not installed; there are: {', '.join(policy_names())}"
    )
