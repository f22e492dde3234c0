"""The parts of a simulation: clock, caches, keys, run times, arrivals."""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_sched.errors import ConfigError
from ray_sched.sim.caches import Cache
from ray_sched.sim.clock import Clock
from ray_sched.sim.scenario import Scenario
from ray_sched.sim.service import DISTRIBUTIONS, ZipfKeys
from ray_sched.sim.traffic import arrivals, read_trace, times

# --- the clock ---


def test_events_happen_by_time_and_then_in_the_order_asked_for() -> None:
    clock, seen = Clock(), []
    for when, name in [(2.0, "c"), (1.0, "a"), (2.0, "d"), (1.0, "b"), (9.0, "never")]:
        clock.at(when, lambda name: seen.append((clock.now, name)), name)
    clock.run(5.0)
    assert seen == [(1.0, "a"), (1.0, "b"), (2.0, "c"), (2.0, "d")]
    assert clock.now == 5.0


def test_what_is_asked_for_in_the_past_happens_now() -> None:
    clock, seen = Clock(), []
    clock.at(3.0, lambda: clock.at(1.0, lambda: seen.append(clock.now)))
    clock.run(5.0)
    assert seen == [3.0]


def test_a_period_goes_on_until_the_end() -> None:
    clock, seen = Clock(), []
    clock.every(2.0, 1.0, lambda: seen.append(clock.now))
    clock.run(6.0)
    assert seen == [1.0, 3.0, 5.0]


# --- caches ---


@given(st.integers(0, 5), st.lists(st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=4)))
def test_a_cache_keeps_the_keys_that_were_read_last(capacity: int, reads: list[list[str]]) -> None:
    cache = Cache(capacity)
    history: list[str] = []
    for keys in reads:
        hits = 0
        for key in keys:
            newest = list(dict.fromkeys(reversed(history)))[:capacity]
            hits += key in newest
            history.append(key)
        assert cache.read(keys) == (hits, len(keys) - hits)
        assert set(cache.keys()) == set(list(dict.fromkeys(reversed(history)))[:capacity])


# --- keys and run times ---


def test_a_key_is_read_in_proportion_to_its_rank_to_the_power_of_the_skew() -> None:
    rng = random.Random(7)
    popular = ZipfKeys(100, 1.0)
    draws = [popular.draw(1, rng)[0] for _ in range(20_000)]
    total = sum(1 / rank for rank in range(1, 101))
    for rank in (1, 2, 10):
        assert draws.count(f"key-{rank - 1}") / 20_000 == pytest.approx(1 / rank / total, rel=0.1)


def test_without_skew_all_keys_are_alike() -> None:
    rng = random.Random(7)
    draws = [ZipfKeys(4, 0.0).draw(1, rng)[0] for _ in range(4000)]
    assert all(draws.count(f"key-{number}") == pytest.approx(1000, rel=0.1) for number in range(4))


@given(st.integers(1, 20), st.floats(0, 10), st.integers(0, 20), st.integers())
def test_no_key_is_drawn_twice_for_a_call(count: int, skew: float, drawn: int, seed: int) -> None:
    keys = ZipfKeys(count, skew).draw(drawn, random.Random(seed))
    assert len(set(keys)) == len(keys) <= min(count, drawn)


@pytest.mark.parametrize(("name", "deviation"), [("constant", 0.0), ("exponential", 2.0), ("lognormal", 1.0)])
def test_run_times_have_the_mean_and_the_deviation_that_were_asked_for(name: str, deviation: float) -> None:
    rng = random.Random(3)
    drawn = [DISTRIBUTIONS[name](2.0, 0.5, rng) for _ in range(20_000)]
    mean = math.fsum(drawn) / len(drawn)
    assert mean == pytest.approx(2.0, rel=0.03)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in drawn) / len(drawn))
    assert spread == pytest.approx(deviation, rel=0.05)


# --- arrivals ---


def first(scenario: Scenario, until_s: float, seed: int = 1) -> list[float]:
    return list(itertools.takewhile(lambda t: t < until_s, times(scenario, random.Random(seed))))


def test_constant_arrivals_are_evenly_apart() -> None:
    assert first(Scenario(arrivals="constant", rate_per_s=4.0), 1.1) == [0.25, 0.5, 0.75, 1.0]


def test_gaps_of_a_poisson_process_are_exponential() -> None:
    arrived = first(Scenario(rate_per_s=100.0), 200.0)
    gaps = [b - a for a, b in itertools.pairwise(arrived)]
    assert len(arrived) == pytest.approx(20_000, rel=0.03)
    assert sum(gap > 0.01 for gap in gaps) / len(gaps) == pytest.approx(math.exp(-1), rel=0.03)


def test_bursts_have_their_rate_and_leave_the_mean_as_it_is() -> None:
    scenario = Scenario(
        arrivals="bursts", rate_per_s=100.0, burst_period_s=10.0, burst_length_s=2.0, burst_factor=3.0
    )
    arrived = first(scenario, 200.0)
    in_bursts = sum(time % 10.0 < 2.0 for time in arrived)
    assert len(arrived) == pytest.approx(20_000, rel=0.03)
    assert in_bursts == pytest.approx(0.6 * len(arrived), rel=0.03)


def test_bursts_may_hold_all_calls() -> None:
    scenario = Scenario(
        arrivals="bursts", rate_per_s=50.0, burst_period_s=4.0, burst_length_s=1.0, burst_factor=4.0
    )
    assert all(time % 4.0 <= 1.0 for time in first(scenario, 40.0))


@given(st.sampled_from(["poisson", "constant", "bursts"]), st.integers(0, 1000))
def test_calls_come_in_order(arrivals: str, seed: int) -> None:
    arrived = first(Scenario(arrivals=arrivals, rate_per_s=50.0), 30.0, seed)
    assert arrived == sorted(arrived)


def test_the_load_decides_the_rate() -> None:
    assert Scenario(executors=10, load=0.5, service_ms=100, functions=2).rate == pytest.approx(25.0)
    assert Scenario(executors=10, load=0.5, service_ms=100, functions=2, call="one-shot").rate == 50.0
    assert Scenario(load=0.5, rate_per_s=7.0).rate == 7.0


# --- traces ---


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "trace.csv"


def test_a_trace_gives_times_dags_keys_and_run_times(trace: Path) -> None:
    trace.write_text("time_s,dag,keys,service_ms\n0.5,1,a b a,20\n0.75,0,,30.5\n")
    scenario = Scenario(trace=str(trace), dags=2, functions=2)
    given = [(a.time_s, a.dag, a.keys, a.service_s) for a in arrivals(scenario)]
    assert given == [(0.5, 1, ("a", "b"), (0.02, 0.02)), (0.75, 0, (), (0.0305, 0.0305))]


def test_what_a_trace_leaves_open_is_drawn(trace: Path) -> None:
    trace.write_text("dag, time_s\n,1\n,1\n,100\n")
    scenario = Scenario(trace=str(trace), references=2, service="constant", service_ms=5)
    given = list(arrivals(scenario))
    assert [a.time_s for a in given] == [1.0, 1.0], "what comes after duration_s is cut off"
    assert all(a.dag == 0 and a.service_s == (0.005,) and 1 <= len(a.keys) <= 2 for a in given)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "its first line must name the columns, time_s among them"),
        ("when\n1\n", "its first line must name the columns, time_s among them"),
        ("time_s,size\n1,2\n", "'size' is no column of a trace; there are: time_s, dag, keys, service_ms"),
        ("time_s,time_s\n1,2\n", "a repeated name is no column"),
        ("time_s\n", "holds no calls"),
        ("time_s\n1\nsoon\n", "line 3: time_s = 'soon' is not allowed; it must be a number of at least 0"),
        ("time_s\n-1\n", "line 2: time_s = '-1' is not allowed"),
        ("time_s\nnan\n", "line 2: time_s = 'nan' is not allowed"),
        ("time_s\n2\n1\n", "line 3: time_s = 1 is before the last call's, 2"),
        ("time_s,dag\n1,3\n", "line 2: dag = '3' is not allowed; it must be below --dags, 3"),
        ("time_s,dag\n1,x\n", "line 2: dag = 'x' is not allowed"),
        ("time_s,service_ms\n1,inf\n", "line 2: service_ms = 'inf' is not allowed"),
        ("time_s,dag\n1\n", "line 2: has not as many cells as the header"),
        ("time_s\n1,2\n", "line 2: has not as many cells as the header"),
    ],
)
def test_what_is_wrong_with_a_trace_is_named(trace: Path, text: str, words: str) -> None:
    trace.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_trace(str(trace), 3)
    assert str(caught.value).startswith(str(trace)) and words in str(caught.value)


def test_a_trace_that_cannot_be_read_is_refused(trace: Path) -> None:
    with pytest.raises(ConfigError, match=r"trace\.csv: cannot be read as a CSV file: No such file"):
        read_trace(str(trace), 1)
    trace.write_bytes(b"time_s\n\xff\n")
    with pytest.raises(ConfigError, match="cannot be read as a CSV file"):
        read_trace(str(trace), 1)


# --- scenarios ---


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"warm_up_s": 60.0}, "warm_up_s = 60.0 is not allowed; it must be less than duration_s, 60"),
        ({"schedulers": 11}, "schedulers = 11 is not allowed; it must be at most one for each of the 10"),
        ({"replicas": 31}, "replicas = 31 is not allowed; it must be at most executors, 30"),
        ({"arrivals": "bursts", "burst_length_s": 10.0}, "burst_length_s = 10.0 is not allowed"),
        ({"arrivals": "bursts", "burst_factor": 6.0}, "at most burst_period_s / burst_length_s, 5"),
        ({"mode": "cluster", "dags": 2, "functions": 3, "replicas": 6}, "executors = 30 is not allowed"),
    ],
)
def test_a_scenario_that_contradicts_itself_is_refused(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Scenario(**fields).check()  # type: ignore[arg-type]
    assert words in str(caught.value)


@given(
    st.sampled_from(["local", "cluster"]),
    st.integers(1, 40),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 10),
)
def test_functions_are_held_as_often_as_asked_for(
    mode: str, executors: int, dags: int, functions: int, replicas: int
) -> None:
    scenario = Scenario(mode=mode, executors=executors, dags=dags, functions=functions, replicas=replicas)
    try:
        scenario.check()
    except ConfigError:
        return
    held = scenario.holdings()
    assert len(held) == executors
    names = [name for chain in scenario.function_names for name in chain]
    counts = [sum(name in functions for functions in held) for name in names]
    if replicas:
        assert counts == [replicas] * len(names)
    elif mode == "local":
        assert counts == [executors] * len(names)
    else:
        assert sum(counts) == executors and max(counts) - min(counts) <= 1
    if mode == "cluster":
        assert all(len(functions) <= 1 for functions in held)
