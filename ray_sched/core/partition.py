"""Which of several ingress shards may give a free executor to a one-shot call: exactly one.

A shard hears of a booking that another one made only later. So the executors are divided: each belongs to
one shard for as long as there are as many shards, whatever else is known of it, and every process finds
the same one without asking. What carries no booking (DAG calls; everything in local mode) is not divided.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from ray_sched.core.executor import Address

FRONT = 0
"""The number of the ingress that has the ports: no executor belongs to it."""


@dataclass(frozen=True)
class Part:
    """One shard's part: `number` from 1 to `shards`, or FRONT."""

    number: int
    shards: int

    def owns(self, address: Address) -> bool:
        return owner(address, self.shards) == self.number


def owner(address: Address, shards: int) -> int:
    """The shard, from 1 on, that an executor belongs to; about as many belong to each."""
    # The low bits of a CRC of neighbours are often the same; the high ones of its product are not.
    # (Source: Fibonacci hashing, Knuth, The Art of Computer Programming, volume 3, 6.4.)
    spread = zlib.crc32(f"{address[0]}:{address[1]}".encode()) * 0x9E3779B1 & 0xFFFFFFFF
    return 1 + (spread * shards >> 32)
