"""Where processes keep what has to outlive them, but not the machine's next start."""

from __future__ import annotations

import os
import re
import stat
import tempfile
from pathlib import Path

from ray_sched.config import Config
from ray_sched.errors import ConfigError


def runtime_file(config: Config, name: str) -> Path:
    """The path of a group's file of that name. Raises ConfigError, as `runtime_folder` does."""
    name = re.sub(r"[^\w.-]", "_", f"{config.group_name}-{name}")
    return runtime_folder(config.executor.runtime_dir) / name


def runtime_folder(configured: str = "") -> Path:
    """The folder of this user's files, made with mode 0700 if it is not there.

    Raises ConfigError when it cannot be made, belongs to somebody else, or others may write to it: they could
    replace journals and sockets.
    """
    folder = Path(configured or Path(tempfile.gettempdir(), f"ray_sched-{os.getuid()}")).expanduser()
    if not folder.is_absolute():
        raise ConfigError(f"executor.runtime_dir: {configured!r} is not an absolute path")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise ConfigError(f"executor.runtime_dir: cannot use {folder}: {error}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise ConfigError(
            f"executor.runtime_dir: {folder} is not a folder of this user's; name another, or remove it"
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(
            f"executor.runtime_dir: others may write to {folder}: close it (chmod go-w), or name another"
        )
    return folder
