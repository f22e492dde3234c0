"""The metrics of a running group, as Prometheus gets them from a node.

Needs `ray[default]`, with which Ray has an agent on each node that shows metrics.
"""

from __future__ import annotations

import re
import tempfile
import urllib.request
from collections.abc import Iterator

import pytest
import ray

import ray_sched
from ray_sched.actors.cluster import LocalCluster
from ray_sched.actors.group import Group
from ray_sched.actors.metering import can_be_seen
from ray_sched.config import Config
from ray_sched.metrics import METRICS
from tests.system.conftest import eventually

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(not can_be_seen(), reason="ray[default] is not installed; make test-metrics has it"),
]

WAIT_S = 60.0
CONFIG = Config(host="127.0.16.21").replace(
    **{"executor.count": 2, "gossip.period_s": 0.3, "stats.metrics_period_s": 0.2}
)
NEIGHBOUR = CONFIG.replace(host="127.0.16.22", **{"executor.count": 0, "kvs.host": CONFIG.host})

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture(scope="module")
def group() -> Iterator[Group]:
    with (
        tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_metrics_report_interval_ms", "500")  # Ray's own: 10 s
        cluster = LocalCluster.start(CONFIG, folder)
        group = Group.start(CONFIG)
        neighbour = Group.start(NEIGHBOUR)
        yield group
        neighbour.stop(30)
        group.stop(30)
        cluster.stop()


def scrape() -> Series:
    """The series with our prefix, by name and our own labels."""
    node = ray.nodes()[0]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    text = urllib.request.urlopen(address, timeout=10).read().decode()
    found: Series = {}
    for name, labels, value in re.findall(r"^(ray_ray_sched_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
        own = {label for metric in METRICS for label in metric.labels} | {"group"}
        pairs = frozenset(pair for pair in re.findall(r'(\w+)="([^"]*)"', labels) if pair[0] in own)
        found[name, pairs] = found.get((name, pairs), 0) + float(value)
    return found


def value(series: Series, name: str, **labels: str) -> float:
    return series.get((f"ray_ray_sched_{name}", frozenset({"group": CONFIG.host, **labels}.items())), -1)


HAPPENED = {
    "calls_total kind=dag": 6,  # the refused one, too
    "calls_total kind=python": 2,
    "errors_total kind=NO_SUCH_DAG": 2,
    "stage_seconds_total stage=turn le=+Inf": 5,
    "stage_seconds_total stage=pin le=+Inf": 1,
    "stage_seconds_total stage=create le=+Inf": 1,
    "functions": 1,
    "pins": 1,
    "dags": 1,
    "peers": 1,
    "executors state=free type=cpu": 2,
}


def shown() -> dict[str, float]:
    """What the endpoint has for each of these."""
    series = scrape()
    found = {}
    for asked in HAPPENED:
        name, *labels = asked.split()
        found[asked] = value(series, name, **dict(label.split("=", 1) for label in labels))
    return found


def test_every_metric_of_the_list_is_there_with_what_happened(group: Group) -> None:
    with ray_sched.connect(CONFIG.host) as client:
        client.register(lambda _, x: x + 1, "incr")
        client.register_dag("one", ["incr"])
        for number in range(5):
            found = client.call_dag("one", {"incr": [number]}, direct_response=True)
            assert found.get(timeout_s=WAIT_S) == number + 1
        with pytest.raises(ray_sched.NoSuchDagError):
            client.call_dag("none", {})
        scheduler = ray_sched.get_scheduler(CONFIG.host)
        assert ray.get(scheduler.call_dag.remote("one", {"incr": [1]}), timeout=WAIT_S) == 2
        with pytest.raises(ray_sched.NoSuchDagError):
            ray.get(scheduler.call_dag.remote("none", {}), timeout=WAIT_S)

        try:
            eventually(lambda: shown() == HAPPENED, "the metrics show what happened", timeout_s=WAIT_S)
        finally:
            assert shown() == HAPPENED
        eventually(
            lambda: {name for name, _ in scrape()} == {metric.prometheus_name for metric in METRICS},
            "all of the list are there, and no others",
            timeout_s=WAIT_S,
        )
        assert 0 <= value(scrape(), "table_age_seconds") < CONFIG.scheduler.lease_s
        client.delete_dag("one")
        eventually(lambda: value(scrape(), "pins") == 0, "the pin is gone", timeout_s=WAIT_S)


def test_no_name_of_a_client_becomes_a_label(group: Group) -> None:
    with ray_sched.connect(CONFIG.host) as client:
        client.register(lambda _: 1, "telltale")
        client.register_dag("telltale_dag", ["telltale"])
        eventually(lambda: value(scrape(), "dags") == 1, "the DAG is counted", timeout_s=WAIT_S)
        assert not [labels for _, labels in scrape() if "telltale" in str(labels)]
        client.delete_dag("telltale_dag")
