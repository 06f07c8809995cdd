"""Actions for a robot's observation, in the formats of openpi's and lerobot's clients.

One call per decision. Training and evaluation use the same preprocessing.
Letters: H action horizon, A model action dim, d robot action dim, Y, X image pixels.
Source: openpi `policies/{libero,droid,aloha}_policy.py`; lerobot `processor`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from pitune.policies.policy import FlowPolicy
from pitune.policies.preprocessing.model_input import ModelInput
from pitune.policies.preprocessing.prompt import PromptConfig

_STATES = (
    ("observation/state",),
    ("observation/joint_position", "observation/gripper_position"),
    ("observation.state",),
    ("state",),
)
"""Keys of the state in the clients' observations: LIBERO, DROID, lerobot, ALOHA."""
_PICTURES = ("observation/{}", "observation.images.{}", "images/{}", "{}")


def infer(
    policy: FlowPolicy, raw: Mapping[str, Any], noise: np.ndarray | None = None
) -> np.ndarray:
    """Return the whole chunk (H, d) [robot units] for one robot's observation.

    Args:
        policy: Acts as deployed, by the flow's ODE.
        raw: State, pictures (Y, X, 3) or (3, Y, X), uint8 or floats in [0, 1], and `prompt` (or
            lerobot's `task`), under the keys of openpi's or lerobot's clients.
        noise: Starting point (H, A). The default is a draw from the standard normal. A
            trained noise source replaces it.

    Raises:
        ValueError: the state or a picture is missing, or has a wrong shape.

    Example:
        >>> from pitune.policies import SamplerConfig, small_policy
        >>> states, actions = torch.randn(50, 4), torch.randn(50, 2)
        >>> policy = small_policy(states, actions, action_horizon=8, sampler=SamplerConfig())
        >>> infer(policy, {"observation/state": [0.0, 0.0, 0.0, 0.0]}).shape
        (8, 2)
    """
    start = None if noise is None else torch.as_tensor(noise, device=policy.device).float()[None]
    with torch.no_grad():
        return policy.sample_chunk(robot_input(policy, raw), start)[0].cpu().numpy()


def robot_input(policy: FlowPolicy, raw: Mapping[str, Any]) -> ModelInput:
    """Return the network's input (1 row) for one robot's observation. See `infer`."""
    prompt = policy.preprocessor.config.prompt
    words = raw.get("prompt", raw.get("task"))
    instructions = () if prompt is None else (_instruction(words, prompt),)
    return policy.model_input(observation(policy, raw), instructions)


def observation(policy: FlowPolicy, raw: Mapping[str, Any]) -> TensorDict:
    """Return a robot's observation as a TensorDict with one row. See `infer`."""
    flat = dict(raw)
    if isinstance(raw.get("images"), Mapping):  # openpi's ALOHA client nests them
        flat |= {f"images/{name}": picture for name, picture in raw["images"].items()}
    keys = next((keys for keys in _STATES if all(key in flat for key in keys)), None)
    if keys is None:
        raise ValueError(
            f"the observation has no state: its keys are {sorted(flat)}, expected one of {_STATES}"
        )
    state = np.concatenate([np.asarray(flat[key], dtype=np.float32).reshape(-1) for key in keys])
    if len(state) != policy.preprocessor.state_dim:
        raise ValueError(
            f"the robot's state has {len(state)} numbers, the policy's norm stats "
            f"{policy.preprocessor.state_dim}"
        )
    tensors = {"state": torch.from_numpy(state)[None]}
    pictures = policy.preprocessor.config.pictures
    for camera in () if pictures is None else pictures.cameras.values():
        tensors[f"image/{camera}"] = _picture(camera, flat)[None]
    return TensorDict(tensors, batch_size=[1])


def _picture(camera: str, raw: Mapping[str, Any]) -> Tensor:
    """Return a picture (3, Y, X) uint8."""
    pictures = [raw[key.format(camera)] for key in _PICTURES if key.format(camera) in raw]
    if not pictures:
        raise ValueError(
            f"the observation has no picture of camera {camera!r}: its keys are {sorted(raw)}; "
            "rename one, or map the cameras with LoadConfig.cameras"
        )
    picture = np.asarray(pictures[0])
    if np.issubdtype(picture.dtype, np.floating):
        picture = (255 * picture).astype(np.uint8)
    if picture.ndim == 3 and picture.shape[0] != 3:  # (Y, X, 3) -> (3, Y, X)
        picture = picture.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(picture))


def _instruction(words: Any, prompt: PromptConfig) -> str:
    """Return the instruction of one observation, or the prompt's default."""
    if words is None:
        words = prompt.default
    if words is None:
        raise ValueError("the observation has no prompt, and the policy no default one")
    if isinstance(words, np.ndarray | list | tuple) and len(np.atleast_1d(words)) == 1:
        words = np.atleast_1d(words)[0]
    if not isinstance(words, str):
        raise ValueError(f"the prompt must be one text, but is {words!r}")
    return str(words)
