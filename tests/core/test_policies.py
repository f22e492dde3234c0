"""What each policy picks, and that a share of the picks is left to chance."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from ray_sched.config import PolicyConfig
from ray_sched.core.executor import Address, Status
from ray_sched.core.executors import ExecutorTable
from ray_sched.core.policies import Policy, Request, load_policy, policy_names
from ray_sched.errors import ConfigError

A, B, C = ("10.0.0.1", 0), ("10.0.0.2", 0), ("10.0.0.3", 0)
ALL = ["locality", "random", "round-robin"]


class Setting:
    """Three executors that hold f, and a policy to pick among them."""

    def __init__(self, name: str, *addresses: Address, seed: int = 1, **policy: object) -> None:
        config = PolicyConfig(name=name, **policy)  # type: ignore[arg-type]
        self.table = ExecutorTable(config, local=False, pin_grace_s=1.0, executor_timeout_s=1e9)
        for address in addresses or (A, B, C):
            self.status(address)
        self.policy: Policy = load_policy(config)
        self.rng = random.Random(seed)

    def status(self, address: Address, utilization: float = 0.0) -> None:
        self.table.on_status(Status(*address, ("f",), utilization), 0.0)

    def pick(self, *references: str) -> Address | None:
        executor = self.policy.pick(self.table.functions["f"], Request("f", references), self.table, self.rng)
        return executor.address if executor else None

    def picks(self, count: int, *references: str) -> Counter[Address | None]:
        return Counter(self.pick(*references) for _ in range(count))


def test_the_three_policies_are_installed() -> None:
    assert set(ALL) <= set(policy_names())


def test_an_unknown_policy_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match=r"'best'.*locality.*random.*round-robin"):
        load_policy(PolicyConfig(name="best"))


@pytest.mark.parametrize("name", ALL)
def test_an_overloaded_executor_is_avoided_but_for_the_random_share(name: str) -> None:
    s = Setting(name, random_threshold=0.2)
    s.status(A, utilization=0.9)
    picks = s.picks(6000)
    # Of the random share, 0.2, a third goes to each of the three (round-robin: each third or second).
    assert 0.045 < picks[A] / 6000 < 0.12
    assert Setting(name, random_threshold=0.0).picks(100)[None] == 0


@pytest.mark.parametrize("name", ALL)
def test_without_a_random_share_an_overloaded_executor_is_never_picked(name: str) -> None:
    s = Setting(name, random_threshold=0.0)
    s.status(A, utilization=0.9)
    assert s.picks(500)[A] == 0


@pytest.mark.parametrize("name", ALL)
def test_one_with_more_than_1000_recent_calls_is_avoided_too(name: str) -> None:
    s = Setting(name, random_threshold=0.0)
    for _ in range(1001):
        s.table.note_calls([s.table.executors[A]])
    assert s.picks(500)[A] == 0


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("threshold", [0.0, 0.2, 1.0])
def test_when_all_are_overloaded_nothing_is_picked(name: str, threshold: float) -> None:
    s = Setting(name, random_threshold=threshold)
    for address in (A, B, C):
        s.status(address, utilization=0.9)
        s.status(address, utilization=0.9)
    for address in (A, B, C):
        assert s.table.executors[address].overloaded
    assert s.picks(200) == {None: 200}


@pytest.mark.parametrize("name", ALL)
def test_keep_last_picks_an_overloaded_one_where_there_is_no_other(name: str) -> None:
    s = Setting(name, overload="keep-last")
    for address in (A, B, C):
        s.status(address, utilization=0.9)
    assert s.picks(200)[None] == 0


@pytest.mark.parametrize("name", ["random", "locality"])
def test_without_references_the_picks_are_spread_evenly(name: str) -> None:
    picks = Setting(name).picks(6000)
    assert all(0.30 < picks[address] / 6000 < 0.37 for address in (A, B, C))


def test_round_robin_takes_each_in_turn() -> None:
    s = Setting("round-robin")
    picks = [s.pick() for _ in range(6)]
    assert picks[:3] == picks[3:]
    assert set(picks) == {A, B, C}


def test_locality_takes_the_node_with_most_of_the_references() -> None:
    s = Setting("locality", random_threshold=0.0)
    s.table.cached_keys.set(A[0], ["k1"])
    s.table.cached_keys.set(B[0], ["k1", "k2"])
    assert s.picks(50, "k1", "k2", "k3") == {B: 50}


def test_locality_leaves_a_share_to_chance() -> None:
    s = Setting("locality", random_threshold=0.3)
    s.table.cached_keys.set(B[0], ["k"])
    picks = s.picks(6000, "k")
    assert 0.76 < picks[B] / 6000 < 0.84  # 0.7, and a third of 0.3
    assert abs(picks[A] - picks[C]) < 200


def test_locality_breaks_ties_at_random() -> None:
    s = Setting("locality", random_threshold=0.0)
    for address in (A, B):
        s.table.cached_keys.set(address[0], ["k"])
    picks = s.picks(2000, "k")
    assert picks[C] == 0
    assert 0.45 < picks[A] / 2000 < 0.55


def test_locality_ignores_keys_that_are_cached_where_the_function_is_not() -> None:
    s = Setting("locality", random_threshold=0.0)
    s.table.cached_keys.set("10.9.9.9", ["k"])
    assert all(s.picks(300, "k")[address] for address in (A, B, C))


def test_locality_avoids_an_overloaded_node_with_all_the_keys() -> None:
    s = Setting("locality", random_threshold=0.0)
    s.table.cached_keys.set(A[0], ["k"])
    s.status(A, utilization=0.9)
    assert s.picks(100, "k")[A] == 0


def test_locality_chooses_among_the_threads_of_the_best_node() -> None:
    s = Setting("locality", A, ("10.0.0.1", 1), B, random_threshold=0.0)
    s.table.cached_keys.set("10.0.0.1", ["k"])
    picks = s.picks(200, "k")
    assert picks[A] and picks[("10.0.0.1", 1)] and not picks[B]


@pytest.mark.parametrize("name", ALL)
def test_the_same_seed_gives_the_same_picks(name: str) -> None:
    one, two = Setting(name, seed=7), Setting(name, seed=7)
    assert [one.pick("k") for _ in range(50)] == [two.pick("k") for _ in range(50)]
