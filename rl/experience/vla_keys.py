"""Our rollouts and demonstrations under the keys of TorchRL's VLA schema, and back.

`docs/torchrl_vla.md` lists the parts that fit and those that do not. The constants are those of
`torchrl.data.vla`.
Letters: E envs, T chunk decisions, N rows, h executed actions, d robot action dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import NonTensorStack, TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data.vla import (
    ACTION_CHUNK_KEY,
    ACTION_IS_PAD_KEY,
    ACTION_KEY,
    INSTRUCTION_KEY,
    STATE_KEY,
)

from pitune.rl.experience.demonstrations import Demonstrations
from pitune.rl.experience.sub_dict import sub_dict

RECORDED = ("reward", "terminated")
"""Entries under `next` that demonstrations keep."""
IMAGES = ("observation", "image")
EPISODE = "episode"
"""Number of each step's episode, under the name of TorchRL's LeRobot reader."""


def rollout_to_vla(rollout: TensorDictBase, tasks: Sequence[str]) -> TensorDict:
    """Return a rollout (E, T) under TorchRL's VLA keys. Entries without such a key keep theirs.

    A time step of the result is a decision, and its chunk holds the h executed actions.
    `action_is_pad` marks those that the end of the episode left out. `action` is the first one, as
    the schema wants one action per time step. Do not cut new chunks from it: neighboring decisions
    are h control steps apart.

    Args:
        rollout: Decisions of `Rollouts` or a `ChunkEnv`.
        tasks: Instructions indexed by `task_id`.

    Raises:
        ValueError: the rollout has no `state`, `action` or `task_id`.

    Example:
        >>> from torchrl.data.vla import validate_vla_tensordict
        >>> from pitune import envs
        >>> env = envs.make(envs.EnvConfig(id="mock/Reach", num_envs=2))
        >>> chunk_env = envs.ChunkEnv(env, 3, envs.EpisodeSeeds(2, seed=0, split="train"))
        >>> rows = rollout_to_vla(chunk_env.rollout(4), env.spec.tasks)
        >>> validate_vla_tensordict(rows), rows["vla_action", "chunk"].shape
        ([], torch.Size([2, 4, 3, 2]))
    """
    _require(rollout, ("state", "action", "task_id"))
    vla = _observation_to_vla(rollout)
    vla["next"] = _observation_to_vla(sub_dict(rollout, "next"))
    chunk = rollout["action"]
    vla[ACTION_CHUNK_KEY] = chunk
    vla[ACTION_IS_PAD_KEY] = ~rollout["next", "live"]
    vla[ACTION_KEY] = chunk[..., 0, :]  # (E, T, h, d) -> (E, T, d)
    vla[INSTRUCTION_KEY] = _words(rollout["task_id"], tasks)
    return vla


def rollout_from_vla(vla: TensorDictBase, tasks: Sequence[str] = ()) -> TensorDict:
    """Return a rollout (E, T) of VLA rows: the inverse of `rollout_to_vla`.

    Args:
        vla: Rows with action chunks.
        tasks: Instructions, for rows without a `task_id`.

    Raises:
        ValueError: there is no chunk, or an instruction is not one of the tasks.
    """
    _require(vla, (ACTION_CHUNK_KEY, STATE_KEY))
    rollout = _observation_from_vla(vla)
    rollout["next"] = _observation_from_vla(sub_dict(vla, "next"))
    rollout["action"] = vla[ACTION_CHUNK_KEY]
    if ACTION_IS_PAD_KEY in vla.keys():
        rollout["next", "live"] = ~vla[ACTION_IS_PAD_KEY]
    if "task_id" not in rollout.keys():
        rollout["task_id"] = _task_ids(vla, tasks)
    return rollout


def demonstrations_to_vla(demonstrations: Demonstrations) -> TensorDict:
    """Return the steps (N) of demonstrations under TorchRL's VLA keys, one action per step.

    The ends of the episodes are under `next`, so that `ActionChunkTransform` and `SliceSampler`
    stop there.

    Args:
        demonstrations: With observations of the environment, before their preprocessing.

    Raises:
        ValueError: the demonstrations are preprocessed.

    Example:
        >>> demonstrations = Demonstrations(
        ...     obs={"state": torch.zeros(5, 3)},
        ...     action=torch.zeros(5, 2),
        ...     episode=torch.tensor([0, 0, 0, 1, 1]),
        ...     tasks=("reach the goal",),
        ... )
        >>> rows = demonstrations_to_vla(demonstrations)
        >>> rows["next", "done"].flatten().tolist()
        [False, False, True, False, True]
    """
    num = len(demonstrations.action)
    obs = TensorDict(dict(demonstrations.obs), [num])
    _require(obs, ("state",))
    if "task_id" not in obs.keys():
        obs["task_id"] = torch.zeros(num, dtype=torch.int64)
    vla = _observation_to_vla(obs)
    vla[ACTION_KEY], vla[EPISODE] = demonstrations.action, demonstrations.episode
    if demonstrations.tasks:
        vla[INSTRUCTION_KEY] = _words(obs["task_id"], demonstrations.tasks)

    # ends, and by default a success at each of them
    done = torch.ones(num, dtype=torch.bool)
    done[:-1] = demonstrations.episode[1:] != demonstrations.episode[:-1]
    terminated = done if demonstrations.terminated is None else demonstrations.terminated
    reward = done.float() if demonstrations.reward is None else demonstrations.reward
    ends = {"done": done, "terminated": terminated, "reward": reward}
    vla["next"] = TensorDict({key: value[:, None] for key, value in ends.items()}, [num])
    return vla


def demonstrations_from_vla(
    vla: TensorDictBase, tasks: Sequence[str] = (), reward: str = ""
) -> Demonstrations:
    """Return demonstrations of VLA steps (N), such as those of TorchRL's LeRobot reader.

    Args:
        vla: Steps in order, with `episode`, or with their ends under `next`.
        tasks: Instructions in the order of their numbers. By default they are numbered as they
            first occur.
        reward: Definition of the rewards in words.

    Raises:
        ValueError: an entry is missing, or an instruction is not one of the tasks.
    """
    _require(vla, (ACTION_KEY, STATE_KEY))
    entries = sub_dict(vla, "next") if "next" in vla.keys() else TensorDict(batch_size=[len(vla)])
    if EPISODE in vla.keys():
        episode = vla[EPISODE].flatten()
    elif "done" in entries.keys():
        ends = entries["done"].flatten().long()
        episode = ends.cumsum(0) - ends
    else:
        raise ValueError(
            f"the rows have neither {EPISODE!r} nor ('next', 'done'), only "
            f"{sorted(map(str, vla.keys()))}; episodes must be known"
        )
    table = _observation_from_vla(vla)
    obs = {key: table[key] for key in map(str, table.keys()) if _is_observation(key)}
    if INSTRUCTION_KEY in vla.keys():
        tasks = tuple(tasks) or tuple(dict.fromkeys(vla.get(INSTRUCTION_KEY).tolist()))
        obs["task_id"] = _task_ids(vla, tasks)
    known: dict[str, Any] = {
        key: entries[key].flatten() for key in RECORDED if key in entries.keys()
    }
    return Demonstrations(
        obs=obs,
        action=vla[ACTION_KEY],
        episode=episode,
        tasks=tuple(tasks),
        reward_definition=reward,
        **known,
    )


def _observation_to_vla(rows: TensorDictBase) -> TensorDict:
    """Return rows whose state and pictures have the VLA keys. Actions and `next` are left out."""
    vla = TensorDict(batch_size=rows.batch_size, device=rows.device)
    for key in map(str, rows.keys()):
        if key == "state":
            vla[STATE_KEY] = rows[key]
        elif key.startswith("image/"):
            vla[(*IMAGES, key.removeprefix("image/"))] = rows[key]
        elif key not in ("action", "next"):
            vla[key] = rows[key]
    return vla


def _observation_from_vla(vla: TensorDictBase) -> TensorDict:
    """Return rows whose state and pictures have our keys. Actions and `next` are left out."""
    replaced = ("observation", "vla_action", "next", ACTION_KEY, ACTION_IS_PAD_KEY, INSTRUCTION_KEY)
    rows = TensorDict(
        {str(key): vla[key] for key in vla.keys() if key not in replaced},
        batch_size=vla.batch_size,
        device=vla.device,
    )
    if STATE_KEY in vla.keys(True):
        rows["state"] = vla[STATE_KEY]
    if IMAGES in vla.keys(True):
        pictures = vla[IMAGES]
        if isinstance(pictures, Tensor):
            raise ValueError(
                f"{IMAGES} is one tensor without the name of its camera; store it as "
                f"{(*IMAGES, 'front')}"
            )
        for camera in pictures.keys():
            rows[f"image/{camera}"] = pictures[camera]
    return rows


def _is_observation(key: str) -> bool:
    return key in ("state", "task_id") or key.startswith("image/")


def _words(task_id: Tensor, tasks: Sequence[str]) -> NonTensorStack:
    """Return the instruction of each row, with the shape of the task numbers."""

    def of(numbers: list[int] | list[list[int]]) -> list[str] | list[list[str]]:
        return [of(n) if isinstance(n, list) else tasks[n] for n in numbers]  # type: ignore[return-value]

    return NonTensorStack.from_list(of(task_id.tolist()))


def _task_ids(vla: TensorDictBase, tasks: Sequence[str]) -> Tensor:
    """Return the task number of each row from its instruction."""
    _require(vla, (INSTRUCTION_KEY,))
    numbers = {words: number for number, words in enumerate(tasks)}
    words = vla.get(INSTRUCTION_KEY).tolist()
    flat = [w for row in words for w in row] if vla.batch_dims > 1 else list(words)
    unknown = sorted(set(flat) - numbers.keys())
    if unknown:
        raise ValueError(
            f"the instructions {unknown[:3]} are not among the tasks {tuple(tasks)[:5]}; pass all"
        )
    return torch.tensor([numbers[w] for w in flat]).reshape(vla.batch_size)


def _require(rows: TensorDictBase, keys: Sequence[str | tuple[str, ...]]) -> None:
    """Raise ValueError if rows lack an entry."""
    present = rows.keys(True)
    missing = [key for key in keys if key not in present]
    if missing:
        raise ValueError(f"the rows lack {missing}; they have {sorted(map(str, rows.keys()))}")
