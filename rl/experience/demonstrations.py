"""Demonstrations: recorded episodes, as one flat table of steps.

Letters: N steps, H action horizon, S state dim, d robot action dim.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tensordict import TensorDict
from torch import Tensor

from pitune.envs import CheckedEnv, EpisodeSeeds
from pitune.policies import FlowPolicy
from pitune.policies.preprocessing.model_input import MODEL_INPUT
from pitune.rl.experience.transitions import in_parts


@dataclass(frozen=True, kw_only=True)
class Demonstrations:
    """Steps of successful episodes, one after another."""

    obs: dict[str, Tensor | TensorDict]
    """Observations before each step (N, ...), or the policy's `model_input` of them."""
    action: Tensor
    """Executed actions (N, d) [robot units]."""
    episode: Tensor
    """Number of the episode that each step belongs to (N,) int64, not falling."""
    tasks: tuple[str, ...] = ()
    """Instructions that the observations' `task_id` indexes."""

    @property
    def num_episodes(self) -> int:
        """How many episodes there are."""
        return len(self.episode.unique())

    def after(self, num_episodes: int) -> Demonstrations:
        """Return the episodes that follow the first `num_episodes`."""
        first = self.episode.unique()[:num_episodes]
        kept = ~torch.isin(self.episode, first)
        obs = {key: value[kept] for key, value in self.obs.items()}
        return replace(self, obs=obs, action=self.action[kept], episode=self.episode[kept])

    @torch.no_grad()
    def preprocessed(self, policy: FlowPolicy) -> Demonstrations:
        """Return the same steps with a policy's `model_input` as their observations.

        Pictures are resized and prompts tokenized here, once, and never in a gradient step.
        """
        preprocess = policy.observation_preprocessor(self.tasks)
        obs = TensorDict({key: self.obs[key] for key in policy.obs_keys}, [len(self.action)])
        rows = in_parts(obs, lambda part: preprocess(part).select(MODEL_INPUT))
        return replace(self, obs={MODEL_INPUT: rows[MODEL_INPUT].cpu()})

    def chunks(self, action_horizon: int) -> TensorDict:
        """Return one training example per step (N): its observation and the next H actions.

        Past an episode's end its last action is repeated, as the references' data loaders do.
        """
        num = len(self.action)
        ahead = torch.arange(num)[:, None] + torch.arange(action_horizon)
        action = self.action[torch.minimum(ahead, self._last()[:, None])]
        return TensorDict({**self.obs, "action": action}, batch_size=[num])

    def transitions(self, num_steps: int) -> TensorDict:
        """Return the chunk that begins at each step (N) as a transition of an off-policy learner.

        As `envs.ChunkEnv` would have booked it, with the sparse reward: 1 at an episode's last
        step, which is a success and ends it. The used time is not recorded, and is 0 here.

        Args:
            num_steps: h, executed actions of a chunk.
        """
        num = len(self.action)
        chunks = self.chunks(num_steps)
        left = self._last() - torch.arange(num) + 1  # steps up to the end, this one included
        step = torch.arange(num_steps)
        following = self.following(num_steps)
        ended = (left <= num_steps)[:, None]
        nothing = torch.zeros(num, 1)
        after = {key: value[following] for key, value in self.obs.items()}
        return TensorDict(
            {
                **chunks,
                "elapsed": nothing,
                "reward_steps": (step == left[:, None] - 1).float(),
                "live": step < left[:, None],
                "duration": left.clamp(max=num_steps)[:, None],
                "terminated": ended,
                "truncated": torch.zeros_like(ended),
                "next": TensorDict({**after, "elapsed": nothing}, batch_size=[num]),
            },
            batch_size=[num],
        )

    def following(self, num_steps: int) -> Tensor:
        """Return the step (N) that is seen after `num_steps` more, or at the episode's end."""
        return torch.minimum(torch.arange(len(self.action)) + num_steps, self._last())

    def _last(self) -> Tensor:
        """Return the last step of each step's episode (N)."""
        return torch.searchsorted(self.episode, self.episode, right=True) - 1

    def save(self, path: Path) -> None:
        """Write one safetensors file, whole or not at all."""
        tensors = {f"obs.{key}": value.contiguous() for key, value in self.obs.items()}
        metadata = {"tasks": json.dumps(self.tasks)}
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"tmp_{path.name}")
        save_file({**tensors, "action": self.action, "episode": self.episode}, temporary, metadata)
        temporary.rename(path)

    @classmethod
    def load(cls, path: Path) -> Demonstrations:
        """Read a file that `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged or holds something else.
        """
        if not path.is_file():
            raise FileNotFoundError(
                f"no demonstrations at {path}; experiments.pretrain collects them, pass its "
                "demonstrations.safetensors"
            )
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}
                metadata = file.metadata() or {}
            return cls(
                obs={k.removeprefix("obs."): v for k, v in tensors.items() if k.startswith("obs.")},
                action=tensors["action"],
                episode=tensors["episode"],
                tasks=tuple(json.loads(metadata.get("tasks", "[]"))),
            )
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"{path} does not hold demonstrations ({error!r})") from error


def demonstrations_for(policy: FlowPolicy, path: Path) -> Demonstrations:
    """Read and preprocess demonstrations for a policy; without `task_id` they are of task 0.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or lacks what the policy sees or does.
    """
    found = Demonstrations.load(path)
    if "task_id" in policy.obs_keys and "task_id" not in found.obs:
        tasks = torch.zeros(len(found.action), dtype=torch.int64)
        found = replace(found, obs={**found.obs, "task_id": tasks})
    missing = sorted(set(policy.obs_keys) - found.obs.keys())
    if missing:
        raise ValueError(
            f"{path} has no {missing}, which the policy sees; it has {sorted(found.obs)}. Collect "
            "demonstrations with the policy's cameras (--env.cameras)"
        )
    pairs = (
        ("state", policy.preprocessor.state_dim, found.obs["state"].shape[-1]),
        ("action", policy.preprocessor.action_dim, found.action.shape[-1]),
    )
    for name, wanted, given in pairs:
        if wanted != given:
            raise ValueError(
                f"the {name} in {path} has {given} dimensions, the policy's has {wanted}; it was "
                "recorded on another robot or task"
            )
    reads_prompt = policy.preprocessor.config.prompt
    if reads_prompt is not None and not found.tasks and reads_prompt.default is None:
        raise ValueError(
            f"{path} holds no instructions, but the policy reads a prompt; collect the "
            "demonstrations again with this version, or give the policy a default prompt"
        )
    return found.preprocessed(policy)


def collect_demonstrations(
    env: CheckedEnv,
    num_episodes: int,
    seed: int,
    on_step: Callable[[int], None] | None = None,
) -> Demonstrations:
    """Let the environment's expert act, and keep its first `num_episodes` successes.

    "First" is by round and environment, not by time: keeping what finishes first would keep the
    short episodes.

    Args:
        env: The checked simulator.
        num_episodes: Successful episodes to collect.
        seed: Seed of the starts.
        on_step: Called after each environment step with the successes so far, to show progress.

    Raises:
        RuntimeError: the expert fails too often to ever get there.
    """
    seeds = EpisodeSeeds(env.spec.num_envs, seed, "demonstrations")
    kept: list[TensorDict] = []
    played = 0
    while len(kept) < num_episodes:
        kept += _expert_round(env, seeds, len(kept), on_step)
        played += env.spec.num_envs
        if played >= 20 * max(num_episodes, env.spec.num_envs) and len(kept) < num_episodes:
            raise RuntimeError(
                f"the expert of {env.spec.id} succeeded in {len(kept)} of {played} episodes; "
                f"{num_episodes} were asked for"
            )
    kept = kept[:num_episodes]
    steps: TensorDict = torch.cat(kept)  # type: ignore[arg-type, assignment]
    lengths = torch.tensor([len(episode) for episode in kept])
    return Demonstrations(
        obs={key: steps[key] for key in steps.keys() if key != "action"},
        action=steps["action"],
        episode=torch.arange(num_episodes).repeat_interleave(lengths),
        tasks=env.spec.tasks,
    )


def _expert_round(
    env: CheckedEnv, seeds: EpisodeSeeds, num_before: int, on_step: Callable[[int], None] | None
) -> list[TensorDict]:
    """Play one episode in every environment and return the successful ones, in order."""
    num_envs = env.spec.num_envs
    env_idx = torch.arange(num_envs, device=env.spec.device)
    obs = env.reset(seeds.next(env_idx).to(env_idx.device))
    expert = env.expert()
    active = torch.ones(num_envs, dtype=torch.bool, device=env.spec.device)
    solved = torch.zeros_like(active)
    steps, lived = [], []
    while active.any():
        action = torch.maximum(torch.minimum(expert.act(), env.high), env.low)
        steps.append(TensorDict({**obs, "action": action}, batch_size=[num_envs]).cpu())
        lived.append(active.cpu())
        result = env.step(action, active)
        obs = result.obs
        solved = solved | (result.info["success"] & active)
        active = active & ~(result.terminated | result.truncated)
        if on_step is not None:
            on_step(num_before + int(solved.sum()))
    table, live = torch.stack(steps), torch.stack(lived)  # (steps, E)
    return [table[live[:, i], i] for i in range(num_envs) if solved[i]]
