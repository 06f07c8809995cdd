"""Settings of a policy server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Settings of a policy server.

    Example:
        >>> ServerConfig(port=0).host
        '127.0.0.1'
    """

    host: str = "127.0.0.1"
    """Address to listen on. The default takes connections of this machine alone."""
    port: int = 8000
    """Port, 0 for a free one."""
    max_batch: int = 16
    """Most requests that are computed together."""
    max_wait_ms: float = 5.0
    """Longest time that a request waits for others [ms]. A single client never waits."""
    max_clients: int = 64
    """Most open connections. A further one is refused with status 503."""
    max_message_mib: float = 64.0
    """Largest message of a client [MiB]. A larger one closes its connection with code 1009."""
    seed: int | None = None
    """Seed of the starting noise, per connection in the order of their arrival. None draws one."""
    ping_seconds: float = 20.0
    """Time between keep-alives, and the longest time until their answer [s]."""

    def __post_init__(self) -> None:
        for name, low in (("max_batch", 1), ("max_clients", 1), ("port", 0), ("max_wait_ms", 0)):
            if not getattr(self, name) >= low:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {low}")
        for name in ("max_message_mib", "ping_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")
        if self.port > 65535:
            raise ValueError(f"port={self.port} must be at most 65535")
