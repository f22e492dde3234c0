"""The files that tell what runs on this machine."""

from __future__ import annotations

import dataclasses
import os
import socket
from pathlib import Path

import pytest

from ray_sched import processes, running
from ray_sched.errors import AlreadyRunningError, NotRunningError
from ray_sched.running import Running


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAY_SCHED_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


def entry(host: str = "127.0.5.70", group: str = "one") -> Running:
    return Running(host, group, "", os.getpid(), processes.started(os.getpid()))


def test_a_host_is_claimed_once_and_free_again_when_forgotten() -> None:
    running.claim(entry())
    with pytest.raises(AlreadyRunningError, match=rf"127\.0\.5\.70 already \(process {os.getpid()}\)"):
        running.claim(entry())
    running.update(entry(), ray_address="127.0.0.1:1")
    found = running.find("127.0.5.70")
    assert found is not None and found.ray_address == "127.0.0.1:1"
    running.forget(entry())
    assert running.find("127.0.5.70") is None
    running.claim(entry())


def test_a_group_without_a_process_keeps_its_host_as_long_as_its_ray_cluster_answers() -> None:
    with socket.create_server(("127.0.5.70", 0)) as cluster:
        detached = Running("127.0.5.70", "one", f"127.0.5.70:{cluster.getsockname()[1]}", 0, 0)
        running.claim(detached)
        with pytest.raises(AlreadyRunningError, match="in the Ray cluster at"):
            running.claim(entry())
    running.claim(entry())
    running.forget(detached)
    assert running.find("127.0.5.70") == entry()


def test_only_the_process_that_claimed_a_host_forgets_it() -> None:
    running.claim(entry())
    running.forget(dataclasses.replace(entry(), pid=1))
    assert running.find("127.0.5.70") == entry()


@pytest.mark.parametrize("content", ["", "{}", "[]", "not json"])
def test_a_file_that_makes_no_sense_is_removed(state: Path, content: str) -> None:
    file = running.folder() / "127.0.5.70.json"
    file.write_text(content)
    assert running.find("127.0.5.70") is None
    assert not file.exists()
    assert state.stat().st_mode & 0o077 == 0


def test_a_dead_process_holds_nothing_and_its_folder_goes(tmp_path: Path) -> None:
    folder = tmp_path / "ray"
    folder.mkdir()
    dead = dataclasses.replace(entry(), pid_started=1, folder=str(folder))
    running.claim(dead)
    running.claim(entry())
    assert running.find("127.0.5.70") == entry()
    assert not folder.exists()


def test_the_only_group_is_found_and_of_several_one_has_to_be_named() -> None:
    with pytest.raises(NotRunningError, match="no scheduler group of this user"):
        running.only()
    running.claim(entry())
    assert running.only() == running.only("one") == entry()
    running.claim(entry("127.0.5.71", "two"))
    with pytest.raises(NotRunningError, match="several scheduler groups run; name one of one, two"):
        running.only()
    assert running.only("two").host == "127.0.5.71"
    with pytest.raises(NotRunningError, match="no scheduler group 'three'"):
        running.only("three")
