"""What the ranks of a run compare and count: their weights, and the work of their environments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pitune.rl import Algorithm, Rollouts, ranks
from pitune.rl.drift import drifted

CHECK_EVERY = 10
"""Iterations between two comparisons of the ranks' weights."""
MAX_NAMED = 5
"""Tensors that a message names."""


def check_drift(algorithm: Algorithm[Any], iteration: int = 0) -> None:
    """Compare the weights of all ranks, at every tenth iteration.

    Args:
        algorithm: Of this rank.
        iteration: Iterations so far. 0 compares in any case.

    Raises:
        RuntimeError: the ranks have drifted apart.
    """
    if ranks.world() == 1 or iteration % CHECK_EVERY:
        return
    # weights of the policy and of all other networks
    state = {f"policy.{key}": v for key, v in algorithm.actor.policy.state_dict().items()}
    for name, network in algorithm.networks.items():
        state |= {f"{name}.{key}": value for key, value in network.state_dict().items()}
    names = drifted(state)
    if names:
        more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
        raise RuntimeError(
            f"the ranks have drifted apart: {', '.join(names[:MAX_NAMED])}{more} differ between "
            "them; an update used numbers of one rank alone. Resume from the last checkpoint, and "
            "report the algorithm and its settings"
        )


@dataclass(frozen=True, kw_only=True)
class Counts:
    """The work of a rank's environments so far.

    Example:
        >>> counts = Counts(env_steps=100, clipped=1, entries=200)
        >>> counts.progress()
        {'env_steps': 100, 'clipped': [1, 200]}
        >>> Counts.in_progress(counts.progress()) == counts
        True
    """

    env_steps: int
    """Simulator steps."""
    clipped: int
    """Entries of actions that were clipped."""
    entries: int
    """Entries of actions."""

    @classmethod
    def of(cls, rollouts: Rollouts) -> Counts:
        """Return the counts of this rank."""
        env = rollouts.env
        return cls(
            env_steps=rollouts.num_env_steps, clipped=env.num_clipped, entries=env.num_entries
        )

    def progress(self) -> dict[str, Any]:
        """Return the entries of a checkpoint's progress: sums, and the counts of each rank."""
        own = {"env_steps": self.env_steps, "clipped": [self.clipped, self.entries]}
        if ranks.world() == 1:
            return own
        clipped = [ranks.total(self.clipped), ranks.total(self.entries)]
        sums = {"env_steps": ranks.total(self.env_steps), "clipped": clipped}
        return {**sums, "ranks": ranks.world(), "counts": ranks.gathered(own)}

    @classmethod
    def in_progress(cls, progress: Mapping[str, Any]) -> Counts:
        """Return the counts of this rank in a checkpoint.

        If another number of ranks has saved it, rank 0 has those of all.
        """
        own = progress
        if progress.get("ranks", 1) == ranks.world() and "counts" in progress:
            own = progress["counts"][ranks.rank()]
        elif ranks.rank():
            own = {"env_steps": 0, "clipped": [0, 0]}
        clipped, entries = own["clipped"]
        return cls(env_steps=own["env_steps"], clipped=clipped, entries=entries)

    def restore(self, rollouts: Rollouts) -> None:
        """Continue from these counts."""
        rollouts.num_env_steps = self.env_steps
        rollouts.env.num_clipped, rollouts.env.num_entries = self.clipped, self.entries
