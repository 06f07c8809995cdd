"""Weights, gradients and optimizer of a π0 split over several processes, by PyTorch's FSDP2.

Each process keeps an equal part of every tensor. A forward pass gathers the weights of a layer, and
they stay until the backward pass, which gathers them again if it must, returns each process its
part of the mean gradient, and frees the rest. Acting has no backward pass, so it computes with all
weights after `gather`, and processes may act different numbers of times.

A policy calls the network's methods and not its `forward`, so they are registered as such.
Source: Zhao et al. 2023 (FSDP). The gathered weights make it the second stage of ZeRO for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from pitune.policies.network.gemma import Layer
from pitune.policies.network.held_casts import hold_casts
from pitune.policies.network.pi0 import Pi0
from pitune.policies.network.siglip import VisionLayer
from pitune.policies.policy import FlowPolicy

FORWARD_METHODS = ("encode", "encode_prefix", "embed_pictures", "with_state", "velocity")
"""Methods of the network that compute with its weights from outside."""


def shard(policy: FlowPolicy) -> FlowPolicy:
    """Split a policy's network over all processes, in place, and return the policy.

    Call it on every process, after `pitune.policies.apply_finetuning` and before an algorithm or an
    optimizer is made. All processes must have the same weights.

    Raises:
        ValueError: there is one process.

    Example:
        >>> policy = shard(apply_finetuning(policy, FinetuneConfig()))  # doctest: +SKIP
    """
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        raise ValueError(
            "shard=True splits the weights over several processes, and there is one; start with "
            "torchrun --nproc-per-node 2, or pass --no-shard"
        )
    network = policy.network
    # without memory, for copies: FSDP's modules cannot be copied
    network.blueprint = (_without_memory(network),)
    _split(network, policy.device)
    return policy


def is_sharded(module: nn.Module) -> bool:
    """Return whether a module is, or contains, a network that `shard` has split."""
    return any(isinstance(part, FSDPModule) for part in module.modules())


def _split(network: Pi0, device: torch.device) -> None:
    hold_casts(network, False)  # they would keep gathered weights of the last step
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    # layers first, so that the root shards only the parameters outside of them
    for module in network.modules():
        if isinstance(module, Layer | VisionLayer):
            fully_shard(module, mesh=mesh, reshard_after_forward=False)
    fully_shard(network, mesh=mesh, reshard_after_forward=False)
    for name in FORWARD_METHODS:
        register_fsdp_forward_method(network, name)


def _without_memory(network: Pi0) -> Pi0:
    """Return a copy of a network on the meta device."""
    # `deepcopy` takes these in place of the real tensors, so no weight is copied
    memo: dict[int, Any] = {
        id(value): nn.Parameter(value.to("meta"), requires_grad=value.requires_grad)
        for value in network.parameters()
    }
    memo |= {id(value): value.to("meta") for value in network.buffers()}
    return deepcopy(network, memo)


def gather(module: nn.Module) -> None:
    """Gather all weights of a sharded module, if it is one, so that acting waits for nobody.

    Every process calls it. The next backward pass frees them.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.unshard()


def release(module: nn.Module) -> None:
    """Free the gathered weights, so that parameters are the parts of this process again."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def copied_networks(module: nn.Module) -> dict[int, Pi0]:
    """Return a sharded copy of each sharded network inside a module, by the network's id.

    They are a `memo` for `copy.deepcopy` of the module. Every process calls it.
    """
    networks = [part for part in module.modules() if isinstance(part, Pi0) and is_sharded(part)]
    return {id(network): _copied(network) for network in networks}


@torch.no_grad()
def _copied(network: Pi0) -> Pi0:
    release(network)
    device = next(network.parameters()).device
    copy: Pi0 = deepcopy(network.blueprint[0])
    copy.blueprint = network.blueprint
    # sharded before it has memory, so no rank ever holds all weights of the copy
    _split(copy, device)
    copy.to_empty(device=device)
    for mine, theirs in zip(_tensors(copy), _tensors(network), strict=True):
        part_of(mine).copy_(part_of(theirs))
    return copy


def _tensors(network: nn.Module) -> Iterable[Tensor]:
    return [*network.parameters(), *network.buffers()]


def part_of(tensor: Tensor) -> Tensor:
    """Return this process's part of a sharded tensor, and any other as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Return all of a sharded tensor, on every process, and any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def unsharded(policy: FlowPolicy) -> FlowPolicy:
    """Return a policy whose weights are all in the main memory of the first process.

    On the others its network is on the meta device. A policy that is not sharded is returned as it
    is. Every process calls it.
    """
    if not is_sharded(policy.network):
        return policy
    release(policy.network)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(policy.network, options=options)
    network: Pi0 = deepcopy(policy.network.blueprint[0])
    if weights:  # empty on the other processes
        network.load_state_dict(weights, assign=True)
    return policy.replace(network=network)


def load_weights(policy: FlowPolicy, weights: Mapping[str, Tensor]) -> None:
    """Load all weights of a policy, of which a sharded one takes its part.

    Args:
        policy: Changed in place.
        weights: `state_dict` of a policy that is not sharded, on every process.
    """
    if not is_sharded(policy):
        policy.load_state_dict(weights)
        return
    release(policy.network)
    options = StateDictOptions(full_state_dict=True)
    set_model_state_dict(policy, dict(weights), options=options)
