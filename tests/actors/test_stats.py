"""Where the statistics go: to the management node, without one to the log."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from ray_sched.actors.stats import StatsActor
from ray_sched.config import Config
from ray_sched.core.arrivals import ArrivalBatch
from tests.system.conftest import eventually
from tests.wire.players import PlayedManagement

pytestmark = pytest.mark.usefixtures("logging_kept")

HOST, MANAGEMENT = "127.0.35.1", "127.0.35.9"
CONFIG = Config(host=HOST).replace(**{"stats.period_s": 0.1, "background_nice": 0})
"""The process is this one, and is not to give way."""
BATCH = ArrivalBatch({"f": 3, "g": 5}, {"d": [0.5]})
"""Two calls of the DAG d, and what functions ran for them and for one-shot calls."""

Lines = Callable[[], list[str]]


@pytest.fixture
def logged(capsys: pytest.CaptureFixture[str]) -> Lines:
    """The lines about calls in the log so far."""
    lines: list[str] = []

    def more() -> list[str]:
        lines.extend(line for line in capsys.readouterr().err.splitlines() if "calls=" in line)
        return lines

    return more


@pytest.fixture
def management() -> Iterator[PlayedManagement]:
    management = PlayedManagement(MANAGEMENT)
    yield management
    management.close()


def reports(stats: StatsActor) -> int:
    made: int = stats.status()["counts"].get("reports", 0)
    return made


def test_without_a_management_node_they_go_to_the_log(logged: Lines) -> None:
    stats = StatsActor(CONFIG)
    try:
        assert stats.ready() == {"reports_to": "the log"}
        stats.record(BATCH)
        eventually(lambda: bool(logged()), "a line about the calls")
        (line,) = logged()
        assert 'msg="calls=g:5,f:3,d(dag):2"' in line and line.endswith("actor=stats")
        # Each line is of its own period, and one without calls has none.
        made = reports(stats)
        eventually(lambda: reports(stats) > made + 1, "further periods")
        assert logged() == [line]
        stats.record(ArrivalBatch({"f": 1}))
        eventually(lambda: len(logged()) == 2, "a line about the later call")
        assert 'msg="calls=f:1"' in logged()[1]
    finally:
        stats.stop()


def test_with_a_management_node_they_go_there_and_not_to_the_log(
    logged: Lines, management: PlayedManagement
) -> None:
    stats = StatsActor(CONFIG.replace(mgmt=MANAGEMENT))
    try:
        stats.record(BATCH)
        (report,) = management.wait_for_statistics(where=lambda report: bool(report.functions))
        assert [(f.name, f.call_count) for f in report.functions] == [("f", 3), ("g", 5)]
        assert [(d.name, d.call_count, d.interarrival) for d in report.dags] == [("d", 2, [0.5])]
        # Batches of one period are joined, wherever the period ends.
        for _ in range(20):
            stats.record(ArrivalBatch({"h": 1}))

        def counted() -> int:
            told = management.wait_for_statistics()
            return sum(f.call_count for each in told for f in each.functions if f.name == "h")

        eventually(lambda: counted() == 20, "all of them are reported")
        # Reports come without calls, too, and count from zero.
        management.wait_for_statistics(len(management.mailbox.all("statistics")) + 2)
        assert counted() == 20
        told = management.wait_for_statistics()
        assert [each for each in told if each.dags] == [report]
        assert logged() == []
    finally:
        stats.stop()
