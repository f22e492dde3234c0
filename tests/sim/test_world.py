"""Whole simulations: against queueing theory, against themselves, and what must hold in any of them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_sched.config import Config
from ray_sched.sim.outcome import Outcome
from ray_sched.sim.scenario import Scenario
from ray_sched.sim.world import simulate

NO_BACKOFF = {"policy.max_utilization": 1.0, "policy.max_recent_calls": 0}
NO_PERIODS = {"executor.status_period_s": 1e4, "scheduler.executor_timeout_s": 1e6}


def run(policy: str, scenario: Scenario, **settings: object) -> Outcome:
    return simulate(scenario, Config().replace(**{"policy.name": policy, **settings}))


# --- against theory ---


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_at_random_each_executor_is_an_m_m_1_queue(load: float) -> None:
    """Time in an M/M/1 queue is exponential, with mean s / (1 - load)."""
    scenario = Scenario(executors=10, load=load, service_ms=50, network_ms=0, duration_s=200, warm_up_s=20)
    outcome = run("random", scenario, **NO_BACKOFF)
    mean_s = 0.05 / (1 - load)
    assert outcome.mean_s == pytest.approx(mean_s, rel=0.06)
    assert outcome.quantile_s(0.5) == pytest.approx(mean_s * math.log(2), rel=0.06)
    assert outcome.quantile_s(0.99) == pytest.approx(mean_s * math.log(100), rel=0.1)
    assert outcome.utilization == pytest.approx(load, rel=0.03)


def test_with_constant_run_times_it_is_an_m_d_1_queue() -> None:
    """Pollaczek and Khinchine: the mean wait is half of that with exponential run times."""
    scenario = Scenario(
        executors=10,
        load=0.6,
        service="constant",
        service_ms=50,
        network_ms=0,
        duration_s=120,
        warm_up_s=20,
    )
    outcome = run("random", scenario, **NO_BACKOFF)
    assert outcome.mean_s == pytest.approx(0.05 * (1 + 0.6 / (2 * 0.4)), rel=0.05)


def test_the_scheduler_is_a_queue_of_its_own() -> None:
    """M/D/1 once more: calls of 10 ms at 50 a second, statuses on top, executors without work to speak of."""
    scenario = Scenario(
        executors=10,
        rate_per_s=50,
        service="constant",
        service_ms=0.001,
        network_ms=0,
        call_cost_us=4000,
        function_cost_us=6000,
        status_cost_us=10_000,
        duration_s=200,
        warm_up_s=20,
    )
    outcome = run("random", scenario, **NO_BACKOFF, **NO_PERIODS)
    assert outcome.scheduler_utilization == pytest.approx(0.5, rel=0.05)
    assert outcome.mean_s == pytest.approx(0.010 * (1 + 0.5 / (2 * 0.5)), rel=0.08)
    with_statuses = run("random", scenario, **NO_BACKOFF, **{"executor.status_period_s": 1.0})
    assert with_statuses.scheduler_utilization == pytest.approx(0.6, rel=0.05)


def test_network_and_overhead_add_to_each_step_of_a_chain() -> None:
    """Client to scheduler to three executors in a row and back: five messages, three runs."""
    scenario = Scenario(
        executors=3,
        functions=3,
        mode="cluster",
        arrivals="constant",
        rate_per_s=1,
        service="constant",
        service_ms=10,
        network_ms=2,
        overhead_ms=1,
        duration_s=20,
        warm_up_s=1,
    )
    outcome = run("round-robin", scenario)
    assert outcome.latencies_s[0] == pytest.approx(0.043) == outcome.latencies_s[-1]


def test_misses_make_runs_longer() -> None:
    scenario = Scenario(
        executors=1,
        arrivals="constant",
        rate_per_s=1,
        service="constant",
        service_ms=10,
        network_ms=0,
        references=3,
        keys=1000,
        skew=0,
        cache_keys=0,
        miss_ms=5,
        duration_s=20,
        warm_up_s=1,
    )
    outcome = run("random", scenario)
    assert outcome.quantile_s(0.5) == pytest.approx(0.025)
    assert outcome.hit_rate == 0


# --- what policies are for ---


def test_locality_finds_more_in_the_caches_than_chance_does() -> None:
    scenario = Scenario(load=0.2, references=1, skew=1.0, keys=500, cache_keys=50, duration_s=40)
    locality, chance = (run(policy, scenario) for policy in ("locality", "random"))
    assert locality.hit_rate > chance.hit_rate + 0.1
    assert locality.utilization < chance.utilization


def test_locality_knows_no_better_before_it_reads_what_is_cached() -> None:
    scenario = Scenario(load=0.2, references=1, skew=1.0, keys=500, cache_keys=50, duration_s=40)
    never = {"stats.policy_period_s": 1e6}
    locality, chance = (run(policy, scenario, **never) for policy in ("locality", "random"))
    assert locality.hit_rate == chance.hit_rate


def test_turns_are_fairer_than_chance() -> None:
    scenario = Scenario(load=0.6, duration_s=25, warm_up_s=5)
    turns, chance = (run(policy, scenario, **NO_BACKOFF) for policy in ("round-robin", "random"))
    assert turns.quantile_s(0.99) < 0.8 * chance.quantile_s(0.99)


def test_an_overloaded_cluster_backs_off_and_refuses() -> None:
    scenario = Scenario(executors=6, load=1.5, duration_s=40)
    outcome = run("random", scenario)
    assert outcome.left_out > 0.3 and outcome.refused_share > 0.1
    assert min(second.left_out for second in outcome.seconds[20:]) < 0.8, "a backoff ends"
    assert run("random", scenario, **{"policy.overload": "keep-last"}).refused == 0


def test_free_executors_are_booked_in_cluster_mode() -> None:
    """More calls at once than executors: the rest is refused, and nobody waits behind another."""
    scenario = Scenario(
        executors=4,
        per_node=2,
        call="one-shot",
        mode="cluster",
        load=3,
        service="constant",
        duration_s=20,
        warm_up_s=1,
    )
    outcome = run("random", scenario, **NO_BACKOFF, **NO_PERIODS)
    assert outcome.refused > 0
    assert outcome.utilization > 0.8, "who has run a call says at once that it is free again"
    assert outcome.latencies_s[-1] == pytest.approx(0.1, abs=0.001)


def test_a_group_learns_from_gossip_where_the_others_functions_are() -> None:
    # Three executors hold the function; they report to the first group, where the DAG was created.
    scenario = Scenario(
        executors=12, mode="cluster", replicas=3, schedulers=4, rate_per_s=10, duration_s=20, warm_up_s=2
    )
    assert run("random", scenario).refused == 0
    # Who is known from peers alone counts as gone where these fall silent for too long.
    forgetful = run("random", scenario, **{"gossip.period_s": 1e6, "scheduler.executor_timeout_s": 6.0})
    assert forgetful.refused_share > 0.3
    told = run("random", replace(scenario, statuses="all"), **{"gossip.period_s": 1e6})
    assert told.refused == 0


# --- what always holds ---


@settings(max_examples=25, deadline=None)
@given(
    st.builds(
        Scenario,
        executors=st.integers(4, 12),
        per_node=st.integers(1, 3),
        mode=st.sampled_from(["local", "cluster"]),
        schedulers=st.integers(1, 2),
        statuses=st.sampled_from(["own", "all"]),
        call=st.sampled_from(["dag", "one-shot"]),
        dags=st.integers(1, 2),
        functions=st.integers(1, 2),
        replicas=st.integers(0, 1),
        arrivals=st.sampled_from(["poisson", "constant", "bursts"]),
        load=st.floats(0.05, 3.0),
        service=st.sampled_from(["constant", "exponential", "lognormal"]),
        references=st.integers(0, 2),
        cache_keys=st.integers(0, 20),
        call_cost_us=st.floats(0, 20_000),
        duration_s=st.just(6.0),
        warm_up_s=st.floats(0, 5),
        drain_s=st.sampled_from([0.0, 5.0]),
        seed=st.integers(0, 1000),
    ),
    st.sampled_from(["random", "round-robin", "locality"]),
)
def test_every_call_ends_as_completed_refused_or_in_flight(scenario: Scenario, policy: str) -> None:
    outcome = run(policy, scenario, **{"policy.max_recent_calls": 50})
    assert outcome.all_arrivals == outcome.all_completed + outcome.all_refused + outcome.all_in_flight
    assert outcome.arrivals >= outcome.completed + outcome.refused
    assert sum(second.arrivals for second in outcome.seconds) == outcome.all_arrivals
    assert sum(second.refused for second in outcome.seconds) == outcome.all_refused
    assert list(outcome.latencies_s) == sorted(outcome.latencies_s)
    assert all(latency >= 0 for latency in outcome.latencies_s)
    shares = [outcome.utilization_least, outcome.utilization, outcome.utilization_most]
    assert shares == sorted(shares) and shares[0] >= -1e-9 and shares[-1] <= 1 + 1e-9
    for second in outcome.seconds:
        assert 0 <= second.left_out <= 1 and second.utilization <= 1 + 1e-9
    if scenario.references == 0:
        assert outcome.hits == outcome.misses == 0
