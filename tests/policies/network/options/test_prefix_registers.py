"""Registers of the prefix: a pass written anew, predicted text, insulation and kept prefixes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu

from network_options import perturb
from pitune.policies import FinetuneConfig, NetworkOptions, Pi0, apply_finetuning
from pitune.policies.network.config import LAPTOP_EXPERT, Family, Pi0Config, tiny
from pitune.policies.network.layers import rotary_angles, rotate
from pitune.policies.network.options.insulation import InsulationConfig
from pitune.policies.network.options.language_head import (
    LanguageHeadConfig,
    extend,
    text_of,
    token_loss,
)
from pitune.policies.network.options.tokens.registers import PREFIX_REGISTERS, RegistersConfig
from pitune.rl.config import PrefixConfig
from pitune.rl.policy_gradient.prefixes import NUM_COPIES, kept_prefixes
from vision_policies import vision_policy

HEAD = LanguageHeadConfig(enabled=True)
NUM = 2
"""Registers of the prefix."""


def make_network(
    num: int = NUM, trained: bool = True, family: Family = "pi0", insulated: bool = False
) -> Pi0:
    """Return a tiny network with a language head, and registers in both places."""
    torch.manual_seed(0)
    plain = Pi0(replace(tiny(family, image_size=28, action_horizon=4)))
    options = NetworkOptions(
        language_head=HEAD,
        registers=RegistersConfig(num=num, prefix=num),
        insulation=InsulationConfig(enabled=insulated),
    )
    network = Pi0(replace(plain.config, options=options))
    network.load_state_dict(plain.state_dict(), strict=False)
    if trained:
        perturb(network)
    return network


def given(seed: int = 0) -> dict[str, Any]:
    """Return inputs of two rows with an absent camera and padding."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "images": 2 * torch.rand(2, 2, 3, 28, 28, generator=generator) - 1,
        "image_mask": torch.tensor([[True, True], [True, False]]),
        "tokens": torch.randint(3, 900, (2, 6), generator=generator),
        "token_mask": torch.tensor([[True] * 4 + [False] * 2, [True] * 6]),
    }


def text(length: int = 5) -> tuple[Tensor, Tensor]:
    mask = torch.ones(2, length, dtype=torch.bool)
    mask[0, 3:] = False
    return torch.randint(3, 900, (2, length), generator=torch.Generator().manual_seed(1)), mask


def vlm_of(network: Pi0) -> Any:
    assert network.vlm is not None
    return network.vlm


def hidden_of_text(network: Pi0, rows: dict[str, Any]) -> Tensor:
    words, mask = text()
    hidden, _ = extend(
        vlm_of(network).language_model, text_of(network.encode_prefix(**rows)), words, mask
    )
    return hidden[mask]


def joint(network: Pi0, with_registers: bool = True) -> Tensor:
    """Return the text's hidden states of one pass over prefix, registers and text, written anew."""
    tower, registers = vlm_of(network).language_model, vlm_of(network).registers.tokens
    words, word_mask = text()
    prefix, valid = network.embed_prefix(**given())
    embedded = tower.embed_tokens(words) * math.sqrt(prefix.shape[-1])
    n, r, t = prefix.shape[1], len(registers), words.shape[1]
    h = torch.cat([prefix, registers.expand(2, -1, -1), embedded], dim=1)
    count = valid.sum(1, keepdim=True)
    positions = [valid.cumsum(1) - 1, count + torch.arange(r), count + word_mask.cumsum(1) - 1]
    rotation = rotary_angles(torch.cat(positions, dim=1).clamp(min=0), 16)
    # who attends to the published tokens (B, all, all): nobody to registers
    mask = torch.zeros(2, n + r + t, n + r + t, dtype=torch.bool)
    mask[:, :, :n] = valid[:, None]
    mask[:, n + r :, n + r :] = torch.ones(t, t).tril().bool() & word_mask[:, None]
    for layer in tower.layers:
        x = layer.input_layernorm(h, None)[0]
        query, key, value = (
            getattr(layer.self_attn, name)(x).unflatten(-1, (-1, 16)).transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        query, key = rotate(query, rotation), rotate(key, rotation)
        scores = query @ key.transpose(2, 3) / 4
        y = scores.masked_fill(~mask[:, None], -1e30).softmax(-1) @ value
        if with_registers:
            gate = layer.self_attn.gates["registers"].gate.tanh()[:, None, None]
            y = y + gate * (scores[..., n : n + r].softmax(-1) @ value[:, :, n : n + r])
        h = h + layer.self_attn.o_proj(y.transpose(1, 2).flatten(2))
        z = layer.post_attention_layernorm(h, None)[0]
        inner = gelu(layer.mlp.gate_proj(z), approximate="tanh") * layer.mlp.up_proj(z)
        h = h + layer.mlp.down_proj(inner)
    found: Tensor = tower.norm(h, None)[0][:, n + r :]
    return found[word_mask]


@torch.no_grad()
def test_prefix_registers_and_text_equal_one_pass_that_is_written_anew() -> None:
    network = make_network()
    found = hidden_of_text(network, given())
    assert float((found - joint(network)).abs().max()) < 2e-5
    assert float((found - joint(network, with_registers=False)).abs().max()) > 1e-3  # the control


@pytest.mark.parametrize("family", ["pi0", "pi05"])
@torch.no_grad()
def test_untrained_registers_leave_text_features_and_flow_as_they_are(family: Family) -> None:
    plain = make_network(0, family=family)
    words, mask = text()
    x, time = torch.randn(2, 1, 4, 32), torch.full((2, 1), 0.4)
    found = []
    for network in (plain, make_network(family=family, trained=False), make_network(family=family)):
        tower, prefix = vlm_of(network).language_model, network.encode_prefix(**given())
        loss = token_loss(tower, text_of(prefix), words, mask)
        velocity = network.velocity(network.with_state(prefix, torch.ones(2, 32)), x, time).velocity
        found.append((hidden_of_text(network, given()), loss, prefix.features, velocity))
    assert all(torch.equal(a, b) for a, b in zip(found[0], found[1], strict=True))
    assert all(float((a - b).abs().max()) > 1e-4 for a, b in zip(found[0], found[2], strict=True))


@torch.no_grad()
def test_prefix_registers_are_dropped_and_padding_changes_nothing() -> None:
    network, rows = make_network(), given()
    prefix = network.encode_prefix(**rows)
    tokens = 2 * 4 + 6  # patches of two cameras, and the prompt
    assert prefix.cache[0][0].shape[2] == tokens
    assert prefix.registers is not None
    assert prefix.registers[0][0].shape[2] == NUM
    before = hidden_of_text(network, rows)
    rows["tokens"] = torch.where(rows["token_mask"], rows["tokens"], 17)
    rows["images"][1, 1] = 0.3  # the absent camera
    assert torch.equal(hidden_of_text(network, rows), before)
    rows["images"][0, 0] = 0.3  # the control
    assert not torch.equal(hidden_of_text(network, rows), before)


@pytest.mark.parametrize("insulated", [True, False])
def test_insulation_keeps_the_flow_out_of_the_prefix_registers_and_text_trains_them(
    insulated: bool,
) -> None:
    network = make_network(insulated=insulated)
    registers = vlm_of(network).registers.tokens
    context = network.encode(torch.ones(2, 32), **given())
    x, time = torch.randn(2, 1, 4, 32), torch.full((2, 1), 0.4)
    loss = network.velocity(context, x, time).velocity.square().mean()
    gradient = torch.autograd.grad(loss, registers, retain_graph=True, allow_unused=True)[0]
    assert (gradient is None or float(gradient.abs().max()) == 0) == insulated
    # the expert's gates have one in both cases
    gates = [layer.self_attn.gates[PREFIX_REGISTERS].gate for layer in network.expert.layers]  # type: ignore[union-attr, index]
    assert all(float(g.abs().max()) > 0 for g in torch.autograd.grad(loss, gates))
    words, mask = text()
    of_text = token_loss(vlm_of(network).language_model, text_of(context), words, mask).mean()
    assert float(torch.autograd.grad(of_text, registers)[0].abs().max()) > 0


def test_kept_prefixes_count_their_registers_and_are_kept_only_if_these_are_frozen() -> None:
    sizes = {}
    for num in (0, NUM):
        policy = vision_policy()
        options = NetworkOptions(registers=RegistersConfig(prefix=num))
        network = Pi0(replace(policy.network.config, options=options))
        policy = policy.replace(network=network)
        policy = apply_finetuning(policy, FinetuneConfig(trainable=("action_expert",)))
        sizes[num] = kept_prefixes(policy, 10, PrefixConfig(prefix_gib=1.0)).device_bytes
    tower = network.config.vlm
    assert tower is not None
    row = NUM * tower.depth * 2 * tower.num_kv_heads * tower.head_dim * 4  # float32
    assert sizes[NUM] - sizes[0] == NUM_COPIES * 10 * row
    trained = apply_finetuning(policy, FinetuneConfig(trainable=("registers",)))
    assert not trained.prefix_is_frozen
    assert not kept_prefixes(trained, 10, PrefixConfig(prefix_gib=1.0)).anywhere


def test_prefix_registers_need_a_language_model() -> None:
    options = NetworkOptions(registers=RegistersConfig(prefix=1))
    with pytest.raises(ValueError, match=r"options\.registers\.prefix=1 needs a language model"):
        Pi0Config(
            state_dim=4, action_dim=2, action_horizon=4, expert=LAPTOP_EXPERT, options=options
        )
