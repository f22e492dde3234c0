"""What `ray-sched status` tells: one plain object, gathered from the actors, and tables made of it."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from ray_sched import running
from ray_sched.config import Config
from ray_sched.errors import NotRunningError

if TYPE_CHECKING:
    from ray_sched.actors.group import Group

_SIZES: Final = {"actors": "actor", "executors": "executor", "dags": "DAG", "functions": "function"}
"""The counts that are sizes, and what one is called."""


def read(config: Config) -> dict[str, Any]:
    """What runs on the configured host.

    Its keys are `group`, `actors`, `executors`, `dags`, `functions`, `missing_pins`, `reservations`, `demand`
    and `counts`.

    Raises:
        NotRunningError: nothing does, or it is still being started.
    """
    with attached(config) as group:
        return _gather(group.name, group.status())


@contextlib.contextmanager
def attached(config: Config) -> Iterator[Group]:
    """The group that runs on the configured host, for as long as this is open. Raises as `read` does."""
    host, ray_address = config.host, config.ray_address
    entry = running.find(host)
    if not ray_address and entry is None:
        raise NotRunningError(
            f"no scheduler group of this user runs on {host}; start one with: ray-sched up --host {host}"
        )
    if not ray_address and entry is not None and not entry.ray_address:
        raise NotRunningError(
            f"the scheduler group on {host} is still being started; try again in some seconds"
        )
    from ray_sched.actors.cluster import connect, disconnect
    from ray_sched.actors.group import Group

    connect(ray_address or (entry.ray_address if entry else ""), config.ray_timeout_s)
    try:
        yield Group.attach(entry.group if entry else config.group_name)
    finally:
        disconnect()


def _gather(group: str, answers: dict[str, dict[str, Any]]) -> dict[str, Any]:
    scheduler, policy = answers.get("scheduler", {}), answers.get("policy", {})
    told: dict[str, Any] = {
        "group": group,
        "actors": answers,
        "executors": policy.get("executors", []),
        "dags": [{"name": name, **dag} for name, dag in scheduler.get("dags", {}).items()],
        "functions": scheduler.get("functions", []),
        "missing_pins": policy.get("missing_pins", {}),
        "reservations": policy.get("reservations", {}),
        "demand": policy.get("demand", {}),
    }
    sizes = {name: len(told[name]) for name in _SIZES}
    told["counts"] = {**sizes, **_ingress_counts(answers)}
    return told


def _ingress_counts(answers: dict[str, dict[str, Any]]) -> dict[str, int]:
    """Of the ingress and its shards together; statuses count once, though each shard is told of them."""
    total: Counter[str] = Counter()
    for role, answer in answers.items():
        if role == "ingress" or role.startswith("ingress-"):
            total.update(answer.get("counts", {}))
    if "ingress" in answers:
        total["statuses"] = answers["ingress"].get("counts", {}).get("statuses", 0)
    return {name: number for name, number in total.items() if number}


def as_tables(told: dict[str, Any]) -> str:
    """The same for people."""
    actors = [[role, answer.get("error", "ready")] for role, answer in told["actors"].items()]
    executors = [
        [f"{e['ip']}:{e['tid']}", e["type"], ", ".join(e["functions"]) or "-", f"{e['utilization']:.0%}"]
        for e in told["executors"]
    ]
    reserved = [
        [name, state]
        for state, key in (("reserved", "held"), ("missing", "missing"))
        for name in told["reservations"].get(key, [])
    ]
    demand = [
        [dag, ", ".join(f"{amount} {kind}" for kind, amount in number.items())]
        for dag, number in told["demand"].items()
    ]
    counts = {name: number for name, number in told["counts"].items() if name not in _SIZES}
    sizes = ", ".join(_amount(told["counts"][name], singular) for name, singular in _SIZES.items())
    counted = ", ".join(f"{name} {number}" for name, number in counts.items())
    missing = [[dag, ", ".join(functions)] for dag, functions in sorted(told["missing_pins"].items())]
    return "\n\n".join(
        [
            f"Group {told['group']}: {sizes}\nCounts: {counted or 'none'}",
            *([_table(["DAG", "PINNED NOWHERE, FOR LACK OF ROOM"], missing)] if missing else []),
            _table(["ACTOR", "STATE"], actors),
            _table(["EXECUTOR", "TYPE", "PINNED", "BUSY"], executors),
            _table(["DAG", "FUNCTIONS"], [[d["name"], ", ".join(d["functions"])] for d in told["dags"]]),
            _table(["FUNCTION"], [[name] for name in told["functions"]]),
            _table(["RESERVATION", "STATE"], reserved),
            *([_table(["DAG WITHOUT ROOM", "DEMANDS"], demand)] if demand else []),
        ]
    )


def _amount(number: int, singular: str) -> str:
    return f"{number} {singular}" if number == 1 else f"{number} {singular}s"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return f"No {head[0].lower() if head[0] != 'DAG' else 'DAG'}s"
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [head, *rows]
    )
    return "\n".join(line.rstrip() for line in lines)
