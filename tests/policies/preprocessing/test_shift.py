"""Random shifts of pictures while cloning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensordict import TensorDict

from pitune import policies, rl
from pitune.policies.preprocessing.images import shift_pictures
from pitune.rl.algorithms.bc import CloningStep


def gradient_pictures(num: int, cameras: int, size: int = 8) -> torch.Tensor:
    """Pictures whose channels are the row, the column and the number of the picture."""
    pictures = torch.zeros(num, cameras, 3, size, size, dtype=torch.uint8)
    pictures[:, :, 0] = torch.arange(size, dtype=torch.uint8)[:, None]
    pictures[:, :, 1] = torch.arange(size, dtype=torch.uint8)
    pictures[:, :, 2] = torch.arange(num * cameras, dtype=torch.uint8).view(num, cameras, 1, 1)
    return pictures


def test_a_picture_moves_as_a_whole_and_repeats_its_edge() -> None:
    torch.manual_seed(0)
    size, before = 8, gradient_pictures(50, 2)
    after = shift_pictures(before, 2)
    assert after.dtype == torch.uint8
    assert after.shape == before.shape
    assert torch.equal(after[:, :, 2], before[:, :, 2])  # each camera keeps its own picture
    moves = set()
    for rows, columns, _ in after.flatten(0, 1):
        down, right = int(rows[4, 4]) - 4, int(columns[4, 4]) - 4
        moves.add((down, right))
        wanted = (torch.arange(size) + down).clamp(0, size - 1)
        assert torch.equal(rows.long(), wanted[:, None].expand(size, size))
        wanted = (torch.arange(size) + right).clamp(0, size - 1)
        assert torch.equal(columns.long(), wanted.expand(size, size))
    # both axes, both directions, and the ends of the range
    assert {down for down, _ in moves} == {right for _, right in moves} == {-2, -1, 0, 1, 2}
    assert any(down != right for down, right in moves)


def seeing_policy() -> policies.FlowPolicy:
    sizes = policies.SmallVLMConfig(width=16, mlp_dim=16, vision_width=8, vision_heads=2)
    torch.manual_seed(0)
    return policies.small_policy(
        torch.rand(20, 4),
        torch.rand(20, 2),
        action_horizon=2,
        sampler=policies.SamplerConfig(execution_horizon=2),
        cameras=("top",),
        image_size=16,
        vlm=sizes,
    )


def cloned(**changes: Any) -> dict[str, torch.Tensor]:
    policy = seeing_policy()
    obs = {"state": torch.rand(8, 4), "image/top": (255 * torch.rand(8, 3, 16, 16)).byte()}
    rows = TensorDict(obs, [8])
    chunks = policy.observation_preprocessor(())(rows).set("action", torch.rand(8, 2, 2))
    before = chunks["model_input", "images"].clone()
    CloningStep(policy, rl.BCConfig(warmup_steps=0, ema_decay=0.0, **changes))(chunks)
    assert torch.equal(chunks["model_input", "images"], before)  # the demonstrations stay
    return policy.state_dict()


def test_a_gradient_step_sees_shifted_pictures_only_where_it_is_asked_for() -> None:
    plain, none, shifted = cloned(), cloned(picture_shift=0), cloned(picture_shift=3)
    assert all(torch.equal(plain[name], none[name]) for name in plain)
    assert any(not torch.equal(plain[name], shifted[name]) for name in plain)


def test_a_shift_that_no_picture_can_have_is_rejected(tiny_policy: Callable) -> None:
    with pytest.raises(ValueError, match=r"picture_shift=2 has no use for a policy without p"):
        CloningStep(tiny_policy(), rl.BCConfig(picture_shift=2))
    with pytest.raises(ValueError, match=r"picture_shift=16 must be less than the pictures' 16 p"):
        CloningStep(seeing_policy(), rl.BCConfig(picture_shift=16, warmup_steps=0))


def test_sizes_of_a_vision_language_model_need_something_to_read() -> None:
    with pytest.raises(ValueError, match="has no use without cameras and a tokenizer: the policy"):
        policies.small_policy(
            torch.rand(20, 4),
            torch.rand(20, 2),
            action_horizon=2,
            sampler=policies.SamplerConfig(execution_horizon=2),
            vlm=policies.SmallVLMConfig(width=8),
        )


def test_the_patches_divide_the_picture() -> None:
    with pytest.raises(ValueError, match="patch_size=8 must divide image_size=20"):
        policies.SmallVLMConfig().vision(20)
