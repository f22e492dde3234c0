"""What an actor answers when somebody asks what became of something: see `ray_sched.story`."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass

from ray_sched.core.history import Told


class RequestIds:
    """Ids for requests: a random beginning, of each maker's own, and a number. Thread-safe."""

    def __init__(self) -> None:
        self._beginning = f"{random.SystemRandom().getrandbits(32):08x}"
        self._numbers = itertools.count(1)

    def next(self) -> str:
        return f"r{self._beginning}-{next(self._numbers)}"


@dataclass(frozen=True)
class Account:
    """One actor's part of a story."""

    told: tuple[Told, ...]
    """When (Unix seconds) and what."""
    now: tuple[str, ...] = ()
    """How it stands at this moment."""
    since: float | None = None
    """How far back this actor remembers (Unix seconds); None: to its start."""


def account(told: Iterable[Told], now: Iterable[str], since: Iterable[float | None]) -> Account:
    """From times of this node's monotonic clock; `since` of each ring that was asked."""
    offset = time.time() - time.monotonic()
    oldest = [at for at in since if at is not None]
    return Account(
        tuple((at + offset, what) for at, what in sorted(told, key=lambda entry: entry[0])),
        tuple(now),
        max(oldest) + offset if oldest else None,
    )
