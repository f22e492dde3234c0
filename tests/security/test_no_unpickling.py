"""No module that runs in the control plane can unpickle: told from their source, all of it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import ray_sched

ROOT = Path(ray_sched.__file__).parent
MAY_UNPICKLE = {
    "values.py": "defines it, for executors and clients",
    "client.py": "a client's keys",
    "future.py": "a client's results",
    "holder.py": "reads its order from the process that started it",
    "starting.py": "writes that order",
    "actors/ledger.py": "reads back its own file (mode 0600) by marshal: plain tuples alone",
    "actors/local_mode.py": "copies arguments within one process, in Ray's local mode alone",
}
"""Modules of clients and of the command line, and what reads nothing but its own writing; beside these the
executor's own package."""
PICKLERS = {
    "pickle",
    "_pickle",
    "cPickle",
    "cloudpickle",
    "dill",
    "marshal",
    "shelve",
    "joblib",
    "jsonpickle",
}
READERS = {"loads", "from_value", "Unpickler", "eval", "exec", "object_in", "find_class"}
ALLOWED = {("actors/python_calls.py", "values.loads")}
"""A `RemoteValue` names what its reader calls."""


def control_plane() -> Iterator[Path]:
    for file in sorted(ROOT.rglob("*.py")):
        name = file.relative_to(ROOT).as_posix()
        if not name.startswith("executor/") and name not in {
            *MAY_UNPICKLE,
            "actors/executor.py",
            "client.py",
        }:
            yield file


def readers_in(source: str, name: str) -> list[str]:
    """What in it reads pickles, or could."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] in PICKLERS]
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").partition(".")[0] in PICKLERS:
                found.append(str(node.module))
            found += [alias.name for alias in node.names if alias.name in READERS | PICKLERS]
        elif isinstance(node, ast.Attribute) and node.attr in READERS:
            found.append(ast.unparse(node))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in READERS:
            found.append(node.func.id)
    return [what for what in found if (name, what) not in ALLOWED and not what.startswith("json.")]


FOUND = {
    name: readers_in(file.read_text(), name)
    for file in control_plane()
    for name in [file.relative_to(ROOT).as_posix()]
}
"""Read before any test runs: CPython 3.11 may fail to parse ("AST constructor recursion depth mismatch")
while another thread does, and a thread that an earlier test leaves does so to format a traceback."""


@pytest.mark.parametrize("name", FOUND)
def test_a_module_of_the_control_plane_reads_no_pickle(name: str) -> None:
    assert not FOUND[name]


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import cloudpickle as c",
        "from pickle import loads",
        "from ray_sched.values import from_value",
        "def f(values, raw):\n    return values.loads(raw)",
        "def f(raw):\n    return eval(raw)",
    ],
)
def test_the_check_finds_what_it_looks_for(source: str) -> None:
    assert readers_in(source, "actors/scheduler.py")
