"""The modules of a π0 or π0.5 network. `Pi0` computes with them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from pitune.compilation import Compilation
from pitune.policies.network.config import Pi0Config
from pitune.policies.network.extensions import make_extension
from pitune.policies.network.gemma import Gemma
from pitune.policies.network.layers import Linear
from pitune.policies.network.options.add import option_modules
from pitune.policies.network.towers import Experts, VisionLanguageModel


class Pi0Parts(nn.Module):
    """Towers, the linear layers around them, extensions and the modules of options.

    See `Pi0` for the arguments and the attributes.

    Example:
        >>> from pitune.policies.network.config import LAPTOP_EXPERT
        >>> sizes = Pi0Config(state_dim=4, action_dim=2, action_horizon=8, expert=LAPTOP_EXPERT)
        >>> Pi0Parts(sizes).offset_bias.shape
        torch.Size([64])
    """

    def __init__(self, config: Pi0Config) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = torch.float32
        self.compilation: Compilation | None = None
        width = config.expert.width
        self.paligemma_with_expert = Experts(config)
        self.action_in_proj = Linear(config.action_dim, width)
        self.action_out_proj = Linear(width, config.action_dim)
        if config.family == "pi0":
            self.state_proj = Linear(config.state_dim, width)
            self.action_time_mlp_in = Linear(2 * width, width)
            self.action_time_mlp_out = Linear(width, width)
        else:
            self.time_mlp_in = Linear(width, width)
            self.time_mlp_out = Linear(width, width)
        self.extensions = nn.ModuleDict(
            {name: make_extension(name, config, opts) for name, opts in config.extensions.items()}
        )
        self.options = nn.ModuleDict(option_modules(config))

    def add_extension(self, name: str, **options: Any) -> None:
        """Attach a registered extension with its initial values, and name it in the config.

        Raises:
            ValueError: the name is not registered, or the network has this extension already.
        """
        if name in self.extensions:
            raise ValueError(
                f"the network has the extension {name!r} already; its extensions are "
                f"{list(self.extensions)}, leave it out"
            )
        extension = make_extension(name, self.config, options)
        self.extensions[name] = extension.to(self.action_out_proj.weight.device)
        self.config = replace(self.config, extensions={**self.config.extensions, name: options})

    @property
    def expert(self) -> Gemma:
        """The action expert's tower."""
        expert: Gemma = self.paligemma_with_expert.gemma_expert["model"]  # type: ignore[assignment]
        return expert

    @property
    def offset_bias(self) -> nn.Parameter:
        """The bias that a `state_offset` adds to: of the state token, or of π0.5's condition."""
        layer = self.state_proj if self.config.family == "pi0" else self.time_mlp_out
        return layer.bias

    @property
    def vlm(self) -> VisionLanguageModel | None:
        """The vision-language model. None if the policy reads its state alone."""
        model: VisionLanguageModel | None = None
        if self.config.vlm is not None:
            model = self.paligemma_with_expert.paligemma["model"]  # type: ignore[assignment]
        return model
