"""The legacy counting of the statistics."""

from __future__ import annotations

from ray_sched.core.arrivals import ArrivalBatch, Arrivals, PeriodStatistics
from ray_sched.wire import internal_pb2


def test_a_dags_count_is_its_gaps_plus_one_and_both_restart() -> None:
    arrivals, period = Arrivals(), PeriodStatistics()
    for now in (1.0, 1.5, 3.5):
        arrivals.on_dag("d", ("f",), now)
    batch = arrivals.take()
    assert batch is not None
    period.add(batch)
    report = period.report()
    (dag,) = report.dags
    assert (dag.name, list(dag.interarrival), dag.call_count) == ("d", [0.5, 2.0], 3)
    (function,) = report.functions
    assert (function.name, function.call_count) == ("f", 3)
    assert not period.report().dags


def test_the_gap_to_the_last_call_of_the_former_period_counts_in_the_next() -> None:
    arrivals = Arrivals()
    arrivals.on_dag("d", (), 1.0)
    arrivals.take()
    arrivals.on_dag("d", (), 4.0)
    batch = arrivals.take()
    assert batch is not None
    assert batch.dags == {"d": [3.0]}


def test_batches_of_several_dispatchers_are_joined() -> None:
    period = PeriodStatistics()
    period.add(ArrivalBatch({"f": 2}, {"d": [0.1]}))
    period.add(ArrivalBatch({"f": 3, "g": 1}, {"d": [0.2]}))
    report = period.report()
    assert {f.name: f.call_count for f in report.functions} == {"f": 5, "g": 1}
    assert list(report.dags[0].interarrival) == [0.1, 0.2]


def test_without_calls_there_is_no_batch() -> None:
    assert Arrivals().take() is None


def test_the_names_of_one_period_are_bounded() -> None:
    arrivals = Arrivals()
    for number in range(20_000):
        arrivals.on_function(f"f{number}")
    batch = arrivals.take()
    assert batch is not None
    assert len(batch.functions) == 10_000


def test_a_dag_that_was_deleted_starts_anew() -> None:
    arrivals = Arrivals()
    arrivals.on_dag("d", (), 1.0)
    arrivals.forget_dag("d")
    arrivals.on_dag("d", (), 100.0)
    batch = arrivals.take()
    assert batch is not None
    assert batch.dags == {"d": []}


def test_gaps_are_between_the_calls_of_all_shards() -> None:
    one, other = Arrivals(of_some=True), Arrivals(of_some=True)
    period = PeriodStatistics()

    def flush() -> internal_pb2.ExecutorStatistics:
        for arrivals in (one, other):
            if batch := arrivals.take():
                period.add(batch)
        return period.report()

    one.on_dag("d", ("f",), 1.0)
    other.on_dag("d", ("f",), 2.0)
    one.on_dag("d", ("f",), 4.0)
    report = flush()
    assert list(report.dags[0].interarrival) == [1.0, 2.0]
    assert [(f.name, f.call_count) for f in report.functions] == [("f", 3)]
    other.on_dag("d", ("f",), 9.0)
    assert list(flush().dags[0].interarrival) == [5.0]
    one.on_dag("d", ("f",), 8.0)  # told late
    assert list(flush().dags[0].interarrival) == [0.0]
