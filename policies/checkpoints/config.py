"""What a caller says about a checkpoint: what its format does not hold, and what to change."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from pitune.policies.checkpoints import openpi
from pitune.policies.policy import FlowPolicy, SamplerConfig
from pitune.policies.preprocessing.preprocessor import PreprocessorConfig


@dataclass(frozen=True, kw_only=True)
class LoadConfig:
    """What a checkpoint of another format does not hold; ours holds it all."""

    pipeline: str | None = None
    """Name of the openpi config that trained it, for openpi's checkpoints."""
    tokenizer: Path | None = None
    """Sentencepiece model or folder with tokenizer.json, where the checkpoint has none."""
    norm_stats: Path | None = None
    """openpi's norm_stats.json, instead of the checkpoint's; `pitune.experiments.norm_stats` makes
    one."""
    unnormalized: bool = False
    """Run a checkpoint without norm stats, neither scaling states nor actions."""
    cameras: dict[str, str] = field(default_factory=dict)
    """The network's cameras, each with the environment's camera that fills it; the checkpoint's
    own names by default."""
    action_horizon: int | None = None
    """H, instead of the pipeline's; it is free, as no weight depends on it."""
    execution_horizon: int | None = None
    """h, instead of the checkpoint's."""
    flow_steps: int | None = None
    """K, instead of the checkpoint's."""
    state_padding: int | None = None
    """For lerobot's π0.5: 32 if version 0.4 trained it, 0 if a later one did."""


NOT_FOR: dict[str, tuple[str, ...]] = {
    "pitune": ("pipeline", "unnormalized", "action_horizon", "state_padding"),
    "lerobot": ("pipeline",),
    "openpi": ("state_padding",),
    "orbax": ("state_padding",),
}
"""Settings that mean nothing to a checkpoint of each format."""


def refuse_unused(config: LoadConfig, kind: str, folder: Path) -> None:
    """Refuse what the caller says that a checkpoint of this format would not hear.

    Raises:
        ValueError: names the setting.
    """
    for name in NOT_FOR[kind]:
        value = getattr(config, name)
        if value != getattr(LoadConfig(), name):
            formats = [other for other, unused in NOT_FOR.items() if name not in unused]
            raise ValueError(
                f"{name}={value!r} does not apply to {folder}, which is a {kind} checkpoint; leave "
                f"it out (it is for {', '.join(formats)})"
            )


def with_norm_stats(policy: FlowPolicy, config: LoadConfig) -> FlowPolicy:
    """Return the policy with other norm stats, where the caller gives some."""
    if config.norm_stats is None:
        return policy
    state, action = openpi.read_norm_stats(config.norm_stats)
    before = policy.preprocessor.config
    if before.normalization == "none":
        raise ValueError(
            "this policy was saved unnormalized, so norm stats would not be used; load the "
            "original checkpoint with norm_stats (--load.norm-stats)"
        )
    preprocessor = replace(
        before, state=state.first(before.state.dim), action=action.first(before.action.dim)
    )
    return _changed(policy, preprocessor, policy.sampler)


def with_settings(policy: FlowPolicy, config: LoadConfig) -> FlowPolicy:
    """Return the policy with the settings that the caller changes."""
    changes = {
        name: value
        for name in ("execution_horizon", "flow_steps")
        if (value := getattr(config, name)) is not None
    }
    preprocessor = policy.preprocessor.config
    if not changes and not config.cameras:
        return policy
    if config.cameras:
        preprocessor = _rewired(preprocessor, config.cameras)
    return _changed(policy, preprocessor, replace(policy.sampler, **changes))


def _changed(
    policy: FlowPolicy, preprocessor: PreprocessorConfig, sampler: SamplerConfig
) -> FlowPolicy:
    """Return the policy with other settings, around the same network.

    A steered policy is refused: its noise actor learned with the settings that it has.
    """
    if policy.noise_source is not None:
        raise ValueError(
            "this checkpoint is steered, and its noise actor fits only the settings that it was "
            "trained with; load it without changes, or change the checkpoint it was made from"
        )
    return FlowPolicy(policy.network, preprocessor, sampler, info=policy.info)


def _rewired(config: PreprocessorConfig, cameras: dict[str, str]) -> PreprocessorConfig:
    """Return the config with other cameras of the observation; unnamed ones become missing."""
    pictures = config.pictures
    known = () if pictures is None else (*pictures.cameras, *pictures.missing)
    unknown = sorted(set(cameras) - set(known))
    if pictures is None or unknown:
        raise ValueError(
            f"cameras={cameras} names {unknown}, but the network's cameras are {list(known)}"
        )
    kept = {name: cameras[name] for name in known if name in cameras}
    missing = tuple(name for name in known if name not in cameras)
    return replace(config, pictures=replace(pictures, cameras=kept, missing=missing))
