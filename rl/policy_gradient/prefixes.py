"""Whether a rollout holds the encoded pictures and prompts of its decisions, and where.

While the VLM is frozen, the actor encodes each observation once, and every gradient step reads the
result. At π0's full size with two cameras, encoding is 86 % of the operations of a gradient step.
A rollout that is too large for the device's budget is held by the host, and each minibatch is
copied to the device.

Letters: E envs, T chunk decisions, B minibatch rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from tensordict import TensorDictBase

from pitune.policies import FlowPolicy, LikelihoodActor
from pitune.policies.finetuning.memory import GIB, example_input, readable
from pitune.policies.host_prefixes import PREFIX, with_host_prefix
from pitune.policies.network.context import pack
from pitune.rl.config import PrefixConfig

NUM_COPIES = 3
"""Greatest number of copies of a prefix in one place: the collector's, the batch's, and a
minibatch's or those of an earlier rollout."""


@dataclass(frozen=True, kw_only=True)
class KeptPrefixes:
    """Memory of the encoded observations that a rollout keeps.

    Example:
        >>> KeptPrefixes(device_bytes=2**20).on_host
        False
    """

    needed_bytes: int = 0
    """All encoded observations of a rollout, in all their copies [bytes]."""
    device_bytes: int = 0
    """Part of the policy's device: all of them, or those of a minibatch [bytes]."""
    host_bytes: int = 0
    """Part of the host [bytes]."""

    @property
    def on_host(self) -> bool:
        """Whether the rollout's are held by the host."""
        return self.host_bytes > 0

    @property
    def anywhere(self) -> bool:
        """Whether they are kept."""
        return self.on_host or self.device_bytes > 0


def plan_prefixes(actor: LikelihoodActor, num_decisions: int, config: PrefixConfig) -> list[str]:
    """Let an actor keep its prefixes if the VLM is frozen and they fit. Return notes for the user.

    Args:
        actor: Collects the rollouts.
        num_decisions: E * T.
        config: Memory for the prefixes.
    """
    plan = kept_prefixes(actor.policy, num_decisions, config)
    if plan.anywhere:
        actor.keep_prefixes(plan.on_host)
    needed = (
        f"the encoded observations of {num_decisions:,} decisions need "
        f"{readable(plan.needed_bytes)}, more than prefix_gib={config.prefix_gib:g}"
    )
    if plan.on_host:
        return [f"{needed}, so the host holds them and each gradient step copies those of its rows"]
    if plan.anywhere or not plan.needed_bytes:
        return []
    memory = actor.policy.has_memory
    limit = "" if memory else f" and prefix_host_gib={config.prefix_host_gib:g}"
    advice = "raise prefix_gib" if memory else "raise one of them"
    return [
        f"{needed}{limit}, so every gradient step encodes its observations again; {advice} or "
        "lower num_chunks"
    ]


def kept_prefixes(
    policy: FlowPolicy, num_decisions: int, config: PrefixConfig, minibatch_size: int = 1
) -> KeptPrefixes:
    """Return the memory of the encoded observations that a rollout keeps.

    They are all on the device, or all on the host. Those of a policy with a memory are never on the
    host, because each decision reads the observations of several ones before it.

    Args:
        policy: Encodes the observations.
        num_decisions: E * T.
        config: Memory for the prefixes.
        minibatch_size: B.
    """
    if not config.prefix_gib or not policy.prefix_is_frozen:
        return KeptPrefixes()
    row = _row_bytes(policy)
    needed = NUM_COPIES * num_decisions * row
    if needed <= config.prefix_gib * GIB:
        return KeptPrefixes(needed_bytes=needed, device_bytes=needed)
    if policy.has_memory or needed > config.prefix_host_gib * GIB:
        return KeptPrefixes(needed_bytes=needed)
    minibatch = min(minibatch_size, num_decisions) * row
    return KeptPrefixes(needed_bytes=needed, device_bytes=minibatch, host_bytes=needed)


def prefix_config(config: Any) -> PrefixConfig:
    """Return the memory for prefixes of an algorithm's settings, none if they name none."""
    if isinstance(config, PrefixConfig):
        return config
    blocks = [getattr(config, entry.name) for entry in fields(config)]
    found = [prefix_config(block) for block in blocks if is_dataclass(block)]
    return max(found, key=lambda each: each.prefix_gib, default=PrefixConfig(prefix_gib=0.0))


def prefixes_together(
    parts: Sequence[TensorDictBase], actor: LikelihoodActor
) -> list[TensorDictBase]:
    """Return decisions (B) of several rollouts with their prefixes in the actor's place.

    A checkpoint's decisions are on the host. If some have no prefixes, none have.
    """
    device, held = actor.policy.device, all(PREFIX in part.keys() for part in parts)
    if not held or not actor.prefixes_on_host:
        return [(part if held else part.exclude(PREFIX)).to(device) for part in parts]
    return [with_host_prefix(part.exclude(PREFIX).to(device), part[PREFIX]) for part in parts]


@torch.no_grad()
def _row_bytes(policy: FlowPolicy) -> int:
    """Return the size of one encoded observation [bytes]."""
    prefix = pack(policy.encode_prefix(example_input(policy)))
    # nested entries too: the null of guidance, and registers
    return sum(prefix[key].nbytes for key in prefix.keys(True, True))
