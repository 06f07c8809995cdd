"""LIBERO's raw observations become the network's input byte by byte as in openpi's client."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from libero_observations import element_of, model_input_of, raw_observation
from tensordict import TensorDict

from openpi_fixtures import FAMILIES, TOKENIZER, load_openpi, openpi_folder
from pitune.envs.libero.conversion import CAMERAS, axis_angle, picture_of, state_of
from pitune.policies import PIPELINES, FlowPolicy

WORDS = "put the wine_bottle on the rack"


def converted(raw: dict[str, np.ndarray]) -> TensorDict:
    """Return a raw observation in the form that the adapter gives (1 row)."""
    obs: dict[str, Any] = {
        f"image/{camera}": torch.from_numpy(picture_of(raw[f"{name}_image"])).permute(2, 0, 1)[None]
        for camera, name in CAMERAS.items()
    }
    state = torch.from_numpy(state_of(raw)).float()[None]
    return TensorDict({"state": state, **obs}, batch_size=[1])


def inputs_of(policy: FlowPolicy, obs: TensorDict) -> dict[str, np.ndarray]:
    inputs = policy.model_input(obs, (WORDS,)).tensordict().to_dict()
    return {str(key): value[0].numpy() for key, value in inputs.items()}


def reference_of(family: str, element: dict[str, Any]) -> dict[str, np.ndarray]:
    pipeline = PIPELINES[f"{family}_libero"]
    return model_input_of(
        element,
        openpi_folder(family),
        TOKENIZER,
        quantiles=pipeline.quantiles,
        length=pipeline.max_tokens,
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(3))
def test_the_networks_input_is_openpis(family: str, seed: int) -> None:
    raw = raw_observation(seed)
    inputs = inputs_of(load_openpi(family), converted(raw))
    reference = reference_of(family, element_of(raw, WORDS))
    assert np.array_equal(inputs["images"], reference["images"])
    assert np.array_equal(inputs["tokens"], reference["tokens"])
    assert np.array_equal(inputs["token_mask"], reference["token_mask"])
    assert np.abs(inputs["state"] - reference["state"]).max() < 2e-6  # float32


@pytest.mark.parametrize(
    "wrong",
    [
        "mirrored",
        "upside down",
        "cameras exchanged",
        "quaternion from w",
        "fingers exchanged",
    ],
)
def test_a_wrong_convention_would_be_seen(wrong: str) -> None:
    """Negative controls of the test above."""
    raw = raw_observation(0)
    changed = dict(raw)
    if wrong == "mirrored":
        changed["agentview_image"] = raw["agentview_image"][:, ::-1]
    elif wrong == "upside down":
        changed["robot0_eye_in_hand_image"] = raw["robot0_eye_in_hand_image"][::-1]
    elif wrong == "cameras exchanged":
        changed["agentview_image"] = raw["robot0_eye_in_hand_image"]
    elif wrong == "quaternion from w":
        changed["robot0_eef_quat"] = np.roll(raw["robot0_eef_quat"], 1)
    else:
        changed["robot0_gripper_qpos"] = raw["robot0_gripper_qpos"][::-1]
    inputs = inputs_of(load_openpi("pi05"), converted(changed))
    reference = reference_of("pi05", element_of(raw, WORDS))
    same_pictures = np.array_equal(inputs["images"], reference["images"])
    assert not same_pictures or np.abs(inputs["state"] - reference["state"]).max() > 1e-3


@pytest.mark.parametrize(
    ("quaternion", "rotation"),
    [
        ([0, 0, 0, 1], [0, 0, 0]),
        ([0, 0, 0, -1], [0, 0, 0]),
        ([1, 0, 0, 0], [np.pi, 0, 0]),
        ([0, 0.6, 0, 0.8], [0, 2 * np.arccos(0.8), 0]),
        ([0, 0, 0.6, -0.8], [0, 0, 2 * np.arccos(-0.8)]),
        ([0, 0, 0, 1.0000001], [0, 0, 0]),
    ],
)
def test_the_rotation_is_an_axis_times_an_angle_below_a_whole_turn(
    quaternion: list[float], rotation: list[float]
) -> None:
    assert np.allclose(axis_angle(np.array(quaternion, float)), rotation)


def test_the_raw_observation_is_not_changed() -> None:
    raw = raw_observation(1)
    before = {key: value.copy() for key, value in raw.items()}
    state_of(raw)
    picture_of(raw["agentview_image"])
    assert all(np.array_equal(raw[key], value) for key, value in before.items())
