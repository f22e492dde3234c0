"""That each policy's picks are spread as it says: many picks with fixed seeds against what is expected.

The measure is Pearson's chi-square statistic. Its limit is the value that a right policy passes with
probability 0.9999 for each seed; as the seeds are fixed, a test that passes once passes always.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping

import pytest

from ray_sched.config import PolicyConfig
from ray_sched.core.executor import Address, Status
from ray_sched.core.executors import ExecutorTable
from ray_sched.core.policies import Request, load_policy

PICKS = 20_000
EXECUTORS = [(f"10.0.0.{1 + number // 2}", number) for number in range(10)]  # two on each of five nodes
LIMITS = {1: 15.14, 3: 21.11, 7: 29.88, 9: 33.72}
"""By degrees of freedom: the 0.9999 quantiles of the chi-square distribution (any table has them)."""
SEEDS = [1, 2, 3]


def picks(
    policy: str, seed: int, overloaded: int = 0, keys: Mapping[str, list[str]] | None = None,
    references: tuple[str, ...] = (), **options: object,
) -> Counter[Address | None]:  # fmt: skip
    config = PolicyConfig(name=policy, **options)  # type: ignore[arg-type]
    table = ExecutorTable(config, local=False, pin_grace_s=1.0, executor_timeout_s=1e9)
    for address in EXECUTORS:
        table.on_status(Status(*address, ("f",)), 0.0)
    for address in EXECUTORS[:overloaded]:
        table.on_status(Status(*address, ("f",), 0.9), 0.0)
    for ip, cached in (keys or {}).items():
        table.cached_keys.set(ip, cached)
    pick, rng = load_policy(config).pick, random.Random(seed)
    request, pool = Request("f", references), table.functions["f"]
    made = (pick(pool, request, table, rng) for _ in range(PICKS))
    return Counter(executor and executor.address for executor in made)


def distance(seen: Counter[Address | None], expected: Mapping[Address, float]) -> tuple[float, float]:
    """The statistic, and its limit; `expected` are shares, and what is not in it must not be seen."""
    assert set(seen) <= set(expected)
    assert sum(expected.values()) == pytest.approx(1.0)
    statistic = sum(
        (seen[address] - PICKS * share) ** 2 / (PICKS * share) for address, share in expected.items()
    )
    return statistic, LIMITS[len(expected) - 1]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("policy", ["random", "locality"])
def test_all_alike(policy: str, seed: int) -> None:
    statistic, limit = distance(picks(policy, seed), dict.fromkeys(EXECUTORS, 0.1))
    assert statistic < limit


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("policy", ["random", "locality"])
def test_the_overloaded_ones_get_their_part_of_the_random_share_alone(policy: str, seed: int) -> None:
    """A share of 0.3 goes to all ten alike, the rest to the eight that are not overloaded."""
    expected = {address: 0.03 + (0.7 / 8 if number >= 2 else 0.0) for number, address in enumerate(EXECUTORS)}
    seen = picks(policy, seed, overloaded=2, random_threshold=0.3)
    statistic, limit = distance(seen, expected)
    assert statistic < limit


@pytest.mark.parametrize("seed", SEEDS)
def test_without_a_random_share_the_overloaded_ones_get_nothing(seed: int) -> None:
    seen = picks("random", seed, overloaded=2, random_threshold=0.0)
    statistic, limit = distance(seen, dict.fromkeys(EXECUTORS[2:], 1 / 8))
    assert statistic < limit


@pytest.mark.parametrize("seed", SEEDS)
def test_locality_spreads_over_the_best_nodes_and_their_threads(seed: int) -> None:
    """Two nodes have both keys, one has one of them: 0.8 goes to the four executors of the two, alike."""
    keys = {"10.0.0.1": ["a", "b"], "10.0.0.3": ["a", "b", "c"], "10.0.0.5": ["a"]}
    best = ("10.0.0.1", "10.0.0.3")
    expected = {address: 0.02 + (0.8 / 4 if address[0] in best else 0.0) for address in EXECUTORS}
    seen = picks("locality", seed, keys=keys, references=("a", "b"), random_threshold=0.2)
    statistic, limit = distance(seen, expected)
    assert statistic < limit


def test_round_robin_is_even_to_the_pick() -> None:
    assert picks("round-robin", 1) == dict.fromkeys(EXECUTORS, PICKS // 10)


@pytest.mark.parametrize("seed", SEEDS)
def test_one_pick_says_nothing_of_the_next(seed: int) -> None:
    """Pairs of picks are as frequent as independent ones: four classes of pairs, alike."""
    config = PolicyConfig(name="random", random_threshold=0.0)
    table = ExecutorTable(config, local=False, pin_grace_s=1.0, executor_timeout_s=1e9)
    for tid in (0, 1):
        table.on_status(Status("10.0.0.1", tid, ("f",)), 0.0)
    pick, rng = load_policy(config).pick, random.Random(seed)
    pool, request = table.functions["f"], Request("f")
    pairs: Counter[Address | None] = Counter()
    for _ in range(PICKS):
        first, second = pick(pool, request, table, rng), pick(pool, request, table, rng)
        assert first and second
        pairs[str(first.tid), second.tid] += 1
    statistic, limit = distance(pairs, {(str(a), b): 0.25 for a in (0, 1) for b in (0, 1)})
    assert statistic < limit
