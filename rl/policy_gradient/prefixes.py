"""Whether a rollout holds the encoded pictures and prompts of its decisions.

While the VLM is frozen, the actor encodes each observation once, and every gradient step reads the
result. At π0's full size with two cameras, encoding is 86 % of the operations of a gradient step.

Letters: E envs, T chunk decisions.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

import torch

from pitune.policies import FlowPolicy, LikelihoodActor
from pitune.policies.finetuning.memory import GIB, example_input, readable
from pitune.policies.network.context import pack
from pitune.rl.config import PrefixConfig

NUM_COPIES = 3
"""Greatest number of copies of a prefix: the collector's, the batch's, and a minibatch's or those
of an earlier rollout."""


def plan_prefixes(actor: LikelihoodActor, num_decisions: int, budget_gib: float) -> list[str]:
    """Let an actor keep its prefixes if the VLM is frozen and they fit. Return notes for the user.

    Args:
        actor: Collects the rollouts.
        num_decisions: E * T.
        budget_gib: Memory for the prefixes [GiB]. 0 keeps none.
    """
    if not budget_gib or not actor.policy.prefix_is_frozen:
        return []
    if kept_prefix_bytes(actor.policy, num_decisions, budget_gib):
        actor.keep_prefixes()
        return []
    needed = _needed_bytes(actor.policy, num_decisions)
    return [
        f"the encoded observations of {num_decisions:,} decisions need {readable(needed)}, more "
        f"than prefix_gib={budget_gib:g}, so every gradient step encodes its observations again; "
        "raise prefix_gib or lower num_chunks"
    ]


def kept_prefix_bytes(policy: FlowPolicy, num_decisions: int, budget_gib: float) -> int:
    """Return the memory of the encoded observations that a rollout keeps [bytes], 0 for none.

    Args:
        policy: Encodes the observations.
        num_decisions: E * T.
        budget_gib: Memory for the prefixes [GiB].
    """
    if not budget_gib or not policy.prefix_is_frozen:
        return 0
    needed = _needed_bytes(policy, num_decisions)
    return needed if needed <= budget_gib * GIB else 0


def prefix_budget(config: Any) -> float:
    """Return the `prefix_gib` of an algorithm's settings, wherever it is, or 0 without one."""
    if isinstance(config, PrefixConfig):
        return config.prefix_gib
    blocks = (getattr(config, entry.name) for entry in fields(config))
    return max((prefix_budget(block) for block in blocks if is_dataclass(block)), default=0.0)


@torch.no_grad()
def _needed_bytes(policy: FlowPolicy, num_decisions: int) -> int:
    """Return the size of the encoded observations of a rollout, in all their copies [bytes]."""
    prefix = pack(policy.encode_prefix(example_input(policy)))
    # nested entries: the null of guidance, and registers
    row = sum(value.nbytes for value in prefix.values(include_nested=True, leaves_only=True))
    return NUM_COPIES * num_decisions * row
