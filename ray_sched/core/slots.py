"""Which executors the nodes of a Ray cluster are to have, and when they go.

`look` is told what there is, and says what is to be done. The rules:

- A node has as many executors as it offers slots, whichever group started them; threads are counted
  from 0 for each address, since several nodes may share one.
- One that left by itself, or retired, is not started again unless its node is wanted (`wake`).
- All executors of a node retire together, once all of them have been idle for long enough: a node
  that keeps one cannot go. Never so many that fewer than a minimum are left.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ray_sched.core.executor import Address


@dataclass(frozen=True)
class Node:
    """A living node that offers slots."""

    id: str
    address: str
    slots: int
    gpu_slots: int = 0
    """How many of the slots are to have a GPU."""


@dataclass(frozen=True)
class Holder:
    """An executor as Ray knows it."""

    node: str
    """Id of its node; empty while that is not known yet."""
    gpu: bool = False
    own: bool = True
    """Whether it is of this group."""
    idle_s: float = 0.0


@dataclass(frozen=True)
class Start:
    address: Address
    node: str
    gpu: bool


@dataclass(frozen=True)
class Retire:
    address: Address


@dataclass(frozen=True)
class GiveUp:
    """It was started, and never came; or was told to leave, and never did."""

    address: Address


Effect = Start | Retire | GiveUp


@dataclass
class _Started:
    node: str
    gpu: bool
    at: float


class Slots:
    """`idle_timeout_s`: 0 means that nobody retires. `threads`: how many an address has room for.

    `leave_timeout_s`: how long one that is told to leave has for it, unless it has something to do again.
    """

    def __init__(
        self,
        *,
        threads: int,
        idle_timeout_s: float,
        min_count: int,
        start_timeout_s: float,
        leave_timeout_s: float,
    ) -> None:
        self._threads = threads
        self._idle_timeout_s = idle_timeout_s
        self._min_count = min_count
        self._start_timeout_s = start_timeout_s
        self._leave_timeout_s = leave_timeout_s
        self._started: dict[Address, _Started] = {}
        """Executors that are on their way, until Ray knows their node."""
        self._left: dict[Address, str] = {}
        """Those that left or were told to, and their nodes."""
        self._told: dict[Address, float] = {}
        """When those were told to leave that are there yet."""

    def on_left(self, address: Address, node: str) -> None:
        """An executor left by itself."""
        self._left[address] = node

    def wake(self, node: str) -> None:
        """The node's executors are wanted again: whoever did not hear that it should leave, stays."""
        self._told = {address: at for address, at in self._told.items() if self._left.get(address) != node}
        self._left = {address: left for address, left in self._left.items() if left != node}

    def look(self, nodes: Sequence[Node], holders: Mapping[Address, Holder], now: float) -> list[Effect]:
        """What is to be done, of the living nodes that offer slots and the executors that Ray knows."""
        alive = {node.id for node in nodes}
        self._left = {address: node for address, node in self._left.items() if node in alive}
        effects: list[Effect] = []
        given_up = set()
        for address, started in list(self._started.items()):
            known = address in holders and bool(holders[address].node)
            late = not known and now - started.at > self._start_timeout_s
            if known or late or started.node not in alive:
                del self._started[address]
            if late or (not known and started.node not in alive):
                effects.append(GiveUp(address))
                given_up.add(started.node)
        taken = {*holders, *self._started}
        for node in [node for node in nodes if node.id not in given_up]:
            for gpu, missing in self._missing(node, holders).items():
                for address in self._free(node.address, taken, missing):
                    taken.add(address)
                    self._left.pop(address, None)
                    self._started[address] = _Started(node.id, gpu, now)
                    effects.append(Start(address, node.id, gpu))
        return effects + self._overdue(holders, now) + self._retire(nodes, holders, now)

    def _overdue(self, holders: Mapping[Address, Holder], now: float) -> list[Effect]:
        """Whoever keeps its node for nothing: it did not hear, or hangs."""
        self._told = {address: at for address, at in self._told.items() if address in holders}
        overdue = [
            address
            for address, at in self._told.items()
            if now - at > self._leave_timeout_s and holders[address].idle_s >= self._idle_timeout_s
        ]
        self._told.update(dict.fromkeys(overdue, now))
        return [GiveUp(address) for address in overdue]

    def _missing(self, node: Node, holders: Mapping[Address, Holder]) -> dict[bool, int]:
        """How many executors the node still lacks: without and with a GPU."""
        kinds = [holder.gpu for holder in holders.values() if holder.node == node.id]
        kinds += [started.gpu for started in self._started.values() if started.node == node.id]
        away = sum(left == node.id and address not in holders for address, left in self._left.items())
        # Those that have not said yet where they are may be here.
        unknown = sum(
            not h.node and a[0] == node.address for a, h in holders.items() if a not in self._started
        )
        room = max(0, node.slots - len(kinds) - away - unknown)
        with_gpu = min(room, max(0, node.gpu_slots - kinds.count(True)))
        return {False: room - with_gpu, True: with_gpu}

    def _free(self, ip: str, taken: Collection[Address], number: int) -> list[Address]:
        free = [(ip, tid) for tid in range(self._threads) if (ip, tid) not in taken]
        return free[:number]

    def _retire(self, nodes: Sequence[Node], holders: Mapping[Address, Holder], now: float) -> list[Effect]:
        if not self._idle_timeout_s:
            return []
        effects: list[Effect] = []
        staying = sum(holder.own and address not in self._left for address, holder in holders.items())
        for node in nodes:
            here = {address: holder for address, holder in holders.items() if holder.node == node.id}
            mine = [a for a, holder in here.items() if holder.own and a not in self._left]
            idle = all(holder.idle_s >= self._idle_timeout_s for holder in here.values())
            coming = any(started.node == node.id for started in self._started.values())
            if mine and idle and not coming and staying - len(mine) >= self._min_count:
                staying -= len(mine)
                self._left.update(dict.fromkeys(mine, node.id))
                self._told.update(dict.fromkeys(mine, now))
                effects += [Retire(address) for address in mine]
        return effects
