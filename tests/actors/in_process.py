"""The actors of a group in this process, on their real ports, without Ray: calls go as in its local mode."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import ray

from ray_sched.actors import local_mode, names
from ray_sched.actors.group import PARTS
from ray_sched.config import Config


@contextmanager
def group(config: Config) -> Iterator[dict[str, Any]]:
    """The actors themselves, by role, once all are ready; without executors, and in local mode's threads."""
    actors: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        # Ray is not there to say so.
        patch.setattr(local_mode, "is_on", lambda: True)
        patch.setattr(ray, "is_initialized", lambda: True)
        patch.setattr(names, "find", names.find_for_actor)
        try:
            for part in PARTS.control:
                if part.role != names.KVS or config.kvs.host == "embedded":
                    actors[part.role] = _made(part.cls, config, part.role)
            for actor in actors.values():
                actor.ready()
            yield actors
        finally:
            for role in reversed(actors):
                actors[role].stop()


def _made(cls: str, config: Config, role: str) -> Any:
    module, _, attribute = cls.partition(":")
    plain = getattr(importlib.import_module(module), attribute)
    groups = getattr(plain, "CONCURRENCY_GROUPS", {})
    return local_mode.adapted(plain, names.actor_name(config.group_name, role), groups)(config)
