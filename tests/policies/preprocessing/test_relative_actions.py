"""`preprocessor`, `aloha`: actions relative to the state, and ALOHA's joints, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from pitune.policies import NormStats, Preprocessor, PreprocessorConfig
from pitune.policies.preprocessing import aloha
from pitune.policies.preprocessing.prompt import PromptConfig

STATE = NormStats(mean=(10.0, 20.0, 30.0), std=(1.0, 1.0, 1.0), q01=(9.0,) * 3, q99=(31.0,) * 3)
ACTION = NormStats(mean=(1.0, 2.0, 3.0), std=(2.0, 4.0, 8.0), q01=(0.0,) * 3, q99=(4.0,) * 3)


def relative(*mask: bool, action: NormStats = ACTION) -> Preprocessor:
    config = PreprocessorConfig(
        state=STATE, action=action, delta_mask=mask, epsilon=0.0, epsilon_out=0.0
    )
    return Preprocessor(config, 3, action.dim)


# Relative actions

MASKS = {
    (True, False, True): [True, False, True],
    (False, True): [False, True, False],  # openpi's masks may end early
    (False, False, True): [False, False, True],
    (True, True, True): [True, True, True],
}


@pytest.mark.parametrize(("mask", "dims"), MASKS.items())
def test_the_masked_dimensions_are_relative_to_the_state_and_the_others_absolute(
    mask: tuple[bool, ...], dims: list[bool]
) -> None:
    scale = relative(*mask)
    state = torch.tensor([[5.0, 6.0, 7.0]])
    chunk = torch.tensor([[[1.0, 2.0, 3.0], [9.0, 8.0, 7.0]]])
    # the same state for every step of a chunk
    origin = torch.tensor([5.0, 6.0, 7.0]) * torch.tensor(dims)
    by_hand = (chunk - origin - torch.tensor([1.0, 2.0, 3.0])) / torch.tensor([2.0, 4.0, 8.0])
    assert torch.allclose(scale.normalize_action(chunk, state), by_hand)
    assert torch.allclose(scale.unnormalize_action(by_hand, state), chunk)
    # what moves with the state on the way out is what is relative
    moved = scale.unnormalize_action(by_hand, state + 1) - chunk
    assert torch.allclose(moved, torch.tensor(dims).float().expand(1, 2, 3), atol=1e-5)


def test_each_row_has_its_own_state() -> None:
    scale = relative(True, False, False)
    state = torch.tensor([[5.0, 0.0, 0.0], [-5.0, 0.0, 0.0]])
    chunk = torch.zeros(2, 4, 3)
    found = scale.normalize_action(chunk, state)
    assert found[..., 0].tolist() == [[-3.0] * 4, [2.0] * 4]


def test_a_gripper_without_a_state_is_absolute() -> None:
    """More action than state dimensions."""
    stats = NormStats(mean=(0.0,) * 4, std=(1.0,) * 4, q01=(-1.0,) * 4, q99=(1.0,) * 4)
    scale = relative(True, True, True, action=stats)
    found = scale.normalize_action(torch.zeros(1, 1, 4), torch.tensor([[5.0, 6.0, 7.0]]))
    assert found[0, 0].tolist() == [-5.0, -6.0, -7.0, 0.0]


def test_relative_actions_need_the_state() -> None:
    with pytest.raises(ValueError, match="actions are relative to the state, but no state was"):
        relative(True, False, False).normalize_action(torch.zeros(1, 1, 3))


def test_states_and_actions_have_their_own_statistics() -> None:
    scale = relative()
    assert scale.normalize_state(torch.tensor([[11.0, 20.0, 29.0]])).tolist() == [[1.0, 0.0, -1.0]]
    action = torch.tensor([[[3.0, 2.0, -5.0]]])
    assert scale.normalize_action(action).tolist() == [[[1.0, 0.0, -1.0]]]
    assert scale.unnormalize_action(torch.tensor([[[1.0, 0.0, -1.0]]])).tolist() == action.tolist()


def test_the_way_out_has_an_epsilon_of_its_own() -> None:
    config = PreprocessorConfig(state=STATE, action=ACTION, epsilon=0.0, epsilon_out=0.5)
    scale = Preprocessor(config, 3, 3)
    found = scale.unnormalize_action(torch.ones(1, 1, 3))
    assert found.tolist() == [[[1 + 2.5, 2 + 4.5, 3 + 8.5]]]


def test_the_measured_state_is_kept_beside_the_scaled_one() -> None:
    state = torch.tensor([[11.0, 20.0, 29.0]], dtype=torch.float64)
    found = relative().images_and_state({"state": state})  # type: ignore[arg-type]
    assert found["robot_state"].tolist() == state.tolist()
    assert found["state"].tolist() == [[1.0, 0.0, -1.0]]
    assert found["robot_state"].dtype == torch.float32


# ALOHA


SIGNS = [1, -1, -1, 1, 1, 1] * 2
"""Of the joints of both arms, without their grippers."""
JOINTS = [i for i in range(14) if i not in (6, 13)]


def test_alohas_joints_have_the_signs_of_the_pretraining_data() -> None:
    joints = torch.arange(1.0, 15.0)
    signs = torch.tensor(SIGNS)
    for convert in (aloha.state_to_pi, aloha.action_to_pi, aloha.action_from_pi):
        assert torch.equal(convert(joints)[JOINTS], joints[JOINTS] * signs)


def test_alohas_gripper_actions_are_scaled_angles() -> None:
    """0 and 1 are the closed and the open joint, -0.6213 and 1.4910 rad; π0 counts from 0.5476."""
    for opening, angle in ((0.0, -0.6213), (1.0, 1.4910)):
        found = aloha.action_to_pi(torch.full((14,), opening))
        assert found[[6, 13]].tolist() == pytest.approx([angle - 0.5476] * 2, abs=1e-5)
        back = aloha.action_from_pi(found)
        assert back[[6, 13]].tolist() == pytest.approx([opening] * 2, abs=1e-5)


@pytest.mark.parametrize("opening", [0.0, 0.3, 1.0])
def test_alohas_gripper_states_follow_the_linkage(opening: float) -> None:
    """The law of cosines for an arm of 36 mm, a horn of 22 mm and the finger's distance."""
    distance = 0.01844 + opening * (0.058 - 0.01844)
    sine = (0.022**2 + distance**2 - 0.036**2) / (2 * 0.022 * distance)
    expected = (math.asin(max(-1, min(1, sine))) - 0.5476) / (1.6296 - 0.5476)
    found = aloha.state_to_pi(torch.full((14,), opening))
    assert found[[6, 13]].tolist() == pytest.approx([expected] * 2, abs=1e-4)


def test_a_chunk_of_aloha_comes_back_and_is_relative_in_the_converted_joints() -> None:
    stats = NormStats.identity(14)
    config = PreprocessorConfig(
        state=stats,
        action=stats,
        normalization="none",
        joints="aloha",
        delta_mask=(*[True] * 6, False, *[True] * 6, False),
        prompt=PromptConfig(discrete_state=True),
    )
    scale = Preprocessor(config, 14, 14)
    torch.manual_seed(0)
    state, chunk = torch.rand(2, 14), torch.rand(2, 3, 14)
    there = scale.normalize_action(chunk, state)
    signs = torch.tensor(SIGNS)
    assert torch.allclose(there[..., JOINTS], (chunk - state[:, None])[..., JOINTS] * signs)
    gripper = aloha.action_to_pi(chunk)[..., [6, 13]]
    assert torch.allclose(there[..., [6, 13]], gripper)
    assert torch.allclose(scale.unnormalize_action(there, state), chunk, atol=1e-6)
    assert torch.allclose(scale.normalize_state(state), aloha.state_to_pi(state))

    class Text:
        """A tokenizer that keeps the text."""

        def encode(self, text: str, bos: bool = True) -> list[int]:
            texts.append(text)
            return [2]

    texts: list[str] = []
    scale.tokens(["a", "b"], state, Text())
    edges = torch.linspace(-1, 1, 257)[:-1]
    for text, row in zip(texts, aloha.state_to_pi(state), strict=True):
        bins = [int((edges <= value).sum()) - 1 for value in row]
        assert f"State: {' '.join(map(str, bins))};" in text
