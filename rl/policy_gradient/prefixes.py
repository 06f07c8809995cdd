"""Whether a rollout holds the encoded pictures and prompts of its decisions.

While the VLM is frozen, the actor encodes each observation once, and every gradient step reads the
result. At π0's full size with two cameras, encoding is 86 % of the operations of a gradient step.

Letters: E envs, T chunk decisions.
"""

from __future__ import annotations

import torch

from pitune.policies import LikelihoodActor
from pitune.policies.finetuning.memory import GIB, example_input, readable
from pitune.policies.network.context import pack

NUM_COPIES = 3
"""Greatest number of copies of a prefix: the collector's, the batch's, and a minibatch's or those
of an earlier rollout."""


@torch.no_grad()
def plan_prefixes(actor: LikelihoodActor, num_decisions: int, budget_gib: float) -> list[str]:
    """Let an actor keep its prefixes if the VLM is frozen and they fit. Return notes for the user.

    Args:
        actor: Collects the rollouts.
        num_decisions: E * T.
        budget_gib: Memory for the prefixes [GiB]. 0 keeps none.
    """
    if not budget_gib or not actor.policy.prefix_is_frozen:
        return []
    prefix = pack(actor.policy.encode_prefix(example_input(actor.policy)))
    row = sum(value.nbytes for value in prefix.values())
    needed = NUM_COPIES * num_decisions * row
    if needed <= budget_gib * GIB:
        actor.keep_prefixes()
        return []
    return [
        f"the encoded observations of {num_decisions:,} decisions need {readable(needed)}, more "
        f"than prefix_gib={budget_gib:g}, so every gradient step encodes its observations again; "
        "raise prefix_gib or lower num_chunks"
    ]
