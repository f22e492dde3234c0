"""The plot of a simulation, by matplotlib, which the extra `sim` brings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_sched.errors import ConfigError
from ray_sched.sim.outcome import Outcome, Second, ratio
from ray_sched.sim.report import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg")


def check_plot(path: str) -> None:
    """Raise ConfigError where no plot can be made: before the simulation, not after it."""
    if Path(path).suffix not in SUFFIXES:
        raise ConfigError(f"--plot: {path!r} is not allowed; it must end with {' or '.join(SUFFIXES)}")
    if not Path(path).absolute().parent.is_dir():
        raise ConfigError(f"--plot: {path!r} is not allowed; it must be a file in a folder that exists")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError(
            "--plot needs matplotlib, which is not installed: pip install 'ray-sched[sim]', or leave it out"
        ) from None


def write_plot(path: str, runs: Sequence[Run], varied: str, title: str) -> None:
    """Over what is varied, or, where nothing is, over time; a line for each policy. Raises ConfigError."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.5), layout="constrained")
    figure.suptitle(title, fontsize=10)
    panels = list(figure.subplots(2, 2).flat)
    if varied:
        _over_values(panels, runs, varied)
    else:
        _over_time(panels, runs)
    for axes in panels:
        axes.grid(alpha=0.3)
    for axes in panels[1:]:
        axes.set_ylim(-0.02, 1.02)
    panels[0].legend(fontsize=8)
    metadata: dict[str, Any] = {"Date": None} if path.endswith(".svg") else {}
    try:
        # The same runs give the same bytes.
        with matplotlib.rc_context({"svg.hashsalt": "ray-sched"}):
            figure.savefig(path, metadata=metadata)
    except OSError as error:
        raise ConfigError(f"--plot: {path} cannot be written: {error.strerror}") from None


def _over_values(panels: Sequence[Axes], runs: Sequence[Run], varied: str) -> None:
    labels = list(dict.fromkeys(run.value for run in runs))
    numbers = [_number(label) for label in labels]
    # What is no number (a distribution, say) stands at its place in the list.
    places = range(len(labels)) if any(map(math.isnan, numbers)) else numbers
    for color, policy in enumerate(_policies(runs)):
        by_value = {run.value: run.outcome for run in runs if run.policy == policy}
        outcomes = [by_value[label] for label in labels]
        style = {"color": f"C{color}", "marker": "o", "markersize": 3}

        def draw(
            panel: int,
            of: Callable[[Outcome], float],
            line: str = "-",
            label: str = "",
            outcomes: list[Outcome] = outcomes,
            style: dict[str, Any] = style,
        ) -> None:
            panels[panel].plot(places, [of(o) for o in outcomes], line, label=label, **style)

        draw(0, lambda o: o.quantile_s(0.5) * 1e3, label=f"{policy}, p50")
        draw(0, lambda o: o.quantile_s(0.99) * 1e3, "--", label=f"{policy}, p99")
        draw(1, lambda o: o.utilization)
        draw(2, lambda o: o.left_out if math.isnan(o.hit_rate) else o.hit_rate)
        draw(3, lambda o: o.refused_share)
    titles = ("latency, ms", "utilization", _third(runs), "refused calls, share")
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(varied)
        axes.set_xticks(list(places), labels)
    panels[0].set_yscale("log")


def _over_time(panels: Sequence[Axes], runs: Sequence[Run]) -> None:
    for color, run in enumerate(runs):
        latencies_ms = [latency * 1e3 for latency in run.outcome.latencies_s]
        shares = [(rank + 1) / len(latencies_ms) for rank in range(len(latencies_ms))]
        panels[0].plot(latencies_ms, shares, color=f"C{color}", label=run.policy)
        seconds = run.outcome.seconds

        def draw(
            panel: int, of: Callable[[Second], float], seconds: Sequence[Second] = seconds, color: int = color
        ) -> None:
            panels[panel].plot([of(s) for s in seconds], color=f"C{color}", linewidth=1)

        draw(1, lambda s: s.utilization)
        draw(2, (lambda s: s.hit_rate) if _reads(runs) else (lambda s: s.left_out))
        draw(3, lambda s: ratio(s.refused, s.arrivals))
    panels[0].set_xscale("log")
    panels[0].set_xlabel("latency, ms")
    panels[0].set_title("calls that take at most so long, share", fontsize=10)
    for axes, title in zip(panels[1:], ("utilization", _third(runs), "refused calls, share"), strict=True):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("second")


def _third(runs: Sequence[Run]) -> str:
    return "cache hit rate" if _reads(runs) else "executors left out as overloaded, share"


def _reads(runs: Sequence[Run]) -> bool:
    return any(run.outcome.hits + run.outcome.misses for run in runs)


def _policies(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(run.policy for run in runs))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
