"""`python -m benchmarks`: measures, prints the table, and writes it to benchmarks/results/."""

from __future__ import annotations

import argparse
import signal
import sys
from contextlib import ExitStack, closing
from typing import Any, Final

from benchmarks import payloads, report
from benchmarks.bench import Bench, Result, Settings
from benchmarks.helper import Helper
from benchmarks.load import StalledError
from benchmarks.rows import ROWS
from benchmarks.scheduler import NoReplyError, Scheduler

SCHEDULER_IP: Final = "127.0.6.4"
FLOOR_IP: Final = "127.0.6.5"
EXECUTORS_IP: Final = "127.0.6.6"

QUICK: Final = Settings(rounds=3, duration_s=0.4, warm_up_s=0.1)
FULL: Final = Settings(rounds=9, duration_s=1.0, warm_up_s=0.2)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the core rows, in about a minute")
    parser.add_argument("--only", default="", help="only the rows whose name contains this")
    parser.add_argument("--rounds", type=int, help="how often each load is run against each server")
    options = parser.parse_args()
    base = QUICK if options.quick else FULL
    settings = Settings(options.rounds or base.rounds, base.duration_s, base.warm_up_s)
    rows = [row for row in ROWS if options.only in row.name and (row.quick or not options.quick)]
    # Ended by a signal as by Ctrl-C: everything that was started is ended, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    results: list[Result] = []
    try:
        with ExitStack() as running:
            scheduler = running.enter_context(Scheduler(SCHEDULER_IP))
            running.enter_context(Helper("executors", EXECUTORS_IP, SCHEDULER_IP, str(payloads.EXECUTORS)))
            running.enter_context(Helper("floor", FLOOR_IP, EXECUTORS_IP))
            scheduler.fill()
            servers = {"floor": FLOOR_IP, "ours": SCHEDULER_IP}
            bench = running.enter_context(closing(Bench(servers, EXECUTORS_IP, settings)))
            print(report.header(), flush=True)
            for row in rows:
                results.append(row.measure(bench, row.name, row.clients))
                print(report.line(results[-1]), flush=True)
            facts: dict[str, Any] = {
                "command": ["python", "-m", "benchmarks", *sys.argv[1:]],
                "scheduler": {"command": scheduler.command, "start_s": scheduler.start_s},
            }
        print(f"written to {report.save(results, settings, facts)}")
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    except (NoReplyError, StalledError) as error:
        print(error, file=sys.stderr)
        return 1
    return 1 if any(result.problems for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
