"""The towers of a π0, in the module tree that gives them openpi's parameter names."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pitune.policies.network.config import Pi0Config
from pitune.policies.network.gemma import Cache, Gemma
from pitune.policies.network.layers import Linear
from pitune.policies.network.options.layers import add_register_gates
from pitune.policies.network.options.tokens.gated_tokens import Extra
from pitune.policies.network.options.tokens.registers import PrefixRegisters
from pitune.policies.network.siglip import Siglip
from pitune.policies.network.sizes import GemmaConfig


class VisionLanguageModel(nn.Module):
    """PaliGemma under openpi's names: a vision tower, a projector and a language model.

    Example:
        >>> from pitune.policies.network.config import tiny
        >>> sizes = tiny(image_size=28)
        >>> [name for name, _ in VisionLanguageModel(sizes, sizes.vlm).named_children()]
        ['vision_tower', 'multi_modal_projector', 'language_model']
    """

    registers: PrefixRegisters | None

    def __init__(self, config: Pi0Config, vlm: GemmaConfig) -> None:
        super().__init__()
        if config.vision is not None:
            self.vision_tower = nn.ModuleDict({"vision_model": Siglip(config.vision)})
            projector = nn.ModuleDict({"linear": Linear(config.vision.width, vlm.width)})
            self.multi_modal_projector = projector
        self.language_model = Gemma(vlm, config.vocab_size)
        self.register_module("registers", None)
        if config.options.registers.prefix:
            self.registers = PrefixRegisters(config.options.registers.prefix, vlm.width)
            add_register_gates(self.language_model.layers, vlm)

    def encode(
        self, tokens: Tensor, positions: Tensor, mask: Tensor | None, cache_only: bool = False
    ) -> tuple[Tensor, Cache, Cache | None]:
        """Return the hidden states and the cache of a prefix, and the cache of its registers.

        Args:
            tokens: Embedded pictures and prompt (B, prefix, D).
            positions: See `Gemma.forward`.
            mask: True where a token may attend (B, 1, 1, prefix).
            cache_only: See `Gemma.forward`.
        """
        tower, rest = self.language_model, {"cache_only": cache_only}
        if self.registers is None:
            return *tower(tokens, positions, mask, **rest), None
        num = len(self.registers)
        # registers behind the prefix (B, prefix + registers, D), at the next positions
        own = torch.arange(1, num + 1, device=positions.device)
        positions = torch.cat([positions, positions[:, -1:] + own], dim=1)
        tokens, extra = self.registers(tokens), Extra(registers=num)
        hidden, cache = tower(tokens, positions, mask, extra=extra, **rest)
        parts = [extra.split(keys, values) for keys, values in cache]
        registers = [part for _, part in parts if part is not None]
        return hidden[:, :-num], [prefix for prefix, _ in parts], registers


class Experts(nn.Module):
    """Language model and action expert, under openpi's parameter names.

    Example:
        >>> from pitune.policies.network.config import tiny
        >>> [name for name, _ in Experts(tiny(image_size=28)).named_children()]
        ['paligemma', 'gemma_expert']
    """

    def __init__(self, config: Pi0Config) -> None:
        super().__init__()
        if config.vlm is not None:
            model = VisionLanguageModel(config, config.vlm)
            self.paligemma = nn.ModuleDict({"model": model})
        expert = Gemma(config.expert, options=config.options)
        self.gemma_expert = nn.ModuleDict({"model": expert})


def check_prefix_inputs(config: Pi0Config, images: Tensor | None, tokens: Tensor | None) -> None:
    """Check that pictures and prompt are given if a network reads them, and only then.

    Raises:
        ValueError: names the input.
    """
    for name, value, expected in (
        ("images", images, config.vision is not None),
        ("tokens", tokens, config.vocab_size > 0),
    ):
        if (value is not None) != expected:
            raise ValueError(
                f"{name} {'are' if value is not None else 'are not'} given, but this network "
                f"{'reads' if expected else 'does not read'} them; "
                f"{'pass' if expected else 'leave out'} {name}"
            )
