"""Which pins Ray is to count, and which DAGs found no room.

The pin transaction says what it holds and lets go, and this says what follows from it. A pin is wanted
from the moment when its executor is chosen until it is undone, for whatever reason. Only executors that
hold a slot of their node are covered: a foreign one, which is known from its wire status alone, and one
that its node did not offer, have nothing that Ray could count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from ray_sched.core.executor import Address
from ray_sched.core.pins import Demand, Effect, Pin, PinRequest, Reserve, Unreserve


class Ledger:
    def __init__(self) -> None:
        self.pins: dict[Pin, None] = {}
        """The reservations that there should be."""
        self._number: Counter[Address] = Counter()
        """How many of them each executor has."""
        self._covered: dict[Address, bool] = {}
        """The executors whose pins are reserved, and whether they have a GPU."""
        self._demanding: set[str] = set()

    def covers(self, address: Address) -> bool:
        return address in self._covered

    def room(self, address: Address, capacity: int) -> int:
        """How many further pins Ray has room for on the executor. It counts each DAG's pin of a function
        that two of them share."""
        return max(0, capacity - self._number[address])

    def cover(self, address: Address, gpu: bool, held: Iterable[Pin]) -> list[Effect]:
        """An executor holds a slot of its node; the pins that it has already are made good."""
        self._covered[address] = gpu
        return [effect for pin in held for effect in self.want(pin)]

    def uncover(self, address: Address) -> list[Effect]:
        """It holds none any more."""
        self._covered.pop(address, None)
        return [effect for pin in list(self.pins) if pin.address == address for effect in self.drop(pin)]

    def want(self, pin: Pin) -> list[Effect]:
        """Again is harmless."""
        if pin.address not in self._covered or pin in self.pins:
            return []
        self.pins[pin] = None
        self._number[pin.address] += 1
        return [Reserve(pin, self._covered[pin.address])]

    def drop(self, pin: Pin) -> list[Effect]:
        """Again is harmless."""
        if pin not in self.pins:
            return []
        del self.pins[pin]
        self._number[pin.address] -= 1
        return [Unreserve(pin)]

    def demand(self, dag: str, short: Sequence[PinRequest]) -> list[Effect]:
        """These functions of the DAG found no room."""
        self._demanding.add(dag)
        gpu_pins = sum(request.gpu for request in short)
        return [Demand(dag, len(short) - gpu_pins, gpu_pins)]

    def relax(self, dag: str, short: Sequence[PinRequest]) -> list[Effect]:
        """Only these still find none, where the DAG demanded room at all."""
        if dag not in self._demanding:
            return []
        effects = self.demand(dag, short)
        if not short:
            self._demanding.discard(dag)
        return effects
