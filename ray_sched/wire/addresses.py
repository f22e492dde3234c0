"""Addresses that peers name, of which only such are connected to as have one of these forms."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from ray_sched.errors import BadMessageError

_KEY: Final = "(?:/([0-9a-f]{64}))?"
LITERAL_ADDRESS: Final = re.compile(
    r"tcp://(\[[0-9A-Fa-f:.]{2,64}\]|\d{1,3}(?:\.\d{1,3}){3}):(\d{1,5})" + _KEY
)
ADDRESS: Final = re.compile(r"tcp://(\[[0-9A-Fa-f:.]{2,64}\]|[A-Za-z0-9._-]{1,253}):(\d{1,5})" + _KEY)
"""Host, port, and the key that an address for answers names where CURVE is used (see `curve`)."""


@lru_cache(maxsize=4096)
def check_response_address(address: str) -> None:
    """Raises BadMessageError for an address that no executor would send a result to."""
    parts = LITERAL_ADDRESS.fullmatch(address) if len(address) < 256 else None
    if parts is None or not 0 < int(parts[2]) < 1 << 16:
        raise BadMessageError(
            f"results cannot be sent to {address[:300]!r}: give an address like tcp://127.0.0.1:6460, "
            "with the number of an IP address and not a name"
        )
