"""From a rollout to the decisions that a policy gradient learns from, with a critic's advantages.

Letters: E envs, T chunk decisions, B decisions, M scored flow steps.
"""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor

from pitune.policies import FlowPolicy, LikelihoodActor
from pitune.rl.experience.transitions import in_parts, next_encoded
from pitune.rl.policy_gradient.advantage import TimeLimit, generalized_advantage, standardize
from pitune.rl.policy_gradient.value import ValueCritic, explained_variance


@torch.no_grad()
def judged_decisions(
    rollout: TensorDictBase,
    actor: LikelihoodActor,
    critic: ValueCritic,
    *,
    discount: float,
    gae_lambda: float,
    time_limit: TimeLimit,
    normalize_returns: bool = False,
) -> tuple[TensorDictBase, dict[str, float]]:
    """Return the valid decisions (B) of a rollout (E, T) and what they tell of the critic.

    They carry what the actor needs to score them, `advantage` (standardized over the batch),
    `state_value` and `value_target` (B, 1). Decisions in a simulator that broke down are left out.
    """
    rollout = rollout.to(actor.policy.device).copy()
    if critic.feature_dim and "features" not in rollout["next"].keys():
        add_next_features(actor.policy, rollout)
    rollout["state_value"] = critic.value(rollout)
    rollout["next", "state_value"] = critic.value(rollout["next"])
    advantage, target = generalized_advantage(rollout, discount, gae_lambda, time_limit)
    rollout["value_target"], rollout["advantage"] = target, advantage
    keys = [*actor.in_keys, *critic.in_keys]
    keys += [key for key in actor.out_keys if key != "action"]
    keys += ["value_target", "advantage", "state_value"]
    valid = ~rollout["next", "invalid"].squeeze(-1)
    batch = rollout.select(*dict.fromkeys(keys))[valid]
    batch["advantage"] = standardize(batch["advantage"])
    metrics = {
        "value": float(batch["state_value"].mean()),
        "explained_variance": explained_variance(batch["state_value"], batch["value_target"]),
        "advantage_std": float(advantage[valid].std()),
        "terminal_std": actor.terminal_std(batch[:TERMINAL_ROWS]),
    }
    if normalize_returns:
        critic.rescale(batch["value_target"])
        metrics["return_std"] = float(critic.return_std)
    return batch, metrics


TERMINAL_ROWS = 32
"""Decisions whose last flow step is measured; each costs a prefix."""


def add_next_features(policy: FlowPolicy, rollout: TensorDictBase) -> None:
    """Enter the pooled `features` of the observations that decisions ended in.

    Those of the decisions' own observations were kept when acting, so only last observations are
    encoded. The critic reads those of the policy that gathered, also while its vision is trained.
    """

    def encode(obs: TensorDictBase) -> Tensor:
        return in_parts(obs, lambda part: policy.encode(part).features)

    rollout["next", "features"] = next_encoded(rollout, rollout["features"], encode)


@torch.no_grad()
def rescored(
    batch: TensorDictBase, actor: LikelihoodActor, size: int
) -> tuple[TensorDictBase, dict[str, float]]:
    """Return decisions (B) whose old log-probabilities are those of the training forward.

    Sampling runs the flow step by step, scoring runs all steps at once, perhaps in another
    precision or on other kernels; the metrics say how far apart the two are [nats].

    Args:
        batch: With `chain` and `action_log_prob`, of the present policy.
        actor: Scores them.
        size: Decisions per pass; as in training, so that the rounding is the same.
    """
    new = torch.cat([actor.get_dist(part).log_prob(part["chain"]) for part in batch.split(size)])
    gap = (new - batch["action_log_prob"]).abs()
    metrics = {"log_prob_gap": float(gap.mean()), "log_prob_gap_max": float(gap.max())}
    return batch.copy().set("action_log_prob", new), metrics
