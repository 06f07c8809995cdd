"""Demonstrations: recorded episodes, as one flat table of steps.

Letters: N rows, B minibatch rows, M scored flow steps (or loss draws), H action horizon, h executed
actions, A model action dim, d robot action dim.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from pitune.envs.registry import SPARSE_REWARD
from pitune.policies import FlowPolicy
from pitune.policies.preprocessing.model_input import MODEL_INPUT
from pitune.rl.experience.sub_dict import Entry
from pitune.rl.experience.transitions import in_parts

WITHOUT_DELAY = "set off_policy.offline_share=0, or leave delay at its default"
"""Advice to learners that store demonstrations beside decisions."""
IS_PAD = "action_is_pad"
"""Key of the mask of a chunk's steps past its episode's end, under lerobot's name."""
RECORDED = ("reward", "terminated", "success", "intervention")
"""Columns that only some files have."""
METADATA = "demonstrations"
"""Key of the file's metadata, a JSON object."""


@dataclass(frozen=True, kw_only=True)
class Demonstrations:
    """Steps (N) of recorded episodes, in order. They are successful ones unless `success` is given.

    Example:
        >>> demonstrations = Demonstrations(
        ...     obs={"state": torch.zeros(5, 3)},
        ...     action=torch.zeros(5, 2),
        ...     episode=torch.tensor([0, 0, 0, 1, 1]),
        ... )
        >>> demonstrations.num_episodes
        2
        >>> demonstrations.chunks(4)["action"].shape
        torch.Size([5, 4, 2])
    """

    obs: dict[str, Tensor | TensorDict]
    """Observation before each step (N, ...), or the policy's `model_input`."""
    action: Tensor
    """Executed actions (N, d) [robot units]."""
    episode: Tensor
    """Episode of each step (N,) int64, in ascending order."""
    tasks: tuple[str, ...] = ()
    """Instructions indexed by the observations' `task_id`."""
    reward: Tensor | None = None
    """Reward of each step (N,) float32, as the environment gave it. By default it is 1 at the last
    step of an episode and 0 before."""
    terminated: Tensor | None = None
    """Whether the task ended at each step (N,) bool. By default it ends at the last step of an
    episode. False there stands for a time limit."""
    success: Tensor | None = None
    """Whether the episode of each step succeeded (N,) bool. By default those that `terminated`."""
    intervention: Tensor | None = None
    """Whether a human corrected the robot at each step (N,) bool. By default nobody did."""
    reward_definition: str = SPARSE_REWARD
    """The environment's definition of the reward, `EnvSpec.reward`."""
    expert_success: tuple[tuple[int, int], ...] = ()
    """Successes and episodes of the expert of each task, with the failures that are left out here.
    Empty if they are not known."""
    fps: float | None = None
    """Steps per second, where they are known and must be those of the environment [Hz]."""
    mask_padding: bool = False
    """Whether chunks hold `action_is_pad`, which leaves steps past an episode's end out of the
    cloning loss."""

    @property
    def num_episodes(self) -> int:
        """Number of episodes."""
        return len(self.episode.unique())

    def after(self, num_episodes: int) -> Demonstrations:
        """Return the episodes after the first `num_episodes`."""
        return self.chosen(~torch.isin(self.episode, self.episode.unique()[:num_episodes]))

    def chosen(self, kept: Tensor) -> Demonstrations:
        """Return the steps that a mask (N,) bool chooses. It chooses whole episodes."""
        columns = {name: getattr(self, name) for name in ("action", "episode", *RECORDED)}
        changes = {name: value[kept] for name, value in columns.items() if value is not None}
        return replace(self, obs={key: value[kept] for key, value in self.obs.items()}, **changes)

    def solved(self) -> Tensor:
        """Return whether the episode of each step succeeded (N,) bool."""
        ended = torch.ones(len(self.action), dtype=torch.bool)
        ended = ended if self.terminated is None else self.terminated[self._last()]
        return ended if self.success is None else self.success

    @torch.no_grad()
    def preprocess(self, policy: FlowPolicy) -> Demonstrations:
        """Return the same steps with a policy's `model_input`, resized and tokenized once, here."""
        preprocessor = policy.observation_preprocessor(self.tasks)
        obs = TensorDict({key: self.obs[key] for key in policy.obs_keys}, [len(self.action)])
        obs.update(policy.last_action_entries(self.action, self.episode))
        # each part leaves the policy's device at once, because all pictures may not fit there
        rows = in_parts(obs, lambda part: preprocessor(part).select(MODEL_INPUT).cpu())
        return replace(self, obs={MODEL_INPUT: rows[MODEL_INPUT]})

    def chunks(self, action_horizon: int) -> TensorDict:
        """Return a training example per step (N): its observation and the next H actions.

        Past an episode's end its last action is repeated, as in the references' data loaders. With
        `mask_padding`, `action_is_pad` (N, H) marks these steps.
        """
        num = len(self.action)
        ahead = torch.arange(num)[:, None] + torch.arange(action_horizon)  # (N, H)
        last = self._last()[:, None]
        action = self.action[torch.minimum(ahead, last)]
        entries: dict[str, Entry] = {**self.obs, "action": action}
        if self.mask_padding:
            entries[IS_PAD] = ahead > last
        return TensorDict(entries, batch_size=[num])

    def transitions(self, num_steps: int) -> TensorDict:
        """Return the chunks from each step (N) as transitions of an off-policy learner.

        They have the entries of `envs.ChunkEnv`, with the recorded rewards and ends. The used time
        is not recorded and is 0 here.

        Args:
            num_steps: h.
        """
        # chunk, and steps up to the end of the episode
        num = len(self.action)
        chunks = replace(self, mask_padding=False).chunks(num_steps)
        last = self._last()
        left = last - torch.arange(num) + 1  # (N,), with the current step
        step = torch.arange(num_steps)
        live = step < left[:, None]  # (N, h)

        # rewards and ends of the steps, by default those of a success at the last one
        reward = (torch.arange(num) == last).float() if self.reward is None else self.reward
        ahead = torch.minimum(torch.arange(num)[:, None] + step, last[:, None])  # (N, h)
        ended = (left <= num_steps)[:, None]
        solved = ended if self.terminated is None else ended & self.terminated[last][:, None]

        # observation after the chunk
        following = self.step_after(num_steps)
        elapsed = torch.zeros(num, 1)
        after: dict[str, Entry] = {key: value[following] for key, value in self.obs.items()}
        return chunks.update(
            {
                "elapsed": elapsed,
                "reward_steps": reward[ahead] * live,
                "live": live,
                "duration": left.clamp(max=num_steps)[:, None],
                "terminated": solved,
                "truncated": ended & ~solved,
                "next": TensorDict(after | {"elapsed": elapsed}, batch_size=[num]),
            }
        )

    def step_after(self, num_steps: int) -> Tensor:
        """Return the step `num_steps` after each step (N), at most the last of the episode."""
        return torch.minimum(torch.arange(len(self.action)) + num_steps, self._last())

    def _last(self) -> Tensor:
        """Return the last step of each step's episode (N)."""
        return torch.searchsorted(self.episode, self.episode, right=True) - 1

    def save(self, path: Path) -> None:
        """Write one safetensors file atomically, with the same bytes for the same steps."""
        tensors = {f"obs.{key}": value.contiguous() for key, value in self.obs.items()}
        recorded = {name: getattr(self, name) for name in RECORDED}
        tensors |= {key: value for key, value in recorded.items() if value is not None}
        # a single key, because safetensors writes several ones in a random order
        known: dict[str, Any] = {"tasks": self.tasks, "reward": self.reward_definition}
        known |= {"expert_success": self.expert_success} if self.expert_success else {}
        metadata = {METADATA: json.dumps(known)}
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"tmp_{path.name}")
        save_file({**tensors, "action": self.action, "episode": self.episode}, temporary, metadata)
        temporary.rename(path)

    @classmethod
    def load(cls, path: Path) -> Demonstrations:
        """Read a file from `save`.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the file is damaged or holds something else.
        """
        if not path.is_file():
            raise FileNotFoundError(
                f"no demonstrations at {path}; experiments.pretrain collects them, pass its "
                "demonstrations.safetensors"
            )
        try:
            with safe_open(path, framework="pt") as file:
                tensors: dict[str, Any] = {key: file.get_tensor(key) for key in file.keys()}
                metadata = _metadata(file.metadata() or {})
            return cls(
                obs={k.removeprefix("obs."): v for k, v in tensors.items() if k.startswith("obs.")},
                action=tensors["action"],
                episode=tensors["episode"],
                tasks=tuple(metadata.get("tasks", ())),
                **{name: tensors[name] for name in RECORDED if name in tensors},
                # files of older versions hold successes and no rewards
                reward_definition=metadata.get("reward", SPARSE_REWARD),
                expert_success=tuple((s, n) for s, n in metadata.get("expert_success", ())),
            )
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} does not hold demonstrations ({error!r})") from error


def _metadata(found: dict[str, str]) -> dict[str, Any]:
    """Return tasks and definition of the reward, also from a file with a key for each."""
    if METADATA in found:
        return dict(json.loads(found[METADATA]))
    return {**found, "tasks": json.loads(found.get("tasks", "[]"))}


def without_padding(loss: Tensor, rows: TensorDictBase) -> Tensor:
    """Return a loss with zeros in the steps that `action_is_pad` of the rows (B) marks.

    The loss is (B, H, A), or (B, M, H, A) for M draws of each chunk.

    The mean over all entries then weights every demonstrated step equally, as in lerobot. Rows
    without the mask keep their loss.
    """
    if IS_PAD not in rows.keys():
        return loss
    kept = ~rows[IS_PAD][..., None]  # (B, H, 1)
    return loss * (kept[:, None] if loss.ndim == 4 else kept)


def recorded_for(policy: FlowPolicy, path: Path) -> Demonstrations:
    """Load demonstrations that a policy can preprocess. Without a `task_id` they have task 0.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged, or does not match the policy's observations or actions.
    """
    demonstrations = Demonstrations.load(path)
    if "task_id" in policy.obs_keys and "task_id" not in demonstrations.obs:
        task_id = torch.zeros(len(demonstrations.action), dtype=torch.int64)
        obs = {**demonstrations.obs, "task_id": task_id}
        demonstrations = replace(demonstrations, obs=obs)
    _check_demonstrations(demonstrations, policy, path)
    return demonstrations


def check_no_delay(policy: FlowPolicy, name: str, advice: str) -> None:
    """Check that demonstrations are like a policy's decisions, which no old chunk precedes.

    Args:
        policy: The trained policy.
        name: Name of the setting or algorithm that compares them, for the error.
        advice: The way out, for the error.

    Raises:
        ValueError: the policy acts under a decision delay.
    """
    if policy.remainder_steps:
        raise ValueError(
            f"{name} compares demonstrations with decisions under a delay of "
            f"{policy.sampler.delay}, but nothing was executed late in the demonstrations; {advice}"
        )


def _check_demonstrations(demonstrations: Demonstrations, policy: FlowPolicy, path: Path) -> None:
    """Raise ValueError if demonstrations do not match a policy's observations or actions."""
    missing = sorted(set(policy.obs_keys) - demonstrations.obs.keys())
    if missing:
        raise ValueError(
            f"{path} has no {missing}, which the policy needs; it has "
            f"{sorted(demonstrations.obs)}. Collect demonstrations with the policy's cameras "
            "(--env.cameras)"
        )
    pairs = (
        ("state", policy.preprocessor.state_dim, demonstrations.obs["state"].shape[-1]),
        ("action", policy.preprocessor.action_dim, demonstrations.action.shape[-1]),
    )
    for name, wanted, given in pairs:
        if wanted != given:
            raise ValueError(
                f"the {name} in {path} has {given} dimensions, the policy's has {wanted}; it was "
                "recorded on another robot or task"
            )
    prompt = policy.preprocessor.config.prompt
    if prompt is not None and not demonstrations.tasks and prompt.default is None:
        raise ValueError(
            f"{path} holds no instructions, but the policy needs a prompt; collect the "
            "demonstrations again with this version, or give the policy a default prompt"
        )
