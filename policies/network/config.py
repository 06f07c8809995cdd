"""Sizes of the π0 and π0.5 networks, and the presets.

Width, depth, number of heads, horizon and action dimension are free. The sizes of a checkpoint are
inferred from its weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pitune.policies.network.options.config import NetworkOptions
from pitune.policies.network.siglip import SiglipConfig
from pitune.policies.network.sizes import GemmaConfig
from pitune.ranges import NonNegativeInt, PositiveInt, Settings

Family = Literal["pi0", "pi05"]


@dataclass(frozen=True, kw_only=True)
class Pi0Config(Settings):
    """Sizes of the network, in normalized model space.

    Raises:
        ValueError: the sizes contradict each other.

    Example:
        >>> sizes = Pi0Config(state_dim=4, action_dim=2, action_horizon=8, expert=LAPTOP_EXPERT)
        >>> sizes.feature_dim
        64
    """

    state_dim: PositiveInt
    """S, the width of the state token's input (π0)."""
    action_dim: PositiveInt
    """A, the model's action width. Actions of a robot with fewer dimensions are padded."""
    action_horizon: PositiveInt
    """H, number of actions in a chunk. The weights do not depend on it."""
    expert: GemmaConfig
    """The action expert."""
    family: Family = "pi0"
    """π0, or π0.5."""
    vlm: GemmaConfig | None = None
    """The language model. None for a policy that reads only its state."""
    vision: SiglipConfig | None = None
    """The vision tower. None for a policy without cameras."""
    vocab_size: NonNegativeInt = 0
    """Pieces of the tokenizer. 0 for a policy without a prompt."""
    extensions: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Registered extensions by name, each with its options (JSON values)."""
    options: NetworkOptions = field(default_factory=NetworkOptions)
    """Options beyond the published network, all off by default."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.expert.adaptive != (self.family == "pi05"):
            raise ValueError(
                f"family={self.family!r} does not fit expert.adaptive={self.expert.adaptive}; "
                "π0.5's expert has adaptive norms, π0's does not"
            )
        if self.vlm is None and (self.vision is not None or self.vocab_size):
            raise ValueError(
                "a vision tower or a vocabulary needs a language model, but vlm is None; pass a vlm"
            )
        if self.vlm is None and self.family == "pi05":
            raise ValueError(
                "π0.5 reads its state from the prompt, but vlm is None; pass a vlm, or use "
                "family='pi0'"
            )
        if self.vlm is not None:
            for name in ("depth", "num_heads", "num_kv_heads", "head_dim"):
                of_expert, of_vlm = getattr(self.expert, name), getattr(self.vlm, name)
                if of_expert != of_vlm:
                    raise ValueError(
                        f"the expert's {name}={of_expert} differs from the vlm's {of_vlm}; towers "
                        "that attend to each other share it, so make them equal"
                    )
        self.options.check(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Pi0Config:
        """Rebuild from `dataclasses.asdict`, by way of JSON."""
        parts: dict[str, Any] = {"expert": GemmaConfig(**values["expert"])}
        if values.get("vlm") is not None:
            parts["vlm"] = GemmaConfig(**values["vlm"])
        if values.get("vision") is not None:
            parts["vision"] = SiglipConfig(**values["vision"])
        parts["options"] = NetworkOptions.from_dict(values.get("options", {}))
        return cls(**{**values, **parts})

    @property
    def feature_dim(self) -> int:
        """Width of an observation's pooled features."""
        return (self.vlm or self.expert).width


LAPTOP_EXPERT = GemmaConfig(
    width=64, depth=2, mlp_dim=128, num_heads=4, num_kv_heads=1, head_dim=16
)
"""The small preset. Two CPU cores fine-tune this expert in minutes."""


def pi0(action_horizon: int = 50) -> Pi0Config:
    """Return the sizes of the published π0: 3.24 billion parameters."""
    return Pi0Config(
        state_dim=32,
        action_dim=32,
        action_horizon=action_horizon,
        expert=_gemma(width=1024, mlp_dim=4096),
        vlm=_gemma(width=2048, mlp_dim=16384),
        vision=SiglipConfig(width=1152, depth=27, mlp_dim=4304, num_heads=16),
        vocab_size=257_152,
    )


def pi05(action_horizon: int = 50) -> Pi0Config:
    """Return the sizes of the published π0.5: 3.35 billion parameters."""
    base = pi0(action_horizon)
    return replace(base, family="pi05", expert=replace(base.expert, adaptive=True))


def tiny(family: Family = "pi0", *, action_horizon: int = 10, image_size: int = 224) -> Pi0Config:
    """Return sizes for tests: every part of the published networks, with small widths."""
    return Pi0Config(
        state_dim=32,
        action_dim=32,
        action_horizon=action_horizon,
        expert=_gemma(width=32, mlp_dim=64, depth=2, head_dim=16, adaptive=family == "pi05"),
        family=family,
        vlm=_gemma(width=64, mlp_dim=128, depth=2, head_dim=16),
        vision=SiglipConfig(width=32, depth=3, mlp_dim=48, num_heads=2, image_size=image_size),
        vocab_size=1024,
    )


def _gemma(
    *, width: int, mlp_dim: int, depth: int = 18, head_dim: int = 256, adaptive: bool = False
) -> GemmaConfig:
    """Return a tower with the published number of heads."""
    return GemmaConfig(
        width=width,
        depth=depth,
        mlp_dim=mlp_dim,
        num_heads=8,
        num_kv_heads=1,
        head_dim=head_dim,
        adaptive=adaptive,
    )
