"""Compare a checkpoint's outputs here with stored outputs of its reference implementation.

    pitune verify CHECKPOINT --inputs inputs.safetensors --outputs outputs.safetensors

The command computes loss, velocity and sampled actions from given inputs, noise and flow times. It
prints the largest error of each against the stored outputs, and exits with status 1 if one is above
--tolerance. Errors are absolute for numbers up to 1, and relative to larger ones.

Inputs: `image_uint8.<camera>` (N, Y, X, 3), `image_mask.<camera>` (N,), `tokens` and `token_mask`
(N, L), `state` (N, S), `actions` and `noise` (N, H, A), `time` (N,). Outputs, all optional:
`loss_elementwise`, `loss_per_step`, `v_t_joint`, `v_t_cached`, `sample_actions_<K>`, `prefix_embs`,
`x_t`, `u_t`, `traj_x`, `grad.<parameter>`. Both files are safetensors or npz.
Letters: N rows, H action horizon, A model action dim, S model state dim, L prompt tokens, Y, X
image pixels.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from torch import Tensor

from pitune.experiments.command_line.errors import exit_with_message
from pitune.experiments.command_line.parsing import arguments, parse, program
from pitune.experiments.find_checkpoint import find_checkpoint
from pitune.policies.checkpoints import lerobot_read
from pitune.policies.checkpoints.files import read_safetensors
from pitune.policies.checkpoints.formats import load_network, recognize
from pitune.policies.checkpoints.lerobot_read import LerobotFolder
from pitune.policies.checkpoints.native import load_policy
from pitune.policies.checkpoints.pipelines import CAMERAS
from pitune.policies.flow.chain import sample_chain
from pitune.policies.flow.path import TimeGrid, interpolate, target_velocity
from pitune.policies.network.pi0 import Pi0
from pitune.policies.preprocessing.images import nearest
from pitune.ranges import NonNegativeFloat, Settings

NEEDED = {"state", "actions", "noise", "time", "tokens", "token_mask"}
"""Inputs that every comparison needs."""


@dataclass(frozen=True, kw_only=True)
class VerifyConfig(Settings):
    """Compare a checkpoint's outputs with stored ones.

    Example:
        >>> from pathlib import Path
        >>> config = VerifyConfig(
        ...     checkpoint=Path("pi0_libero"),
        ...     inputs=Path("inputs.safetensors"),
        ...     outputs=Path("outputs.safetensors"),
        ... )
        >>> config.dtype
        'auto'
    """

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """Folder of a checkpoint: ours, openpi's, lerobot's or orbax."""
    inputs: Path
    """Observations, actions, noise and flow times (.safetensors or .npz)."""
    outputs: Path
    """Outputs of the reference for these inputs (.safetensors or .npz)."""
    tolerance: NonNegativeFloat | None = None
    """Largest accepted error, relative to numbers above 1. The default is 1e-4 in float32, 2e-4 for
    a JAX checkpoint and 5e-2 in bfloat16. JAX and PyTorch differ by up to 7e-5 in float32."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the towers; `auto` takes the precision of the stored weights."""
    json: bool = False
    """Print one JSON object instead of lines."""


def verify(config: VerifyConfig) -> tuple[dict[str, float], float]:
    """Return the largest error of each stored output, and the tolerance.

    Raises:
        ValueError: an input is missing, or there is nothing to compare with.
    """
    # stored tensors
    inputs, outputs = read_tensors(config.inputs), read_tensors(config.outputs)
    missing = sorted(NEEDED - inputs.keys())
    if missing:
        raise ValueError(f"{config.inputs} lacks {missing}; it holds {sorted(inputs)}")

    # network
    kind = recognize(config.checkpoint)
    network = _network(config.checkpoint, kind, inputs["actions"].shape[1])
    if config.dtype != "auto":
        network.compute_dtype = getattr(torch, config.dtype)

    # outputs
    arguments = encoder_inputs(inputs, camera_order(config.checkpoint))
    computed = compute(network, inputs, arguments, list(outputs), accumulated=kind != "lerobot")
    for key, value in computed.items():
        if value.shape != outputs[key].shape:
            raise ValueError(
                f"{key} has shape {tuple(value.shape)} here, {tuple(outputs[key].shape)} in "
                f"{config.outputs}; do inputs, outputs and checkpoint belong together?"
            )

    # errors
    errors = {key: error_of(value, outputs[key]) for key, value in computed.items()}
    if not errors:
        raise ValueError(f"{config.outputs} holds nothing to compare with: {sorted(outputs)}")

    # JAX rounds in another order than PyTorch, and bfloat16 keeps fewer digits
    tolerance = config.tolerance
    if tolerance is None:
        tolerance = 2e-4 if kind == "orbax" else 1e-4
        tolerance = tolerance if network.compute_dtype == torch.float32 else 5e-2
    return _with_one_line_of_gradients(errors), tolerance


def error_of(value: Tensor, reference: Tensor) -> float:
    """Return the largest error: absolute for numbers up to 1, and relative to larger ones.

    Rounding grows with a number. A gradient of 300 has no fewer right digits than one of 0.3.
    """
    reference = reference.double()
    error = (value.double() - reference).abs() / reference.abs().clamp(min=1.0)
    return float(error.max())


def _network(folder: Path, kind: str, action_horizon: int) -> Pi0:
    if kind == "pitune":
        return load_policy(folder).network
    return load_network(folder, action_horizon)


def compute(
    network: Pi0,
    inputs: dict[str, Tensor],
    arguments: dict[str, Tensor],
    wanted: list[str],
    accumulated: bool,
) -> dict[str, Tensor]:
    """Return the outputs in `wanted` that this function can compute.

    Args:
        network: A network in the precision of the comparison.
        inputs: See the module docstring.
        arguments: Pictures and prompt, from `encoder_inputs`.
        wanted: Names of outputs.
        accumulated: Whether flow times are accumulated; see `TimeGrid`.
    """
    # loss at one flow time (N, H, A)
    action, noise, time = inputs["actions"], inputs["noise"], inputs["time"]
    x = interpolate(action, noise, time[:, None, None])
    context = network.encode(inputs["state"], **arguments)
    # (N, H, A) -> (N, 1, H, A) -> (N, H, A)
    velocity = network.velocity(context, x[:, None], time[:, None]).velocity[:, 0]
    loss = (velocity - target_velocity(action, noise)).square()
    found = {
        "x_t": x,
        "u_t": target_velocity(action, noise),
        "loss_elementwise": loss,
        "loss_per_step": loss.mean(-1),
        "v_t_joint": velocity,
        "v_t_cached": velocity,
        "prefix_embs": network.embed_prefix(**arguments)[0],
    }

    # gradients
    if any(key.startswith("grad.") for key in wanted):
        loss.mean().backward()
        found |= {
            f"grad.{name}": torch.zeros_like(p) if p.grad is None else p.grad
            for name, p in network.named_parameters()
        }

    # samples
    with torch.no_grad():
        for key in wanted:
            if key == "traj_x" or key.startswith("sample_actions_"):
                steps = 10 if key == "traj_x" else int(key.removeprefix("sample_actions_"))
                grid = TimeGrid(steps, accumulated)
                chain, _ = sample_chain(partial(network.velocity, context), noise, grid)
                found[key] = chain if key == "traj_x" else chain[:, -1]
    return {key: found[key].detach() for key in wanted if key in found}


def camera_order(checkpoint: Path) -> tuple[str, ...]:
    """Return the cameras in the order of the prefix: openpi's, lerobot's config's, or our own."""
    kind = recognize(checkpoint)
    if kind == "pitune":
        own = load_policy(checkpoint).preprocessor.config.pictures
        return () if own is None else own.network_cameras
    if kind != "lerobot":
        return CAMERAS
    pictures = lerobot_read.pictures_config(LerobotFolder.read(checkpoint).config)
    return (*pictures.cameras, *pictures.missing)


def encoder_inputs(
    inputs: dict[str, Tensor], order: tuple[str, ...] = CAMERAS
) -> dict[str, Tensor]:
    """Return the arguments of `Pi0.encode` without the state.

    Raises:
        ValueError: the inputs hold a camera that the network lacks.
    """
    # cameras in the network's order
    names = [key.removeprefix("image_uint8.") for key in inputs if key.startswith("image_uint8.")]
    if unknown := sorted(set(names) - set(order)):
        raise ValueError(
            f"the inputs hold the cameras {unknown}, but the network's are {list(order)}"
            f"{nearest(unknown, order)}; rename them (image_uint8.<camera>)"
        )
    names = [name for name in order if name in names]
    # (N, V, Y, X, 3) and (N, V)
    pictures = torch.stack([inputs[f"image_uint8.{name}"] for name in names], dim=1)
    present = torch.ones(len(pictures), dtype=torch.bool)
    masks = torch.stack([inputs.get(f"image_mask.{n}", present).bool() for n in names], dim=1)
    return {
        # (N, V, Y, X, 3) -> (N, V, 3, Y, X)
        "images": pictures.permute(0, 1, 4, 2, 3).float() / 255 * 2 - 1,
        "image_mask": masks,
        "tokens": inputs["tokens"].long(),
        "token_mask": inputs["token_mask"].bool(),
    }


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors or npz file.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no file at {file}")
    if file.suffix != ".npz":
        return read_safetensors(file)
    with np.load(file, allow_pickle=False) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def _with_one_line_of_gradients(errors: dict[str, float]) -> dict[str, float]:
    gradients = [value for key, value in errors.items() if key.startswith("grad.")]
    lines = {key: value for key, value in errors.items() if not key.startswith("grad.")}
    return lines | ({"gradients": max(gradients)} if gradients else {})


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry."""
    with exit_with_message():
        config = parse(VerifyConfig, arguments(argv), prog=program("verify"), description=__doc__)
        config = replace(config, checkpoint=find_checkpoint(config.checkpoint))
        errors, tolerance = verify(config)
        passed = all(error <= tolerance for error in errors.values())
        if config.json:
            print(json.dumps({"errors": errors, "tolerance": tolerance, "passed": passed}))
        else:
            for key, error in errors.items():
                print(f"{key:20} {error:.3e}  {'ok' if error <= tolerance else 'ABOVE'}")
            print(f"tolerance {tolerance:g}: {'passed' if passed else 'FAILED'}")
            if not passed and config.dtype == "auto":
                print("if the outputs were computed in another precision, pass --dtype")
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
