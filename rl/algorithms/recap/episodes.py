"""Recorded episodes as flat tables: demonstrations, corrections and the policy's own rollouts.

Letters: N rows, E envs, T chunk decisions, H action horizon, d robot action dim.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from pitune.policies import FlowPolicy, ModelInput
from pitune.policies.preprocessing.model_input import MODEL_INPUT
from pitune.rl.experience.demonstrations import IS_PAD, Demonstrations
from pitune.rl.experience.sub_dict import Entry, sub_dict

FACTS = ("time", "length", "episode", "solved", "task", "forced")
"""Columns (N,) beside the observation and the chunk: control steps since the episode's start, steps
of the episode, its number in ascending order, whether it succeeded, the index of its task, and
whether the row is a human correction."""


def of_demonstrations(table: Demonstrations, task: Tensor, action_horizon: int) -> TensorDict:
    """Return a row for each recorded step (N), with the next H actions.

    Args:
        table: Episodes with the policy's `model_input`.
        task: Index of each step's task (N,).
        action_horizon: H.
    """
    rows = table.chunks(action_horizon)
    # bounds of each step's episode (N,)
    first = torch.searchsorted(table.episode, table.episode)
    length = torch.searchsorted(table.episode, table.episode, right=True) - first
    none = torch.zeros(len(rows), dtype=torch.bool)
    facts = {
        "time": torch.arange(len(rows)) - first,
        "length": length,
        "episode": table.episode,
        "solved": table.solved(),
        "task": task,
        "forced": none if table.intervention is None else table.intervention,
    }
    return rows.update(facts)


@torch.no_grad()
def of_rollout(rollout: TensorDictBase, policy: FlowPolicy, first_episode: int = 0) -> TensorDict:
    """Return a row for each decision (N) of the episodes that ended inside a rollout (E, T).

    The chunk is the whole sampled one of H actions. Episodes in a broken simulator are left out.

    Args:
        rollout: Decisions with `chain`.
        policy: Gives the robot's units.
        first_episode: Number of the first episode.
    """
    outcome = sub_dict(rollout, "next")
    keys = ("done", "success", "invalid", "duration")
    done, success, invalid, duration = (outcome[key].squeeze(-1) for key in keys)  # (E, T)

    # time of each decision, and its episode's number in the environment
    number = done.long().cumsum(1) - done.long()
    time, passed = torch.zeros_like(duration), torch.zeros_like(duration[:, 0])
    for t in range(done.shape[1]):
        time[:, t] = passed
        passed = torch.where(done[:, t], 0, passed + duration[:, t])

    # end of each episode, backwards because it is known only there
    length, solved = torch.zeros_like(duration), torch.zeros_like(done)
    complete, last = torch.zeros_like(done), torch.zeros_like(duration[:, 0])
    good, ended = torch.zeros_like(done[:, 0]), torch.zeros_like(done[:, 0])
    for t in reversed(range(done.shape[1])):
        last = torch.where(done[:, t], time[:, t] + duration[:, t], last)
        good = torch.where(done[:, t], success[:, t], good)
        ended = ended | done[:, t]
        length[:, t], solved[:, t], complete[:, t] = last, good, ended
    num_broken = torch.zeros_like(number).scatter_add(1, number, invalid.long())  # by episode
    chosen = complete & (duration > 0) & (num_broken.gather(1, number) == 0)

    # rows, environment by environment
    rows = sub_dict(rollout.select(MODEL_INPUT, "chain"), chosen)
    action = policy.preprocessor.unnormalize_action(  # (N, H, A) -> (N, H, d)
        rows["chain"][:, -1].to(policy.device), ModelInput.of(rows).robot_state.to(policy.device)
    )
    # a different number for each episode of each environment, renumbered from 0
    place = (torch.arange(len(done))[:, None].to(number) * (done.shape[1] + 1) + number)[chosen]
    task = rollout["task_id"][chosen] if "task_id" in rollout.keys() else torch.zeros_like(place)
    entries: dict[str, Entry] = {
        MODEL_INPUT: rows[MODEL_INPUT],
        "action": action,
        "time": time[chosen],
        "length": length[chosen],
        "episode": first_episode + place.unique(return_inverse=True)[1],
        "solved": solved[chosen],
        "task": task.reshape(-1).long(),
        "forced": torch.zeros_like(place, dtype=torch.bool),
    }
    return TensorDict(entries, [len(place)]).cpu()


def join(first: TensorDictBase, second: TensorDictBase) -> TensorDictBase:
    """Return the rows of two tables, whose episodes stay different.

    Where only one marks steps past an episode's end, the other's chunks have none.
    """
    parts = [first.copy(), second.copy()]
    # the episodes of the second table follow those of the first
    if len(first) and len(second):
        parts[1]["episode"] = second["episode"] - second["episode"][0] + first["episode"][-1] + 1
    if any(IS_PAD in part.keys() for part in parts):
        for part in parts:
            if IS_PAD not in part.keys():
                part[IS_PAD] = torch.zeros(part["action"].shape[:2], dtype=torch.bool)
    joined: TensorDictBase = TensorDict.cat([part for part in parts if len(part)])
    return joined


def newest(rows: TensorDictBase, capacity: int) -> TensorDictBase:
    """Return the newest whole episodes of a table (N) that have at most `capacity` rows.

    The newest one is kept even if it has more.
    """
    if len(rows) <= capacity:
        return rows
    episode = rows["episode"]
    first = int(episode[len(rows) - capacity - 1]) + 1  # the first whole one after the cut
    return sub_dict(rows, episode >= min(first, int(episode[-1])))
