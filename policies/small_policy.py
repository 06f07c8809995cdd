"""An untrained small policy: from the state alone, or also from pictures and an instruction.

Letters: N rows, H action horizon, s robot state dim, d robot action dim, L prompt tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pitune.policies.network.config import LAPTOP_EXPERT, Pi0Config
from pitune.policies.network.options.config import NetworkOptions
from pitune.policies.network.siglip import SiglipConfig
from pitune.policies.network.sizes import GemmaConfig
from pitune.policies.policy import FlowPolicy
from pitune.policies.policy_config import PolicyInfo, SamplerConfig
from pitune.policies.preprocessing.images import PicturesConfig
from pitune.policies.preprocessing.norm_stats import NormStats
from pitune.policies.preprocessing.preprocessor import PreprocessorConfig
from pitune.policies.preprocessing.prompt import PromptConfig
from pitune.policies.preprocessing.tokenizer import Tokenizer
from pitune.ranges import NonNegativeInt, PositiveInt, Settings


@dataclass(frozen=True, kw_only=True)
class SmallVLMConfig(Settings):
    """Sizes of a small vision-language model. Its depth and its heads are those of the expert.

    Example:
        >>> SmallVLMConfig(patch_size=16).vision(64).num_patches
        16
    """

    width: PositiveInt = 64
    """Width of the language model."""
    mlp_dim: PositiveInt = 128
    """Hidden width of its feed-forward part."""
    vision_width: PositiveInt = 64
    """Width of the vision tower."""
    vision_depth: PositiveInt = 2
    """Layers of the vision tower."""
    vision_mlp_dim: PositiveInt = 128
    """Hidden width of the feed-forward part of the vision tower."""
    vision_heads: PositiveInt = 4
    """Attention heads of the vision tower. They divide its width."""
    patch_size: PositiveInt = 8
    """Height and width of a patch [pixels]. It divides the picture's."""
    max_tokens: PositiveInt = 32
    """L, longest instruction [tokens]. Shorter ones are padded."""
    max_vocabulary: PositiveInt = 1024
    """Greatest number of tokens of the tokenizer that is made from the instructions."""
    discrete_state: bool = False
    """Whether the prompt contains the state as whole numbers too, which FAST tokens need."""
    fast_tokens: NonNegativeInt = 0
    """Embeddings for FAST tokens, after those of the tokenizer. 0 for none."""

    def language(self, expert: GemmaConfig) -> GemmaConfig:
        """Return the language model that an expert can attend to."""
        return GemmaConfig(
            width=self.width,
            depth=expert.depth,
            mlp_dim=self.mlp_dim,
            num_heads=expert.num_heads,
            num_kv_heads=expert.num_kv_heads,
            head_dim=expert.head_dim,
        )

    def vision(self, image_size: int) -> SiglipConfig:
        """Return the vision tower for pictures of a height and width [pixels]."""
        return SiglipConfig(
            width=self.vision_width,
            depth=self.vision_depth,
            mlp_dim=self.vision_mlp_dim,
            num_heads=self.vision_heads,
            image_size=image_size,
            patch_size=self.patch_size,
        )


def small_policy(
    state: Tensor,
    action: Tensor,
    *,
    action_horizon: int,
    sampler: SamplerConfig,
    expert: GemmaConfig = LAPTOP_EXPERT,
    cameras: Sequence[str] = (),
    image_size: int = 64,
    tokenizer: Tokenizer | None = None,
    vlm: SmallVLMConfig | None = None,
    options: NetworkOptions | None = None,
) -> FlowPolicy:
    """Build an untrained policy with the norm stats of demonstrations.

    With cameras or a tokenizer it has a vision-language model, and without it reads the state
    alone.

    Args:
        state: All demonstrated states (N, s) [robot units].
        action: All demonstrated actions (N, d) [robot units].
        action_horizon: H.
        sampler: Flow steps and execution horizon.
        expert: Sizes of the transformer.
        cameras: The environment's cameras whose pictures the policy reads.
        image_size: Height and width of these pictures [pixels].
        tokenizer: Tokenizer of a policy that reads the instruction.
        vlm: Sizes of the vision-language model.
        options: Options of the network.

    Raises:
        ValueError: the sizes contradict each other, or there are sizes of a vision-language model
            and neither cameras nor a tokenizer.

    Example:
        >>> import torch
        >>> states, actions = torch.randn(50, 4), torch.randn(50, 2)
        >>> policy = small_policy(states, actions, action_horizon=4, sampler=SamplerConfig())
        >>> policy.chunk_shape
        (4, 2)
    """
    reads_more = bool(cameras) or tokenizer is not None
    if vlm is not None and not reads_more:
        raise ValueError(
            f"vlm={vlm} has no use without cameras and a tokenizer: the policy reads its state "
            "alone; name cameras, pass a tokenizer, or leave vlm out"
        )
    vlm = vlm or SmallVLMConfig()
    network = Pi0Config(
        state_dim=state.shape[-1],
        action_dim=action.shape[-1],
        action_horizon=action_horizon,
        expert=expert,
        vlm=vlm.language(expert) if reads_more else None,
        vision=vlm.vision(image_size) if cameras else None,
        vocab_size=0 if tokenizer is None else tokenizer.vocab_size + vlm.fast_tokens,
        options=options or NetworkOptions(),
    )
    preprocessor = PreprocessorConfig(
        state=NormStats.of(state),
        action=NormStats.of(action),
        # the whole numbers of a state are between its quantiles
        normalization="quantile" if vlm.discrete_state else "zscore",
        pictures=_pictures(cameras, image_size),
        prompt=None if tokenizer is None else _prompt(vlm),
    )
    return FlowPolicy(network, preprocessor, sampler, info=PolicyInfo(tokenizer=tokenizer))


def _prompt(vlm: SmallVLMConfig) -> PromptConfig:
    return PromptConfig(max_tokens=vlm.max_tokens, discrete_state=vlm.discrete_state)


def _pictures(cameras: Sequence[str], image_size: int) -> PicturesConfig | None:
    """Return the settings of the pictures, in which the network has the environment's names."""
    if not cameras:
        return None
    return PicturesConfig(cameras={name: name for name in cameras}, size=image_size)
