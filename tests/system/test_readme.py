"""The README's Python snippets, as a person pastes them: one after the other, into a running group."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from ray_sched.actors.group import Group

README = Path(__file__).parents[2] / "README.md"

pytestmark = pytest.mark.cluster


def test_the_readmes_snippets_run_in_their_order(group: Group) -> None:
    snippets = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    assert len(snippets) == 2
    names: dict[str, Any] = {}
    for snippet in snippets:
        # Other tests may leave a second group in the Ray cluster, so that ours has to be named.
        named = snippet.replace("get_scheduler()", f"get_scheduler({group.name!r})")
        exec(named.replace('"127.0.0.1"', repr(group.name)), names)
