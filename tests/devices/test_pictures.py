"""Pictures move to the policy's device as bytes of the simulator's size, and are resized there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pretend_device
import pytest
import torch
from tensordict import TensorDict

from pitune.policies.preprocessing.images import resized_pictures
from pitune.policies.preprocessing.preprocessor import Preprocessor
from vision_policies import vision_policy

NUM, CAMERAS, SMALL, SIZE = 3, 2, 20, 28
RESIZES = pytest.mark.parametrize("resize", ["pillow", "torch"])


def preprocessor(resize: Any) -> Preprocessor:
    """Return a preprocessor of two cameras, on the host."""
    config = vision_policy().preprocessor.config
    assert config.pictures is not None
    pictures = replace(config.pictures, resize=resize)
    return Preprocessor(replace(config, pictures=pictures), 4, 2)


def observation(height: int = SMALL, width: int = SMALL) -> TensorDict:
    """Return noise of two cameras, on the host."""
    generator = torch.Generator().manual_seed(0)
    shape = (NUM, 3, height, width)
    noise = [torch.randint(256, shape, generator=generator).to(torch.uint8) for _ in range(CAMERAS)]
    cameras = dict(zip(("image/front", "image/wrist"), noise, strict=True))
    return TensorDict({"state": torch.zeros(NUM, 4), **cameras}, [NUM])


@RESIZES
@pytest.mark.parametrize(("height", "width"), [(SMALL, SMALL), (15, 40), (60, 31), (SIZE, SIZE)])
def test_the_device_gives_the_pictures_of_the_host(resize: Any, height: int, width: int) -> None:
    on_host, on_device = preprocessor(resize), preprocessor(resize).to(pretend_device.device())
    obs = observation(height, width)
    expected = on_host.images_and_state(obs)["images"]
    found = on_device.images_and_state(obs)["images"]
    assert found.device.type == pretend_device.NAME
    assert found.dtype == expected.dtype
    assert torch.equal(found.cpu(), expected)


@RESIZES
def test_small_pictures_move_as_small_bytes_in_one_copy(resize: Any) -> None:
    on_device, obs = preprocessor(resize).to(pretend_device.device()), observation()
    on_device.images_and_state(obs)  # the tables of the filter move once
    with pretend_device.count() as events:
        on_device.images_and_state(obs)
    assert events.total("to device") == 2, events.text()  # pictures and state
    state = NUM * 4 * 4
    assert events.copied_bytes["to device"] == NUM * CAMERAS * 3 * SMALL**2 + state
    assert events.waits == 0, events.text()


@RESIZES
def test_resizing_on_the_host_moves_more_bytes(resize: Any) -> None:
    """The control of the test above."""
    config, obs = preprocessor(resize).config.pictures, observation()
    assert config is not None
    with pretend_device.count() as events:
        images = [obs[f"image/{camera}"] for camera in config.cameras.values()]
        resized_pictures(images, config).to(pretend_device.device())
    size = 1 if resize == "pillow" else 4
    assert events.copied_bytes["to device"] == size * NUM * CAMERAS * 3 * SIZE**2


@RESIZES
def test_pictures_of_a_simulator_on_the_device_never_leave_it(resize: Any) -> None:
    device = pretend_device.device()
    on_device, obs = preprocessor(resize).to(device), observation().to(device)
    on_device.images_and_state(obs)
    with pretend_device.count() as events:
        on_device.images_and_state(obs)
    assert events.total() == 0, events.text()
