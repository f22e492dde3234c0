"""What each actor's process needs, where the machine does not give it."""

from __future__ import annotations

import errno
import logging
import os

import pytest

from ray_sched.actors.process import give_way


def forbidden(which: int, who: int, priority: int) -> None:
    raise PermissionError(errno.EPERM, "not here")


@pytest.mark.parametrize(("nice", "says_so"), [(5, True), (0, False)])
def test_where_a_sandbox_forbids_to_give_way_who_is_to_says_so_and_goes_on(
    nice: int, says_so: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "setpriority", forbidden)
    with caplog.at_level(logging.WARNING):
        give_way(nice)
    assert ("cannot give way" in caplog.text) is says_so
    assert bool(caplog.text) is says_so
