"""Conditions that a policy acts with, and guidance by dropping them.

The network's kinds of conditions are those of `NetworkOptions.conditioning`.
Letters: N rows.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from tensordict import TensorDictBase
from torch import Tensor

from pitune.policies.flow.guidance import GuidanceConfig, GuidedField
from pitune.policies.flow.path import VelocityField
from pitune.policies.network.config import Pi0Config
from pitune.policies.network.context import Context
from pitune.policies.network.gemma import Cache
from pitune.policies.network.options.tokens.conditioning import (
    DROPPED,
    NEGATIVE,
    POSITIVE,
    condition_of,
    drop_conditions,
)
from pitune.policies.network.pi0 import Pi0
from pitune.policies.policy_config import SamplerConfig
from pitune.policies.preprocessing.images import scaled_pictures
from pitune.policies.preprocessing.model_input import MODEL_INPUT, ModelInput

_INDEX = {"positive": POSITIVE, "negative": NEGATIVE, "dropped": DROPPED}


def check_guidance(network: Pi0Config, sampler: SamplerConfig) -> None:
    """Check that a policy can act with its guidance.

    Raises:
        ValueError: it cannot.
    """
    guidance = sampler.guidance
    if guidance.advantage != "positive" and not network.options.conditioning.advantage:
        raise ValueError(
            f"sampler.guidance.advantage={guidance.advantage!r} chooses an advantage, and this "
            "network has none (options.conditioning.advantage); leave it out"
        )
    if not guidance.scale:
        return
    if not network.options.conditioning.kinds:
        raise ValueError(
            f"sampler.guidance.scale={guidance.scale} drops a condition, and this network has none "
            "that was dropped in training (options.conditioning); set guidance.scale=0"
        )
    real_time, several = sampler.real_time, ""
    if sampler.solver != "euler":
        several = f"solver={sampler.solver!r}"
    elif real_time is not None and real_time.method == "guided":
        several = "real_time.method='guided'"
    if guidance.momentum and several:
        raise ValueError(
            f"sampler.guidance.momentum={guidance.momentum} sums one velocity per flow step, and "
            f"{several} evaluates several; set guidance.momentum=0"
        )


def check_stateless(guidance: GuidanceConfig) -> None:
    """Check that each flow step depends on its own point alone, as a likelihood needs.

    Raises:
        ValueError: it does not.
    """
    if guidance.scale and guidance.momentum:
        raise ValueError(
            f"sampler.guidance.momentum={guidance.momentum} makes a flow step depend on the "
            "earlier ones, so its likelihood is not defined; set guidance.momentum=0, it is for "
            "deployed policies"
        )


def acting_condition(network: Pi0, guidance: GuidanceConfig, inputs: ModelInput) -> Tensor | None:
    """Return the conditions (N, kinds) of observations, None for a network without any.

    Observations with a `condition` keep it. The others have the advantage of the settings, the
    highest return, and their instruction.

    Raises:
        ValueError: there is a `condition`, but the network has none, or there is no task.
    """
    option = network.config.options.conditioning
    if not option.kinds:
        if inputs.condition is not None:
            raise ValueError(
                "the observations have a condition, but the network has none "
                "(options.conditioning); leave it out"
            )
        return None
    device = network.action_out_proj.weight.device
    if inputs.condition is not None:
        return inputs.condition.to(device)
    # act towards success: the configured advantage, and the bin of the highest return
    values: dict[str, Tensor | int] = {
        "advantage": _INDEX[guidance.advantage],
        "return": option.return_bins - 1,
    }
    if option.task:
        values["task"] = task_of(inputs)
    return condition_of(option.kinds, len(inputs), values).to(device)


def task_of(inputs: ModelInput) -> Tensor:
    """Return the tasks (N,) of observations, for a velocity that is conditioned on them.

    Raises:
        ValueError: the observations have none.
    """
    if inputs.task_id is None:
        raise ValueError(
            "the velocity is conditioned on the task (options.conditioning.task), and the "
            "observations have no task_id; make them with `policy.observation_preprocessor(tasks)`"
        )
    return inputs.task_id


def encode_words(
    network: Pi0,
    guidance: GuidanceConfig | None,
    inputs: ModelInput,
    with_features: bool = True,
) -> Context:
    """Return encoded pictures and prompts (N), with their null if guidance drops the instruction.

    Args:
        network: Encodes them.
        guidance: Decides whether the null is needed, None without guidance.
        inputs: Observations (N). Rows whose condition drops the instruction have the null's words.
        with_features: Whether critics read the features.
    """
    images = None if inputs.images is None else scaled_pictures(inputs.images)
    parts = images, None, inputs.tokens, inputs.token_mask
    dropped = _dropped(network, inputs.condition)
    is_guided = guidance is not None and guidance.scale
    has_null = bool(is_guided) and network.config.options.conditioning.instruction
    # both prefixes have the same pictures
    embedded = network.embed_pictures(images) if has_null and images is not None else None
    prefix = network.encode_prefix(*parts, dropped, embedded, with_features)
    if dropped is not None:  # `with_dropped` has nothing left to do
        prefix = prefix._replace(condition=inputs.condition)
    if not has_null:
        return prefix
    # the null is the same prefix with the words of every row dropped
    every = torch.ones(len(inputs), dtype=torch.bool, device=inputs.state.device)
    null = network.encode_prefix(*parts, every, embedded, with_features)
    return prefix._replace(null=null)


def encode_state(
    network: Pi0,
    guidance: GuidanceConfig,
    inputs: ModelInput,
    prefix: Context | None,
    state_offset: Tensor | None,
) -> Context:
    """Return the context of observations (N) with their conditions.

    Args:
        network: Encodes the state.
        guidance: Gives the conditions of observations that have none.
        inputs: Observations (N).
        prefix: Their encoded pictures and prompts, if there are any.
        state_offset: See `Pi0.encode`.
    """
    state = inputs.state.to(network.action_out_proj.weight.device)
    context = network.with_state(prefix, state, state_offset)
    null = None if prefix is None else prefix.null
    if null is not None:
        null = network.with_state(null, state, state_offset)
    condition = acting_condition(network, guidance, inputs)
    return context._replace(condition=condition, null=null)


def with_dropped(network: Pi0, prefix: Context | None, condition: Tensor | None) -> Context | None:
    """Return given prefixes (N) in which some rows are those without their instruction.

    Prefixes that were encoded for rows with conditions have dropped it already.

    Args:
        network: Gives the kinds of conditions.
        prefix: Prefixes with their null, or None without any.
        condition: Conditions of the rows (N, kinds), None to drop nothing.

    Raises:
        ValueError: the prefixes were encoded without their null.
    """
    dropped = None if prefix is None else _dropped(network, condition)
    if prefix is None or dropped is None or prefix.condition is not None:
        return prefix
    null = prefix.null
    if null is None:
        raise ValueError(
            "the stored prefixes have no null, so their instruction cannot be dropped; encode the "
            "observations again, or store prefixes with sampler.guidance.scale above 0"
        )
    dropped = dropped.to(prefix.features.device)
    cache = _chosen(dropped, null.cache, prefix.cache)
    registers = prefix.registers
    if registers is not None and null.registers is not None:
        registers = _chosen(dropped, null.registers, registers)
    features = torch.where(dropped[:, None], null.features, prefix.features)
    last = prefix.last
    if last is not None and null.last is not None:
        last = torch.where(dropped[:, None], null.last, last)
    return prefix._replace(cache=cache, features=features, last=last, registers=registers)


def _chosen(rows: Tensor, given: Cache, otherwise: Cache) -> Cache:
    """Return the keys and values of one cache in some rows (N,) bool, and of another elsewhere."""
    # (N, 1, 1, 1) against keys and values (N, kv heads, prefix, head dim) of each layer
    rows = rows[:, None, None, None]
    return [
        (torch.where(rows, keys, other_keys), torch.where(rows, values, other_values))
        for (keys, values), (other_keys, other_values) in zip(given, otherwise, strict=True)
    ]


def _dropped(network: Pi0, condition: Tensor | None) -> Tensor | None:
    """Return the rows (N,) bool whose instruction is dropped, None where none can be."""
    kinds = network.config.options.conditioning.kinds
    if condition is None or "instruction" not in kinds:
        return None
    return condition[:, kinds.index("instruction")] == DROPPED


def guided(network: Pi0, context: Context, guidance: GuidanceConfig) -> VelocityField:
    """Return the velocity field of encoded observations, with the guidance of the settings.

    Raises:
        ValueError: the observations were encoded without what guidance needs.
    """
    field = partial(network.velocity, context)
    if not guidance.scale:
        return field
    if context.condition is None:
        raise ValueError("the context has no condition to drop; encode it with `policy.encode`")
    kinds = network.config.options.conditioning.kinds
    if "instruction" in kinds and context.null is None:
        raise ValueError(
            "the context was encoded without its null, which guidance of the instruction needs; "
            "encode it with the policy that samples"
        )
    # without a null of the words, only the vectors of conditions differ
    null = context if context.null is None else context.null
    null = null._replace(condition=torch.full_like(context.condition, DROPPED))
    return GuidedField(field, partial(network.velocity, null), guidance)


def check_dropout(network: Pi0, share: float) -> None:
    """Check that a network has conditions if a share of them is to be dropped.

    Raises:
        ValueError: it has none.
    """
    if share and not network.config.options.conditioning.kinds:
        raise ValueError(
            f"condition_dropout={share} drops conditions, and this network has none; set it to 0, "
            "or add some (--load.options.conditioning.instruction)"
        )


def with_drops(
    network: Pi0, guidance: GuidanceConfig, rows: TensorDictBase, share: float
) -> TensorDictBase:
    """Return rows (N) of whose conditions a random share is dropped.

    Args:
        network: Gives the kinds of conditions.
        guidance: Gives the conditions of rows that have none.
        rows: Rows with `model_input`.
        share: Share of each kind [-]. 0 returns the rows as they are.
    """
    if not share:
        return rows
    check_dropout(network, share)
    inputs = ModelInput.of(rows)
    condition = acting_condition(network, guidance, inputs)
    if condition is not None:
        inputs = replace(inputs, condition=drop_conditions(condition, share))
    return rows.copy().set(MODEL_INPUT, inputs.tensordict())
