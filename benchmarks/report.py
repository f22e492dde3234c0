"""What a run came to: a table for people, a JSON file for comparisons."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import sys
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import zmq

from benchmarks.bench import Result, Settings

RESULTS: Final = Path(__file__).parent / "results"
_LINE: Final = "{:<36}{:>8}{:>10}{:>10}{:>8}{:>10}{:>10}{:>8}{:>9}{:>9}  {}"


def header() -> str:
    return "\n".join(
        (
            _LINE.format("", "", "calls/s", "", "", "p50 ms", "", "", "p99 ms", "", ""),
            _LINE.format(
                "load",
                "clients",
                "ours",
                "base",
                "share",
                "ours",
                "base",
                "times",
                "ours",
                "base",
                "to reach",
            ),
        )
    )


def line(result: Result) -> str:
    checks = "; ".join(map(str, result.checks))
    if result.numbers:
        ours, base = result.numbers[result.ours], result.numbers[result.base]
        written = _LINE.format(
            result.row,
            result.clients,
            f"{ours.calls_per_s:.0f}",
            f"{base.calls_per_s:.0f}",
            f"{result.share:.2f}",
            f"{ours.p50_ms:.3f}",
            f"{base.p50_ms:.3f}",
            f"{result.p50_times:.2f}",
            f"{ours.p99_ms:.3f}",
            f"{base.p99_ms:.3f}",
            checks,
        )
    else:
        written = f"{result.row}  {checks}"
    notes = (f"    {note}" for note in result.notes)
    return "\n".join((written.rstrip(), *notes, *(f"    void: {problem}" for problem in result.problems)))


def save(results: Iterable[Result], settings: Settings, facts: Mapping[str, Any]) -> Path:
    """Write a run to `benchmarks/results/<time>.json`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.json"
    run = {
        "machine": _machine(),
        "versions": _versions(),
        "settings": dataclasses.asdict(settings),
        **facts,
        "results": [_row(result) for result in results],
    }
    path.write_text(json.dumps(run, indent=2) + "\n")
    return path


def _row(result: Result) -> dict[str, Any]:
    checks = [{**dataclasses.asdict(check), "passed": check.passed} for check in result.checks]
    return {**dataclasses.asdict(result), "checks": checks}


def _machine() -> dict[str, Any]:
    return {"system": platform.platform(), "cores": os.cpu_count(), "processor": _processor()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _versions() -> dict[str, str]:
    packages = {name: version(name) for name in ("ray-sched", "ray", "pyzmq", "protobuf")}
    return {"python": sys.version.split()[0], "libzmq": zmq.zmq_version(), **packages}
