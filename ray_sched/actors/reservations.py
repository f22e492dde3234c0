"""The pins as Ray counts them: one small placement group for each, made and removed in threads of their own.

What there should be is told by `reserve` and `unreserve`, which return at once; workers make it so, and
`answer` hears whether Ray had room. A checker compares Ray's list with it, repairs what differs, and says
so: after a restart, a lost node, or somebody's own hand in Ray.

Rules of this file:
1. Nothing holds the lock while Ray is asked.
2. At any time one thread at most works on a name.
3. What is not known here is removed only once the group's DAGs are known, twice in a row, and when no other
   group of the cluster says that it is its own.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ray.util import (
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from ray_sched.actors import names
from ray_sched.actors.link import Link
from ray_sched.core.executor import Address
from ray_sched.core.pins import Pin
from ray_sched.errors import RaySchedError

log = logging.getLogger(__name__)

PREFIX: Final = "pin/"
WORKERS: Final = 4
POLL_S: Final = 0.005
LONGEST_POLL_S: Final = 0.1
_CREATED: Final = "CREATED"
_REMOVED: Final = "REMOVED"

Answer = Callable[[Pin, bool], None]


def group_name(pin: Pin) -> str:
    """As Ray lists it: `pin/<dag>/<function>/<ip>:<tid>`."""
    ip, tid = pin.address
    return f"{PREFIX}{pin.dag}/{pin.function}/{ip}:{tid}"


def address_in(name: str) -> Address | None:
    """The executor in the name of a pin's placement group; None for another name."""
    ip, colon, tid = name.rpartition("/")[2].rpartition(":")
    if not (name.startswith(PREFIX) and colon and tid.isascii() and tid.isdigit()):
        return None
    return ip, int(tid)


def listed(prefix: str) -> dict[str, dict[str, Any]]:
    """The placement groups whose names begin so and that are not removed, by name."""
    return {
        info["name"]: info
        for info in placement_group_table().values()
        if info["name"].startswith(prefix) and info["state"] != _REMOVED
    }


def nodes_of(info: Mapping[str, Any]) -> set[str]:
    """The ids of the nodes that a placement group has its bundles on."""
    return set(info["bundles_to_node_id"].values())


def remove_by_name(name: str) -> None:
    """Again, and of what another namespace has, is harmless."""
    try:
        remove_placement_group(get_placement_group(name))
    except ValueError:  # there is none
        return


def remove_all(group: str, executors: Iterable[Address]) -> None:
    """Whatever a group that has stopped may have left: pins of its executors, and what it demanded."""
    gone = set(executors)
    for name in listed(PREFIX):
        if address_in(name) in gone:
            remove_by_name(name)
    for name in listed(names.demand_prefix(group)):
        remove_by_name(name)


@dataclass(frozen=True)
class _Wanted:
    pin: Pin
    resource: str
    node: str
    since: float

    def place(self) -> tuple[str, str]:
        return self.resource, self.node


@dataclass(frozen=True)
class _Held:
    group: Any
    """Ray's handle."""
    of: _Wanted


class Reservations:
    """Thread-safe. `timeout_s`: what Ray has to find room for one. `check_s`: the time between two checks.
    `answer_timeout_s`: what another group's Policy has to say what it reserves."""

    def __init__(
        self, group: str, answer: Answer, *, timeout_s: float, check_s: float, answer_timeout_s: float
    ) -> None:
        self.differences = 0
        """How often Ray's list was not what it should be."""
        self.checks = 0
        """How often it was looked at."""
        self._group = group
        self._answer = answer
        self._timeout_s = timeout_s
        self._check_s = check_s
        self._answer_timeout_s = answer_timeout_s
        self._lock = threading.Lock()
        self._wanted: dict[str, _Wanted] = {}
        self._held: dict[str, _Held] = {}
        self._failed: set[str] = set()
        """Ray had no room for these; the checker tries them again."""
        self._busy: set[str] = set()
        self._strangers: set[str] = set()
        self._may_remove = False
        self._to_do: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, name=f"reservations-{number}", daemon=True)
            for number in range(WORKERS)
        ]
        self._threads.append(threading.Thread(target=self._check_on, name="reservations-check", daemon=True))

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def reserve(self, pin: Pin, resource: str, node: str) -> None:
        """Have one `resource` of the node (its id) counted for the pin."""
        name = group_name(pin)
        with self._lock:
            self._wanted[name] = _Wanted(pin, resource, node, time.monotonic())
            self._failed.discard(name)
        self._to_do.put(name)

    def unreserve(self, pin: Pin) -> None:
        name = group_name(pin)
        with self._lock:
            self._wanted.pop(name, None)
            self._failed.discard(name)
        self._to_do.put(name)

    def know_all(self) -> None:
        """From now on what is not wanted here is nobody's, as far as this group goes."""
        with self._lock:
            self._may_remove = True

    def names(self) -> list[str] | None:
        """What this group reserves; None while that is not known yet."""
        with self._lock:
            return sorted(self._wanted) if self._may_remove else None

    def is_quiet(self) -> bool:
        """Whether Ray has been told everything."""
        with self._lock:
            return not self._busy and self._to_do.empty()

    def status(self) -> dict[str, Any]:
        with self._lock:
            held = sorted(self._wanted.keys() & self._held.keys())
            missing = sorted(self._wanted.keys() - self._held.keys())
            counts = {"checks": self.checks, "differences": self.differences}
            return {"held": held, "missing": missing, **counts}

    def stop(self, timeout_s: float) -> None:
        """Give all of them back."""
        deadline = time.monotonic() + timeout_s
        self._stopping.set()
        with self._lock:
            given_back = [*self._wanted, *self._held]
            self._wanted.clear()
        for name in dict.fromkeys(given_back):
            self._to_do.put(name)
        for _ in range(WORKERS):
            self._to_do.put(None)
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    # --- the workers ---

    def _work(self) -> None:
        while (name := self._to_do.get()) is not None:
            with self._lock:
                if name in self._busy:
                    continue  # whoever works on it looks again
                self._busy.add(name)
            while self._step(name):
                pass

    def _step(self, name: str) -> bool:
        """One step towards what should be; False (and the name is let go of) when it is so."""
        with self._lock:
            wanted, held = self._wanted.get(name), self._held.get(name)
            if name in self._failed or (wanted is None and held is None) or (held and held.of is wanted):
                self._busy.discard(name)
                return False
        made = None
        try:
            if wanted is not None and held is not None and held.of.place() == wanted.place():
                made = held.group  # let go of and wanted again, before anything was done
            elif held is not None:
                remove_placement_group(held.group)
            if wanted is not None and made is None:
                made = self._make(name, wanted)
        except Exception as error:  # Ray's own, of many kinds: its control store may be away for a while
            log.warning("reservation=%s: %s", name, error)
        with self._lock:
            self._held.pop(name, None)
            if made is not None and wanted is not None:
                self._held[name] = _Held(made, wanted)
            if wanted is None or self._wanted.get(name) is not wanted:
                return True
            if made is None:
                self._failed.add(name)
        self._answer(wanted.pin, made is not None)
        return True

    def _make(self, name: str, wanted: _Wanted) -> Any:
        """The placement group, once Ray has room for it on the node; None when it has none in time."""
        try:
            made = self._create(name, wanted)
        except Exception:  # 2.53 and 2.60 have no class of its own for a name that is taken
            info = listed(name).get(name)
            if info is None:
                raise
            if info["state"] == _CREATED and nodes_of(info) == {wanted.node}:
                return get_placement_group(name)
            remove_by_name(name)
            made = self._create(name, wanted)
        deadline, pause_s = time.monotonic() + self._timeout_s, POLL_S
        while (state := placement_group_table(made)["state"]) != _CREATED:
            with self._lock:
                still_wanted = self._wanted.get(name) is wanted
            if time.monotonic() > deadline or state == _REMOVED or not still_wanted:
                remove_placement_group(made)
                return None
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_POLL_S)
        return made

    @staticmethod
    def _create(name: str, wanted: _Wanted) -> Any:
        return placement_group(
            [{wanted.resource: 1}],
            name=name,
            lifetime="detached",
            bundle_label_selector=[{"ray.io/node-id": wanted.node}],
        )

    # --- the checker ---

    def _check_on(self) -> None:
        while not self._stopping.wait(self._check_s):
            try:
                self._check()
            except Exception as error:
                log.warning("the reservations could not be compared with Ray's: %s", error)

    def _check(self) -> None:
        began = time.monotonic()
        there = listed(PREFIX)
        wrong: list[str] = []
        with self._lock:
            for name, wanted in self._wanted.items():
                info = there.get(name)
                right = info is not None and nodes_of(info) == {wanted.node}
                if wanted.since < began and name not in self._busy and not right:
                    self._held.pop(name, None)
                    self._failed.discard(name)
                    wrong.append(name)
            known = self._wanted.keys() | self._held.keys() | self._busy
            strangers = {name for name in there if name not in known and address_in(name)}
            orphans = strangers & self._strangers if self._may_remove else set()
            self._strangers = strangers
        for name in wrong:
            log.warning("reservation=%s was not in Ray as it should be: it is made again", name)
            self._to_do.put(name)
        orphans -= self._others_claim() if orphans else set()
        for name in orphans:
            log.warning("reservation=%s is nobody's: it is removed", name)
            remove_by_name(name)
        with self._lock:
            self.differences += len(wrong) + len(orphans)
            self.checks += 1

    def _others_claim(self) -> set[str]:
        """What other groups of the cluster reserve; everything while one of them does not say."""
        claimed: set[str] = set()
        for group, roles in names.roles_by_group().items():
            if group == self._group or names.POLICY not in roles:
                continue
            try:
                theirs = Link(group, names.POLICY).get("reservation_names", timeout_s=self._answer_timeout_s)
            except RaySchedError as error:
                log.info("group=%s does not say what it reserves: %s", group, error)
                theirs = None
            if theirs is None:
                with self._lock:
                    return set(self._strangers)
            claimed.update(theirs)
        return claimed
