"""What clients asked for and were told, and whether it may have been so.

Only what was acknowledged binds. Of an operation without an answer both outcomes are right.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Call:
    what: str
    expected: Any
    future: Any
    """Of an acknowledged call."""
    outcome: str = ""
    """result, error, silence, or what is wrong with the result."""


@dataclass
class History:
    """Thread-safe, since clients write it side by side."""

    calls: list[Call] = field(default_factory=list)
    functions: set[str] = field(default_factory=set)
    """Acknowledged."""
    dags: dict[str, str] = field(default_factory=dict)
    """Each with what is known: exists, gone, or unsure (an operation on it got no answer)."""
    counts: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def called(self, what: str, expected: Any, future: Any) -> None:
        with self.lock:
            self.calls.append(Call(what, expected, future))
            self.counts[what] += 1

    def registered(self, name: str) -> None:
        with self.lock:
            self.functions.add(name)
            self.counts["functions"] += 1

    def dag_is(self, name: str, state: str) -> None:
        with self.lock:
            self.dags[name] = state
            self.counts[f"dags {state}"] += 1

    def refused(self, what: str) -> None:
        with self.lock:
            self.counts[f"refused {what}"] += 1

    def faults(self, functions: set[str], dags: dict[str, bool]) -> list[str]:
        """All that was lost or is wrong, given the functions and DAGs that there are in the end."""
        found = [
            f"{call.what}: {call.outcome}" for call in self.calls if call.outcome not in ("result", "error")
        ]
        found += [f"function {name} was lost" for name in sorted(self.functions - functions)]
        for name, state in self.dags.items():
            if state == "exists" and not dags[name]:
                found.append(f"DAG {name} was lost")
            if state == "gone" and dags[name]:
                found.append(f"DAG {name} is back")
        return found
