"""All that hold a lease on the dispatch table: the ingress, and its shards where it has some."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from ray_sched.actors import names
from ray_sched.actors.link import Link
from ray_sched.config import Config
from ray_sched.core.replication import Update


class Ingresses:
    def __init__(self, config: Config) -> None:
        shards = config.ingress.shards
        roles = [names.shard_role(number) for number in range(1, shards + 1)] if shards > 1 else []
        self.front = Link(config.group_name, names.INGRESS)
        """The one that has the ports."""
        self._all = [self.front, *(Link(config.group_name, role) for role in roles)]

    def has_room(self) -> bool:
        """Whether anybody would be told now."""
        return any(link.has_room() for link in self._all)

    def tell(self, update: Update) -> None:
        """Tell all of it that keep up; one that was left out misses this number, and asks for the whole."""
        for link in self._all:
            link.tell("apply", update)

    def ask(self, update: Update) -> list[Future[Any]]:
        """Tell all of it; each future is done when that one has taken it in."""
        return [link.ask("apply", update) for link in self._all]
