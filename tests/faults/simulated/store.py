"""The key-value store, as far as the parts need it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ray_sched.wire import cloudburst_pb2 as cb
from tests.faults.simulated.relay import Part, Relay

if TYPE_CHECKING:
    pass


Change = dict[str, tuple[cb.Dag, int] | None]


class Store(Part):
    """What it holds outlives it, as a file would."""

    def __init__(self, relay: Relay, name: str) -> None:
        super().__init__(relay, name)
        self.values: dict[str, str] = {}
        self.dags: dict[str, tuple[cb.Dag, int]] = {}

    def begin(self, *, again: bool) -> None:
        pass

    def put(self, key: str, value: str) -> None:
        """An error outranks no result."""
        if self.values.get(key) != "result":
            self.values[key] = value
