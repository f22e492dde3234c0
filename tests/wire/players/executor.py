"""An executor thread that holds no code: it answers pins as it is told and keeps what it was sent."""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable, Sequence
from types import TracebackType

from . import messages as m
from . import ports
from .protobuf import Record, Schema, decode, encode
from .sockets import Mailbox, Pusher


class Verdict(enum.Enum):
    ACCEPT = "accept"
    REJECT = "reject"
    IGNORE = "ignore"
    """Never answered."""
    HOLD = "hold"
    """Not answered until `answer_held`: late, or in the order that a test wants."""


_SCHEMAS: dict[str, Schema] = {
    "pin": m.PIN_FUNCTION,
    "call": m.FUNCTION_CALL,
    "schedule": m.DAG_SCHEDULE,
    "trigger": m.DAG_TRIGGER,
}


class PlayedExecutor:
    """Binds an executor thread's seven ports at (ip, tid) and talks to one scheduler, or to several.

    Like a legacy executor it tells its status after each pin, unpin and one-shot call, and when a
    test says so (`report`); unlike one it sends none every 5 s, and none after a call while
    `reports_calls` is false. The schedulers in `also_tells` hear it, too. Statuses go through `pusher`:
    executors that share one tell theirs in a known order. `verdict` is a verdict or a function from the
    pin's record to one. With `name_in_answers` an answer says in `response_id` who gives it; legacy
    executors leave it empty.
    """

    def __init__(
        self,
        ip: str,
        tid: int,
        scheduler_ip: str,
        pusher: Pusher,
        *,
        layout: ports.Layout = ports.CLASSIC,
        gpu: bool = False,
        verdict: Verdict | Callable[[Record], Verdict] = Verdict.ACCEPT,
        name_in_answers: Callable[[PlayedExecutor, Record], str] | None = None,
        reports_calls: bool = True,
        also_tells: Sequence[str] = (),
    ) -> None:
        self.ip = ip
        self.tid = tid
        self.verdict = verdict
        self.functions: list[str] = []
        self._scheduler_ips = (scheduler_ip, *also_tells)
        self._pusher = pusher
        self._type = m.GPU if gpu else m.CPU
        self._name = name_in_answers
        self._reports_calls = reports_calls
        self._held: list[Record] = []
        self._left = False
        self._state = threading.RLock()
        kinds = ("pin", "unpin", "call", "schedule", "trigger", "depart", "user_message")
        self.mailbox = Mailbox(
            {kind: ports.tcp(ip, getattr(layout, kind) + tid) for kind in kinds}, self._play
        )

    def __enter__(self) -> PlayedExecutor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def location(self) -> str:
        """As schedules name it: `ip:tid`."""
        return f"{self.ip}:{self.tid}"

    def report(
        self, *, utilization: float = 0.0, functions: list[str] | None = None, running: bool = True
    ) -> None:
        """Push a status; `functions` are from now on what it holds.

        After one with `running` = false it tells nothing more of its own accord: pins and unpins may
        still be on their way to it, and a status in answer would bring it back.
        """
        with self._state:
            if functions is not None:
                self.functions = list(functions)
            self._left = not running
            self._push_status(utilization)

    def answer_held(self, function: str = "", *, accept: bool = True) -> int:
        """Answer the pins that were held back, all or those of one function; how many."""
        with self._state:
            held = [pin for pin in self._held if function in ("", pin.name)]
            self._held = [pin for pin in self._held if pin not in held]
            for pin in held:
                self._answer(pin, accept)
            return len(held)

    def wait_for(
        self,
        kind: str,
        count: int = 1,
        *,
        where: Callable[[Record], bool] = lambda record: True,
        timeout_s: float = 10.0,
    ) -> list[Record]:
        """The first `count` or more messages of that kind that fit, parsed. Raises `NothingCameError`."""
        found = self.mailbox.wait_for(
            kind, count, where=lambda raw: where(self._parse(kind, raw)), timeout_s=timeout_s
        )
        return [self._parse(kind, raw) for raw in found]

    def received(self, kind: str) -> list[Record]:
        """What has come so far of that kind, parsed."""
        return [self._parse(kind, raw) for raw in self.mailbox.all(kind)]

    def close(self) -> None:
        self.mailbox.close()

    def _push_status(self, utilization: float = 0.0) -> None:
        status = {
            "ip": self.ip,
            "tid": self.tid,
            "functions": self.functions,
            "utilization": utilization,
            "running": not self._left,
            "type": self._type,
        }
        for ip in self._scheduler_ips:
            self._pusher.push(ports.tcp(ip, ports.STATUS), encode(m.THREAD_STATUS, status))

    def _report_change(self) -> None:
        if not self._left:
            self._push_status()

    def _play(self, kind: str, raw: bytes) -> None:
        record = self._parse(kind, raw)
        with self._state:
            if kind == "pin":
                verdict = self.verdict if isinstance(self.verdict, Verdict) else self.verdict(record)
                if verdict is Verdict.HOLD:
                    self._held.append(record)
                elif verdict is not Verdict.IGNORE:
                    self._answer(record, verdict is Verdict.ACCEPT)
            elif kind == "unpin":
                if record.name in self.functions:
                    self.functions.remove(record.name)
                self._report_change()
            elif kind == "call" and self._reports_calls:
                self._report_change()

    def _answer(self, pin: Record, accept: bool) -> None:
        # It holds the function before it says so: who hears the answer may look at once.
        if accept and pin.name not in self.functions:
            self.functions.append(pin.name)
        answer = {"success": accept, "response_id": self._name(self, pin) if self._name else ""}
        self._pusher.push(
            ports.tcp(pin.response_address, ports.PIN_ACCEPT), encode(m.GENERIC_RESPONSE, answer)
        )
        self._report_change()

    @staticmethod
    def _parse(kind: str, raw: bytes) -> Record:
        schema = _SCHEMAS.get(kind)
        if schema is not None:
            return decode(schema, raw)
        return Record(name=raw.decode()) if kind == "unpin" else Record(raw=raw)
