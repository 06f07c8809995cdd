"""`inference`: each entry of a robot's observation is honored, or refused by its key."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensordict import TensorDict

from openpi_fixtures import load_openpi
from pitune.policies import FlowPolicy, SamplerConfig, infer, small_policy
from pitune.policies.inference import observation

PICTURE = "observation/image"
BYTES = np.random.RandomState(0).randint(0, 256, (12, 16, 3)).astype(np.uint8)
NOISE = np.random.RandomState(1).randn(10, 32).astype(np.float32)


@pytest.fixture(scope="module")
def policy() -> FlowPolicy:
    return load_openpi("pi0")


def raw(**changes: Any) -> dict[str, Any]:
    """Return an observation of openpi's LIBERO client with some entries changed."""
    entries: dict[str, Any] = {
        PICTURE: BYTES,
        "observation/wrist_image": BYTES[::-1].copy(),
        "observation/state": np.linspace(-0.5, 0.5, 8, dtype=np.float32),
        "prompt": "put the bowl",
    }
    return entries | {key.replace("__", "/"): value for key, value in changes.items()}


def picture_of(policy: FlowPolicy, value: Any) -> torch.Tensor:
    """Return the picture (3, Y, X) that the policy sees."""
    return observation(policy, raw(observation__image=value))["image/image"][0]


@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x.transpose(2, 0, 1),
        lambda x: x[None],
        lambda x: x.transpose(2, 0, 1)[None],
        lambda x: x.tolist(),
        lambda x: x.astype(np.int32),
        lambda x: x.astype(np.int64),
        lambda x: x.astype(np.float32),
        lambda x: (x / 255).astype(np.float32),
        lambda x: x / 255,
        lambda x: torch.from_numpy(x),
        lambda x: torch.from_numpy(x / 255).permute(2, 0, 1).float(),
        lambda x: torch.from_numpy(x).bfloat16(),
        lambda x: Image.fromarray(x),
        lambda x: np.asfortranarray(x),
        lambda x: x[:, ::-1][:, ::-1],
    ],
)
def test_layouts_ranges_and_types_that_are_certain_give_the_same_bytes(
    policy: FlowPolicy, convert: Callable[[np.ndarray], Any]
) -> None:
    seen = picture_of(policy, convert(BYTES)).permute(1, 2, 0).numpy()
    assert np.array_equal(seen, BYTES)


@pytest.mark.parametrize(
    ("convert", "message"),
    [
        (lambda x: x[..., 0], "a picture must be"),
        (lambda x: x[..., :1], "no axis of three colors"),
        (lambda x: np.concatenate([x, x[..., :1]], -1), "no axis of three colors"),
        (lambda x: np.stack([x, x]), "a picture must be"),
        (lambda x: x[:3], "may be either"),
        (lambda x: x[:0], "no pixels"),
        (lambda x: x > 128, "no array of pixels"),
        (lambda x: None, "NoneType of object, no array of pixels"),
        (lambda x: b"\xff\xd8", "bytes of .*, no array of pixels"),
        (lambda x: "front.png", "no array of pixels"),
        (lambda x: [[1, 2], [3]], "no array of pixels"),
        (lambda x: x.astype(np.uint16), "uint16 in .*, so convert it to uint8"),
        (lambda x: x.astype(np.int8), "int8 in .*, so convert it to uint8"),
        (lambda x: x.astype(np.int32) - 1, "int32 in -1 .. "),
        (lambda x: x.astype(np.int32) + 100, "int32 in 100 .. 355"),
        (lambda x: (x > 128).astype(np.int64), "int64 in 0 .. 1"),
        (lambda x: x / 127.5 - 1, "in -1.0 .. 1.0, whose scale is not certain"),
        (lambda x: x * 0.7, "whose scale is not certain"),
        (lambda x: x * 1000.0, "whose scale is not certain"),
        (lambda x: np.where(x > 250, np.nan, x / 255), "pixels that are not finite"),
        (lambda x: np.where(x > 250, np.inf, x / 255), "pixels that are not finite"),
    ],
)
def test_a_picture_of_uncertain_meaning_is_refused_by_its_key(
    policy: FlowPolicy, convert: Callable[[np.ndarray], Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{PICTURE} .*{message}"):
        infer(policy, raw(observation__image=convert(BYTES)), NOISE)


def test_a_picture_too_narrow_to_be_resized_is_refused(policy: FlowPolicy) -> None:
    with pytest.raises(ValueError, match=r"image/image are \(1, 1000\) pixels; their longer"):
        infer(policy, raw(observation__image=np.zeros((1, 1000, 3), np.uint8)), NOISE)


@pytest.mark.parametrize(
    "convert",
    [
        np.ndarray.tolist,
        lambda x: x[None],
        lambda x: x.astype(np.float64),
        lambda x: torch.from_numpy(x),
        lambda x: torch.from_numpy(x).double()[None],
    ],
)
def test_a_state_of_one_moment_is_read_whatever_its_type(
    policy: FlowPolicy, convert: Callable[[np.ndarray], Any]
) -> None:
    state = raw()["observation/state"]
    seen = observation(policy, raw(observation__state=convert(state)))["state"]
    assert seen[0].tolist() == state.tolist()


def test_a_state_of_whole_numbers_is_read(policy: FlowPolicy) -> None:
    for kind in (np.int64, np.uint8, np.bool_):
        state = np.array([0, 1, 0, 1, 1, 0, 0, 1], dtype=kind)
        seen = observation(policy, raw(observation__state=state))["state"]
        assert seen.dtype == torch.float32
        assert seen[0].tolist() == [0, 1, 0, 1, 1, 0, 0, 1]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (np.zeros(7), r"state has 7 numbers under \['observation/state'\], the policy's norm sta"),
        (np.zeros((2, 4)), r"observation/state has shape \(2, 4\); the state of one moment is one"),
        (np.zeros((1, 1, 8)), r"observation/state has shape \(1, 1, 8\)"),
        ([0.0] * 7 + [np.nan], r"observation/state is not finite in dimensions \[7\]"),
        ([0.0] * 7 + [-np.inf], r"observation/state is not finite in dimensions \[7\]"),
        ([1e300] + [0.0] * 7, r"observation/state is not finite in dimensions \[0\]"),
        (["a"] * 8, "observation/state is list of <U1, no row of numbers"),
        ([[0.0], [0.0, 1.0]], "observation/state is no row of numbers"),
        ({}, "has no state"),
        (None, "has no state: its keys are"),
    ],
)
def test_a_state_that_is_no_row_of_finite_numbers_is_refused(
    policy: FlowPolicy, state: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        infer(policy, raw(observation__state=state), NOISE)


@pytest.mark.parametrize("key", list(raw()))
def test_a_missing_entry_is_refused_and_the_wanted_keys_are_named(
    policy: FlowPolicy, key: str
) -> None:
    entries = raw()
    del entries[key]
    wanted = r"wanted are \['state \(8 numbers\)', 'image/image', 'image/wrist_image', 'prompt'\]"
    message = "the observation has no prompt" if key == "prompt" else wanted
    with pytest.raises(ValueError, match=message):
        infer(policy, entries, NOISE)


def test_half_of_droids_state_is_named(policy: FlowPolicy) -> None:
    entries = raw(observation__joint_position=np.zeros(7))
    del entries["observation/state"]
    with pytest.raises(ValueError, match=r"no state, \['observation/gripper_position'\] is mi"):
        infer(policy, entries, NOISE)
    entries["observation/gripper_position"] = 0.3
    assert observation(policy, entries)["state"][0, 7] == pytest.approx(0.3)


def test_a_misspelled_camera_is_named_with_the_nearest(policy: FlowPolicy) -> None:
    entries = raw(observation__wrist_img=BYTES)
    del entries["observation/wrist_image"]
    with pytest.raises(ValueError, match=r"did you mean 'wrist_img' instead of 'wrist_image'\?"):
        infer(policy, entries, NOISE)


def test_a_picture_that_no_camera_takes_is_warned_of(policy: FlowPolicy) -> None:
    with pytest.warns(UserWarning, match=r"pictures \['observation/top'\] .* are not used, be"):
        infer(policy, raw(observation__top=BYTES), NOISE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        infer(policy, raw(), NOISE)


STATE = raw()["observation/state"]
WRIST = raw()["observation/wrist_image"]


@pytest.mark.parametrize(
    "entries",
    [
        {"state": STATE, "image/image": BYTES, "image/wrist_image": WRIST},
        {"state": STATE, "image": {"image": BYTES, "wrist_image": WRIST}},
        {"state": STATE, "images": {"image": BYTES, "wrist_image": WRIST}},
        {"observation": {"state": STATE, "image": BYTES, "wrist_image": WRIST}},
        {"observation": {"state": STATE, "images": {"image": BYTES, "wrist_image": WRIST}}},
        {
            "observation.state": STATE,
            "observation.images.image": BYTES,
            "observation.images.wrist_image": WRIST,
        },
        {"state": STATE, "image": BYTES, "wrist_image": WRIST},
    ],
)
def test_keys_of_clients_and_environments_give_the_same_actions(
    policy: FlowPolicy, entries: dict[str, Any]
) -> None:
    actions = infer(policy, {**entries, "task": "put the bowl"}, NOISE)
    assert np.array_equal(actions, infer(policy, raw(), NOISE))


def test_one_row_of_an_environments_observation_is_read(policy: FlowPolicy) -> None:
    rows = observation(policy, raw())
    words = {"prompt": "put the bowl"}
    expected = infer(policy, raw(), NOISE)
    assert np.array_equal(infer(policy, {**dict(rows.items()), **words}, NOISE), expected)
    tiny = small_policy(
        torch.rand(20, 3),
        torch.rand(20, 2),
        action_horizon=2,
        sampler=SamplerConfig(execution_horizon=2),
    )
    row = TensorDict({"state": torch.zeros(1, 3)}, batch_size=[1])
    assert infer(tiny, row).shape == (2, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observation.state": STATE + 1}, "different states under"),
        ({"image/image": WRIST}, "different pictures of camera 'image' under"),
        ({"task": "other"}, "two instructions, {'prompt': 'put the bowl', 'task': 'other'}"),
    ],
)
def test_two_keys_that_disagree_are_refused(
    policy: FlowPolicy, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        infer(policy, {**raw(), **changes}, NOISE)


def test_two_keys_that_agree_are_accepted(policy: FlowPolicy) -> None:
    same = {"observation.state": STATE, "image/image": BYTES, "task": "put the bowl"}
    assert np.array_equal(infer(policy, {**raw(), **same}, NOISE), infer(policy, raw(), NOISE))


@pytest.mark.parametrize("words", ["", " ", "\n\t"])
def test_an_instruction_without_words_is_refused(policy: FlowPolicy, words: str) -> None:
    with pytest.raises(
        ValueError, match=r"needs a prompt, but the instructions are \[.*name the task in words"
    ):
        infer(policy, raw(prompt=words), NOISE)


@pytest.mark.parametrize(
    "noise",
    [NOISE[:5], NOISE[:, :7], np.stack([NOISE, NOISE]), NOISE[0], NOISE.T, np.zeros((0, 32))],
)
def test_noise_of_another_shape_is_refused(policy: FlowPolicy, noise: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"noise has shape .*; it must be \(H, A\) = \(10, 32\)"):
        infer(policy, raw(), noise)
    inputs = policy.model_input(observation(policy, raw()), ("x",))
    with pytest.raises(ValueError, match=r"noise has shape .* \(N, H, A\) = \(1, 10, 32\)"):
        policy.sample_actions(inputs, torch.from_numpy(noise).float())


def test_noise_may_have_a_row_of_its_own_and_must_be_finite(policy: FlowPolicy) -> None:
    assert np.array_equal(infer(policy, raw(), NOISE[None]), infer(policy, raw(), NOISE))
    with pytest.raises(ValueError, match="noise has numbers that are not finite"):
        infer(policy, raw(), np.where(NOISE > 2, np.nan, NOISE))
