"""The Policy's side towards Ray: executors on the nodes, pins that Ray counts, and what it is to grow for.

In Ray's local mode none of it means anything, and nothing is done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ray_sched.actors import resources
from ray_sched.actors.demand import Demands
from ray_sched.actors.messages import Presence
from ray_sched.actors.reservations import Reservations
from ray_sched.actors.slots import Listener, SlotKeeper
from ray_sched.config import Config
from ray_sched.core.executor import Address
from ray_sched.core.pins import Demand, Pin, Reserve, Unreserve


@dataclass(frozen=True)
class Told:
    """Who hears what became of it; each is called in a thread that may wait for the Policy's lock."""

    reserved: Callable[[Pin, bool], None]
    covered: Callable[[Address, bool], None]
    """The executor holds a slot of its node, and whether it has a GPU: Ray counts its pins from now on."""
    uncovered: Callable[[Address], None]
    died: Callable[[Address, bool], None]
    """Its process has ended, and whether Ray starts it anew."""


class Capacity:
    """`carry_out` returns at once."""

    def __init__(self, config: Config, told: Told) -> None:
        self._told = told
        self._places: dict[Address, tuple[str, str]] = {}
        """For each executor whose pins are reserved the resource that they take, and its node."""
        settings = config.scheduler
        self.reservations = Reservations(
            config.group_name,
            told.reserved,
            timeout_s=settings.reservation_timeout_s,
            check_s=settings.reservation_check_s,
            answer_timeout_s=config.answer_timeout_s,
        )
        self._demands = Demands(config.group_name, settings.demand_s)
        self._keeper = SlotKeeper(
            config,
            Listener(came=self._came, died=lambda address: told.died(address, True), gone=self._gone),
            self._demands,
            self.reservations.is_quiet,
        )
        self._counts = resources.counts_resources()

    def start(self) -> None:
        if self._counts:
            self.reservations.start()
            self._keeper.start()

    def carry_out(self, effect: Reserve | Unreserve | Demand) -> None:
        match effect:
            case Reserve(pin):
                resource, node = self._places[pin.address]
                self.reservations.reserve(pin, resource, node)
            case Unreserve(pin):
                self.reservations.unreserve(pin)
            case Demand(dag, pins, gpu_pins):
                if self._counts:
                    self._demands.tell(dag, pins, gpu_pins, time.monotonic())

    def left(self, address: Address) -> None:
        """An executor said itself that it leaves."""
        self._keeper.left(address)

    def status(self) -> dict[str, Any]:
        return {"reservations": self.reservations.status(), "demand": self._demands.status()}

    def stop(self, timeout_s: float) -> None:
        """Start no executors any more, and give back what was reserved."""
        if self._counts:
            deadline = time.monotonic() + timeout_s
            self._keeper.stop(timeout_s / 2)
            self.reservations.stop(deadline - time.monotonic())

    # --- in the keeper's thread ---

    def _came(self, address: Address, presence: Presence, node: Mapping[str, Any]) -> None:
        resource = resources.pin_resource(node, presence.gpu) if presence.holds_slot else ""
        if resource:
            self._places[address] = (resource, presence.node)
            self._told.covered(address, presence.gpu)
        else:
            self._told.uncovered(address)

    def _gone(self, address: Address) -> None:
        self._told.died(address, False)
        self._told.uncovered(address)
