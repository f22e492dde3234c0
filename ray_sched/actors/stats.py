"""The StatsReporter: joins what the dispatchers counted, and reports it each period.

With a management node the report goes there, without one to the log.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from typing import Any, Final

import zmq

from ray_sched.actors.process import prepare_process
from ray_sched.config import Config
from ray_sched.core.arrivals import ArrivalBatch, PeriodStatistics
from ray_sched.errors import BadMessageError
from ray_sched.wire import internal_pb2, ports
from ray_sched.wire.sockets import PushSockets

log = logging.getLogger(__name__)

LOGGED: Final = 50
"""Functions and DAGs that one line of the log names, those with most calls first."""


class StatsActor:
    def __init__(self, config: Config) -> None:
        prepare_process(config, "stats")
        self._config = config
        self._lock = threading.Lock()
        self._period = PeriodStatistics()
        self.counts: Counter[str] = Counter()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stats", daemon=True)
        self._thread.start()

    def record(self, batch: ArrivalBatch) -> None:
        """What a dispatcher counted since its last batch."""
        with self._lock:
            self._period.add(batch)
            self.counts["function_calls"] += sum(batch.functions.values())

    def ready(self) -> dict[str, Any]:
        return {"reports_to": self._config.mgmt or "the log"}

    def status(self) -> dict[str, Any]:
        with self._lock:
            return {"pid": os.getpid(), "counts": dict(self.counts)}

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(self._config.threads_stop_timeout_s)

    def _run(self) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        out = PushSockets(context, 1)
        while not self._stopping.wait(self._config.stats.period_s):
            with self._lock:
                report = self._period.report()
                self.counts["reports"] += 1
            if self._config.mgmt:
                address = ports.tcp(self._config.mgmt, ports.MGMT_STATISTICS)
                try:
                    sent = out.send(address, report.SerializeToString())
                except BadMessageError as error:
                    log.warning("the statistics cannot be sent: %s", error)
                    sent = False
                self.counts["sent_reports" if sent else "unsent_reports"] += 1
            elif report.functions or report.dags:
                log.info("calls=%s", _in_words(report))
        out.close()
        context.destroy(0)


def _in_words(report: internal_pb2.ExecutorStatistics) -> str:
    counts = {function.name: function.call_count for function in report.functions}
    counts |= {f"{dag.name}(dag)": dag.call_count for dag in report.dags}
    most = sorted(counts, key=lambda name: -counts[name])[:LOGGED]
    more = f",and {len(counts) - LOGGED} more" if len(counts) > LOGGED else ""
    return ",".join(f"{name}:{counts[name]}" for name in most) + more
