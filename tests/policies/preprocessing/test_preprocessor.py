"""`preprocessor`: scaling by hand, and statistics that travel and never train."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import pytest
import torch
from torch import Tensor

from pitune.policies import NormStats, Preprocessor, PreprocessorConfig

STATS = NormStats(mean=(1.0, -2.0), std=(0.5, 4.0), q01=(0.0, -10.0), q99=(4.0, 10.0))


def preprocessor(state_dim: int = 2, action_dim: int = 2, **options: object) -> Preprocessor:
    """Of a robot with two state and two action dimensions, without the divisor's epsilon."""
    options = {"epsilon": 0.0, "epsilon_out": options.get("epsilon", 0.0), **options}
    config = PreprocessorConfig(state=STATS, action=STATS, **options)  # type: ignore[arg-type]
    return Preprocessor(config, state_dim, action_dim)


def test_zscore_matches_numbers_worked_by_hand() -> None:
    scaled = preprocessor().normalize_state(torch.tensor([[2.0, -2.0], [1.0, 2.0]]))
    assert torch.allclose(scaled, torch.tensor([[2.0, 0.0], [0.0, 1.0]]))


def test_quantiles_match_numbers_worked_by_hand() -> None:
    # 1 % .. 99 % go to -1 .. 1, and beyond is not cut off
    scale = preprocessor(normalization="quantile").normalize_action
    scaled = scale(torch.tensor([[0.0, -10.0], [4.0, 10.0], [2.0, 5.0], [6.0, -20.0]]))
    by_hand = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [0.0, 0.5], [2.0, -2.0]])
    assert torch.allclose(scaled, by_hand)


def test_epsilon_is_added_to_the_divisor() -> None:
    values = torch.tensor([[2.0, 2.0]])
    zscore = preprocessor(epsilon=0.5).normalize_state(values)
    assert torch.allclose(zscore, torch.tensor([[1.0 / 1.0, 4.0 / 4.5]]))
    # openpi: of the whole range of quantiles, 4 + 1 and 20 + 1, counted from the lower one
    quantile = preprocessor(epsilon=1.0, normalization="quantile").normalize_state(values)
    assert torch.allclose(quantile, torch.tensor([[2 * 2 / 5 - 1, 2 * 12 / 21 - 1]]))


@pytest.mark.parametrize("normalization", ["zscore", "quantile"])
@pytest.mark.parametrize("epsilon", [0.0, 1e-6, 0.1])
def test_actions_come_back_from_model_space(normalization: str, epsilon: float) -> None:
    scale = preprocessor(action_dim=5, normalization=normalization, epsilon=epsilon)
    action = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0)) * 10
    there = scale.normalize_action(action)
    assert there.shape == (3, 4, 5)
    assert torch.allclose(scale.unnormalize_action(there), action, atol=1e-5)


def test_dimensions_that_the_robot_lacks_are_zero_on_the_way_in_and_dropped_on_the_way_out() -> (
    None
):
    scale = preprocessor(state_dim=3, action_dim=4)
    assert torch.equal(scale.normalize_state(torch.ones(2, 2))[:, 2:], torch.zeros(2, 1))
    assert torch.equal(scale.normalize_action(torch.ones(2, 6, 2))[..., 2:], torch.zeros(2, 6, 2))
    point = torch.full((1, 6, 4), 7.0)
    assert torch.equal(scale.unnormalize_action(point)[0, 0], torch.tensor([4.5, 26.0]))


def test_double_observations_are_scaled_to_single_precision() -> None:
    scaled = preprocessor().normalize_state(torch.tensor([[2.0, -2.0]], dtype=torch.float64))
    assert scaled.dtype == torch.float32


@pytest.mark.parametrize(
    ("normalization", "scale"), [("zscore", (0.5, 4.0)), ("quantile", (2.0, 10.0))]
)
def test_scales_below_the_floor_are_raised_and_reported(
    normalization: str, scale: tuple[float, float]
) -> None:
    assert preprocessor(normalization=normalization).floored() == {"state": [], "action": []}
    floored = preprocessor(normalization=normalization, min_scale=3.0)
    assert floored.floored() == {"state": [0], "action": [0]}
    expected = torch.tensor([3.0, scale[1]])
    assert torch.allclose(floored.state_scale, expected)
    assert torch.allclose(floored.action_scale, expected)


def test_a_dimension_that_never_moved_is_not_blown_up() -> None:
    still = NormStats.of(torch.tensor([[0.25], [0.25], [0.25]]))
    scale = Preprocessor(PreprocessorConfig(state=still, action=still), 1, 1)
    assert scale.floored() == {"state": [0], "action": [0]}
    assert float(scale.normalize_state(torch.tensor([[0.26]]))) == pytest.approx(1.0, rel=1e-3)


def test_statistics_of_samples_match_numbers_worked_by_hand() -> None:
    # 0, 1, ..., 100 and its double: the 1 % and 99 % quantiles are the second and the last but one
    values = torch.arange(101.0)[:, None] * torch.tensor([1.0, 2.0])
    stats = NormStats.of(values[torch.randperm(101, generator=torch.Generator().manual_seed(0))])
    assert stats.mean == pytest.approx((50, 100))
    # of 0 .. n - 1 the variance (divided by n) is (n^2 - 1) / 12
    assert stats.std == pytest.approx((math.sqrt(850), 2 * math.sqrt(850)))
    assert stats.q01 == pytest.approx((1, 2))
    assert stats.q99 == pytest.approx((99, 198))


def test_statistics_of_identity_leave_values_as_they_are() -> None:
    identity = NormStats.identity(2)
    values = torch.tensor([[0.3, -4.0]])
    for normalization in ("zscore", "quantile"):
        config = PreprocessorConfig(
            state=identity,
            action=identity,
            normalization=normalization,
        )
        assert torch.allclose(Preprocessor(config, 2, 2).normalize_state(values), values, atol=1e-5)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("name", ["mean", "std", "q01", "q99"])
def test_statistics_that_are_not_finite_are_refused(name: str, bad: float) -> None:
    values = {**asdict(STATS), name: (1.0, bad)}
    with pytest.raises(ValueError, match=rf"norm stats: {name}\[1\]=-?(inf|nan) is not finite"):
        NormStats(**values)


def test_statistics_of_bad_samples_are_refused() -> None:
    with pytest.raises(ValueError, match=r"mean\[1\]=nan is not finite"):
        NormStats.of(torch.tensor([[1.0, math.nan], [2.0, 3.0]]))


def test_statistics_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'q99': 1} are the numbers of dimensions; they mu"):
        NormStats(**{**asdict(STATS), "q99": (1.0,)})


@pytest.mark.parametrize(("state_dim", "action_dim", "name"), [(1, 2, "state"), (2, 1, "action")])
def test_a_network_narrower_than_the_robot_is_refused(
    state_dim: int, action_dim: int, name: str
) -> None:
    with pytest.raises(ValueError, match=f"robot's {name} has 2 dimensions, the network takes 1"):
        preprocessor(state_dim, action_dim)


def test_statistics_are_neither_trained_nor_among_the_weights() -> None:
    scale = preprocessor()
    assert list(scale.parameters()) == []
    assert scale.state_dict() == {}
    buffers: dict[str, Tensor] = dict(scale.named_buffers())
    scaling = {
        f"{name}_{part}"
        for name in ("state", "action", "action_out")
        for part in ("offset", "scale")
    }
    assert set(buffers) == {*scaling, "delta_mask"}
    assert not any(buffer.requires_grad for buffer in buffers.values())


def test_config_survives_json() -> None:
    config = PreprocessorConfig(state=STATS, action=STATS, normalization="quantile", min_scale=0.1)
    assert PreprocessorConfig.from_dict(json.loads(json.dumps(asdict(config)))) == config
