"""The policy that a training starts from, or that its resumption starts from."""

from __future__ import annotations

from functools import partial

from pitune import policies
from pitune.experiments.distributed.start import first_alone
from pitune.experiments.find_checkpoint import environment_note, with_environment
from pitune.experiments.runs.folder.initial_policy import kept_policy, load_and_keep
from pitune.experiments.runs.progress import screen
from pitune.experiments.runs.train_config import TrainConfig
from pitune.policies import FlowPolicy
from pitune.policies.finetuning.shard import shard
from pitune.rl import ranks


def policy_to_train(config: TrainConfig) -> FlowPolicy:
    """Return the policy of a training before its first update, on its device.

    A run that is resumed takes the copy in its folder.
    """
    kept = config.resume or ranks.rank() > 0  # rank 0 comes first and keeps it
    load = kept_policy if kept else load_and_keep
    policy = first_alone(partial(load, config.out, config.checkpoint, config.load))
    policy = policy.to(config.device)
    note = environment_note(policy, config.env)
    if note is not None:
        screen.note(note)
    policy = with_environment(policy, config.env)
    policy = policy.with_delay(config.delay)
    policies.apply_finetuning(policy, config.finetune)
    if config.compile:
        policy.compile_functions()
    return shard(policy) if config.shard else policy
