"""Resets of ManiSkill's environments by their seeds, in one of three ways.

- With a bank: one reset sets all rows to the starts of their seeds.
- With exact seeds and no bank: one reset per row, because ManiSkill draws all starts of a reset
  from its first seed.
- Otherwise one reset, whose first seed determines all starts.

Contact forces are those of the last physics step. If the old episode ended with a grasp, the first
observation of the new one would report a grasp too. So they are hidden or replaced.

Letters: E envs, N rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pitune.envs.maniskill.observation import mask_contacts
from pitune.envs.maniskill.start_bank import StartBank, restore


class Resets:
    """Starts episodes in one simulation.

    Example:
        >>> resets = Resets(simulation, exact_seeds=True)  # doctest: +SKIP
        >>> raw = resets.start(torch.tensor([0, 2]), [7, 8])  # doctest: +SKIP

    Args:
        simulation: ManiSkill's environment, of E environments.
        exact_seeds: Whether a start depends on its own seed alone.
        bank: Starts by seed.
    """

    def __init__(
        self, simulation: Any, *, exact_seeds: bool, bank: StartBank | None = None
    ) -> None:
        self._simulation, self._exact_seeds, self._bank = simulation, exact_seeds, bank

    def start(self, rows: Tensor, seeds: list[int]) -> Any:
        """Reset some rows (N,), each with its seed, and return ManiSkill's observation."""
        simulation, num_envs = self._simulation, self._simulation.num_envs
        if self._exact_seeds and self._bank is not None:
            # ManiSkill assigns states to environments in ascending order
            rows, order = rows.sort()
            start = self._bank.rows([seeds[index] for index in order.tolist()])
            return self._without_contacts(rows, lambda: restore(simulation, rows, start))
        if self._exact_seeds:
            for row, seed in zip(rows.split(1), seeds, strict=True):
                raw = self._by_seeds(row, [seed] * num_envs)
            return raw
        # The first entry seeds torch, so it must be a new one even if environment 0 is not reset.
        all_seeds = [seeds[0]] * num_envs
        for index, seed in zip(rows.tolist(), seeds, strict=True):
            all_seeds[index] = seed
        return self._by_seeds(rows, all_seeds)

    def _by_seeds(self, rows: Tensor, seeds: list[int]) -> Any:
        """Reset some rows (N,) with E seeds."""
        options = {"env_idx": rows}
        return self._without_contacts(
            rows, lambda: self._simulation.reset(seed=seeds, options=options)
        )

    def _without_contacts(self, rows: Tensor, reset: Callable[[], tuple[Any, Any]]) -> Any:
        """Reset, without the contacts of the old episodes, and return the observation."""
        scene, num_envs = self._simulation.scene, self._simulation.num_envs
        if num_envs > 1:
            with mask_contacts(scene, rows, num_envs):
                return reset()[0]
        raw, info = reset()
        if not info["reconfigure"]:
            # A physics step from the new start replaces all contacts of the old episode, also
            # those inside the physics engine. Then the start is set again.
            scene.step()
            raw, _ = reset()
        return raw
