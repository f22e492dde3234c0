"""The Grafana dashboard of the metrics: `python -m ray_sched.dashboard > deploy/grafana.json`."""

from __future__ import annotations

import json
import sys
from typing import Any

from ray_sched.metrics import COUNTER, HISTOGRAM, METRICS, Metric

_WIDTH, _HEIGHT = 12, 8


def dashboard() -> dict[str, Any]:
    """One panel for each metric, in the order of the list, two in a row."""
    return {
        "title": "ray_sched",
        "uid": "ray-sched",
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus"},
                {
                    "name": "group",
                    "type": "query",
                    "datasource": {"type": "prometheus", "uid": "${datasource}"},
                    "query": "label_values(ray_ray_sched_dags, group)",
                    "includeAll": True,
                    "multi": True,
                },
            ]
        },
        "panels": [_panel(number, metric) for number, metric in enumerate(METRICS)],
    }


def _panel(number: int, metric: Metric) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": metric.name,
        "description": metric.help,
        "datasource": source,
        "gridPos": {
            "x": number % 2 * _WIDTH, "y": number // 2 * _HEIGHT, "w": _WIDTH, "h": _HEIGHT
        },
        "fieldConfig": {"defaults": {"unit": metric.unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + place), "datasource": source, "expr": query, "legendFormat": legend}
            for place, (query, legend) in enumerate(_queries(metric))
        ],
    }  # fmt: skip


def _queries(metric: Metric) -> list[tuple[str, str]]:
    chosen = f'{metric.prometheus_name}{{group=~"$group"}}'
    labels = ["group", *(label for label in metric.labels if label != "le")]
    legend = " ".join(f"{{{{{label}}}}}" for label in labels)
    by = ", ".join(labels)
    if metric.kind == HISTOGRAM:
        rate = f"sum by ({by}, le) (rate({chosen}[1m]))"
        return [(f"histogram_quantile({share}, {rate})", f"{legend} p{share:.0%}") for share in (0.5, 0.99)]
    if metric.kind == COUNTER:
        return [(f"sum by ({by}) (rate({chosen}[1m]))", f"{legend} /s")]
    return [(f"max by ({by}) ({chosen})", legend)]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(dashboard(), indent=1) + "\n")
