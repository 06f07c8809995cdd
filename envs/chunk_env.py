"""TorchRL environment in which one step is one action chunk.

The record is exact. An environment that ends inside a chunk stops there, and the rest of its chunk
is neither executed nor rewarded. Its last observation is the true last one, and it is reset before
the next decision. A chunk is a step of a semi-Markov process, so its `duration` is recorded for the
discount. The rewards of its steps are recorded one by one, because the algorithm discounts them.

Letters: E envs, h executed actions, d robot action dim.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Bounded, Categorical, Composite, TensorSpec, Unbounded
from torchrl.envs.utils import make_composite_from_td

from pitune.envs.border import BorderEnv
from pitune.envs.checked import CheckedEnv
from pitune.envs.last_action import LastAction
from pitune.envs.seeding import EpisodeSeeds
from pitune.envs.success import EpisodeSuccess
from pitune.envs.vector_env import Observation


class ChunkEnv(BorderEnv):
    """E simulators that execute chunks (E, h, d) [robot units].

    Besides the observation, a step writes these entries under `next`: `reward_steps` (E, h), the
    reward of each executed step, `live` (E, h), whether the step was executed, `duration` (E, 1),
    the number of executed steps, and `reward` (E, 1), the sum of their rewards. The flags
    `invalid`, `terminated`, `truncated` and `done` are (E, 1). `elapsed` (E, 1) is the used share
    of the episode's time.

    If the environment reports success, there are three more flags (E, 1): `success_once`, solved at
    any executed step of the episode so far, `success_at_end`, solved at its last executed step, and
    `success`, which equals one of them by the environment's definition (`EnvSpec.success_rule`).
    Those of the decision that ends an episode are the episode's.

    Args:
        env: The checked simulator.
        execution_horizon: h.
        seeds: `EpisodeSeeds`, or `EvaluationSeeds` with their `num_episodes`.
        num_episodes: Episodes of every environment, or of each (E,), or None for no limit. After
            them the environment waits for a reset of all: no step is executed, `duration` is 0.
        preprocess: Adds entries to observations (N), such as a policy's `model_input`. It is called
            once per observation, and the results replace the pictures.
        record_success: Whether to write the flags of success, by default if they are known.
        last_action: Whether `preprocess` also gets the entries of `LastAction`.
        device: Device of actions and outcomes, that of the simulator by default.

    Raises:
        ValueError: when stepped, an action chunk has the wrong shape.
        RuntimeError: when stepped, `env` was reset or stepped elsewhere since.

    Example:
        >>> from pitune import envs
        >>> env = envs.make(envs.EnvConfig(id="mock/Reach", num_envs=4))
        >>> chunk_env = ChunkEnv(env, 2, EpisodeSeeds(4, seed=0, split="train"))
        >>> chunk_env.rollout(8).batch_size
        torch.Size([4, 8])
    """

    done_spec: TensorSpec
    """Flags of the ends. It is declared because mypy does not see the base class's setter."""

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
    ) -> None:
        spec = env.spec
        super().__init__(spec.device, device, spec.num_envs)
        self.env, self.execution_horizon, self.seeds = env, execution_horizon, seeds
        self.num_env_steps = 0
        """Simulator steps executed so far, over all environments."""
        self.simulator_seconds = 0.0
        """Time inside the simulator so far [s]. On a GPU it ends when the work is queued."""
        # state of the episodes (E,)
        self._steps = self._zeros(spec.num_envs, dtype=torch.int64)
        self._num_episodes = num_episodes
        self._played = torch.zeros_like(self._steps)
        recorded = spec.success_signal if record_success is None else record_success
        self._success = EpisodeSuccess(spec.num_envs, spec.device) if recorded else None
        self._last = LastAction(spec.num_envs, spec.action_dim, spec.device, last_action)
        self._obs: Observation = {}
        self._num_calls = 0
        self._preprocess = (preprocess,)  # a module as an attribute would become a part of this
        self._preprocessed: TensorDict | None = None
        self._make_specs()

    def _make_specs(self) -> None:
        spec, h = self.env.spec, self.execution_horizon
        n, device = spec.num_envs, spec.device
        one, steps = torch.Size((n, 1)), torch.Size((n, h))

        # entries of every decision
        flag = Categorical(2, shape=one, dtype=torch.bool, device=device)
        observation = {
            "state": Unbounded(torch.Size((n, spec.state_dim)), device=device),
            "task_id": Unbounded(torch.Size((n,)), dtype=torch.int64, device=device),
            "elapsed": Unbounded(one, device=device),
            "reward_steps": Unbounded(steps, device=device),
            "live": Categorical(2, shape=steps, dtype=torch.bool, device=device),
            "duration": Unbounded(one, dtype=torch.int64, device=device),
            "invalid": flag.clone(),
            **{key: flag.clone() for key in self._success_flags()},
        }

        # pictures, or the entries of the preprocessing instead
        cameras = {
            f"image/{camera}": Unbounded(torch.Size((n, *shape)), dtype=torch.uint8, device=device)
            for camera, shape in spec.cameras.items()
        }
        if self._preprocess[0] is None:
            observation |= cameras
        else:
            # a row of zeros shows which entries preprocessing adds
            zeros = Composite({**observation, **cameras}, shape=(n,)).zero()
            row = self._added({key: zeros[key] for key in zeros.keys()}, slice(0, 1))
            added = make_composite_from_td(row.expand(n))
            observation |= {str(key): added[key] for key in added.keys()}

        self.observation_spec = Composite(observation, shape=(n,))
        low, high = (x.to(device).expand(n, h, -1) for x in (self.env.low, self.env.high))
        self.action_spec = Bounded(low, high, shape=low.shape, device=device)
        self.reward_spec = Unbounded(one, device=device)
        self.done_spec = Composite(
            {key: flag.clone() for key in ("done", "terminated", "truncated")}, shape=(n,)
        )

    def _reset(self, tensordict: TensorDictBase | None = None, **_: object) -> TensorDictBase:
        # all environments, or those that ended and have episodes left
        mask = None if tensordict is None else tensordict.get("_reset", None)
        if mask is None:
            self._played[:] = 0
            self.env.abandon()
            begins = self._playing()
        else:
            self._check_unchanged()
            begins = mask.flatten()  # on the host, in a rollout
            if self._num_episodes is not None:
                begins = begins.to(self.home) & self._playing()

        # new episodes, whose seeds are made on the host
        rows = begins.cpu().nonzero().flatten()
        if len(rows):
            seeds, env_idx = self.seeds.next(rows).to(self.home), rows.to(self.home)
            start = time.perf_counter()
            self._obs = self.env.reset(seeds, env_idx)
            self._num_calls = self.env.num_calls
            self.simulator_seconds += time.perf_counter() - start
            self._steps[env_idx] = 0
            self._last.start(env_idx)
            if self._success is not None:
                self._success.start(env_idx)
            self._preprocess_rows(env_idx)

        n, h = self.batch_size[0], self.execution_horizon
        steps = {
            "reward_steps": self._zeros(n, h),
            "live": self._zeros(n, h, dtype=torch.bool),
            "duration": self._zeros(n, 1, dtype=torch.int64),
        }
        names = (*self._success_flags(), "invalid", "terminated", "truncated", "done")
        flags = {key: self._zeros(n, 1, dtype=torch.bool) for key in names}
        return self._tensordict({**self._observation(), **steps, **flags})

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        n, h, chunk = self.batch_size[0], self.execution_horizon, tensordict["action"]
        expected = (n, h, self.env.spec.action_dim)
        if tuple(chunk.shape) != expected:
            raise ValueError(
                f"action chunk of shape {tuple(chunk.shape)} must be {expected}: environments, "
                "execution_horizon, action dim"
            )

        chunk = chunk.to(self.home)  # the only read of a decision with a simulator of the host
        self._check_unchanged()  # running episodes, and their outcome so far (E,)
        active = executed = self._playing()
        flags = {key: torch.zeros_like(active) for key in ("terminated", "truncated", "invalid")}
        rewards, live, on_host = [], [], self.env.spec.device.type == "cpu"
        self.env.announce(chunk, active)
        # steps of the chunk (E, d), without the episodes that have ended
        for j in range(h):
            live.append(active)
            if not on_host or active.any():  # to ask an accelerator would wait for it
                start = time.perf_counter()
                read = active & (j == h - 1)  # only these pictures, and those of ended episodes
                obs, reward, terminated, truncated, info = self.env.step(chunk[:, j], active, read)
                self.simulator_seconds += time.perf_counter() - start
                self._obs, self._num_calls = obs, self.env.num_calls
                self._steps += active
                self._last.add(chunk[:, j], active)
                rewards.append(torch.where(active, reward, torch.zeros_like(reward)))
                now = {"terminated": terminated, "truncated": truncated, **info}
                flags = {key: flag | (now[key] & active) for key, flag in flags.items()}
                if self._success is not None:
                    self._success.add(info["success"], active)
                active = active & ~(terminated | truncated)
            else:
                rewards.append(self._zeros(n))

        # observations after the chunk, preprocessed once
        every = torch.arange(n, device=self.home) if self._num_episodes is None else None
        self._preprocess_rows(executed.nonzero().flatten() if every is None else every)
        # h x (E,) -> (E, h)
        return self._outcome(torch.stack(rewards, 1), torch.stack(live, 1), flags)

    def _preprocess_rows(self, env_idx: Tensor) -> None:
        """Preprocess the present observations of some environments (N,), and keep the others."""
        if self._preprocess[0] is None or not len(env_idx):
            return
        everything = self._preprocessed is None or len(env_idx) == self.batch_size[0]
        rows = slice(None) if everything else env_idx
        added = self._added(self._obs, rows)
        if self._preprocessed is None or everything:
            self._preprocessed = added
        else:
            # a copy, because earlier observations hold the old table
            self._preprocessed = self._preprocessed.clone()
            self._preprocessed[env_idx.to(self.device)] = added

    def _added(self, obs: Observation, rows: slice | Tensor) -> TensorDict:
        """Return the entries that preprocessing adds to some rows (N) of observations (E)."""
        (preprocess,) = self._preprocess
        values = {key: value[rows] for key, value in {**obs, **self._last.entries()}.items()}
        device = None if self.is_split else self.device  # the added entries may be elsewhere
        td = TensorDict(values, batch_size=[len(values["state"])], device=device)
        return td.select() if preprocess is None else preprocess(td).exclude(*values)

    def _outcome(self, reward_steps: Tensor, live: Tensor, flags: dict[str, Tensor]) -> TensorDict:
        """Return the entries of a step from rewards and live mask (E, h) and flags (E,)."""
        done = flags["terminated"] | flags["truncated"]
        self.num_env_steps += self._read_ends(self.env, live.sum(), done)
        self._played += done
        flags |= {key: flag & live[:, 0] for key, flag in self._success_flags().items()}
        return self._tensordict(
            {
                **self._observation(),
                "reward_steps": reward_steps,
                "live": live,
                "duration": live.sum(1, keepdim=True),
                "reward": reward_steps.sum(1, keepdim=True),
                "done": done[:, None],
                **{key: flag[:, None] for key, flag in flags.items()},
            }
        )

    def _check_unchanged(self) -> None:
        """Raise RuntimeError if another owner of the environment has reset or stepped it."""
        if self.env.num_calls != self._num_calls:
            raise RuntimeError(
                f"{self.env.spec.id} was reset elsewhere, or stepped, for example by an "
                "evaluation, so the episodes of this rollout are gone; call "
                "`Rollouts.restart(iteration)` or reset the whole ChunkEnv afterwards, or use "
                "another environment there"
            )

    @property
    def stale(self) -> bool:
        """Whether another owner has changed the environment since this one's last call."""
        return bool(self._num_calls) and self.env.num_calls != self._num_calls

    def _success_flags(self) -> dict[str, Tensor]:
        """Return the flags of success (E,) to write, if the environment reports any."""
        return {} if self._success is None else self._success.flags(self.env.spec.success_rule)

    def _playing(self) -> Tensor:
        """Return the mask (E,) of the environments that have episodes left."""
        if self._num_episodes is None:
            return torch.ones_like(self._played, dtype=torch.bool)
        return self._played < self._num_episodes

    def _observation(self) -> dict[str, Tensor]:
        """Return the entries of the present observations (E)."""
        elapsed = self._steps[:, None].float() / self.env.spec.max_episode_steps
        if self._preprocessed is None:
            return {**self._obs, "elapsed": elapsed}
        kept = {key: value for key, value in self._obs.items() if not key.startswith("image/")}
        return {**kept, **self._preprocessed, "elapsed": elapsed}

    def _set_seed(self, seed: int | None) -> None:
        """Start the seed stream anew, for TorchRL's `set_seed`."""
        if seed is not None:
            self.seeds = self.seeds.with_seed(seed)

    def close(self, *, raise_if_closed: bool = True) -> None:
        self.env.close()
        super().close(raise_if_closed=raise_if_closed)
