"""Settings of a flow policy's sampler, and the facts about a policy that its weights do not hold.

Letters: N rows, K flow steps, H action horizon, h executed actions, A model action dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from pitune.policies.fast.config import FastDecodingConfig
from pitune.policies.fast.tokenizer import FastTokenizer
from pitune.policies.flow.delay import DelayConfig
from pitune.policies.flow.guidance import GuidanceConfig
from pitune.policies.flow.ode import Solver
from pitune.policies.flow.real_time import RealTimeConfig, check_delay
from pitune.policies.network.config import Pi0Config
from pitune.policies.network.lora import LoRAConfig
from pitune.policies.preprocessing.preprocessor import Preprocessor, PreprocessorConfig
from pitune.policies.preprocessing.prompt import Encoder
from pitune.ranges import PositiveInt, Settings

Decoder = Literal["flow", "fast"]


@dataclass(frozen=True, kw_only=True)
class SamplerConfig(Settings):
    """Sampling and execution of a chunk, the same for fine-tuning and deployment.

    Example:
        >>> SamplerConfig(flow_steps=10).execution_horizon
        4
    """

    flow_steps: PositiveInt = 4
    """K, steps from noise to action. Evaluate with the number used in training."""
    execution_horizon: PositiveInt = 4
    """h, number of the H predicted actions that are executed before the next decision."""
    solver: Solver = "euler"
    """ODE solver of the deployed policy."""
    accumulated_time: bool = False
    """Whether flow times are accumulated (openpi) or computed (lerobot), see `TimeGrid`."""
    real_time: RealTimeConfig | None = None
    """How a new chunk continues the one that is being executed. None begins each chunk afresh."""

    delay: DelayConfig = field(default_factory=DelayConfig)
    """Decision delay that the policy is fine-tuned under."""
    decoder: Decoder = "flow"
    """How the deployed policy makes a chunk: by its flow, or by its FAST tokens."""
    fast: FastDecodingConfig = field(default_factory=FastDecodingConfig)
    """Decoding of FAST tokens."""
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    """Conditions that the policy acts with, and guidance towards them."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SamplerConfig:
        """Rebuild the config from `dataclasses.asdict`, also after a round trip through JSON."""
        real_time = values.get("real_time")
        if real_time is not None:  # pitune 0.3 had the delay of the cloning here
            real_time = {key: value for key, value in real_time.items() if key != "max_delay"}
        parts: dict[str, Any] = {"delay": DelayConfig(**values.get("delay", {}))}
        parts["fast"] = FastDecodingConfig(**values.get("fast", {}))
        parts["guidance"] = GuidanceConfig(**values.get("guidance", {}))
        parts["real_time"] = None if real_time is None else RealTimeConfig(**real_time)
        return cls(**{**values, **parts})


@dataclass(frozen=True, kw_only=True)
class PolicyInfo:
    """Facts about a policy that its weights do not hold. An info is replaced, never changed.

    Example:
        >>> PolicyInfo(origin={"format": "openpi"}).tokenizer is None
        True
    """

    origin: Mapping[str, Any] = field(default_factory=dict)
    """Entries that an export in the checkpoint's own format needs."""
    tokenizer: Encoder | None = None
    """Tokenizer of a policy with a prompt."""
    fast: FastTokenizer | None = None
    """FAST tokenizer of a policy whose language model predicts actions."""
    lora: LoRAConfig | None = None
    """The network's low-rank updates."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    """Id and settings of the environment that the policy learned in (JSON values), if known."""

    real_time_delay: int = 0
    """Longest clean beginning of the chunks that it was cloned on [control steps], 0 for none."""

    def __deepcopy__(self, memo: dict[int, Any]) -> PolicyInfo:
        return self


def make_preprocessor(config: PreprocessorConfig, network: Pi0Config) -> Preprocessor:
    """Return the preprocessor with the network's widths."""
    # π0.5 has the state in its prompt, with any number of dimensions
    state_dim = config.state.dim if network.family == "pi05" else 0
    return Preprocessor(config, max(network.state_dim, state_dim), network.action_dim)


def check_parts(
    network: Pi0Config, preprocessor: PreprocessorConfig, sampler: SamplerConfig
) -> None:
    """Check that the parts of a policy fit each other.

    Raises:
        ValueError: more actions would be executed than are predicted, or none; the network and
            the preprocessor differ in whether there are cameras or a prompt; the solver needs a
            velocity at flow time 0 that the network does not have.
    """
    if network.options.prediction.output == "action" and sampler.solver == "heun":
        raise ValueError(
            "sampler.solver='heun' needs the velocity at flow time 0, and a network with "
            "options.prediction.output='action' has none there; take 'euler' or 'midpoint'"
        )
    for name, prepared, used in (
        ("pictures", preprocessor.pictures is not None, network.vision is not None),
        ("prompt", preprocessor.prompt is not None, network.vocab_size > 0),
    ):
        if prepared != used:
            raise ValueError(
                f"the preprocessor has {'a' if prepared else 'no'} {name} config, but the "
                f"network {'uses' if used else 'does not use'} it"
            )
    if not 1 <= sampler.execution_horizon <= network.action_horizon:
        raise ValueError(
            f"execution_horizon={sampler.execution_horizon} must be between 1 and "
            f"action_horizon={network.action_horizon}"
        )
    if network.options.memory.is_on and sampler.decoder == "fast":
        raise ValueError(
            "sampler.decoder='fast' cannot be combined with a memory (options.memory), which the "
            "tokens of actions do not read; take decoder='flow'"
        )
    if network.options.memory.is_on and sampler.delay.highest:
        raise ValueError(
            f"delay={sampler.delay} cannot be combined with a memory (options.memory), because a "
            "late decision would read the memory of an earlier observation; leave one of them out"
        )
    if sampler.delay.highest:
        check_delay(sampler.delay.highest, sampler.execution_horizon, network.action_horizon)


def check_real_time(sampler: SamplerConfig, info: PolicyInfo) -> None:
    """Check that a policy can continue chunks as its sampler sets.

    Raises:
        ValueError: it cannot.
    """
    config, delay = sampler.real_time, sampler.delay
    if delay.seam == "ensemble":
        raise ValueError(
            "sampler.delay.seam='ensemble' averages several chunks, and their mean has no density; "
            "take 'plain' or 'real_time'. DelayedActor evaluates ensembles"
        )
    if config is not None and config.method == "trained" and not info.real_time_delay:
        raise ValueError(
            "real_time.method='trained' needs a policy that was cloned with clean beginnings, and "
            "this one was not; take method='guided', or clone with real_time_delay "
            "(pitune pretrain --real-time-delay 4)"
        )
    if delay.seam == "real_time" and config is None:
        raise ValueError(
            "delay.seam='real_time' needs the policy's settings `sampler.real_time`; set them, "
            "clone with real_time_delay (pitune pretrain --real-time-delay 4), or choose another "
            "seam"
        )
    if delay.seam == "real_time" and config is not None and config.method == "trained":
        check_trained_delay(delay.highest, info)


def check_trained_delay(delay: int, info: PolicyInfo) -> None:
    """Check that a policy was cloned with clean beginnings that are as long as a delay.

    Raises:
        ValueError: it was not.
    """
    if delay > info.real_time_delay:
        raise ValueError(
            f"delay={delay} is longer than real_time_delay={info.real_time_delay} of the policy's "
            "cloning; use method='guided', or clone with longer delays"
        )


def check_noise(noise: Tensor, shape: tuple[int, int, int]) -> None:
    """Check that a chunk's starting points have the shape (N, H, A).

    A shorter noise would be integrated too, to a shorter chunk of other actions.

    Raises:
        ValueError: they have another shape.
    """
    if noise.shape != shape:
        raise ValueError(
            f"noise has shape {tuple(noise.shape)}; it must be (N, H, A) = {shape}, with the "
            "network's width A"
        )


def check_decoder(sampler: SamplerConfig, network: Pi0Config, is_steered: bool) -> None:
    """Check that a policy can act by its FAST tokens, if its sampler sets that.

    Raises:
        ValueError: it cannot.
    """
    if sampler.decoder == "flow":
        return
    if not network.options.language_head.is_on:
        raise ValueError(
            "sampler.decoder='fast' acts by the tokens of a language head, and this network has "
            "none; make one with network_options.language_head.enabled=True, or take 'flow'"
        )
    if is_steered:
        raise ValueError(
            "sampler.decoder='fast' reads no starting noise, so it cannot be steered; take "
            "decoder='flow'"
        )
    unread = [kind for kind in network.options.conditioning.kinds if kind != "instruction"]
    if unread:
        raise ValueError(
            f"sampler.decoder='fast' cannot be combined with conditions of {unread} "
            "(options.conditioning), which the tokens of actions do not read; take decoder='flow'"
        )
    if sampler.guidance.scale:
        raise ValueError(
            f"sampler.decoder='fast' takes no step of the flow that guidance.scale="
            f"{sampler.guidance.scale} could change; set it to 0, or take decoder='flow'"
        )
    if sampler.delay.highest or sampler.delay.seam != "plain" or sampler.real_time is not None:
        raise ValueError(
            "sampler.decoder='fast' begins each chunk afresh; leave out real_time and a decision "
            "delay, or take decoder='flow'"
        )
