"""Entries of demonstrated chunks from which the task-status head learns.

Letters: N rows, L prompt tokens.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor

from pitune.policies import FlowPolicy
from pitune.policies.preprocessing.model_input import task_numbers
from pitune.rl.experience.demonstrations import Demonstrations
from pitune.rl.experience.sub_dict import Entry

STEPS_LEFT, OTHER_PROMPT = "steps_left", "other_prompt"
"""Steps to the end of a successful episode (N,) int64, 0 in one without success; and `tokens`,
`token_mask` (N, L) and `exists` (N,) of another task's instruction in the same state."""


def with_status_rows(
    policy: FlowPolicy, demonstrations: Demonstrations, chunks: TensorDict
) -> TensorDict:
    """Return chunks (N) with the entries of a policy's status head, unchanged if it has none.

    Args:
        policy: The policy to train.
        demonstrations: The steps (N) as they were recorded.
        chunks: Their chunks.
    """
    if not policy.network.config.options.status.is_on:
        return chunks
    # steps to the episode's end (N,), 0 where it has no success
    num = len(demonstrations.action)
    last = torch.searchsorted(demonstrations.episode, demonstrations.episode, right=True) - 1
    left = (last - torch.arange(num) + 1) * demonstrations.solved()
    entries: dict[str, Entry] = {STEPS_LEFT: left}
    if policy.preprocessor.config.prompt is not None and len(demonstrations.tasks) > 1:
        entries[OTHER_PROMPT] = _other_prompts(policy, demonstrations)
    return chunks.update(entries)


def _other_prompts(policy: FlowPolicy, demonstrations: Demonstrations) -> TensorDict:
    """Return prompts (N) with the words of another task, by a generator of their own.

    A task whose words all others share has none.
    """
    tasks, task_id = demonstrations.tasks, demonstrations.obs["task_id"]
    generator = torch.Generator().manual_seed(0)
    other = task_id.clone()
    for number, words in enumerate(tasks):
        # tasks with equal words are no other task
        choices = torch.tensor([i for i, text in enumerate(tasks) if text != words])
        rows = (task_id == number).nonzero().flatten()
        if len(choices) and len(rows):
            drawn = torch.randint(len(choices), (len(rows),), generator=generator)
            other[rows] = choices[drawn]
    preprocess = policy.observation_preprocessor(tasks)
    names = [name for name in policy.obs_keys if not name.startswith("image/")]
    obs = TensorDict({name: demonstrations.obs[name] for name in names}, [len(task_id)])
    inputs = preprocess.prompts(obs.set("task_id", other))
    exists: Tensor = other != task_id
    entries = {"tokens": inputs[0].cpu(), "token_mask": inputs[1].cpu(), "exists": exists}
    if policy.condition_tasks:
        entries["task_id"] = task_numbers(policy.condition_tasks, tasks)[other]
    return TensorDict(entries, batch_size=[len(task_id)])
