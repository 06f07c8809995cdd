"""`images`, `prompt`, `norm_stats`: the parts of the preprocessing, by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from pitune.policies import NormStats, PreprocessorConfig
from pitune.policies.preprocessing.images import PicturesConfig, resized_pictures, scaled_pictures
from pitune.policies.preprocessing.model_input import ObservationPreprocessor
from pitune.policies.preprocessing.preprocessor import Preprocessor
from pitune.policies.preprocessing.prompt import (
    PromptConfig,
    discretize,
    prompt_text,
    tokenize,
)


class Letters:
    """A tokenizer with one token per letter."""

    def encode(self, text: str, bos: bool = True) -> list[int]:
        return [2] * bos + [ord(letter) for letter in text]


# Pictures

RESIZES = pytest.mark.parametrize("resize", ["pillow", "torch"])


def resized(picture: Tensor, resize: Any, size: int = 8) -> Tensor:
    """Return a picture (3, Y, X) at the network's size, in [-1, 1]."""
    config = PicturesConfig(cameras={"base_0_rgb": "front"}, size=size, resize=resize)
    return scaled_pictures(resized_pictures([picture[None]], config))[0, 0]


@RESIZES
@pytest.mark.parametrize("shape", [(8, 8), (16, 16)])
def test_black_is_minus_one_and_white_is_one(shape: tuple[int, int], resize: Any) -> None:
    for level, value in ((0, -1.0), (255, 1.0)):
        picture = torch.full((3, *shape), level, dtype=torch.uint8)
        assert torch.allclose(resized(picture, resize), torch.full((3, 8, 8), value))


@RESIZES
@pytest.mark.parametrize(
    ("shape", "rows", "columns"), [((8, 16), (2, 6), (0, 8)), ((16, 8), (0, 8), (2, 6))]
)
def test_a_wide_or_tall_picture_is_centered_between_black_bars(
    shape: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int], resize: Any
) -> None:
    found = resized(torch.full((3, *shape), 255, dtype=torch.uint8), resize)
    expected = torch.full((3, 8, 8), -1.0)
    expected[:, slice(*rows), slice(*columns)] = 1.0
    assert torch.allclose(found, expected, atol=0.02)


@RESIZES
def test_a_picture_keeps_its_orientation_and_its_colors(resize: Any) -> None:
    picture = torch.zeros(3, 16, 16, dtype=torch.uint8)
    picture[0, :8, :8] = 255  # red in the upper left
    found = resized(picture, resize)
    assert found[0, :3, :3].min() > 0.9
    assert found[0, 5:].max() < -0.9
    assert found[0, :, 5:].max() < -0.9
    assert found[1:].max() == -1


# Prompts


@pytest.mark.parametrize(
    ("number", "level"),
    [
        (-1.0, 0),
        (-0.9999, 0),
        (0.0, 128),
        (1 / 128, 129),
        (0.9999, 255),
        (1.0, 255),
        (-1.01, -1),
        (7, 255),
    ],
)
def test_a_number_is_the_bin_whose_lower_edge_it_has_reached(number: float, level: int) -> None:
    assert discretize(torch.tensor([number])).tolist() == [level]


@pytest.mark.parametrize(
    ("instruction", "clean", "text"),
    [
        (" pick_up the\ncube ", True, "pick up the cube\n"),
        (" pick_up the cube", False, " pick_up the cube\n"),
        ("pick\n", False, "pick\n"),
    ],
)
def test_the_text_of_a_prompt(instruction: str, clean: bool, text: str) -> None:
    assert prompt_text(instruction, None, PromptConfig(clean=clean)) == text


@pytest.mark.parametrize(("padding", "numbers"), [(0, "0 255"), (1, "0 255"), (4, "0 255 128 128")])
def test_the_written_state_is_padded_with_zeros(padding: int, numbers: str) -> None:
    config = PromptConfig(max_tokens=100, discrete_state=True, state_padding=padding)
    tokens, mask = tokenize(["go"], torch.tensor([[-1.0, 1.0]]), config, Letters())
    text = "".join(map(chr, tokens[0][mask[0]][1:].tolist()))
    assert text == f"Task: go, State: {numbers};\nAction: "


def test_the_mask_is_true_on_every_token_and_false_in_the_padding() -> None:
    tokens, mask = tokenize(["a", "abc"], torch.zeros(2, 1), PromptConfig(max_tokens=5), Letters())
    a, b, c, end = map(ord, "abc\n")
    assert tokens.tolist() == [[2, a, end, 0, 0], [2, a, b, c, end]]
    assert mask.tolist() == [[True] * 3 + [False] * 2, [True] * 5]


def test_a_prompt_that_holds_the_state_has_the_instruction_of_its_row() -> None:
    stats = NormStats.identity(1)
    config = PreprocessorConfig(
        state=stats,
        action=stats,
        normalization="none",
        prompt=PromptConfig(max_tokens=60, discrete_state=True),
    )
    preprocess = ObservationPreprocessor(Preprocessor(config, 1, 1), Letters(), ("one", "two"))
    rows = {"state": torch.tensor([[0.0], [1.0], [0.0]]), "task_id": torch.tensor([1, 0, 0])}
    inputs = preprocess(TensorDict(rows, [3]))["model_input"]
    pairs = zip(inputs["tokens"], inputs["token_mask"], strict=True)
    texts = ["".join(map(chr, row[mask][1:].tolist())) for row, mask in pairs]
    assert [text[6:20] for text in texts] == ["two, State: 12", "one, State: 25", "one, State: 12"]


# Norm stats


def test_a_floor_widens_the_range_on_both_sides() -> None:
    """Half ranges of 0.5 and 3 and deviations of 0.1 and 2, at a floor of 1."""
    stats = NormStats(mean=(0.0, 0.0), std=(0.1, 2.0), q01=(-0.5, -3.0), q99=(0.5, 3.0))
    found = stats.floored(1.0)
    assert found == NormStats(mean=(0.0, 0.0), std=(1.0, 2.0), q01=(-1.0, -3.0), q99=(1.0, 3.0))
    assert stats.flat(1.0) == [0]
    assert found.flat(1.0) == []


def test_a_dimension_is_flat_by_its_deviation_or_by_half_its_range() -> None:
    stats = NormStats(
        mean=(0.0,) * 3, std=(0.1, 2.0, 2.0), q01=(-3.0, -0.6, -3.0), q99=(3.0, 0.6, 3.0)
    )
    assert stats.flat(1.0) == [0, 1]


def test_the_first_dimensions_are_those_of_the_robot() -> None:
    stats = NormStats(mean=(1.0, 0.0), std=(3.0, 0.0), q01=(5.0, 0.0), q99=(7.0, 0.0))  # padded
    assert stats.first(1) == NormStats(mean=(1.0,), std=(3.0,), q01=(5.0,), q99=(7.0,))
    with pytest.raises(ValueError, match="the norm stats have 2 dimensions, the robot has 3"):
        stats.first(3)
