"""The list of metrics, what is made of it, and the histogram behind the latencies."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from ray_sched.dashboard import dashboard
from ray_sched.metrics import BY_NAME, COUNTER, GAUGE, HISTOGRAM, METRICS, STAGE_BOUNDS_S, Histogram

ROOT = Path(__file__).parents[2]


def test_names_are_told_apart_and_end_with_their_unit() -> None:
    assert len(BY_NAME) == len(METRICS)
    for metric in METRICS:
        assert metric.kind in (COUNTER, GAUGE, HISTOGRAM)
        assert (metric.unit == "s") == metric.name.endswith("_seconds")
        assert metric.help.endswith(".")
        assert ("le" in metric.labels) == (metric.kind == HISTOGRAM)


def test_the_dashboard_that_is_checked_in_is_made_of_the_list() -> None:
    assert json.loads((ROOT / "deploy/grafana.json").read_text()) == dashboard(), (
        "python -m ray_sched.dashboard > deploy/grafana.json"
    )


def test_the_dashboard_asks_for_every_metric_by_its_name_at_the_endpoint() -> None:
    asked = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    for metric in METRICS:
        assert any(f"{metric.prometheus_name}{{" in query for query in asked)


def test_the_documentation_names_every_metric_with_its_labels() -> None:
    text = (ROOT / "docs/metrics.md").read_text()
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels) or "-"
        assert f"| `{metric.prometheus_name}` | {metric.kind} | {labels} |" in text


@given(st.lists(st.floats(min_value=0, max_value=100)))
def test_each_bound_counts_what_was_at_most_that(observed: list[float]) -> None:
    histogram = Histogram("turn")
    for seconds in observed:
        histogram.observe(seconds)
    counted = {sample.labels: sample.value for sample in histogram.samples()}
    assert counted.pop(("turn", "+Inf")) == len(observed)
    assert counted == {
        ("turn", f"{bound:g}"): sum(seconds <= bound for seconds in observed) for bound in STAGE_BOUNDS_S
    }


def test_bounds_are_told_apart_as_labels() -> None:
    assert len({f"{bound:g}" for bound in STAGE_BOUNDS_S}) == len(STAGE_BOUNDS_S)
