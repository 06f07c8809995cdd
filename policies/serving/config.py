"""Settings of a policy server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pitune.ranges import NonNegativeFloat, PositiveFloat, PositiveInt, Range, Seed, Settings


@dataclass(frozen=True, kw_only=True)
class ServerConfig(Settings):
    """Settings of a policy server.

    Example:
        >>> ServerConfig(port=0).host
        '127.0.0.1'
    """

    host: str = "127.0.0.1"
    """Address to listen on. The default takes connections of this machine alone."""
    port: Annotated[int, Range(low=0, high=65535)] = 8000
    """Port, 0 for a free one."""
    max_batch: PositiveInt = 16
    """Most requests that are computed together."""
    max_wait_ms: NonNegativeFloat = 5.0
    """Longest time that a request waits for others [ms]. A single client never waits."""
    max_clients: PositiveInt = 64
    """Most open connections. A further one is refused with status 503."""
    max_message_mib: PositiveFloat = 64.0
    """Largest message of a client [MiB]. A larger one closes its connection with code 1009."""
    seed: Seed | None = None
    """Seed of the starting noise, per connection in the order of their arrival. None draws one."""
    ping_seconds: PositiveFloat = 20.0
    """Time between keep-alives, and the longest time until their answer [s]."""
