"""What found no room, as demand that Ray's autoscaler sees: one pending placement group for each DAG.

It asks for all of the DAG's pins together. So it takes nothing away while it does not fit, the autoscaler
adds what is missing beside what is free, and once it fits it has done its work and is removed. Where it
found its place tells which nodes are to have their executors back.
"""

from __future__ import annotations

import logging
import threading
from typing import Any, Final

from ray.util import placement_group, placement_group_table, remove_placement_group

from ray_sched.actors import names
from ray_sched.actors.reservations import listed, nodes_of, remove_by_name
from ray_sched.actors.resources import GPU_PIN, PIN

log = logging.getLogger(__name__)

MAX_BUNDLES: Final = 1000
"""Pins that one DAG demands at most; a DAG with more gets the rest when it is tried again."""


class Demands:
    """`tell` and `status` may be called by anybody; `look` asks Ray, and belongs to one thread."""

    def __init__(self, group: str, demand_s: float) -> None:
        self._prefix = names.demand_prefix(group)
        self._demand_s = demand_s
        self._lock = threading.Lock()
        self._wanted: dict[str, tuple[dict[str, int], float]] = {}
        """For each DAG how many pins of each kind, and until when."""
        self._made: dict[str, tuple[Any, dict[str, int]]] = {}

    def tell(self, dag: str, pins: int, gpu_pins: int, now: float) -> None:
        """A DAG lacks so many pins; none: it lacks nothing any more."""
        number = {kind: amount for kind, amount in ((PIN, pins), (GPU_PIN, gpu_pins)) if amount}
        with self._lock:
            self._wanted.pop(dag, None)
            if number and self._demand_s:
                self._wanted[dag] = (number, now + self._demand_s)

    def status(self) -> dict[str, dict[str, int]]:
        """By DAG, how many pins of each kind it waits for."""
        with self._lock:
            return {dag: number for dag, (number, _) in self._wanted.items()}

    def forget_old(self) -> None:
        """Remove what a process before this one demanded."""
        for name in listed(self._prefix):
            remove_by_name(name)

    def look(self, now: float, *, may_ask: bool) -> set[str]:
        """Tell Ray what is demanded now (with `may_ask`); the ids of nodes where there is room for it."""
        with self._lock:
            for dag in [dag for dag, (_, until) in self._wanted.items() if now >= until]:
                log.info("dag=%s found no room in time: it demands none any more", dag)
                del self._wanted[dag]
            wanted = {dag: number for dag, (number, _) in self._wanted.items()}
        for dag in [dag for dag, (_, number) in self._made.items() if wanted.get(dag) != number]:
            remove_placement_group(self._made.pop(dag)[0])
        nodes: set[str] = set()
        for dag, (made, _) in list(self._made.items()):
            info = placement_group_table(made)
            if info["state"] == "CREATED":
                nodes |= nodes_of(info)
                remove_placement_group(made)
                del self._made[dag]
                with self._lock:
                    self._wanted.pop(dag, None)
        for dag, number in wanted.items():
            if dag not in self._made and may_ask and dag in self.status():
                log.info("dag=%s has no room: it demands %s", dag, number)
                self._made[dag] = (self._ask(dag, number), number)
        return nodes

    def _ask(self, dag: str, number: dict[str, int]) -> Any:
        bundles = [{kind: 1} for kind, amount in number.items() for _ in range(amount)]
        name = f"{self._prefix}{dag}"
        remove_by_name(name)
        return placement_group(bundles[:MAX_BUNDLES], name=name, lifetime="detached")

    def close(self) -> None:
        with self._lock:
            self._wanted.clear()
        for made, _ in self._made.values():
            remove_placement_group(made)
        self._made.clear()
