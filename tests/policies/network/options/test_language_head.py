"""The language head: its logits in one joint pass, and next to actions that they do not read."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, gelu

from pitune.policies import NetworkOptions, Pi0
from pitune.policies.network.config import LAPTOP_EXPERT, Pi0Config, tiny
from pitune.policies.network.layers import rotary_angles, rotate
from pitune.policies.network.options.language_head import (
    LanguageHeadConfig,
    extend,
    predicted_hidden,
    text_logits,
    text_of,
    token_loss,
)

BLOCKS = ("prefix", "text", "state", "actions")


def make_network() -> Pi0:
    torch.manual_seed(0)
    options = NetworkOptions(language_head=LanguageHeadConfig(enabled=True))
    return Pi0(replace(tiny(image_size=28, action_horizon=4), options=options))


def given(seed: int = 0) -> dict[str, Any]:
    """Return inputs of two rows with an absent camera and padding."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "images": 2 * torch.rand(2, 2, 3, 28, 28, generator=generator) - 1,
        "image_mask": torch.tensor([[True, True], [True, False]]),
        "tokens": torch.randint(3, 900, (2, 6), generator=generator),
        "token_mask": torch.tensor([[True] * 4 + [False] * 2, [True] * 6]),
    }


def text(seed: int = 1, length: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(2, length, dtype=torch.bool)
    mask[0, 3:] = False
    return torch.randint(3, 900, (2, length), generator=generator), mask


def joint(
    network: Pi0, words: Tensor, word_mask: Tensor, x: Tensor, *also: tuple[str, str]
) -> tuple[Tensor, Tensor]:
    """Return the text's hidden states and the velocity of one pass over all tokens.

    It is written without the network's own attention, cache and masks.

    Args:
        network: A π0 with a language head.
        words: Predicted tokens (B, L).
        word_mask: False for padding (B, L).
        x: Noisy chunks (B, 1, H, A) at flow time 0.4.
        also: Further pairs of blocks of which the first attends to the second.
    """
    assert network.vlm is not None
    towers = (network.vlm.language_model, network.expert)
    prefix, valid = network.embed_prefix(**given())
    embedded = towers[0].embed_tokens(words) * math.sqrt(prefix.shape[-1])
    state = network.state_proj(torch.full((2, 32), 0.3))[:, None]
    actions, _ = network.embed_suffix(x, torch.full((2, 1), 0.4))[:2]
    parts = {"prefix": prefix, "text": embedded, "state": state, "actions": actions}
    lengths = [part.shape[1] for part in parts.values()]
    starts = dict(zip(BLOCKS, torch.tensor([0, *lengths]).cumsum(0).tolist(), strict=False))
    ones = torch.ones(2, lengths[2] + lengths[3], dtype=torch.bool)
    all_valid = torch.cat([valid, word_mask, ones], 1)

    # who attends to whom
    total = sum(lengths)
    mask = torch.zeros(2, total, total, dtype=torch.bool)
    place = {
        name: slice(starts[name], starts[name] + length)
        for name, length in zip(BLOCKS, lengths, strict=True)
    }
    allowed = [("prefix", "prefix"), ("text", "prefix"), ("state", "prefix"), ("state", "state")]
    allowed += [("actions", name) for name in ("prefix", "state", "actions")] + list(also)
    for reader, source in allowed:
        mask[:, place[reader], place[source]] = True
    mask[:, place["text"], place["text"]] = torch.ones(lengths[1], lengths[1]).tril().bool()
    mask = mask & all_valid[:, None]

    # positions: text and actions both follow the prefix
    num = valid.sum(1, keepdim=True)
    positions = torch.cat(
        [
            (valid.cumsum(1) - 1).clamp(min=0),
            (num + word_mask.cumsum(1) - 1).clamp(min=0),
            num + torch.arange(1 + lengths[3]),
        ],
        dim=1,
    )
    rotation = rotary_angles(positions, 16)
    streams = [torch.cat([prefix, embedded], 1), torch.cat([state, actions], 1)]
    split = [streams[0].shape[1], streams[1].shape[1]]
    for i in range(2):
        layers: list[Any] = [tower.layers[i] for tower in towers]
        normed = [
            layer.input_layernorm(h, None)[0] for layer, h in zip(layers, streams, strict=True)
        ]
        query, key, value = (
            torch.cat(
                [
                    getattr(layer.self_attn, name)(h).unflatten(-1, (-1, 16)).transpose(1, 2)
                    for layer, h in zip(layers, normed, strict=True)
                ],
                dim=2,
            )
            for name in ("q_proj", "k_proj", "v_proj")
        )
        query, key = rotate(query, rotation), rotate(key, rotation)
        scores = query @ key.transpose(2, 3) / 4
        weights = scores.masked_fill(~mask[:, None], -1e30).softmax(-1)
        mixed = (weights @ value).transpose(1, 2).flatten(2).split(split, dim=1)
        for j, layer in enumerate(layers):
            h = streams[j] + layer.self_attn.o_proj(mixed[j])
            y = layer.post_attention_layernorm(h, None)[0]
            gate = gelu(layer.mlp.gate_proj(y), approximate="tanh")
            streams[j] = h + layer.mlp.down_proj(gate * layer.mlp.up_proj(y))
    hidden = [tower.norm(h, None)[0] for tower, h in zip(towers, streams, strict=True)]
    return hidden[0][:, lengths[0] :], network.action_out_proj(hidden[1][:, 1:])


@torch.no_grad()
def test_text_and_flow_apart_equal_one_joint_pass_with_the_block_mask() -> None:
    network = make_network()
    words, mask = text()
    x = torch.randn(2, 1, 4, 32, generator=torch.Generator().manual_seed(2))
    context = network.encode(torch.full((2, 32), 0.3), **given())
    assert network.vlm is not None
    hidden, _ = extend(network.vlm.language_model, text_of(context), words, mask)
    velocity = network.velocity(context, x, torch.full((2, 1), 0.4)).velocity[:, 0]
    expected = joint(network, words, mask, x)
    assert float((hidden - expected[0])[mask].abs().max()) < 1e-5
    assert float((velocity - expected[1]).abs().max()) < 1e-5

    # text logits do not depend on actions, and actions do not depend on the text
    other = joint(network, words, mask, x + 1)
    assert torch.equal(expected[0], other[0])
    assert float((expected[1] - other[1]).abs().max()) > 1e-3
    other = joint(network, words.flip(0), mask, x)
    assert torch.equal(expected[1], other[1])

    # the controls: a mask that leaks in either direction changes them
    leak = joint(network, words, mask, x, ("text", "actions"))
    assert float((leak[0] - expected[0])[mask].abs().max()) > 1e-4
    leak = joint(network, words, mask, x, ("actions", "text"))
    assert float((leak[1] - expected[1]).abs().max()) > 1e-5


@torch.no_grad()
def test_the_head_is_the_embedding_and_its_loss_the_mean_over_tokens_without_padding() -> None:
    network = make_network()
    assert network.vlm is not None
    tower = network.vlm.language_model
    words, mask = text()
    start = text_of(network.encode_prefix(**given()))
    hidden = predicted_hidden(tower, start, words, mask)
    logits = text_logits(tower, hidden)
    assert logits.shape == (2, 5, 1024)
    assert torch.equal(logits, hidden @ tower.embed_tokens.weight.t())
    some = text_logits(tower, hidden, torch.tensor([5, 700]))
    assert torch.allclose(some, logits[..., [5, 700]], atol=1e-5)
    loss = token_loss(tower, start, words, mask)
    for row, length in enumerate((3, 5)):
        expected = cross_entropy(logits[row, :length], words[row, :length])
        assert float((loss[row] - expected).abs()) < 1e-5
    changed = torch.where(mask, words, 11)  # padding
    assert torch.equal(token_loss(tower, start, changed, mask), loss)
    assert token_loss(tower, start, words, torch.zeros_like(mask)).tolist() == [0.0, 0.0]


@torch.no_grad()
def test_the_first_token_is_predicted_by_the_prompt_s_last_one() -> None:
    network = make_network()
    rows = given()
    start = text_of(network.encode_prefix(**rows))
    assert network.vlm is not None
    embedded, valid = network.embed_prefix(**rows)
    positions = (valid.cumsum(1) - 1).clamp(min=0)
    hidden, _ = network.vlm.language_model(embedded, positions, valid[:, None, None])
    patches = 2 * 4  # of two cameras
    assert torch.allclose(start.last[0], hidden[0, patches + 3], atol=1e-6)
    assert torch.allclose(start.last[1], hidden[1, patches + 5], atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1), (2, 3), (4, 1)])
def test_token_by_token_with_the_cache_equals_one_pass(sizes: tuple[int, ...]) -> None:
    network = make_network()
    assert network.vlm is not None
    tower = network.vlm.language_model
    words, mask = text()
    start = text_of(network.encode_prefix(**given()))
    whole, end = extend(tower, start, words, mask)
    parts, now = [], start
    for first, last in pairwise(torch.tensor([0, *sizes]).cumsum(0).tolist()):
        hidden, now = extend(tower, now, words[:, first:last], mask[:, first:last])
        parts.append(hidden)
    assert float((torch.cat(parts, 1) - whole)[mask].abs().max()) < 1e-5
    assert torch.allclose(now.last, end.last, atol=1e-5)
    # the control: a token attends to those before it
    other, _ = extend(tower, start, words.roll(1, 0), mask)
    assert float((other - whole)[mask].abs().max()) > 1e-3


@torch.no_grad()
def test_the_rows_of_a_batch_are_independent() -> None:
    network = make_network()
    assert network.vlm is not None
    tower = network.vlm.language_model
    words, mask = text()
    together = token_loss(tower, text_of(network.encode_prefix(**given())), words, mask)
    for row in range(2):
        one = {name: value[row : row + 1] for name, value in given().items()}
        start = text_of(network.encode_prefix(**one))
        alone = token_loss(tower, start, words[row : row + 1], mask[row : row + 1])
        assert torch.allclose(alone[0], together[row], atol=1e-5)


def test_a_network_without_the_head_or_without_words_says_so() -> None:
    network = Pi0(tiny(image_size=28))
    with pytest.raises(ValueError, match="has no language head, so it predicts no tokens"):
        text_of(network.encode_prefix(**given()))
    options = NetworkOptions(language_head=LanguageHeadConfig(enabled=True))
    with pytest.raises(ValueError, match=r"language_head\.enabled=True needs the embeddings"):
        Pi0Config(
            state_dim=4, action_dim=2, action_horizon=4, expert=LAPTOP_EXPERT, options=options
        )
