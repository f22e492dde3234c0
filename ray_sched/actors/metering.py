"""Publishes an actor's own numbers through Ray, once in a while and never on the path of a call."""

from __future__ import annotations

import importlib.util
import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any, Final

from ray.util import metrics as ray_metrics

from ray_sched.actors import local_mode
from ray_sched.config import Config
from ray_sched.metrics import BY_NAME, GAUGE, PREFIX, Sample

log = logging.getLogger(__name__)

_EXPORTERS: Final = ("prometheus_client", "opentelemetry")
"""What a node's agent needs to show metrics: they come with `ray[default]`, not with `ray`."""

Read = Callable[[], Iterable[Sample]]


def is_wanted(config: Config) -> bool:
    """Whether metrics are published, and so times worth taking; in local mode no node shows any."""
    return bool(config.stats.metrics_period_s) and can_be_seen() and not local_mode.is_on()


def can_be_seen() -> bool:
    """Whether Ray shows metrics at all, as it is installed here."""
    return all(importlib.util.find_spec(package) is not None for package in _EXPORTERS)


class Metering:
    """Reads an actor's numbers every `stats.metrics_period_s` and publishes them, in a thread of its own.

    Where nobody could see them there is no thread, and they are never read.
    """

    def __init__(self, config: Config, role: str, read: Read) -> None:
        self._read = read
        self._tags = {"group": config.group_name}
        self._period_s = config.stats.metrics_period_s
        self._stop_timeout_s = min(1.0, config.threads_stop_timeout_s)
        self._published: dict[tuple[str, tuple[str, ...]], float] = {}
        self._instruments: dict[str, Any] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"{role}-metrics", daemon=True)
        if is_wanted(config):
            self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(self._stop_timeout_s)

    def _run(self) -> None:
        while not self._stopping.wait(self._period_s):
            try:
                for sample in self._read():
                    self._publish(sample)
            except Exception:  # whatever it is, the actor's own work goes on
                log.exception("the metrics are not published this time")

    def _publish(self, sample: Sample) -> None:
        key = (sample.name, sample.labels)
        before = self._published.get(key)
        metric = BY_NAME[sample.name]
        instrument = self._instruments.get(sample.name)
        if instrument is None:
            kind = ray_metrics.Gauge if metric.kind == GAUGE else ray_metrics.Counter
            instrument = kind(PREFIX + metric.name, metric.help, (*metric.labels, "group"))
            self._instruments[sample.name] = instrument
        tags = {**dict(zip(metric.labels, sample.labels, strict=True)), **self._tags}
        if metric.kind == GAUGE:
            instrument.set(sample.value, tags)
        elif sample.value > (before or 0):
            instrument.inc(sample.value - (before or 0), tags)
        self._published[key] = sample.value
