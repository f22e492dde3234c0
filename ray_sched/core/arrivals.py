"""How often functions and DAGs are called: counts and gaps, for the statistics.

Source: the wire contract ("Management node"): a DAG's call count is the number of its gaps in the
period plus one, a function's the number of its calls; both restart after each report.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from ray_sched.wire import internal_pb2

MAX_NAMES = 10_000
"""Different names that are counted in one period: names come from clients, memory is bounded."""

MAX_NAME = 1024
"""Characters of the longest name that is counted."""

MAX_GAPS = 100_000
"""Gaps that are kept for one DAG in one period."""


@dataclass
class ArrivalBatch:
    """What was counted since the last batch."""

    functions: dict[str, int] = field(default_factory=dict)
    dags: dict[str, list[float]] = field(default_factory=dict)
    """The gaps before each call, seconds; the first call of all has none."""
    times: dict[str, list[float]] = field(default_factory=dict)
    """Of a dispatcher that sees some of the calls: when they came, seconds of the node's monotonic clock."""


class Arrivals:
    """Counts what a dispatcher places; `take` hands it over."""

    def __init__(self, *, of_some: bool = False) -> None:
        """`of_some` where other dispatchers place calls of the same DAGs: gaps are between all of them."""
        self._of_some = of_some
        self._batch = ArrivalBatch()
        self._calls: dict[tuple[str, ...], int] = {}
        """Calls of DAGs, by what functions they have."""
        self._last_call: dict[str, float] = {}

    def on_function(self, name: str, calls: int = 1) -> None:
        functions = self._batch.functions
        if name in functions or (len(functions) < MAX_NAMES and len(name) <= MAX_NAME):
            functions[name] = functions.get(name, 0) + calls

    def on_dag(self, name: str, functions: tuple[str, ...], now: float) -> None:
        """A DAG of these functions was called; `now` in seconds of a monotonic clock."""
        # Its functions are counted when the batch is taken, not at each call.
        self._calls[functions] = self._calls.get(functions, 0) + 1
        dags = self._batch.times if self._of_some else self._batch.dags
        gaps = dags.get(name)
        if gaps is None:
            if len(dags) >= MAX_NAMES:
                return
            gaps = dags[name] = []
        if self._of_some:
            if len(gaps) < MAX_GAPS:
                gaps.append(now)
            return
        last = self._last_call.get(name)
        self._last_call[name] = now
        if last is not None and len(gaps) < MAX_GAPS:
            gaps.append(now - last)

    def forget_dag(self, name: str) -> None:
        """The DAG is gone; one of the same name starts anew."""
        self._last_call.pop(name, None)

    def take(self) -> ArrivalBatch | None:
        """What was counted since the last time; None where nothing was."""
        for functions, calls in self._calls.items():
            for function in functions:
                self.on_function(function, calls)
        self._calls.clear()
        if not (self._batch.functions or self._batch.dags or self._batch.times):
            return None
        batch, self._batch = self._batch, ArrivalBatch()
        return batch


class PeriodStatistics:
    """Batches of any number of dispatchers, joined until a report is made."""

    def __init__(self) -> None:
        self._functions: dict[str, int] = {}
        self._dags: dict[str, list[float]] = {}
        self._times: dict[str, list[float]] = {}
        self._last: dict[str, float] = {}
        """When each DAG whose times are told was last called in an earlier period."""

    def add(self, batch: ArrivalBatch) -> None:
        for name, count in batch.functions.items():
            if name in self._functions or len(self._functions) < MAX_NAMES:
                self._functions[name] = self._functions.get(name, 0) + count
        for told, batched in ((self._dags, batch.dags), (self._times, batch.times)):
            for name, numbers in batched.items():
                if name in told or len(told) < MAX_NAMES:
                    joined = told.setdefault(name, [])
                    joined += numbers[: MAX_GAPS - len(joined)]

    def report(self) -> internal_pb2.ExecutorStatistics:
        """The period as the management node expects it; counting starts again at zero."""
        report = internal_pb2.ExecutorStatistics()
        for name, times in self._times.items():
            self._dags.setdefault(name, []).extend(self._gaps(name, times))
        for name, count in sorted(self._functions.items()):
            report.functions.add(name=name, call_count=count)
        for name, gaps in sorted(self._dags.items()):
            report.dags.add(name=name, interarrival=gaps, call_count=len(gaps) + 1)
        self._functions, self._dags, self._times = {}, {}, {}
        return report

    def _gaps(self, name: str, times: list[float]) -> list[float]:
        times.sort()
        last = self._last.pop(name, None)
        # One that is told late came before the last of the period before.
        gaps = [] if last is None else [max(0.0, times[0] - last)]
        gaps += [after - before for before, after in pairwise(times)]
        self._last[name] = max(times[-1], last or 0.0)
        if len(self._last) > MAX_NAMES:
            del self._last[next(iter(self._last))]
        return gaps
