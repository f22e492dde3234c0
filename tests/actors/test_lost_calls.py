"""Both sides of looking after calls that may be lost: handing them over, and writing the error value."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import pytest

from ray_sched.actors import names
from ray_sched.actors.link import Link
from ray_sched.actors.lost_calls import BATCH, LOST, LostCalls, destination_of, settle
from ray_sched.actors.mailbox import Mailbox
from ray_sched.config import Config
from ray_sched.core.destination import Destination
from ray_sched.core.executor import Address
from ray_sched.core.open_calls import Doubtful, OpenCalls
from ray_sched.errors import NotRunningError, TimedOutError
from ray_sched.kvs.client import KvsClient
from ray_sched.kvs.lattices import LWW, SetLattice
from ray_sched.kvs.server import KvsServer
from ray_sched.kvs.store import Store
from ray_sched.values import dumps, loads
from ray_sched.wire import cloudburst_pb2 as cb

KVS_IP = "127.0.36.1"
WAIT_S = 20.0
CONFIG = Config().replace(answer_timeout_s=0.05)
A, B = ("127.0.36.2", 0), ("127.0.36.2", 1)


def to(key: str, *, causal: bool = False) -> Destination:
    return Destination(key, "", key, causal, "base", False)


class Scheduler:
    """In the place of the link to it: takes batches, or is not there."""

    def __init__(self) -> None:
        self.there = True
        self.open: list[Doubtful] = []
        self.batches: list[list[Doubtful]] = []

    def get(self, method: str, batch: Sequence[Doubtful], *, timeout_s: float) -> list[Doubtful]:
        assert (method, timeout_s > 0) == ("settle_calls", True)
        self.batches.append(list(batch))
        if not self.there:
            raise NotRunningError("it is being started anew")
        return self.open

    def keys(self) -> list[str]:
        keys = [call.to.key for batch in self.batches for call in batch]
        self.batches.clear()
        return keys


class Ingress:
    def __init__(self, folder: Path) -> None:
        self.scheduler = Scheduler()
        self._mailbox: Mailbox[Callable[[float], None]] = Mailbox()
        self.lost = LostCalls(
            CONFIG.replace(**{"executor.runtime_dir": str(folder)}),
            cast(Link, self.scheduler),
            self._mailbox,
        )

    def tick(self, now: float) -> None:
        """What the loop does, until what was handed over has come back."""
        self.lost.tick(now)
        until = time.monotonic() + WAIT_S
        while not (acts := self._mailbox.take()):
            assert time.monotonic() < until
            time.sleep(0.001)
        for act in acts:
            act(now)

    def close(self) -> None:
        self.lost.close()
        self._mailbox.close()


@pytest.fixture
def ingress(tmp_path: Path) -> Iterator[Ingress]:
    ingress = Ingress(tmp_path)
    yield ingress
    ingress.close()


def test_what_may_be_lost_is_handed_over_in_batches_and_once(ingress: Ingress) -> None:
    for number in range(2 * BATCH + 1):
        ingress.lost.unsent(to(f"{number}"))
    ingress.tick(100.0)
    assert [len(batch) for batch in ingress.scheduler.batches] == [BATCH, BATCH, 1]
    assert ingress.scheduler.keys() == [f"{number}" for number in range(2 * BATCH + 1)]
    ingress.lost.unsent(to("one more"))
    ingress.tick(101.0)
    assert ingress.scheduler.keys() == ["one more"]


def test_what_the_scheduler_did_not_take_is_handed_over_again(ingress: Ingress) -> None:
    now = time.monotonic()
    ingress.lost.note([(now, (A,), tuple(to("at A")), False)])
    ingress.lost.gone(A, now)
    ingress.lost.unsent(to("unsent"))
    ingress.scheduler.there = False
    for _ in range(3):
        ingress.tick(now + 100.0)
        assert ingress.scheduler.keys() == ["unsent", "at A"]
    ingress.scheduler.there = True
    ingress.tick(now + 101.0)
    assert ingress.scheduler.keys() == ["unsent", "at A"]
    ingress.lost.tick(now + 102.0)
    assert ingress.scheduler.keys() == []


def test_what_is_open_is_handed_over_again(ingress: Ingress) -> None:
    ingress.lost.unsent(to("open"))
    ingress.lost.unsent(to("lost"))
    ingress.scheduler.open = [Doubtful((A,), to("open"), False, (("g", 0),))]
    ingress.tick(100.0)
    assert ingress.scheduler.keys() == ["open", "lost"]
    ingress.lost.tick(100.1)
    ingress.scheduler.open = []
    ingress.tick(110.0)
    assert ingress.scheduler.batches == [[Doubtful((A,), to("open"), False, (("g", 0),))]]


# --- the Scheduler's side ---


@pytest.fixture
def kvs() -> Iterator[KvsClient]:
    server = KvsServer(KVS_IP, Store())
    server.start()
    with KvsClient(KVS_IP, KVS_IP, timeout_s=WAIT_S) as client:
        yield client
    server.stop()


@pytest.fixture
def no_executors(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of our own has these addresses; to ask Ray would start it."""

    def find(group: str, role: str) -> Any:
        raise NotRunningError(f"there is no {role}")

    monkeypatch.setattr(names, "find", find)


def settled(kvs: KvsClient, *doubtful: Doubtful) -> list[Doubtful]:
    return settle(CONFIG, kvs, doubtful, ())


def error_at(kvs: KvsClient, key: str) -> Any:
    lattice = kvs.get(key)
    assert lattice is not None
    value = lattice.value if isinstance(lattice, LWW) else min(lattice.values)  # type: ignore[attr-defined]
    return loads(value)


@pytest.mark.parametrize("causal", [False, True])
def test_a_call_that_nobody_is_at_has_the_error_value(
    kvs: KvsClient, no_executors: None, causal: bool
) -> None:
    assert settled(kvs, Doubtful((A, B), to("key", causal=causal)), Doubtful((), to("other"))) == []
    for key in ("key", "other"):
        word, response = error_at(kvs, key)
        assert LOST in word
        assert cb.GenericResponse.FromString(response).error == cb.EXECUTION_ERROR


def test_a_result_outranks_the_error_value_whichever_comes_first(kvs: KvsClient, no_executors: None) -> None:
    kvs.put_bytes("before", dumps(1))
    settled(kvs, Doubtful((A,), to("before")), Doubtful((A,), to("after")))
    kvs.put_bytes("after", dumps(2))
    assert (error_at(kvs, "before"), error_at(kvs, "after")) == (1, 2)


def test_a_key_that_holds_something_else_costs_the_others_nothing(kvs: KvsClient, no_executors: None) -> None:
    kvs.put("a set", SetLattice(frozenset({b"member"})))
    assert settled(kvs, Doubtful((A,), to("a set")), Doubtful((A,), to("key"))) == []
    assert kvs.get("a set") == SetLattice(frozenset({b"member"}))
    assert LOST in error_at(kvs, "key")[0]


def test_a_key_that_holds_something_else_hides_no_write_that_failed(
    kvs: KvsClient, no_executors: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_future, unanswered = kvs.put_future, Future[None]()
    unanswered.set_exception(TimedOutError("the store does not answer"))
    monkeypatch.setattr(
        kvs, "put_future", lambda key, value: unanswered if key == "key" else put_future(key, value)
    )
    kvs.put("a set", SetLattice(frozenset({b"member"})))
    with pytest.raises(TimedOutError):
        settled(kvs, Doubtful((A,), to("a set")), Doubtful((A,), to("key")), Doubtful((A,), to("last")))
    assert LOST in error_at(kvs, "last")[0]


class Asked:
    """In the place of an executor's handle: what is asked of it is answered with this, or not at all."""

    def __init__(self, answer: OpenCalls | Exception | None) -> None:
        self._answer: Future[OpenCalls] = Future()
        if isinstance(answer, OpenCalls):
            self._answer.set_result(answer)
        elif answer is not None:
            self._answer.set_exception(answer)

    @property
    def open_calls(self) -> Asked:
        return self

    def remote(self) -> Asked:
        return self

    def future(self) -> Future[OpenCalls]:
        return self._answer


def asking(monkeypatch: pytest.MonkeyPatch, executors: dict[Address, object]) -> None:
    by_role = {names.executor_role(*address): executor for address, executor in executors.items()}

    def find(group: str, role: str) -> object:
        if role not in by_role:
            raise NotRunningError(f"there is no {role}")
        return by_role[role]

    monkeypatch.setattr(names, "find", find)
    monkeypatch.setattr(names, "executors", dict)


WAITS = OpenCalls([], [("key", ("g", 0))])


def test_a_call_may_be_among_those_that_an_executor_has_not_looked_at(
    kvs: KvsClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking(monkeypatch, {A: Asked(OpenCalls([], [], more=True)), B: Asked(OpenCalls([], []))})
    call = Doubtful((A, B), to("key"))
    assert settled(kvs, call) == [call]
    assert kvs.get("key") is None


def test_an_executor_that_another_group_has_started_is_asked(
    kvs: KvsClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking(monkeypatch, {})
    there = Asked(OpenCalls(["key"], []))

    def find(group: str, role: str) -> object:
        if (group, role) != ("other", names.executor_role(*A)):
            raise NotRunningError(f"there is no {role}")
        return there

    monkeypatch.setattr(names, "find", find)
    monkeypatch.setattr(names, "executors", lambda: {A: "other"})
    call = Doubtful((A,), to("key"))
    assert settled(kvs, call) == [call]


@pytest.mark.parametrize(
    "other",
    [Asked(None), Asked(RuntimeError("it ends")), object()],
    ids=["answers late", "is being started anew", "is of an older version"],
)
def test_a_call_that_waits_is_open_while_one_that_has_a_part_in_it_tells_nothing(
    kvs: KvsClient, monkeypatch: pytest.MonkeyPatch, other: object
) -> None:
    asking(monkeypatch, {A: Asked(WAITS), B: other})
    call = Doubtful((A, B), to("key"), False, (("g", 0),))
    assert settled(kvs, call) == [call._replace(stood=None)]
    assert kvs.get("key") is None


def test_a_foreign_executor_keeps_open_what_waits_for_it_until_it_is_gone(
    kvs: KvsClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking(monkeypatch, {A: Asked(WAITS)})
    call = Doubtful((A, B), to("key"), False, (("g", 0),))
    assert settle(CONFIG, kvs, [call], {B}) == [call._replace(stood=None)]
    assert settle(CONFIG, kvs, [call], set()) == []
    assert LOST in error_at(kvs, "key")[0]


def test_of_a_continued_call_all_executors_are_asked(kvs: KvsClient, monkeypatch: pytest.MonkeyPatch) -> None:
    asking(monkeypatch, {A: Asked(OpenCalls([], [])), B: Asked(OpenCalls(["key"], []))})
    for continued, open_calls in ((True, 1), (False, 0)):
        call = Doubtful((A,), to("key"), continued, ())
        assert len(settle(CONFIG, kvs, [call], {A, B})) == open_calls


def test_only_calls_and_schedules_have_somebody_who_waits() -> None:
    call = cb.FunctionCall(name="f", response_key="key")
    schedule = cb.DagSchedule(id="id", target_function="f")
    found = destination_of("call", call.SerializeToString())
    assert found is not None and found.key == "key"
    found = destination_of("schedule", schedule.SerializeToString())
    assert found is not None and found.key == "id"
    assert destination_of("trigger", b"") is destination_of("pin", b"") is None
