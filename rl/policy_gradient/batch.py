"""The batch of a policy gradient: the decisions of a rollout with a critic's advantages.

Letters: E envs, T chunk decisions, B minibatch rows.
"""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor

from pitune.policies import FlowPolicy, LikelihoodActor, ModelInput
from pitune.policies.host_prefixes import on_device
from pitune.rl import ranks
from pitune.rl.experience.history import with_history
from pitune.rl.experience.keys import select_decisions
from pitune.rl.experience.sub_dict import sub_dict
from pitune.rl.experience.transitions import encode_next, in_parts
from pitune.rl.policy_gradient.advantage import generalized_advantage, standardize, value_size
from pitune.rl.policy_gradient.config import AdvantageConfig
from pitune.rl.policy_gradient.information import Information
from pitune.rl.policy_gradient.value import ValueCritic, explained_variance


@torch.no_grad()
def advantage_batch(
    rollout: TensorDictBase,
    actor: LikelihoodActor,
    critic: ValueCritic,
    config: AdvantageConfig,
    information: Information,
    memory_decisions: int = 1,
) -> tuple[TensorDictBase, dict[str, float]]:
    """Return the valid decisions (B) of a rollout (E, T), and metrics of the critic.

    They have the entries that the actor needs for scoring, `advantage` (standardized over the
    batch), `state_value` and `value_target` (B, 1). Decisions in a broken simulator are left out.
    All advantages are 0 if they carry no information.

    Args:
        rollout: The decisions.
        actor: Has collected them.
        critic: Its values.
        config: Discount and weights.
        information: Of earlier rollouts.
        memory_decisions: Decisions that a gradient flows through, for a policy with a memory.
    """
    # values before and after each decision
    rollout = on_device(rollout, actor.policy.device)
    if critic.feature_dim and "features" not in sub_dict(rollout, "next").keys():
        add_next_features(actor.policy, rollout)
    rollout["state_value"] = critic.value(rollout)  # (E, T, 1)
    rollout["next", "state_value"] = critic.value(sub_dict(rollout, "next"))

    # advantages
    advantage, target = generalized_advantage(
        rollout, config.discount, config.gae_lambda, config.time_limit
    )
    rollout["value_target"], rollout["advantage"] = target, advantage

    # valid decisions
    valid: Tensor = ~rollout["next", "invalid"].squeeze(-1)  # (E, T)
    rollout = with_history(rollout, actor.policy, memory_decisions)
    entries = (actor.in_keys, critic.in_keys, actor.out_keys, ADVANTAGE_KEYS)
    batch = sub_dict(select_decisions(rollout, *entries), valid)
    if not ranks.least(len(batch)):  # of all ranks, which must go on alike
        return sub_dict(batch, slice(0)), {"informative": 0.0}
    informative = information.of(rollout, batch["advantage"])
    size = value_size(batch)
    raw_std = float(ranks.std(batch["advantage"]))
    batch["advantage"] = standardize(batch["advantage"], size=size) * informative

    # metrics
    metrics = {
        "informative": float(informative),
        "value": float(batch["state_value"].mean()),
        "explained_variance": explained_variance(batch["state_value"], batch["value_target"]),
        "advantage_std": raw_std,
        "terminal_std": actor.terminal_std(sub_dict(batch, slice(TERMINAL_ROWS))),
    }
    if config.normalize_returns:
        critic.rescale(batch["value_target"])
        metrics["return_std"] = float(critic.return_std)
    return batch, metrics


ADVANTAGE_KEYS = ("value_target", "advantage", "state_value")
"""Entries that a critic adds to decisions."""
TERMINAL_ROWS = 32
"""Number of decisions for `terminal_std`. Each one encodes a prefix."""


def add_next_features(policy: FlowPolicy, rollout: TensorDictBase) -> None:
    """Add the pooled `features` of the next observations to a rollout (E, T).

    The actor has stored those of the decisions' own observations, so only the last observations of
    episodes are encoded. The critic gets the features of the policy that collected the rollout,
    even while the vision tower is trained.
    """

    def encode(obs: TensorDictBase) -> Tensor:
        return in_parts(
            obs, lambda part: policy.encode(ModelInput.of(part), with_null=False).features
        )

    rollout["next", "features"] = encode_next(rollout, rollout["features"], encode)
