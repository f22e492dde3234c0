"""The rows of the table. A row is a name, whether the quick run has it, and a function that measures it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from benchmarks import payloads
from benchmarks.bench import Bench, Result
from ray_sched.wire.ports import CONNECT, DAG_CALL, FUNCTION_CALL

CLIENTS: Final = (1, 8, 32)


@dataclass(frozen=True)
class Row:
    name: str
    clients: int
    quick: bool
    measure: Callable[[Bench, str, int], Result]


def echo(bench: Bench, row: str, clients: int) -> Result:
    """A request that needs no work: the floor sends back what came, ours answers a connect."""
    return bench.compare(row, clients, CONNECT, b"", messages_per_call=0, succeeded=lambda reply: True)


def one_shot(bench: Bench, row: str, clients: int) -> Result:
    return bench.compare(
        row,
        clients,
        FUNCTION_CALL,
        payloads.one_shot_call(),
        messages_per_call=1,
        succeeded=payloads.succeeded,
    )


def chain(length: int, bench: Bench, row: str, clients: int) -> Result:
    return bench.compare(
        row,
        clients,
        DAG_CALL,
        payloads.dag_call(length),
        messages_per_call=length + 1,
        succeeded=payloads.succeeded,
    )


ROWS: Final = (
    *(Row("echo", clients, clients == 1, echo) for clients in CLIENTS),
    *(Row("one-shot", clients, clients != 32, one_shot) for clients in CLIENTS),
    *(
        Row(f"chain of {length}", clients, length != 1, partial(chain, length))
        for length in payloads.CHAINS
        for clients in CLIENTS
    ),
)
