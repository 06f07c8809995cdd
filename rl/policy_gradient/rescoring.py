"""Old log-probabilities from the training forward, where the sampler's are too coarse.

Sampling runs the flow steps one after another and scoring runs them together. In float32 the two
differ by rounding. In bfloat16 the difference moves ratios by 0.1 to 0.2 before the first step,
which the clip takes for learning.
Letters: B rows, M scored flow steps (or draws).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDictBase
from torch import Tensor

from pitune.policies import FlowPolicy, LikelihoodActor
from pitune.policies.host_prefixes import fetched
from pitune.rl import ranks
from pitune.rl.experience.sub_dict import sub_dict

Score = Callable[[TensorDictBase], Tensor]
"""`decisions (B) -> log-probabilities (B,) or (B, M)`, as in a gradient step."""


def rescores(policy: FlowPolicy, setting: bool | None) -> bool:
    """Return whether to rescore decisions: the setting, or by the precision if it is None."""
    return policy.network.compute_dtype != torch.float32 if setting is None else setting


def rescore_notes(policy: FlowPolicy, setting: bool | None) -> list[str]:
    """Return a warning for a policy that computes in less than float32."""
    dtype = policy.network.compute_dtype
    if dtype == torch.float32:
        return []
    if rescores(policy, setting):
        consequence = (
            "old log-probabilities are computed again by the training forward (rescore); "
            "log_prob_gap is their distance from the sampler's"
        )
    else:
        consequence = (
            "with rescore=False ratios may stray from 1 by 0.1 to 0.2 before the first gradient "
            "step; leave rescore out"
        )
    return [f"warning: the policy computes in {str(dtype).removeprefix('torch.')}: {consequence}"]


def actor_score(actor: LikelihoodActor) -> Score:
    """Return the score of an actor's chains."""

    def score(batch: TensorDictBase) -> Tensor:
        log_prob: Tensor = actor.get_dist(batch).log_prob(batch["chain"])
        return log_prob

    return score


def step_by_step(actor: LikelihoodActor) -> Score:
    """Return the score of chains of which a gradient step scores one flow step per row."""
    one = actor_score(actor)

    def score(batch: TensorDictBase) -> Tensor:
        old = batch["action_log_prob"]  # (B, K)
        columns = []
        for k in range(old.shape[1]):
            step = torch.full((len(batch),), k, device=old.device)
            columns.append(one(batch.copy().set("stochastic_step", step)))
        return torch.cat(columns, dim=1)  # (B, K)

    return score


@torch.no_grad()
def rescore(
    batch: TensorDictBase, score: Score, size: int
) -> tuple[TensorDictBase, dict[str, float]]:
    """Return decisions (B) with old log-probabilities from the training forward.

    The metrics are their distance from the sampler's [nats].

    Args:
        batch: Decisions of the current policy, with `chain` and `action_log_prob`.
        score: Scores decisions as a gradient step does.
        size: Decisions of a forward in training, on all ranks. Rounding depends on it, so every
            pass has as many, and the last one repeats some of the others.
    """
    if not len(batch):
        return batch, {}
    num, size = len(batch), ranks.share(size)
    starts = range(0, num, size)
    parts = []
    for start in starts:
        first = max(0, min(start, num - size))
        log_prob = score(fetched(sub_dict(batch, slice(first, first + size))))
        parts.append(log_prob[start - first :])
    new = torch.cat(parts)  # (B,) or (B, M)
    gap = (new - batch["action_log_prob"]).abs()
    metrics = {"log_prob_gap": float(gap.mean()), "log_prob_gap_max": float(gap.max())}
    return batch.copy().set("action_log_prob", new), metrics
