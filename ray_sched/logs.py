"""Log lines: structured, held back where one cause repeats, and without anything that belongs to users.

Rule 1: a line has a sentence that is always the same for one cause, and fields for what differs
(`log.warning("a result is lost", extra=fields(id=..., error=...))`); `log_format` says how it is written.
Rule 2: of one cause at most `BURST` lines come within `PERIOD_S`; the next one tells how many were held
back. Lines of level DEBUG are never held back.
Rule 3: ids, names, keys, addresses and kinds of errors are logged; arguments, values, bodies, and the
words of user code's errors, which may have any of these in them, never.
"""

from __future__ import annotations

import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Final

from ray_sched.config import Config
from ray_sched.core.history import REQUEST, Entry

BURST: Final = 5
PERIOD_S: Final = 5.0
CAUSES: Final = 1000
"""How many causes are told apart; the one that was not heard of for longest is forgotten."""


class Limiter:
    """How often a cause may be logged."""

    def __init__(self, burst: int = BURST, period_s: float = PERIOD_S) -> None:
        self._burst = burst
        self._period_s = period_s
        self._causes: OrderedDict[Hashable, list[float]] = OrderedDict()
        """For each cause: when its period began (s), its lines in it, and what was held back since."""

    def admit(self, cause: Hashable, now: float) -> int | None:
        """How many lines were held back before this one; None where it is to be held back, too."""
        state = self._causes.get(cause)
        if state is None:
            state = self._causes[cause] = [now, 0, 0]
            if len(self._causes) > CAUSES:
                self._causes.popitem(last=False)
        self._causes.move_to_end(cause)
        if now - state[0] >= self._period_s:
            state[0], state[1] = now, 0
        if state[1] >= self._burst:
            state[2] += 1
            return None
        state[1] += 1
        unsaid, state[2] = int(state[2]), 0
        return unsaid


class Complaints:
    """Logs what peers do wrong, one line for each cause in a period, with how often it happened since."""

    def __init__(self, log: logging.Logger, period_s: float = PERIOD_S) -> None:
        self._log = log
        self._limiter = Limiter(1, period_s)

    def add(self, what: str, why: object) -> None:
        unsaid = self._limiter.admit(what, time.monotonic())
        if unsaid is not None:
            self._log.warning("%s", what, extra={**fields(why=str(why), unsaid=unsaid), "cause": what})


def fields(**values: object) -> dict[str, Any]:
    """For `extra`: what a line has beside its sentence."""
    return {"fields": values}


def teller(log: logging.Logger, level: int) -> Callable[[Entry], None] | None:
    """Logs what a `Ring` notes, as its `heard`; None where that level is not logged."""
    if not log.isEnabledFor(level):
        return None

    def tell(entry: Entry) -> None:
        names = [name for name in dict.fromkeys(entry.names) if name]
        said = {"id": names[0], "about": ",".join(names[1:])} if names else {}
        if entry.request:
            said["request"] = entry.request
        # What ends with a reason was refused or failed: a flood of that comes under ever new names.
        cause = entry.what if entry.what.endswith(": {}") else (entry.what, entry.names)
        log.log(level, "%s", entry.what.format(*entry.facts), extra={**fields(**said), "cause": cause})

    return tell


def configure(config: Config, role: str) -> None:
    """For an actor's process: the lines of this package, and of no other, go to stderr in this form."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Json() if config.log_format == "json" else _KeyValue())
    handler.addFilter(_Held(config.group_name, role))
    own = logging.getLogger("ray_sched")
    own.handlers[:] = [handler]
    own.setLevel(config.log_level)
    own.propagate = False


class _Held(logging.Filter):
    """Holds back what repeats; adds who speaks."""

    def __init__(self, group: str, role: str) -> None:
        super().__init__()
        self._speaker = {"group": group, "actor": role}
        self._limiter = Limiter()

    def filter(self, record: logging.LogRecord) -> bool:
        values = {**self._speaker, **getattr(record, "fields", {})}
        if request := REQUEST.get():
            values.setdefault("request", request)
        if record.levelno > logging.DEBUG:
            cause = getattr(record, "cause", (record.name, record.lineno))
            unsaid = self._limiter.admit(cause, time.monotonic())
            if unsaid is None:
                return False
            if unsaid:
                values["unsaid"] = int(values.get("unsaid", 0)) + unsaid
        record.fields = values
        return True


class _Json(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(_content(self, record), default=str)


class _KeyValue(logging.Formatter):
    """`time=... level=... group=... actor=... msg="..." key=value`."""

    def format(self, record: logging.LogRecord) -> str:
        return " ".join(f"{key}={_quoted(value)}" for key, value in _content(self, record).items())


def _content(formatter: logging.Formatter, record: logging.LogRecord) -> dict[str, Any]:
    at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
    content = {"time": at, "level": record.levelname, "logger": record.name, "msg": record.getMessage()}
    content |= getattr(record, "fields", {})
    if record.exc_info:
        content["traceback"] = formatter.formatException(record.exc_info)
    return content


def _quoted(value: object) -> str:
    text = str(value)
    plain = text and all(c.isalnum() or c in "._:-/,+@" for c in text)
    return text if plain else json.dumps(text)
