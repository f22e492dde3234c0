"""What a pin transaction consists of: one attempt for each function that it pins."""

from __future__ import annotations

from dataclasses import dataclass, field

from ray_sched.core.executor import Address
from ray_sched.core.pins import Pin, PinRequest


@dataclass(eq=False)  # the attempts of two replicas may look the same, and are not
class Attempt:
    """One function's way to an executor: waiting, sent, accepted or given up."""

    transaction: int
    dag: str
    request: PinRequest
    origin: str = ""
    """The id of the request that its DAG is created for; none where a lost pin is made again."""
    tried: set[Address] = field(default_factory=set)
    address: Address | None = None
    """Whom it was sent to, while its answer is awaited."""
    deadline: float = 0.0
    reserving: bool = False
    """Ray is asked for room first; the executor knows of nothing yet."""
    rejected: bool = False
    """An executor did not take it: more of them would be of no use."""
    in_lane: bool = False
    alone: bool = True
    """No other unnamed answer than its own can come while it is in the lane."""
    pin: Pin | None = None
    asked_before: bool = False
    """Its executor was asked for the function before, and may have it since then, whatever it answers."""
    abandoned: bool = False
    """Its transaction failed meanwhile: an acceptance is undone at once."""

    def target(self) -> Pin:
        """The pin that it would be, while it has an address."""
        assert self.address is not None
        return Pin(self.dag, self.request.function, self.address)


@dataclass
class Transaction:
    id: int
    dag: str
    attempts: list[Attempt]
    repair: bool = False
    origin: str = ""
