"""`config` and the network's inputs: sizes that contradict each other are refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from pitune.policies import Pi0
from pitune.policies.network.config import LAPTOP_EXPERT, Pi0Config, tiny
from pitune.policies.network.layers import AdaptiveRMSNorm
from pitune.policies.network.siglip import SiglipConfig

STATE_ONLY = Pi0Config(state_dim=4, action_dim=2, action_horizon=3, expert=LAPTOP_EXPERT)
SMALL = tiny("pi0", image_size=28)
ADAPTIVE = replace(LAPTOP_EXPERT, adaptive=True)

WRONG_SIZES: dict[str, Callable[[], object]] = {
    r"family='pi05' does not fit expert.adaptive=False; π0.5's": lambda: replace(
        STATE_ONLY, family="pi05"
    ),
    r"a vision tower or a vocabulary needs a language model, but vlm is None; pass": lambda: (
        replace(STATE_ONLY, vocab_size=10)
    ),
    r"π0.5 reads its state from the prompt, but vlm is None; pass a vlm": lambda: replace(
        STATE_ONLY, family="pi05", expert=ADAPTIVE
    ),
    r"the expert's depth=1 differs from the vlm's 2; towers": lambda: replace(
        SMALL, expert=replace(SMALL.expert, depth=1)
    ),
    r"the vision tower's num_heads=3 must divide width=8; change": lambda: SiglipConfig(
        width=8, depth=1, mlp_dim=8, num_heads=3
    ),
    r"the vision tower's patch_size=14 must divide image_size=30; change": lambda: SiglipConfig(
        width=8, depth=1, mlp_dim=8, num_heads=2, image_size=30
    ),
}


@pytest.mark.parametrize("message", WRONG_SIZES)
def test_sizes_that_contradict_each_other_are_named(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WRONG_SIZES[message]()


def test_inputs_that_the_network_does_not_read_or_lacks_are_named() -> None:
    state, images = torch.zeros(1, 32), torch.zeros(1, 1, 3, 28, 28)
    tokens = torch.zeros(1, 2, dtype=torch.int64)
    with pytest.raises(
        ValueError, match=r"images are not given, but this network reads them; pass"
    ):
        Pi0(SMALL).encode(state, tokens=tokens)
    blind = Pi0(replace(SMALL, vision=None))
    with pytest.raises(
        ValueError, match=r"images are given, .* does not read them; leave out imag"
    ):
        blind.encode(state, images=images, tokens=tokens)


def test_pi05_without_its_prefix_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"reads its state from the prompt, but prefix is None; pa"
    ):
        Pi0(tiny("pi05", image_size=28)).with_state(None, torch.zeros(1, 32))


def test_an_adaptive_norm_without_a_condition_is_refused() -> None:
    with pytest.raises(ValueError, match=r"adaptive norm needs a condition, but condition is None"):
        AdaptiveRMSNorm(4)(torch.zeros(1, 2, 4))
