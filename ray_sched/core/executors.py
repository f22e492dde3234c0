"""What is known of the executors, and how a status changes it.

The same table serves the Policy (whose word counts), the Scheduler and each Ingress (which hold
copies). An ingress applies the statuses that it sees at once; everything else reaches the copies
as `ExecutorRecord`s, whole records and not differences, so that one that was missed or came twice
does no harm. A record says up to which status (`seq`) it is informed: a copy that has seen a later
one ignores it, and the later record that must follow settles the matter.

Rules (their source is the legacy policy suite, where the wire contract does not say):
- A status names all functions that an executor holds. One that lacks a former function means a
  restart: the function is gone from it. Only a pin younger than `pin_grace_s` is kept, because
  pin answers and statuses come over different connections and may overtake each other; one of ours,
  which say when they were restarted, for longer.
- An executor without functions is free, one with functions is not; in local mode all are.
- Overloaded is who reported more than `max_utilization` within `window_s`, or was given more than
  `max_recent_calls` within it.
- `running` = false removes the executor everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from ray_sched.config import PolicyConfig
from ray_sched.core.cached_keys import CachedKeys
from ray_sched.core.executor import BUCKETS, Address, Executor, ExecutorRecord, Status, location_entry
from ray_sched.core.pools import Pool

MAX_TICK_GAP_S = 2.0
"""A longer time between two looks means that this process stood still, not that executors were silent."""

OURS_GRACE_S = 5.0
"""How long a status of our executors may be on its way after its acceptance of a pin has arrived: TCP sends
again what was lost after up to three seconds."""

DEPARTED_KEPT = 10_000
"""How many departed executors are remembered, so that a peer's old gossip does not revive them."""


ExecutorPool = Pool[Executor]


class ExecutorTable:
    """All executors, who holds which function, who is free, and which keys are cached where."""

    def __init__(
        self,
        policy: PolicyConfig,
        *,
        local: bool,
        pin_grace_s: float,
        executor_timeout_s: float,
        owns: Callable[[Address], bool] | None = None,
        overtaking: bool = False,
    ) -> None:
        """`owns` tells which executors its holder may book (see `partition`); None: all of them.

        With `overtaking` statuses and bookings may come here in another order than they happened in.
        """
        self._policy = policy
        self._overtaking = overtaking
        self._owns = owns
        self._local = local
        self._usual_utilization = min(policy.max_utilization, 1.0)
        self._pin_grace_s = pin_grace_s
        self._executor_timeout_s = executor_timeout_s
        self.executors: dict[Address, Executor] = {}
        self.functions: dict[str, ExecutorPool] = {}
        self.free: tuple[ExecutorPool, ExecutorPool] = (Pool(), Pool())
        """The free executors: without and with a GPU."""
        self.elsewhere: tuple[ExecutorPool, ExecutorPool] = (Pool(), Pool())
        """Those that are free, as far as is known here, but for another one to book."""
        self.cached_keys = CachedKeys()
        self._departed: dict[Address, int] = {}
        """Who left, and as of which `seq`: older records of them are not believed."""
        self._ended: dict[Address, int] = {}
        """Of executors that were restarted, the process that has ended last."""
        self._early: dict[Address, int] = {}
        """Bookings of executors that are not known here yet."""
        self._bucket = 0
        self._bucket_start = 0.0
        self._last_look: float | None = None
        # In order, as sets of executors are not: the same events give the same picks.
        self._touched: list[dict[Executor, None]] = [{} for _ in range(BUCKETS)]
        self._backing_off: dict[Executor, None] = {}
        self.dirty: dict[Address, None] = {}
        """Executors that changed since the copies were told, in order."""
        self.pressing = False
        """Whether calls may go amiss, or be refused without need, until the copies are told: somebody came or
        went, became free or was taken, lost a function, or has one that nobody had. That a function has one
        executor more, or that something is confirmed, can wait: to tell it costs milliseconds."""

    # --- what arrives ---

    def on_status(self, status: Status, now: float, seq: int = 0) -> bool:
        """Take in a status; True if it changed more than the time of the last one."""
        address, listed = status.address, [*status.functions]
        if self.on_repeated(
            address, listed, status.utilization, status.running, status.gpu, status.process, now
        ):
            return False
        executor = self.executors.get(address)
        if not status.running:
            if executor is None:
                return False
            if executor.process != status.process:
                self._ended[status.address] = executor.process
                if len(self._ended) > DEPARTED_KEPT:
                    del self._ended[next(iter(self._ended))]
            self.remove(status.address, seq)
            return True
        changed = executor is not None and executor.ahead
        if executor is None:
            executor = self._new(status.address)
            executor.joined = seq
            changed = True
        executor.ahead = False
        if executor.unpinning:
            executor.unpinning.intersection_update(status.functions)
            changed = True
        executor.last_seen = now
        executor.reported = True
        executor.process = status.process or executor.process
        if executor.gpu != status.gpu:
            self._set_free(executor, False)
            executor.gpu = status.gpu
            changed = True
        if executor.suspected and not executor.full:
            executor.suspected = False
            changed = True
        changed |= self._set_functions(executor, status.functions, now)
        executor.listed = listed if executor.functions == set(listed) else None
        # A free executor that took a one-shot call says with its next status that it is free again; one that
        # it sent before is not that status.
        free = self._local or not executor.functions
        outdated = self._overtaking and 0 < seq < executor.seq and free and not self._local
        if executor.free != free and not outdated:
            self._set_free(executor, free)
            changed = True
        executor.utilization = status.utilization
        if status.utilization > self._policy.max_utilization and self._may_back_off(executor):
            self._back_off(executor, now + self._policy.window_s)
            changed = True
        if changed:
            executor.seq = max(seq, executor.seq)
            self._place(executor)
            self.dirty[executor.address] = None
        return changed

    def on_repeated(
        self,
        address: Address,
        functions: Sequence[str],
        utilization: float,
        running: bool,
        gpu: bool,
        process: int,
        now: float,
    ) -> bool:
        """Take in what a status says, if that changes nothing but the time and the utilization; whether it
        was so. Nearly all say the same as the last one, and thousands may come in a second: so they need not
        be made a `Status` first, and `utilization` may be any number.

        `functions` is to be a list, or what is equal to one with the same functions in the same order.
        """
        executor = self.executors.get(address)
        if executor is None:
            return False
        if functions != executor.listed:
            held = executor.functions
            if executor.listed is not None or len(held) != len(functions) or held != set(functions):
                return False
            executor.listed = [*functions]
        if not (
            running
            and executor.reported
            and not (executor.ahead or executor.unpinning or (executor.suspected and not executor.full))
            and not (executor.hearsay or executor.fresh)
            and executor.gpu == gpu
            and executor.free == (self._local or not functions)
            and 0.0 <= utilization <= self._usual_utilization
            and (process == 0 or (process == executor.process and self._ended.get(address) != process))
        ):
            return False
        executor.last_seen = now
        executor.utilization = utilization
        return True

    def unheard_end(self, status: Status) -> Status | None:
        """The first word of the process that this status is from, where it was lost: that the one before it
        has ended. The connection may be cut just then."""
        if status.process == 0 or not status.running:
            return None
        executor = self.executors.get(status.address)
        if executor is None or status.process == executor.process:
            return None
        return status._replace(running=False, functions=(), reconnections=0)

    def is_of_the_ended(self, status: Status) -> bool:
        """Whether it was on its way for longer than the first word of the process that followed."""
        return status.process != 0 and self._ended.get(status.address) == status.process

    def on_seen(self, addresses: Iterable[Address], now: float) -> None:
        """Statuses arrived that changed nothing else."""
        for address in addresses:
            executor = self.executors.get(address)
            if executor is None:
                continue
            executor.last_seen = max(executor.last_seen, now)
            if executor.suspected and not executor.full:
                executor.suspected = False
                self._place(executor)
                self.dirty[address] = None

    def informed(self, address: Address, seq: int) -> None:
        """This table knows all that happened to the executor up to `seq`, and its copies are to hear so:
        what was a change for one of them may have been none here."""
        executor = self.executors.get(address)
        if executor is not None:
            executor.seq = max(seq, executor.seq)
            self.dirty[address] = None
            # It may have been taken meanwhile, unheard of here: who took it is to hear that it is free.
            self.pressing |= executor.free and not self._local

    def pinned(self, address: Address, function: str, now: float, *, named: bool = False) -> None:
        """An executor accepted a function, and (`named`) said itself who it is, as ours do."""
        executor = self.executors.get(address) or self._new(address, now)
        executor.is_ours |= named
        executor.fresh[function] = now
        executor.hearsay.discard(function)
        self._gain(executor, function)
        if not self._local:
            self._set_free(executor, False)
        self.dirty[address] = None

    def unpinned(self, address: Address, function: str) -> None:
        """An executor was told to drop a function; it is free once its status says so."""
        executor = self.executors.get(address)
        if executor is not None:
            self._lose(executor, function)
            self.dirty[address] = None

    def told_to_pin(self, address: Address, function: str, *, unpin: bool = False) -> None:
        """The authority's message to an executor passed here."""
        executor = self.executors.get(address)
        if executor is not None:
            (executor.unpinning.add if unpin else executor.unpinning.discard)(function)

    def died(self, address: Address, seq: int = 0) -> None:
        """Its process has ended and another one follows: it holds nothing, and takes nothing until that
        one reports. What is on its way to it stays there."""
        executor = self.executors.get(address)
        if executor is None:
            return
        for function in list(executor.functions):
            self._lose(executor, function)
        self._set_free(executor, False)
        executor.seq = max(seq, executor.seq)
        self.dirty[address] = None

    def assume_free(self, address: Address) -> None:
        """An executor that was told to unpin everything never reported: take it for free again."""
        executor = self.executors.get(address)
        if executor is not None and not executor.functions and not executor.free:
            self._set_free(executor, True)
            self.dirty[address] = None

    def merge_locations(self, locations: Iterable[tuple[str, Address]], now: float) -> None:
        """What another scheduler says of who holds what; it never revives an executor that left, and says
        nothing of one that has just said it itself."""
        for function, address in locations:
            executor = self.executors.get(address)
            if executor is None:
                if address in self._departed:
                    continue
                executor = self._new(address, now)
            elif not executor.reported:
                executor.last_seen = now  # known from peers alone: their word keeps it
            elif now - executor.last_seen < self._pin_grace_s:
                continue  # its own word is newer than what was on its way from a peer meanwhile
            if function not in executor.functions:
                executor.fresh[function] = now
                executor.hearsay.add(function)
                self._gain(executor, function)
                if not self._local:
                    self._set_free(executor, False)
                self.dirty[address] = None

    def remove(self, address: Address, seq: int = 0) -> None:
        """The executor left or died: it is gone from everything at once."""
        executor = self.executors.pop(address, None)
        if executor is None:
            return
        for function in list(executor.functions):
            self._lose(executor, function)
        self._set_free(executor, False)
        for touched in self._touched:
            touched.pop(executor, None)
        self._backing_off.pop(executor, None)
        self.pressing = True
        self._departed[address] = max(seq, executor.seq)
        if len(self._departed) > DEPARTED_KEPT:
            del self._departed[next(iter(self._departed))]
        if not any(ip == executor.ip for ip, _ in self.executors):
            self.cached_keys.set(executor.ip, ())
        self.dirty[address] = None

    def age(self, now: float) -> None:
        """Let old backoffs and call counts go: for every copy."""
        self._rotate(now)
        for executor in [e for e in self._backing_off if now >= e.backoff_until]:
            self._back_off(executor, 0.0)
            self.dirty[executor.address] = None

    def remove_silent(self, now: float, look_s: float = 0.0) -> list[Address]:
        """Remove the executors that fell silent, or would be too long before the next look in `look_s`; gives
        them. For the one table whose word counts."""
        gap = 0.0 if self._last_look is None else now - self._last_look
        self._last_look = now
        if gap > MAX_TICK_GAP_S:
            self.excuse(gap, now)
        next_look = now + min(look_s, self._executor_timeout_s / 10)
        silent = [a for a, e in self.executors.items() if next_look - e.last_seen > self._executor_timeout_s]
        for address in silent:
            self.remove(address)
        return silent

    def excuse(self, seconds: float, now: float) -> None:
        """For that long nobody could be heard here, so that it counts as nobody's silence."""
        for executor in self.executors.values():
            executor.last_seen = min(executor.last_seen + seconds, now)

    # --- what dispatching changes ---

    def note_calls(self, executors: Iterable[Executor]) -> None:
        """A call was sent to each."""
        bucket = self._bucket
        touched = self._touched[bucket]
        limit = self._policy.max_recent_calls
        for executor in executors:
            executor.recent += 1
            executor.buckets[bucket] += 1
            touched[executor] = None
            if limit and executor.recent > limit and not executor.overloaded:
                self._place(executor)

    def book(self, executor: Executor, seq: int) -> None:
        """A one-shot call takes a free executor until its next status; not so in local mode."""
        if not self._local and seq >= executor.seq:
            executor.seq = seq
            self._set_free(executor, False)
            self.dirty[executor.address] = None

    def booked(self, address: Address, seq: int) -> None:
        """The same of what another one booked, of whose executor this table may be still to hear."""
        executor = self.executors.get(address)
        if executor is not None:
            if not self._local and not (executor.free and seq >= executor.seq):
                # Whoever booked it took it for free, and is to hear that it is not, or is so again.
                self.dirty[address] = None
                self.pressing = True
            self.book(executor, seq)
        elif self._overtaking and len(self._early) < DEPARTED_KEPT:
            self._early[address] = seq

    def suspect(self, address: Address, *, full: bool = False) -> None:
        """Messages to it pile up: leave it out of every pick until it reports again, or, where they wait for
        room (`full`), until `relieve`."""
        executor = self.executors.get(address)
        if executor is not None:
            executor.full |= full
            self._set_suspected(executor, True)

    def relieve(self, address: Address) -> None:
        """It has taken the messages that had piled up."""
        executor = self.executors.get(address)
        if executor is not None:
            executor.full = False
            self._set_suspected(executor, False)

    def _set_suspected(self, executor: Executor, suspected: bool) -> None:
        if executor.suspected != suspected:
            executor.suspected = suspected
            self._place(executor)
            self.dirty[executor.address] = None

    # --- copies ---

    def record(self, address: Address) -> ExecutorRecord | None:
        """What copies are told of an executor; None if it is not known (any more)."""
        e = self.executors.get(address)
        if e is None:
            return None
        return ExecutorRecord(
            e.ip, e.tid, e.gpu, tuple(sorted(e.functions)), tuple(e.fresh.items()), e.free,
            e.backoff_until, e.last_seen, e.utilization, e.seq, tuple(sorted(e.hearsay)), e.process,
            e.is_ours,
        )  # fmt: skip

    def records(self) -> list[ExecutorRecord]:
        return [r for r in map(self.record, self.executors) if r is not None]

    def apply(self, record: ExecutorRecord) -> None:
        """Take over what the authority says of an executor, unless a later status was seen here."""
        address = (record.ip, record.tid)
        executor = self.executors.get(address)
        if executor is None:
            if record.seq < self._departed.get(address, 0):
                return
            executor = self._new(address)
            executor.joined = record.seq
            # Of one that is known here its own status tells: so its end is not missed.
            executor.process = record.process
        elif executor.seq > record.seq:
            executor.ahead = True
            return
        executor.ahead = False
        if executor.gpu != record.gpu:
            self._set_free(executor, False)
            executor.gpu = record.gpu
        wanted = set(record.functions)
        for function in executor.functions - wanted:
            self._release(executor, function)
        for function in wanted - executor.functions:
            self._hold(executor, function)
        executor.fresh = dict(record.fresh)
        executor.hearsay = set(record.hearsay)
        self._back_off(executor, record.backoff_until)
        executor.reported |= record.seq > 0
        executor.is_ours = record.is_ours
        executor.last_seen = max(executor.last_seen, record.last_seen)
        executor.utilization = record.utilization
        executor.seq = record.seq
        self._set_free(executor, record.free)

    def apply_removal(self, address: Address, seq: int) -> None:
        """Take over that an executor is gone as of `seq`, unless it was seen here to come back since:
        the authority is on its way to hear of that."""
        executor = self.executors.get(address)
        if executor is not None and executor.joined <= seq:
            self.remove(address, seq)

    # --- for everybody ---

    def left_at(self, address: Address) -> int:
        """As of which `seq` it is gone; 0 for whoever was never known."""
        return self._departed.get(address, 0)

    def has_left(self, address: Address) -> bool:
        """Whether it was known, and is gone: who has a message for it has not heard so yet."""
        return address in self._departed

    def ips(self) -> set[str]:
        return {ip for ip, _ in self.executors}

    def locations(self) -> Iterator[tuple[str, Address]]:
        """Who holds what."""
        for function, pool in self.functions.items():
            for executor in pool:
                yield function, executor.address

    def told_locations(self) -> Iterator[tuple[str, Address]]:
        """The same as peers are told of it: without what is known from peers alone.

        Else they would keep alive for each other what an executor has given up, and executors that are gone.
        """
        for function, pool in self.functions.items():
            for executor in pool:
                if function not in executor.hearsay:
                    yield function, executor.address

    def validate(self) -> None:
        """Raise AssertionError where the parts of the table contradict each other (for tests)."""
        for address, executor in self.executors.items():
            assert address == executor.address
            assert set(executor.fresh) <= executor.functions
            assert executor.hearsay <= executor.functions
            assert executor.entries.keys() == executor.functions
            assert executor.listed is None or set(executor.listed) == executor.functions
            assert executor.recent == sum(executor.buckets)
            for function in executor.functions:
                assert executor in self.functions[function]
            assert (executor in self._free_pool(executor)) == executor.free
            places = [pool for pool in (*self.free, *self.elsewhere) if executor in pool]
            assert len(places) == executor.free
        for pool in [*self.functions.values(), *self.free, *self.elsewhere]:
            for executor in pool:
                assert self.executors.get(executor.address) is executor
                assert (executor in pool.overloaded) == executor.overloaded
                assert (executor in pool.available) != executor.overloaded
            assert sum(map(len, pool.by_ip.values())) == len(pool.available)
        assert all(self.functions.values()), "a function without executors has no pool"
        self.cached_keys.validate()

    # --- inside ---

    def _new(self, address: Address, now: float = 0.0) -> Executor:
        executor = Executor(*address)
        executor.last_seen = now
        self.executors[address] = executor
        self.pressing = True
        # Copies do not believe what is older than its departure.
        executor.joined = self._departed.pop(address, 0)
        executor.seq = max(executor.joined, self._early.pop(address, 0))
        return executor

    def _set_functions(self, executor: Executor, listed: tuple[str, ...], now: float) -> bool:
        wanted = set(listed)
        executor.hearsay -= wanted
        confirmed = wanted.intersection(executor.fresh)
        for function in confirmed:
            # A status may be older than the pin, and name the function since it was pinned there before.
            if not executor.is_ours or self._is_old(executor, function, now):
                del executor.fresh[function]
        # A change also for whoever waits for the word of it, or knows of them from peers alone.
        changed = bool(confirmed)
        if wanted == executor.functions:
            return changed
        for function in executor.functions - wanted:
            if self._is_old(executor, function, now):
                self._lose(executor, function)
                changed = True
        for function in wanted - executor.functions:
            self._gain(executor, function)
            changed = True
        return changed

    def _is_old(self, executor: Executor, function: str, now: float) -> bool:
        """Whether a status is certain to be later than what is known of the function. That a foreign
        executor was restarted, nothing else tells: so of these less is waited for."""
        told_by_peers = function in executor.hearsay
        grace_s = OURS_GRACE_S if executor.is_ours and not told_by_peers else self._pin_grace_s
        return now - executor.fresh.get(function, float("-inf")) >= grace_s

    def _gain(self, executor: Executor, function: str) -> None:
        """`_hold`, and end a backoff where that is due. A copy is told so by its record, and holds alone."""
        self._hold(executor, function)
        self._spare_if_alone(function)

    def _lose(self, executor: Executor, function: str) -> None:
        """`_release`, and the same."""
        self._release(executor, function)
        self._spare_if_alone(function)

    def _hold(self, executor: Executor, function: str) -> None:
        executor.functions.add(function)
        executor.listed = None
        executor.entries[function] = location_entry(function, executor.name)
        pool = self.functions.get(function)
        if pool is None:
            pool = self.functions[function] = Pool()
            self.pressing = True
        pool.add(executor)

    def _release(self, executor: Executor, function: str) -> None:
        executor.functions.discard(function)
        executor.listed = None
        executor.entries.pop(function, None)
        executor.fresh.pop(function, None)
        executor.hearsay.discard(function)
        self.pressing = True
        pool = self.functions.get(function)
        if pool is not None:
            pool.discard(executor)
            if not pool:
                del self.functions[function]

    def _set_free(self, executor: Executor, free: bool) -> None:
        self.pressing |= free != executor.free
        executor.free = free
        if free:
            self._free_pool(executor).add(executor)
        else:
            self._free_pool(executor).discard(executor)

    def _free_pool(self, executor: Executor) -> ExecutorPool:
        owned = self._owns is None or self._owns(executor.address)
        return (self.free if owned else self.elsewhere)[executor.gpu]

    def _may_back_off(self, executor: Executor) -> bool:
        if self._policy.backoff_lone_executor:
            return True
        return all(len(self.functions[function]) > 1 for function in executor.functions)

    def _spare_if_alone(self, function: str) -> None:
        """Who backs off for its load and has become a function's only executor since takes calls again."""
        pool = self.functions.get(function)
        if pool is None or len(pool) != 1:
            return
        (executor,) = pool
        if executor.backing_off and not self._may_back_off(executor):
            self._back_off(executor, 0.0)
            self.dirty[executor.address] = None

    def _back_off(self, executor: Executor, until: float) -> None:
        executor.backoff_until = until
        executor.backing_off = until > 0
        if executor.backing_off:
            self._backing_off[executor] = None
        else:
            self._backing_off.pop(executor, None)
        self._place(executor)

    def _place(self, executor: Executor) -> None:
        """Put the executor into the part of each of its pools that its load calls for."""
        limit = self._policy.max_recent_calls
        overloaded = executor.suspected or executor.backing_off or bool(limit and executor.recent > limit)
        if overloaded == executor.overloaded:
            return
        executor.overloaded = overloaded
        for function in executor.functions:
            self.functions[function].add(executor)
        if executor.free:
            self._free_pool(executor).add(executor)

    def _rotate(self, now: float) -> None:
        """Open new buckets of recent calls for the time that went by, and empty those that grew old."""
        length = self._policy.window_s / BUCKETS
        steps = min(int((now - self._bucket_start) / length), BUCKETS)
        if steps <= 0:
            return
        self._bucket_start = now
        for _ in range(steps):
            self._bucket = (self._bucket + 1) % BUCKETS
            for executor in self._touched[self._bucket]:
                executor.recent -= executor.buckets[self._bucket]
                executor.buckets[self._bucket] = 0
                self._place(executor)
            self._touched[self._bucket].clear()
