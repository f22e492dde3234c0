"""What each actor's process needs, where the machine does not give it."""

from __future__ import annotations

import errno
import logging
import os

import pytest

from ray_sched.actors.process import give_way


def forbidden(which: int, who: int, priority: int) -> None:
    raise PermissionError(errno.EPERM, "not here")


def test_where_a_sandbox_forbids_to_give_way_the_actor_says_so_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "setpriority", forbidden)
    with caplog.at_level(logging.WARNING):
        give_way(5)
    assert "cannot give way" in caplog.text


def test_who_is_not_to_give_way_does_not_try(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "setpriority", forbidden)
    with caplog.at_level(logging.WARNING):
        give_way(0)
    assert not caplog.text
