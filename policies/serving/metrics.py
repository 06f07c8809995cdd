"""Figures of a policy server in bounded memory: latencies, batch sizes, errors, queue."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np

_RECENT = 2048
"""Requests and batches over which percentiles and means are taken."""


@dataclass
class ServerMetrics:
    """Counts since the start, and percentiles over the most recent requests.

    Example:
        >>> metrics = ServerMetrics()
        >>> metrics.add_batch(size=2, seconds=0.01)
        >>> metrics.add_request(0.02)
        >>> metrics.percentile(50)
        0.02
    """

    num_requests: int = 0
    """Requests that were answered with actions."""
    num_rejected: int = 0
    """Requests that were answered with an error."""
    num_lost: int = 0
    """Requests whose client left before the answer."""
    num_batches: int = 0
    num_clients: int = 0
    """Connections that are open now."""
    queue: int = 0
    """Requests that wait now."""
    started: float = field(default_factory=time.monotonic)
    _latency: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))
    _batches: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=_RECENT))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add_request(self, seconds: float) -> None:
        """Count an answered request.

        Args:
            seconds: From its arrival to its answer.
        """
        with self._lock:
            self.num_requests += 1
            self._latency.append(seconds)

    def add_batch(self, size: int, seconds: float) -> None:
        """Count a batch of `size` requests that took `seconds` to compute."""
        with self._lock:
            self.num_batches += 1
            self._batches.append((size, seconds))

    def percentile(self, percent: float) -> float:
        """Return a percentile of the recent latencies [s], nan without any."""
        with self._lock:
            recent = list(self._latency)
        return float(np.percentile(recent, percent)) if recent else float("nan")

    def page(self) -> str:
        """Return the figures in the text format of Prometheus."""
        with self._lock:
            batches = list(self._batches)
        sizes = [size for size, _ in batches]
        rows = {
            "requests_total": self.num_requests,
            "rejected_total": self.num_rejected,
            "lost_total": self.num_lost,
            "batches_total": self.num_batches,
            "clients": self.num_clients,
            "queue": self.queue,
            "batch_size_mean": float(np.mean(sizes)) if sizes else 0.0,
            "batch_size_max": max(sizes, default=0),
            "uptime_seconds": time.monotonic() - self.started,
        }
        # all digits, because a rounded counter stands still
        lines = [f"pitune_{name} {value}" for name, value in rows.items()]
        lines += [
            f'pitune_latency_seconds{{quantile="{percent / 100:g}"}} {self.percentile(percent):.6g}'
            for percent in (50, 95, 99)
        ]
        return "\n".join(lines) + "\n"

    def line(self) -> str:
        """Return the figures as one line for the log."""
        percentiles = " / ".join(f"{1000 * self.percentile(p):.1f}" for p in (50, 95, 99))
        mean = self.num_requests / max(1, self.num_batches)
        return (
            f"{self.num_requests} answers to {self.num_clients} clients, {self.num_rejected} "
            f"rejected, {self.num_lost} lost; latency p50 / p95 / p99 {percentiles} ms; "
            f"{mean:.1f} requests per batch"
        )
