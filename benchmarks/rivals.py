"""The same chain of three functions on what people would use instead, measured in a process of its own.

    python -m benchmarks.rivals ray-tasks|ray-actors|dask SECONDS

prints one JSON object: `p50_ms` of a caller that waits for each result, and `calls_per_s` with eight calls
under way. Each gets the best plain way: a chain is handed over at once, and nothing waits in between.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from benchmarks.stamps import stamp

CLIENTS: Final = 8
WARM_UP_CALLS: Final = 50


def measure(
    begin: Callable[[], Any], wait: Callable[[Any], Any], wait_any: Callable[[list[Any]], Any], seconds: float
) -> dict[str, float]:
    """`begin` starts a call, `wait` waits for it, `wait_any` returns one of them that is done."""
    for _ in range(WARM_UP_CALLS):
        wait(begin())
    latencies = []
    end = time.monotonic() + seconds
    while (began := time.monotonic()) < end:
        wait(begin())
        latencies.append(time.monotonic() - began)
    under_way = [begin() for _ in range(CLIENTS)]
    done = 0
    began = time.monotonic()
    while time.monotonic() < began + seconds:
        one = wait_any(under_way)
        under_way.remove(one)
        wait(one)
        done += 1
        under_way.append(begin())
    taken_s = time.monotonic() - began
    for one in under_way:
        wait(one)
    return {"p50_ms": statistics.median(latencies) * 1e3, "calls_per_s": done / taken_s}


def on_ray(seconds: float, *, actors: bool) -> dict[str, float]:
    os.environ.update(RAY_AUTH_MODE="disabled", RAY_worker_niceness="0")
    import ray

    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, configure_logging=False)
    if actors:

        class Stage:
            def stamp(self, stamps: list[float]) -> list[float]:
                return stamp(None, stamps)

        remote: Any = ray.remote(Stage)
        stages = [remote.remote().stamp for _ in range(3)]
    else:
        stages = [ray.remote(lambda stamps: stamp(None, stamps))] * 3

    def begin() -> Any:
        given: Any = [time.monotonic()]
        for stage in stages:
            given = stage.remote(given)
        return given

    return measure(begin, ray.get, lambda under_way: ray.wait(under_way)[0][0], seconds)


def on_dask(seconds: float) -> dict[str, float]:
    from distributed import Client, wait

    with Client(n_workers=3, threads_per_worker=1, processes=True, dashboard_address=None) as client:

        def begin() -> Any:
            given: Any = [time.monotonic()]
            for _ in range(3):
                given = client.submit(stamp, None, given, pure=False)
            return given

        def wait_any(under_way: list[Any]) -> Any:
            return next(iter(wait(under_way, return_when="FIRST_COMPLETED").done))

        return measure(begin, lambda future: future.result(), wait_any, seconds)


def main() -> None:
    name, seconds = sys.argv[1], float(sys.argv[2])
    told = on_dask(seconds) if name == "dask" else on_ray(seconds, actors=name == "ray-actors")
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
