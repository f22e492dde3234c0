"""`python -m benchmarks`: measures, prints the table, and writes it to benchmarks/results/."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import ExitStack, closing
from typing import Any, Final

from benchmarks import pipeline, report
from benchmarks.bench import Bench, Result, Settings
from benchmarks.load import StalledError
from benchmarks.rows import ROWS
from benchmarks.scheduler import NoReplyError
from benchmarks.stage import start_large, start_small

QUICK: Final = Settings(rounds=5, duration_s=0.25, warm_up_s=0.1)
FULL: Final = Settings(rounds=15, duration_s=0.27, warm_up_s=0.1)
"""Many short rounds: the machine's speed changes within a second, and then disturbs few of the ratios."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the core rows, in about a minute")
    parser.add_argument("--only", default="", help="only the rows whose name contains this")
    parser.add_argument("--rounds", type=int, help="how often each load is run against each server")
    options = parser.parse_args()
    base = QUICK if options.quick else FULL
    settings = Settings(options.rounds or base.rounds, base.duration_s, base.warm_up_s)
    # Ended by a signal as by Ctrl-C: everything that was started is ended, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    began = time.monotonic()
    results: list[Result] = []
    facts: dict[str, Any] = {"command": ["python", "-m", "benchmarks", *sys.argv[1:]]}
    try:
        print(report.header(), flush=True)
        for result in _loads(settings, options.only, options.quick, facts):
            results.append(result)
            print(report.line(result), flush=True)
        if not options.quick:
            for result in pipeline.measure(settings, options.only):
                results.append(result)
                print(report.line(result), flush=True)
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    except (NoReplyError, StalledError) as error:
        print(error, file=sys.stderr)
        return 1
    checks = [check for result in results for check in result.checks]
    passed = sum(check.passed for check in checks)
    print(f"{passed} of {len(checks)} pass, in {time.monotonic() - began:.0f} s")
    print(f"written to {report.save(results, settings, facts)}")
    return 1 if any(result.problems for result in results) else 0


def _loads(settings: Settings, only: str, quick: bool, facts: dict[str, Any]) -> Iterable[Result]:
    rows = [row for row in ROWS if only in row.name and (row.quick or not quick)]
    if not rows:
        return
    with ExitStack() as running:
        small = start_small(running)
        facts["scheduler"] = {"command": small.command, "start_s": small.start_s}
        bench = running.enter_context(closing(Bench(settings)))
        for row in (row for row in rows if not row.large):
            yield row.measure(bench, row.name, row.clients)
        large_rows = [row for row in rows if row.large]
        if large_rows:
            start_large(running)
        for row in large_rows:
            yield row.measure(bench, row.name, row.clients)


if __name__ == "__main__":
    sys.exit(main())
