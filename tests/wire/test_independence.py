"""The suite knows addresses and bytes alone, so that it can be pointed at any implementation."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
STARTS_IT = "ray_holder.py"
"""Starts what is tested where that is ours."""


def imported(source: str) -> set[str]:
    """The top-level packages that a module imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


IMPORTED = {path: imported(path.read_text()) for path in sorted(FOLDER.rglob("*.py"))}
"""Read before any test runs: CPython 3.11 may fail to parse while another thread does, as it does to format a
traceback."""


@pytest.mark.parametrize("path", IMPORTED, ids=lambda path: str(path.relative_to(FOLDER)))
def test_only_what_starts_a_scheduler_imports_it(path: Path) -> None:
    assert ("ray_sched" in IMPORTED[path]) == (path.name == STARTS_IT)


def test_imports_are_found_wherever_they_are() -> None:
    source = "import a.b, c as d\ndef f():\n    from e.f import g\nfrom . import h\n"
    assert imported(source) == {"a", "c", "e"}
