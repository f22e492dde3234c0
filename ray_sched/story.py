"""What `ray-sched why` tells: the story of a call or a pin, put together from what the actors remember."""

from __future__ import annotations

import time
from typing import Any

from ray_sched import group_status
from ray_sched.config import Config


def read(config: Config, name: str) -> dict[str, Any]:
    """What became of a call (its id, or the key of its result), a DAG, a function, or an executor `ip:tid`.

    Its keys are `asked`; `events`, each with `at` (Unix seconds), `actor` and `what`, oldest first;
    `now`, how it stands; `since`, for each actor how far back it remembers (Unix seconds, or None);
    and `silent`, the actors that gave no answer.

    Raises:
        NotRunningError: no group runs on the configured host.
    """
    with group_status.attached(config) as group:
        return gather(name, group.why(name))


def gather(name: str, accounts: dict[str, Any]) -> dict[str, Any]:
    """The story, from the actors' accounts by role."""
    silent = [role for role, account in accounts.items() if isinstance(account, dict)]
    heard = {role: account for role, account in accounts.items() if role not in silent}
    events = [
        {"at": at, "actor": role, "what": what}
        for role, account in heard.items()
        for at, what in account.told
    ]
    return {
        "asked": name,
        "events": sorted(events, key=lambda event: event["at"]),
        "now": [line for account in heard.values() for line in account.now],
        "since": {role: account.since for role, account in heard.items()},
        "silent": silent,
    }


def as_text(told: dict[str, Any]) -> str:
    """The same for people."""
    lines = [f"{_clock(e['at'])}  {e['actor']:<11}  {e['what']}" for e in told["events"]]
    lines += [f"now: {line}" for line in told["now"]]
    if told["events"]:
        last = told["events"][-1]
        lines.append(f"last heard: {last['what']} ({last['actor']})")
    elif not told["now"]:
        lines.append(f"Nothing is remembered of {told['asked']!r}. The actors remember back to:")
        lines += [
            f"  {role:<11}  {_clock(since) if since else 'everything since it started'}"
            for role, since in told["since"].items()
        ]
    if told["silent"]:
        lines.append(f"no answer from: {', '.join(told['silent'])}")
    return "\n".join(lines)


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at)) + f".{int(at * 1000) % 1000:03d}"
