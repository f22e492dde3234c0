"""The files that bring a cluster up: checked by Ray's own schema and validation, and against our own code.

Nothing is started, and no cloud is asked. There is no schema of KubeRay's at hand: of its manifest the
structure that the operator documents is checked here.
"""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from ray_sched import config_loading
from ray_sched.bound_ports import group_ports
from ray_sched.config import Config
from ray_sched.wire.ports import CLASSIC

ROOT = Path(__file__).parents[2]
CLUSTERS = ["cluster.yaml", "cluster-local.yaml"]
START = re.compile(r"\bray start (.*)")


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def group_config() -> Config:
    return config_loading.load(ROOT / "deploy/group.yaml", {}, {})


def starts(cluster: dict[str, Any]) -> list[str]:
    commands = [*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]]
    return [command for command in commands if START.search(command)]


@pytest.mark.parametrize("name", CLUSTERS)
def test_ray_takes_it(name: str) -> None:
    prepared = prepare_config(read(name))
    validate_config(prepared)
    assert prepared["max_workers"] >= 1


@pytest.mark.parametrize("name", CLUSTERS)
def test_rays_validation_would_refuse_a_wrong_one(name: str) -> None:
    wrong = read(name)
    wrong["provider"]["worker_ips" if "worker_ips" in wrong["provider"] else "region"] = 7
    with pytest.raises((jsonschema.ValidationError, TypeError)):
        validate_config(prepare_config(copy.deepcopy(wrong)))


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_node_has_the_token_and_full_speed(name: str) -> None:
    cluster = read(name)
    assert len(starts(cluster)) == 2
    for command in starts(cluster):
        assert "RAY_AUTH_MODE=token" in command
        assert "RAY_worker_niceness=0" in command
    tokens = [remote for remote in cluster["file_mounts"] if remote.endswith("/.ray/auth_token")]
    assert tokens == [f"/home/{cluster['auth']['ssh_user']}/.ray/auth_token"]
    ups = [c for c in cluster["head_start_ray_commands"] if "ray-sched up" in c]
    assert len(ups) == 1
    assert "RAY_AUTH_MODE=token" in ups[0]


@pytest.mark.parametrize("name", CLUSTERS)
def test_it_installs_this_package_and_one_version_of_ray(name: str) -> None:
    cluster = read(name)
    installs = [command for command in cluster["setup_commands"] if "pip install" in command]
    assert all("'ray[default]==" in command and "~/ray_sched" in command for command in installs)
    assert installs
    assert cluster["file_mounts"]["/home/ubuntu/ray_sched"] == "."
    assert "deploy/group.yaml" in cluster["head_start_ray_commands"][-1]


@pytest.mark.parametrize("name", CLUSTERS)
def test_ray_is_found_by_whoever_logs_in(name: str, tmp_path: Path) -> None:
    """As by `ray down`, which has no other way to end it."""
    (path,) = (command for command in read(name)["setup_commands"] if "PATH" in command)
    home = {**os.environ, "HOME": str(tmp_path)}
    for _ in range(2):
        subprocess.run(["bash", "-c", path], env=home, check=True)
    assert (tmp_path / ".bashrc").read_text() == "export PATH=~/venv/bin:$PATH\n"
    found = subprocess.run(
        ["bash", "-c", "source ~/.bashrc; echo $PATH"], env=home, check=True, capture_output=True, text=True
    )
    assert found.stdout.startswith(f"{tmp_path}/venv/bin:")


def test_the_local_head_has_the_autoscaler_that_starts_all_workers() -> None:
    assert "RAY_enable_autoscaler_v2=0" in starts(read("cluster-local.yaml"))[0]


def test_the_node_types_offer_what_executors_and_pins_take() -> None:
    config = group_config()
    types = read("cluster.yaml")["available_node_types"]
    assert "executor" not in types["scheduler"]["resources"]
    each = config.functions_per_executor
    executor, gpu = types["executor"]["resources"], types["gpu_executor"]["resources"]
    assert executor["pin"] == executor["executor"] * each
    assert gpu["gpu_pin"] == gpu["executor"] * each
    assert gpu["executor"] <= gpu["GPU"]
    assert max(executor["executor"], gpu["executor"]) <= config.ports.threads


def test_the_local_workers_offer_the_same() -> None:
    command = read("cluster-local.yaml")["worker_start_ray_commands"][-1]
    found = re.search(r"--resources='([^']+)'", command)
    assert found
    offered = json.loads(found[1])
    assert offered["pin"] == offered["executor"] * group_config().functions_per_executor


def test_the_security_group_opens_the_ports_in_use_and_no_other() -> None:
    rules = read("cluster.yaml")["provider"]["security_group"]["IpPermissions"]
    opened = {port for rule in rules for port in range(rule["FromPort"], rule["ToPort"] + 1)}
    bound = set(group_ports(Config()))
    # Executors are on other nodes; their ports are these for all threads that the layout has room for.
    kinds = (CLASSIC.pin, CLASSIC.unpin, CLASSIC.call, CLASSIC.schedule, CLASSIC.trigger, CLASSIC.depart)
    executors = {base + tid for base in kinds for tid in range(CLASSIC.threads)}
    messages = {CLASSIC.user_message + tid for tid in range(CLASSIC.threads)}
    wanted = bound - messages | executors
    assert wanted <= opened
    assert opened - wanted == {5009}  # within a range, and nobody listens there
    assert all(cidr["CidrIp"] != "0.0.0.0/0" for rule in rules for cidr in rule["IpRanges"])


def test_rays_own_ports_and_ours_do_not_meet() -> None:
    for name in CLUSTERS:
        for command in starts(read(name)):
            given = dict(re.findall(r"--([a-z-]*port)=(\d+)", command))
            taken = {int(port) for key, port in given.items() if not key.startswith(("min", "max"))}
            taken |= set(range(int(given["min-worker-port"]), int(given["max-worker-port"]) + 1))
            kinds = [value for key, value in vars(CLASSIC).items() if key not in ("name", "threads")]
            executors = {base + tid for base in kinds for tid in range(CLASSIC.threads)}
            assert not taken & (set(group_ports(Config())) | executors)


# --- KubeRay ---


@pytest.fixture
def manifest() -> tuple[dict[str, Any], dict[str, Any]]:
    cluster, service = yaml.safe_load_all((ROOT / "deploy/kuberay.yaml").read_text())
    return cluster, service


def containers(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    spec = cluster["spec"]
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    return [container for group in groups for container in group["template"]["spec"]["containers"]]


def test_the_manifest_is_a_ray_cluster(manifest: tuple[dict[str, Any], dict[str, Any]]) -> None:
    cluster, _ = manifest
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    assert set(cluster["spec"]) == {
        "rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec", "workerGroupSpecs"
    }  # fmt: skip
    for group in [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    for group in cluster["spec"]["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert re.fullmatch(r"[a-z][a-z0-9-]*", group["groupName"])


def test_every_container_of_the_manifest_has_token_image_and_resources(
    manifest: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    cluster, _ = manifest
    version = cluster["spec"]["rayVersion"]
    assert f"rayproject/ray:{version}-" in (ROOT / "deploy/Dockerfile").read_text()
    for container in containers(cluster):
        env = {entry["name"]: entry for entry in container["env"]}
        assert env["RAY_AUTH_MODE"]["value"] == "token"
        assert env["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]["key"] == "auth_token"
        assert set(container["resources"]) == {"limits", "requests"}
        if container["name"].startswith("ray-sched"):
            continue
        assert env["RAY_worker_niceness"]["value"] == "0"
    assert len({container["image"] for container in containers(cluster)}) == 1


def test_the_manifests_workers_offer_slots_and_pins(manifest: tuple[dict[str, Any], dict[str, Any]]) -> None:
    each = group_config().functions_per_executor
    for group in manifest[0]["spec"]["workerGroupSpecs"]:
        # A text within a text: the operator puts it into a shell command as it is.
        offered = json.loads(json.loads(group["rayStartParams"]["resources"]))
        kind = "gpu_pin" if "num-gpus" in group["rayStartParams"] else "pin"
        assert offered[kind] == offered["executor"] * each
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert limits.get("nvidia.com/gpu", 0) == int(group["rayStartParams"].get("num-gpus", 0))


def test_the_service_names_the_groups_ports(manifest: tuple[dict[str, Any], dict[str, Any]]) -> None:
    cluster, service = manifest
    assert service["spec"]["selector"]["ray.io/cluster"] == cluster["metadata"]["name"]
    named = {port["port"] for port in service["spec"]["ports"]}
    assert named == set(group_ports(Config().replace(**{"executor.count": 0})))


def test_all_files_name_one_version_of_ray(manifest: tuple[dict[str, Any], dict[str, Any]]) -> None:
    version = manifest[0]["spec"]["rayVersion"]
    for name in CLUSTERS:
        assert f"ray[default]=={version}" in (ROOT / name).read_text()
