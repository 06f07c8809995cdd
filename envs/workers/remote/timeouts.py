"""The longest times to wait for a worker, and its place."""

from __future__ import annotations

from dataclasses import dataclass

from pitune.envs.config import EnvConfig, WorkersOn


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """The longest times to wait for one worker [s], and the place of the workers.

    Example:
        >>> Timeouts(step=5.0).of("step")
        5.0
    """

    start: float = 180.0
    """For all its sub-environments to be made."""
    reset: float = 120.0
    """For all its sub-environments to begin an episode."""
    step: float = 120.0
    """For any other reply."""
    on: WorkersOn = "processes"
    """Where the workers run."""
    ray_address: str | None = None
    """Of the Ray cluster, or None for Ray on this machine."""

    @classmethod
    def of_config(cls, config: EnvConfig) -> Timeouts:
        """Return the times and the place of a config."""
        return cls(
            start=config.start_timeout,
            reset=config.reset_timeout,
            step=config.step_timeout,
            on=config.workers_on,
            ray_address=config.ray_address,
        )

    def of(self, method: str) -> float:
        """Return the longest time for a method of `SubEnvs`."""
        return {"start": self.start, "describe": self.start, "reset": self.reset}.get(
            method, self.step
        )
