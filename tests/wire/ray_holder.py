"""A Ray cluster for groups that are started as programs: prints its address, ends with its standard input."""

from __future__ import annotations

import os
import sys
import tempfile

from ray_sched.actors.cluster import LocalCluster
from ray_sched.config import Config
from ray_sched.errors import NotRunningError

SLOTS = 16


def start(folder: str) -> LocalCluster:
    config = Config().replace(**{"executor.count": SLOTS})
    try:
        return LocalCluster.start(config, folder)
    except NotRunningError:  # as `up` does; what is left of this try ends with this process
        return LocalCluster.start(config, folder)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="wire-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        cluster = start(folder)
        try:
            sys.stdout.write(cluster.address + "\n")
            sys.stdout.flush()
            os.dup2(2, 1)  # what Ray says of its workers is not for whoever reads the address
            sys.stdin.read()
        finally:
            cluster.stop()


if __name__ == "__main__":
    main()
