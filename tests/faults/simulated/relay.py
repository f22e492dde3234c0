"""Virtual time, and all that goes from one part to another: late, twice or not at all, as the seed has it."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from typing import Any

Act = Callable[[], object]
Heard = Callable[[Any], object]

DELAY_S = 0.002
"""Median of what a message takes."""
SLOW = 0.05
"""How many of a hundred, by chance, take up to `SLOW_S`; later ones of the same way queue behind them."""
SLOW_S = 3.0
DROPPED = 0.03
TWICE = 0.03
TIMEOUT_S = 25.0
"""For what an actor is asked; the Policy gives up pins before."""


class Part:
    """A process: what it had planned, and what is on its way to it, ends with it."""

    def __init__(self, relay: Relay, name: str) -> None:
        self.relay = relay
        self.name = name
        self.up = False
        self.life = 0
        """Which process of this name it is."""
        self.queued: list[Act] = []
        """Messages that wait in their senders' sockets until it is there again."""

    def start(self) -> None:
        self.up = True
        self.life += 1
        queued, self.queued = self.queued, []
        self.begin(again=self.life > 1)
        for send in queued:
            send()

    def begin(self, *, again: bool) -> None:
        raise NotImplementedError

    def kill(self, down_s: float) -> None:
        self.up = False
        self.relay.note(f"{self.name} dies")
        self.relay.after(down_s, self.start)

    def after(self, delay_s: float, act: Act) -> None:
        """Unless this process is dead by then."""
        life = self.life
        self.relay.after(delay_s, lambda: act() if self.up and self.life == life else None)

    def mine(self, act: Callable[..., object]) -> Callable[..., object]:
        """What a process waits for is nothing to the one that follows it."""
        life = self.life
        return lambda *told: act(*told) if self.up and self.life == life else None

    def every(self, period_s: float, act: Act) -> None:
        def again() -> None:
            act()
            self.after(period_s, again)

        self.after(period_s * self.relay.rng.random(), again)


class Relay:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now = 1000.0
        self.faulty = False
        self.story: list[str] = []
        """All that happened, in order: of one seed always the same."""
        self._heap: list[tuple[float, int, Act]] = []
        self._numbers = itertools.count()
        self._last: dict[tuple[str, str, int, str], float] = {}

    def note(self, what: str) -> None:
        self.story.append(f"{self.now:.6f} {what}")

    def after(self, delay_s: float, act: Act) -> None:
        heapq.heappush(self._heap, (self.now + delay_s, next(self._numbers), act))

    def run(self, seconds: float, check: Act) -> None:
        until = self.now + seconds
        while self._heap and self._heap[0][0] <= until:
            self.now, _, act = heapq.heappop(self._heap)
            act()
            check()
        self.now = until

    def wire(
        self,
        source: Part,
        target: Part,
        what: str,
        act: Act,
        *,
        connection: str,
        dropped: Act | None = None,
    ) -> None:
        """A message over a socket: one after the other on each connection.

        To a process that is not there it waits in the sender's socket, and ends with the sender; what was
        under way when a process died is lost. TCP loses and repeats nothing between living ones unless it is
        cut off, but the seed does; a target that can notice is told (`dropped`).
        """
        if not target.up:
            life = source.life

            def send() -> None:
                if source.up and source.life == life:
                    self.wire(source, target, what, act, connection=connection, dropped=dropped)

            target.queued.append(send)
            return
        if self.faulty and self.rng.random() < DROPPED:
            self.note(f"{source.name} -> {target.name}: {what} dropped")
            if dropped is not None:
                target.after(self.rng.expovariate(1 / DELAY_S), dropped)
            return
        self._carry(source, target, what, act, None, connection)
        if self.faulty and self.rng.random() < TWICE:
            self._carry(source, target, f"{what}, a second time", act, None, connection)

    def tell(
        self,
        source: Part,
        target: Part,
        what: str,
        act: Act,
        failed: Act | None = None,
        *,
        kept: bool = False,
        once: bool = False,
    ) -> None:
        """An actor call: one after the other. Whether a dead actor had done it, nobody knows: `failed`.

        One between living actors may get lost (a link has no room for it, a connection is cut), unless its
        sender keeps it until it is taken (`kept`). Nothing repeats a call, but the seed does where the core
        has to bear it; a request, or the answer to one, comes `once`.
        """
        if self.faulty and not kept and self.rng.random() < DROPPED:
            self.note(f"{source.name} -> {target.name}: {what} dropped")
            if failed is not None:
                source.after(self.rng.expovariate(1 / DELAY_S), failed)
            return
        self._carry(source, target, what, act, failed, "")
        if self.faulty and not once and self.rng.random() < TWICE:
            self._carry(source, target, f"{what}, a second time", act, None, "")

    def ask(
        self, source: Part, target: Part, what: str, act: Callable[[Heard], object], heard: Heard
    ) -> None:
        """An actor call whose answer is waited for: of a dead actor it is why there is none."""
        waiting = [source.mine(heard)]
        life = target.life if target.up else target.life + 1

        def end(answer: Any) -> None:
            if waiting:
                waiting.pop()(answer)

        def watch() -> None:
            if waiting and (target.life > life or (target.life == life and not target.up)):
                end(gone)
            elif waiting:
                source.after(0.5, watch)

        def answer(value: Any) -> None:
            self.tell(target, source, f"{what}: answered", lambda: end(value), once=True)

        gone, late = f"the {target.name} ended", f"the {target.name} did not answer in time"
        self.tell(
            source,
            target,
            what,
            lambda: act(answer),
            lambda: source.after(0.0, lambda: end(gone)),
            once=True,
        )
        source.after(0.5, watch)
        source.after(TIMEOUT_S, lambda: end(late))

    def _carry(
        self, source: Part, target: Part, what: str, act: Act, failed: Act | None, connection: str
    ) -> None:
        delay = self.rng.expovariate(1 / DELAY_S)
        if self.faulty and self.rng.random() < SLOW:
            delay += self.rng.random() * SLOW_S
        way = (source.name, target.name, source.life, connection)
        at = self._last[way] = max(self.now + delay, self._last.get(way, 0.0))
        life = target.life if target.up else target.life + 1

        def arrive() -> None:
            alive = target.up and target.life == life
            self.note(f"{source.name} -> {target.name}: {what}{'' if alive else ' (nobody there)'}")
            if alive:
                act()
            elif failed is not None:
                failed()

        self.after(at - self.now, arrive)
