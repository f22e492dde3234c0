"""Ray clusters of several nodes on this machine: nodes with addresses of their own, or an autoscaler's.

Deaths of nodes are noticed within about two seconds here, instead of Ray's default of more than ten.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from ray_sched import processes
from ray_sched.actors import cluster

QUICK = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Agents that name themselves keep their environment, by whose mark they are found at the end.
    "SPT_NOENV": "1",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_health_check_initial_delay_ms": "500",
}
START_S = 60.0
UNCLOSED = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
"""Ray 2.53 leaves files open that its nodes' processes wrote to."""


class Nodes:
    """A cluster whose nodes the test adds and takes away; this process is connected to it.

    `dashboard`: whether Ray's runs, which needs `ray[default]`.
    """

    def __init__(self, patch: pytest.MonkeyPatch, *, dashboard: bool = False, **head: float) -> None:
        from ray.cluster_utils import Cluster

        for name, value in QUICK.items():
            patch.setenv(name, value)
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 1,
                "resources": head,
                "include_dashboard": dashboard,
                "node_ip_address": "127.0.0.1",
            },
        )
        self.address: str = self._cluster.address
        self.dashboard = f"http://{self._cluster.webui_url}" if dashboard else ""
        """Its address; empty without one."""
        cluster.connect(self.address, START_S)

    def __enter__(self) -> Nodes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        cluster.disconnect()
        self._cluster.shutdown()
        del self._cluster
        gc.collect()  # while the warnings of UNCLOSED are ignored

    def add(self, ip: str, executors: int, **resources: float) -> Any:
        """A node with that many slots, and room for one function in each; the handle is for `cut`."""
        offered = {"executor": executors, "pin": executors, **resources}
        gpus = int(offered.pop("GPU", 0))
        return self._cluster.add_node(num_cpus=1, num_gpus=gpus, resources=offered, node_ip_address=ip)

    def cut(self, node: Any) -> None:
        """The node is gone, without a word to anybody."""
        self._cluster.remove_node(node, allow_graceful=False)


class AutoscaledNodes:
    """A head whose autoscaler starts and ends nodes of one type, each with `executors` slots."""

    def __init__(self, executors: int, max_nodes: int, idle_timeout_s: float) -> None:
        self._folder = tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        worker = {"CPU": 1, "executor": executors, "pin": executors, "object_store_memory": 80 * 2**20}
        config = {
            "cluster_name": "fake",
            "max_workers": max_nodes,
            "upscaling_speed": 10.0,
            "idle_timeout_minutes": idle_timeout_s / 60,
            "provider": {
                "type": "fake_multinode",
                "gcs_address": self.address,
                "launch_multiple": True,
                # Its nodes share one address: without this their heartbeats are taken for the head's,
                # and the autoscaler tries to repair them for ever instead of looking for idle ones.
                "use_node_id_as_ip": True,
                # A node is there once its process is: nothing is set up through SSH.
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
            },
            "available_node_types": {
                "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
                "slots": {"resources": worker, "node_config": {}, "min_workers": 0, "max_workers": max_nodes},
            },
            "head_node_type": "ray.head.default",
            **{name: {} for name in ("auth", "docker", "file_mounts")},
            **{name: [] for name in _COMMANDS},
        }
        file = Path(self._folder.name) / "autoscaling.json"
        file.write_text(json.dumps(config))
        self._mark = f"autoscaled-{os.getpid()}-{port}"
        started = subprocess.run(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--num-cpus=0"),
                *(f"--autoscaling-config={file}", f"--port={port}", "--node-ip-address=127.0.0.1"),
                *("--include-dashboard=false", f"--temp-dir={self._folder.name}/r"),
                "--object-store-memory=80000000",
            ],
            env={
                **os.environ,
                **QUICK,
                "AUTOSCALER_UPDATE_INTERVAL_S": "1",
                "RAY_FAKE_CLUSTER": "1",
                # All of it on 127.0.0.1, see `ray_sched.actors.cluster`.
                "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
                processes.MARK: self._mark,
            },
            timeout=START_S,
            check=False,
            capture_output=True,
            text=True,
        )
        assert started.returncode == 0, started.stdout + started.stderr
        cluster.connect(self.address, START_S)

    def __enter__(self) -> AutoscaledNodes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        cluster.disconnect()
        processes.end(self._mark, grace_s=0.0)
        self._folder.cleanup()


_COMMANDS = (
    "cluster_synced_files",
    "file_mounts_sync_continuously",
    "rsync_exclude",
    "rsync_filter",
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)
