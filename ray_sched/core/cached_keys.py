"""Which keys are cached at which IP address, as the key-value store says it of each address."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

MAX_KEYS = 100_000
"""Keys of one address that are remembered: who has more tells so in vain."""


class CachedKeys:
    """The cached keys of all addresses, to be looked up by key."""

    def __init__(self) -> None:
        self.ips: dict[str, set[str]] = {}
        """Where each key is cached; no key is without an address."""
        self.dirty: dict[str, None] = {}
        """Addresses whose keys changed since the copies were told, in order."""
        self._keys: dict[str, frozenset[str]] = {}

    def __len__(self) -> int:
        """How many keys are cached anywhere."""
        return len(self.ips)

    def set(self, ip: str, keys: Iterable[str]) -> None:
        """These are all keys that are cached at an IP address."""
        new = frozenset(islice(keys, MAX_KEYS))
        old = self._keys.get(ip, frozenset())
        if new == old:
            return
        for key in old - new:
            ips = self.ips[key]
            ips.discard(ip)
            if not ips:
                del self.ips[key]
        for key in new - old:
            self.ips.setdefault(key, set()).add(ip)
        if new:
            self._keys[ip] = new
        else:
            self._keys.pop(ip, None)
        self.dirty[ip] = None

    def at(self, ip: str) -> tuple[str, ...]:
        """The keys that are cached at an address, sorted."""
        return tuple(sorted(self._keys.get(ip, ())))

    def of(self, ips: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """The keys of each of these addresses, as copies are told of them."""
        return {ip: self.at(ip) for ip in ips}

    def all(self) -> dict[str, tuple[str, ...]]:
        """The keys of each address that has any."""
        return self.of(self._keys)

    def validate(self) -> None:
        """Raise AssertionError where key and address contradict each other (for tests)."""
        for key, ips in self.ips.items():
            assert ips and all(key in self._keys[ip] for ip in ips)
        assert all(self._keys.values())
