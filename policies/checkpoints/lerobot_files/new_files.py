"""New JSON files of lerobot for a policy that came from elsewhere, or has changed."""

from __future__ import annotations

from typing import Any

from pitune.policies.checkpoints.lerobot_read import LerobotFolder
from pitune.policies.policy import FlowPolicy
from pitune.policies.preprocessing.images import PicturesConfig
from pitune.policies.preprocessing.preprocessor import PreprocessorConfig

_MODES = {"zscore": "MEAN_STD", "quantile": "QUANTILES", "none": "IDENTITY"}


def new_files(policy: FlowPolicy, eps: float, former: dict[str, Any]) -> LerobotFolder:
    """Return the contents of `config.json` and of the two step files.

    Args:
        policy: The policy.
        eps: Constant that lerobot adds to a standard deviation.
        former: `config.json` of the checkpoint, whose other entries are kept.
    """
    network, config = policy.network.config, policy.preprocessor.config
    pictures, prompt = config.pictures, config.prompt
    if pictures is None or prompt is None:
        raise ValueError("lerobot's π0 needs cameras and a prompt; save with format='pitune'")

    # features
    size = [3, pictures.size, pictures.size]
    names = [*pictures.cameras, *(f"empty_camera_{i}" for i, _ in enumerate(pictures.missing))]
    inputs: dict[str, Any] = {
        f"observation.images.{name}": {"type": "VISUAL", "shape": size} for name in names
    }
    inputs["observation.state"] = {"type": "STATE", "shape": [config.state.dim]}
    outputs = {"action": {"type": "ACTION", "shape": [config.action.dim]}}

    # normalization
    mode = _MODES[config.normalization]
    norm_map = {"VISUAL": "IDENTITY", "STATE": mode, "ACTION": mode}
    relative = _relative_actions(config)

    # config.json
    description = {
        "n_obs_steps": 1,
        "device": "cpu",
        "paligemma_variant": "gemma_2b",
        "action_expert_variant": "gemma_300m",
        **former,
        "type": network.family,
        "input_features": inputs,
        "output_features": outputs,
        "max_state_dim": network.state_dim,
        "max_action_dim": network.action_dim,
        "use_relative_actions": relative["enabled"],
        "relative_exclude_joints": relative["exclude_joints"],
        "action_feature_names": relative["action_names"],
        "image_resolution": size[1:],
        "empty_cameras": len(pictures.missing),
        "tokenizer_max_length": prompt.max_tokens,
        "normalization_mapping": norm_map,
        **sampler_settings(policy),
    }

    # step files
    normalizer = {"eps": eps, "features": {**inputs, **outputs}, "norm_map": norm_map}
    before = _steps(network.family, relative, normalizer, prompt.max_tokens)
    before[0]["config"]["rename_map"] = _rename_map(pictures)
    after = _postprocessor_steps(relative, {**normalizer, "features": outputs})
    return LerobotFolder(
        config=description,
        preprocessor={"name": "policy_preprocessor", "steps": before},
        postprocessor={"name": "policy_postprocessor", "steps": after},
    )


def _rename_map(pictures: PicturesConfig) -> dict[str, str]:
    """Return lerobot's names of the robot's cameras, for those that differ from the network's.

    Raises:
        ValueError: one of the robot's cameras has several places, which lerobot cannot express.
    """
    robot_names = list(pictures.cameras.values())
    twice = sorted({name for name in robot_names if robot_names.count(name) > 1})
    if twice:
        raise ValueError(
            f"lerobot cannot give the pictures of {twice} to several cameras of the network, as "
            f"cameras={pictures.cameras} does; save with format='pitune'"
        )
    return {
        f"observation.images.{robot}": f"observation.images.{name}"
        for name, robot in pictures.cameras.items()
        if robot != name
    }


def _relative_actions(config: PreprocessorConfig) -> dict[str, Any]:
    """Return the config of lerobot's step for relative actions.

    lerobot excludes actions by a word in their name, so absolute ones get the word `absolute`.
    """
    mask = [*config.delta_mask, *(False,) * (config.action.dim - len(config.delta_mask))]
    names = [f"joint_{i}" if relative else f"absolute_{i}" for i, relative in enumerate(mask)]
    enabled = any(config.delta_mask)
    return {
        "enabled": enabled,
        "exclude_joints": ["absolute"],
        "action_names": names if enabled else None,
    }


def _postprocessor_steps(
    relative: dict[str, Any], normalizer: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return the steps of lerobot's own postprocessor, in its order."""
    return [
        {
            "registry_name": "unnormalizer_processor",
            "config": normalizer,
            "state_file": "policy_postprocessor_step_0_unnormalizer_processor.safetensors",
        },
        {
            "registry_name": "absolute_actions_processor",
            "config": {"enabled": relative["enabled"]},
        },
        {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}},
    ]


def _steps(
    family: str, relative: dict[str, Any], normalizer: dict[str, Any], max_tokens: int
) -> list[dict[str, Any]]:
    """Return the steps of lerobot's own preprocessor, in its order."""
    # steps that both families have
    relative_step = {"registry_name": "relative_actions_processor", "config": relative}
    tokenizer_step = {
        "registry_name": "tokenizer_processor",
        "config": {
            "max_length": max_tokens,
            "task_key": "task",
            "padding_side": "right",
            "padding": "max_length",
            "truncation": True,
            "tokenizer_name": "google/paligemma-3b-pt-224",
        },
    }
    device_step = {
        "registry_name": "device_processor",
        "config": {"device": "cpu", "float_dtype": None},
    }

    def normalizer_step(number: int) -> dict[str, Any]:
        file = f"policy_preprocessor_step_{number}_normalizer_processor.safetensors"
        return {
            "registry_name": "normalizer_processor",
            "config": normalizer,
            "state_file": file,
        }

    first = [
        {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
        {"registry_name": "to_batch_processor", "config": {}},
    ]

    # the order differs between the families
    if family == "pi0":
        newline = {"registry_name": "pi0_new_line_processor", "config": {}}
        return [*first, newline, tokenizer_step, device_step, relative_step, normalizer_step(6)]
    prompt = {"registry_name": "pi05_prepare_state_tokenizer_processor_step", "config": {}}
    return [*first, relative_step, normalizer_step(3), prompt, tokenizer_step, device_step]


def sampler_settings(policy: FlowPolicy) -> dict[str, Any]:
    """Return the entries of `config.json` that no processing step has."""
    return {
        "chunk_size": policy.network.config.action_horizon,
        "n_action_steps": policy.sampler.execution_horizon,
        "num_inference_steps": policy.sampler.flow_steps,
        "dtype": str(policy.network.compute_dtype).removeprefix("torch."),
    }
