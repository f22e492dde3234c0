from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_sched.core.destination import Destination
from ray_sched.errors import ConfigError
from ray_sched.executor.journal import Journal
from ray_sched.runtime_folder import runtime_folder


def to(key: str) -> Destination:
    return Destination(key, "", key, False, "base", False)


def test_open_calls_are_left_to_the_next_process(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path)
    first, second, third = (journal.begin(to(key)) for key in ("a", 'b\n"é', "c"))
    journal.end(first)
    journal.end(first)
    journal.end(third)
    # The first process is not asked: it is dead.
    again = Journal(path)
    assert again.leftovers == {second: to('b\n"é')}
    assert again.begin(to("d")) > second
    again.end(second)
    assert [each.key for each in Journal(path).leftovers.values()] == ["d"]


def test_a_journal_without_open_calls_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    journal.end(journal.begin(to("a")))
    journal.close()
    journal.close()
    assert not path.exists()


def test_a_line_that_was_cut_off_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    Journal(path).begin(to("a"))
    with path.open("ab") as file:
        file.write(b'[2, "b", "", "b", fal')
    assert list(Journal(path).leftovers.values()) == [to("a")]


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), max_size=60))
def test_the_file_says_what_is_open_and_stays_small(steps: list[int]) -> None:
    path = runtime_folder() / f"test-{os.getpid()}.journal"
    journal = Journal(path, shrink_at_bytes=100)
    try:
        still_open: list[int] = []
        for step in steps:
            if step < 3 or not still_open:
                still_open.append(journal.begin(to(f"key-{step}")))
            else:
                journal.end(still_open.pop(step % len(still_open)))
            read = Journal(path)
            os.close(read._file)  # its own `close` would remove the file when nothing is open
            assert sorted(read.leftovers) == sorted(still_open)
            assert read.leftovers == journal.open_calls()
        for number in still_open:
            journal.end(number)
        assert path.stat().st_size <= 100 + 100 * 60
    finally:
        journal.close()
        path.unlink(missing_ok=True)


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = runtime_folder(str(tmp_path / "a" / "b"))
    assert stat.S_IMODE(mine.stat().st_mode) == 0o700
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    with pytest.raises(ConfigError, match="not a folder of this user"):
        runtime_folder(str(mine))


@pytest.mark.parametrize("mode", [0o720, 0o702])
def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(ConfigError, match="chmod go-w"):
        runtime_folder(str(folder))
    folder.chmod(0o755)
    assert runtime_folder(str(folder)) == folder


@pytest.mark.parametrize("name", ["relative", "/proc/none/here"])
def test_a_folder_that_cannot_be_used_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=r"executor\.runtime_dir"):
        runtime_folder(name)
