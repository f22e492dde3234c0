"""What the nodes of the Ray cluster offer, and what an executor takes of it.

A node offers slots (`executor`), and room for the functions that they hold (`pin`, on GPU slots `gpu_pin`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, Final

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_sched.actors import local_mode
from ray_sched.config import Config
from ray_sched.core.slots import Node

log = logging.getLogger(__name__)

EXECUTOR: Final = "executor"
PIN: Final = "pin"
GPU_PIN: Final = "gpu_pin"
ANY_NUMBER: Final = 1000
"""Functions that a slot offers room for when the configuration sets no limit."""


def counts_resources() -> bool:
    """False in Ray's local mode, where resources and placement groups are accepted and mean nothing."""
    return not local_mode.is_on()


def living_nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def pin_resource(node: Mapping[str, Any], gpu: bool) -> str:
    """The resource that a pin on such a slot takes; empty where the node offers none."""
    name = GPU_PIN if gpu else PIN
    return name if node["Resources"].get(name) else ""


def offered(node: Mapping[str, Any], config: Config) -> Node:
    """The slots of a node, and how many of them have a GPU: one for each, as far as there are GPUs."""
    resources = node["Resources"]
    slots = int(resources.get(EXECUTOR, 0))
    gpu_pins, gpus = resources.get(GPU_PIN, 0), int(resources.get("GPU", 0))
    by_pins = math.ceil(gpu_pins / (config.functions_per_executor or ANY_NUMBER))
    gpu_slots = min(slots, gpus or by_pins) if gpu_pins else 0
    return Node(node["NodeID"], node["NodeManagerAddress"], slots, gpu_slots)


def own_slots(node_id: str, number: int) -> bool:
    """Whether so many executors of a group's own find room on its node: others may hold its slots."""
    from ray._private.state import available_resources_per_node

    if not counts_resources():
        return False
    try:
        return bool(available_resources_per_node()[node_id].get(EXECUTOR, 0) >= number > 0)
    except Exception as error:  # no part of Ray's public interface
        log.info("executors on the group's host hold no slots: %s", error)
        return False


def executor_options(node: Mapping[str, Any], gpu: bool, holds_slot: bool) -> dict[str, Any]:
    """Options of an executor actor on a node: on no other one, since it has the node's address."""
    if not counts_resources():
        return {}
    options: dict[str, Any] = {
        "scheduling_strategy": NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    }
    if holds_slot:
        options["resources"] = {EXECUTOR: 1}
        if gpu and node["Resources"].get("GPU"):
            options["num_gpus"] = 1
    return options
