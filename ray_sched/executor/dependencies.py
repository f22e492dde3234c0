"""What a causal result depends on: the versions of keys that were read on the way to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ray_sched.kvs.vector_clock import VectorClock
from ray_sched.wire import cloudburst_pb2 as cb


class Dependencies:
    """The clocks of the keys that were read, and where executors upstream cached them."""

    def __init__(self, triggers: Iterable[cb.DagTrigger] = ()) -> None:
        self._clocks: dict[str, VectorClock] = {}
        self._triggers = tuple(triggers)
        for trigger in self._triggers:
            for version in trigger.dependencies:
                self.read(version.key, version.vector_clock)

    def read(self, key: str, clock: Mapping[str, int]) -> None:
        """A version of the key was read; versions without a clock are not causal, and do not count."""
        if clock:
            seen = VectorClock(clock)
            self._clocks[key] = seen.merge(self._clocks.get(key, seen))

    def add_to(self, trigger: cb.DagTrigger) -> None:
        """Tell the functions downstream."""
        for key, clock in self._clocks.items():
            trigger.dependencies.add(key=key, vector_clock=dict(clock))
        for earlier in self._triggers:
            for address, versions in earlier.version_locations.items():
                trigger.version_locations[address].keys.extend(versions.keys)

    def of_write(self, key: str, writer: str) -> tuple[VectorClock, dict[str, VectorClock]]:
        """The clock of a write, above all versions of its key that were read, and what it depends on."""
        others = {name: clock for name, clock in self._clocks.items() if name != key}
        seen = self._clocks.get(key, VectorClock({}))
        return seen.merge(VectorClock({writer: seen.get(writer, 0) + 1})), others
