"""The chunk environment of a policy with a memory, which a decision hands on to the next one.

The memory that a decision writes is a part of the next observation, as if it were measured. So
rollouts and replay rows hold the memory that each decision read, and an episode that begins, in
some environments or in all, begins with zeros.

In shapes, `memory` is the number of memory tokens.
Letters: E envs, D width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import Unbounded

from pitune.envs.checked import CheckedEnv
from pitune.envs.chunk_env import ChunkEnv
from pitune.envs.seeding import EpisodeSeeds
from pitune.envs.vector_env import Observation

MEMORY, WRITTEN = "memory", "written_memory"
"""Keys of the memory in an observation, and of the one that a decision writes."""


class MemoryChunkEnv(ChunkEnv):
    """E simulators whose observations hold a `memory` (E, memory, D) too.

    A decision has the entry `written_memory` (E, memory, D), which the next observation of its
    episode has as `memory`.

    Args:
        env: The checked simulator.
        execution_horizon: h.
        seeds: Seeds of the episodes.
        num_episodes: See `ChunkEnv`.
        preprocess: See `ChunkEnv`. It gets `memory` too.
        record_success: See `ChunkEnv`.
        last_action: See `ChunkEnv`.
        device: See `ChunkEnv`. The memory is there.
        memory_shape: (memory, D).

    Raises:
        ValueError: when stepped, a decision has no `written_memory` of this shape.

    Example:
        >>> from pitune import envs
        >>> env = envs.make(envs.EnvConfig(id="mock/Recall", num_envs=2))
        >>> seeds = EpisodeSeeds(2, seed=0, split="train")
        >>> chunk_env = MemoryChunkEnv(env, 4, seeds, memory_shape=(1, 3))
        >>> td = chunk_env.rand_action(chunk_env.reset())
        >>> td["written_memory"] = torch.ones(2, 1, 3)
        >>> td["memory"].sum().item(), chunk_env.step(td)["next", "memory"].sum().item()
        (0.0, 6.0)
    """

    def __init__(
        self,
        env: CheckedEnv,
        execution_horizon: int,
        seeds: EpisodeSeeds,
        num_episodes: int | Tensor | None = None,
        preprocess: Callable[[TensorDictBase], TensorDictBase] | None = None,
        record_success: bool | None = None,
        last_action: bool = False,
        device: torch.device | None = None,
        *,
        memory_shape: tuple[int, int],
    ) -> None:
        spec = env.spec
        # a plain attribute that the base class's constructor reads
        self._memory = torch.zeros(spec.num_envs, *memory_shape, device=device or spec.device)
        args = (env, execution_horizon, seeds, num_episodes, preprocess, record_success)
        super().__init__(*args, last_action, device)

    def _make_specs(self) -> None:
        super()._make_specs()
        observation = self.observation_spec
        observation[MEMORY] = Unbounded(self._memory.shape, device=self.device)
        self.observation_spec = observation

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: object) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        if mask is None:
            self._memory = torch.zeros_like(self._memory)
        else:
            # (E, 1, 1) against (E, memory, D)
            mask = mask.to(self._memory.device).reshape(-1, 1, 1)
            self._memory = self._memory.masked_fill(mask, 0.0)
        return super()._reset(tensordict, **kwargs)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        written = tensordict.get(WRITTEN, None)
        if written is None or written.shape != self._memory.shape:
            given = "none" if written is None else f"one of shape {tuple(written.shape)}"
            raise ValueError(
                f"a decision must write a memory of shape {tuple(self._memory.shape)} as "
                f"{WRITTEN!r}, and it has {given}; act with the policy's actor"
            )
        # before the step, whose observation holds it
        self._memory = written.to(self._memory)
        return super()._step(tensordict)

    def _added(self, obs: Observation, rows: slice | Tensor) -> TensorDictBase:
        return super()._added({**obs, MEMORY: self._memory}, rows)

    def _observation(self) -> dict[str, Tensor]:
        return {**super()._observation(), MEMORY: self._memory}
