"""The π0 and π0.5 networks: an observation encoded once, a velocity of action tokens asked often.

Tokens, in blocks that see themselves and the blocks before: `[pictures, prompt] [state] [actions]`.
Pictures and prompt go through a vision-language model, state and actions through the action expert,
which attends to the keys and values that the former leaves. A policy without cameras and without a
prompt is the same network with an empty prefix.

- **π0** has a state token, and `MLP(concat(action, flow time))` as action tokens.
- **π0.5** reads the state in the prompt, and the flow time modulates every norm of the expert.

Parameter names are openpi's. Letters: N rows, V cameras, M points of flow time per row, H action
horizon, A action dim, S state dim, L prompt tokens, P tokens of the prefix, D width of a tower.
Source: Black et al. 2024; Physical Intelligence 2025; openpi `models_pytorch/pi0_pytorch.py`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from pitune.policies.flow.path import FlowOutput
from pitune.policies.network.config import Pi0Config
from pitune.policies.network.gemma import Cache, Gemma, GemmaConfig, Linear
from pitune.policies.network.siglip import Siglip

MIN_PERIOD, MAX_PERIOD = 4e-3, 4.0
"""Shortest and longest period of the flow time's embedding [flow time]."""


class Context(NamedTuple):
    """An encoded observation: all that the flow steps and the critics need of it."""

    cache: Cache
    """Keys and values of the blocks before the actions."""
    features: Tensor
    """Pooled features of the observation (N, D)."""
    valid: Tensor | None = None
    """Which tokens of the cache are no padding (N, P + state token); None if all are."""


class VisionLanguageModel(nn.Module):
    """PaliGemma under openpi's names: a vision tower, a projector and a language model."""

    def __init__(self, config: Pi0Config, vlm: GemmaConfig) -> None:
        super().__init__()
        if config.vision is not None:
            self.vision_tower = nn.ModuleDict({"vision_model": Siglip(config.vision)})
            projector = nn.ModuleDict({"linear": Linear(config.vision.width, vlm.width)})
            self.multi_modal_projector = projector
        self.language_model = Gemma(vlm, config.vocab_size)


class Experts(nn.Module):
    """The towers, under openpi's name for them."""

    def __init__(self, config: Pi0Config) -> None:
        super().__init__()
        if config.vlm is not None:
            model = VisionLanguageModel(config, config.vlm)
            self.paligemma = nn.ModuleDict({"model": model})
        self.gemma_expert = nn.ModuleDict({"model": Gemma(config.expert)})


class Pi0(nn.Module):
    """Velocity field of action chunks, conditioned on an observation.

    Args:
        config: Sizes.

    Attributes:
        compute_dtype: Precision of the towers. The projections around them, the flow and the
            densities stay float32.
    """

    def __init__(self, config: Pi0Config) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = torch.float32
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

    @property
    def expert(self) -> Gemma:
        """The action expert's tower."""
        expert: Gemma = self.paligemma_with_expert.gemma_expert["model"]  # type: ignore[assignment]
        return expert

    @property
    def vlm(self) -> VisionLanguageModel | None:
        """The vision-language model, or None."""
        if self.config.vlm is None:
            return None
        model: VisionLanguageModel = self.paligemma_with_expert.paligemma["model"]  # type: ignore[assignment]
        return model

    def encode(
        self,
        state: Tensor,
        images: Tensor | None = None,
        image_mask: Tensor | None = None,
        tokens: Tensor | None = None,
        token_mask: Tensor | None = None,
        state_offset: Tensor | None = None,
    ) -> Context:
        """Return the context of observations; no flow step changes it.

        Args:
            state: Normalized states (N, S); π0.5 does not read them.
            images: (N, V, 3, Y, X) in [-1, 1].
            image_mask: Which cameras are there (N, V); all by default.
            tokens: Prompts (N, L) int64.
            token_mask: Which tokens are no padding (N, L); all by default.
            state_offset: Added to the state token (N, D) or (1, D); a gene of a population.
        """
        prefix = None
        if self.vlm is not None:
            prefix = self.encode_prefix(images, image_mask, tokens, token_mask)
        return self.with_state(prefix, state, state_offset)

    def encode_prefix(
        self,
        images: Tensor | None = None,
        image_mask: Tensor | None = None,
        tokens: Tensor | None = None,
        token_mask: Tensor | None = None,
    ) -> Context:
        """Return the context of pictures and prompt alone; the action expert has no part in it.

        See `encode` for the arguments.
        """
        if self.vlm is None:
            raise ValueError("this network sees its state alone and has no prefix to encode")
        embedded, valid = self.embed_prefix(images, image_mask, tokens, token_mask)
        positions = (valid.cumsum(1) - 1).clamp(min=0)
        hidden, cache = self.vlm.language_model(embedded, positions, valid[:, None, None])
        weight = valid[..., None].float()
        features = (hidden.float() * weight).sum(1) / weight.sum(1)
        return Context(cache, features, valid)

    def with_state(
        self, prefix: Context | None, state: Tensor, state_offset: Tensor | None = None
    ) -> Context:
        """Return the context of a prefix, if there is one, and of states (N, S).

        π0 adds its state token; π0.5 has none, its prompt contains the state. `state_offset` is
        added to the token, (N, D) or (1, D).

        Raises:
            ValueError: an offset is given, but the network has no state token.
        """
        if self.config.family == "pi05":
            if state_offset is not None:
                raise ValueError("state_offset needs a state token, and π0.5 has none")
            if prefix is None:  # Pi0Config refuses what would lead here
                raise ValueError("π0.5 reads all it knows from its prefix, but there is none")
            return prefix
        if prefix is None:
            hidden, cache, valid = self._encode_state(state, None, None, state_offset)
            return Context(cache, hidden[:, -1].float(), valid)
        _, cache, valid = self._encode_state(state, prefix.cache, prefix.valid, state_offset)
        return Context(cache, prefix.features, valid)

    def embed_prefix(
        self,
        images: Tensor | None,
        image_mask: Tensor | None,
        tokens: Tensor | None,
        token_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return the prefix's tokens (N, P, D) and which are no padding (N, P); see `encode`.

        Raises:
            ValueError: pictures or a prompt are missing, or there is no place for them.
        """
        config, vlm = self.config, self.vlm
        for name, value, there in (
            ("images", images, config.vision is not None),
            ("tokens", tokens, config.vocab_size > 0),
        ):
            if (value is not None) != there:
                raise ValueError(
                    f"{name} {'are' if value is not None else 'are not'} given, but this network "
                    f"{'reads' if there else 'does not read'} them"
                )
        parts: list[Tensor] = []
        masks: list[Tensor] = []
        if images is not None and vlm is not None:
            n, v = images.shape[:2]
            tower: Siglip = vlm.vision_tower["vision_model"]  # type: ignore[assignment]
            pictures = tower(images.flatten(0, 1), self.compute_dtype)
            pictures = vlm.multi_modal_projector["linear"](pictures).unflatten(0, (n, v))
            if image_mask is None:
                image_mask = torch.ones(n, v, dtype=torch.bool, device=images.device)
            parts.append(pictures.flatten(1, 2))
            masks.append(image_mask.bool().repeat_interleave(pictures.shape[2], dim=1))
        if tokens is not None and vlm is not None:
            words = vlm.language_model.embed_tokens(tokens).to(self.compute_dtype)
            parts.append(words * math.sqrt(words.shape[-1]))
            masks.append(
                torch.ones_like(tokens).bool() if token_mask is None else token_mask.bool()
            )
        return torch.cat(parts, dim=1), torch.cat(masks, dim=1)

    def _encode_state(
        self, state: Tensor, cache: Cache | None, valid: Tensor | None, offset: Tensor | None
    ) -> tuple[Tensor, Cache, Tensor | None]:
        """Pass the state token, a block of its own: it cannot see the actions."""
        token = self.state_proj(state)  # (N, D)
        if offset is not None:
            token = token + offset
        tokens = token[:, None].to(self.compute_dtype)  # (N, 1, D)
        if valid is None:
            positions = torch.zeros(tokens.shape[:2], dtype=torch.int64, device=state.device)
            return *self.expert(tokens, positions), None
        positions = valid.sum(1, keepdim=True)
        valid = torch.cat([valid, torch.ones_like(valid[:, :1])], dim=1)
        return *self.expert(tokens, positions, valid[:, None, None], cache), valid

    def velocity(self, context: Context, x: Tensor, flow_time: Tensor) -> FlowOutput:
        """Return the velocity and the expert's features at M points per row, in one pass.

        The M points share their row's cache: their tokens stand side by side, and a mask keeps
        the points from seeing each other.

        Args:
            context: Encoded observations of N rows.
            x: Noisy action chunks (N, M, H, A) [normalized action].
            flow_time: (N, M).
        """
        n, m, horizon, _ = x.shape
        tokens, condition = self.embed_suffix(x, flow_time)
        before = context.cache[0][0].shape[2]
        valid = context.valid
        steps = torch.arange(horizon, device=x.device).repeat(m)
        if valid is None:
            positions = (before + steps).expand(n, -1)
        else:
            positions = valid.sum(1, keepdim=True) + steps
        mask = _points_mask(m, horizon, before, valid, x.device)
        hidden, _ = self.expert(tokens, positions, mask, context.cache, condition)
        hidden = hidden.unflatten(1, (m, horizon)).to(x.dtype)
        return FlowOutput(self.action_out_proj(hidden), hidden)

    def embed_suffix(self, x: Tensor, flow_time: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the action tokens (N, M * H, D) and the norms' condition (N, M, D), if any."""
        width = self.config.expert.width
        time = flow_time_embedding(flow_time, width).to(x.dtype)  # (N, M, D)
        action = self.action_in_proj(x)
        condition = None
        if self.config.family == "pi05":
            condition = silu(self.time_mlp_out(silu(self.time_mlp_in(time))))
            condition = condition.to(self.compute_dtype)
        else:
            action = torch.cat([action, time[:, :, None].expand_as(action)], dim=-1)
            action = self.action_time_mlp_out(silu(self.action_time_mlp_in(action)))
        return action.flatten(1, 2).to(self.compute_dtype), condition


def flow_time_embedding(flow_time: Tensor, width: int) -> Tensor:
    """Return sines and cosines of the flow time (..., width), float32.

    Periods are geometric from 4e-3 to 4, so that neighboring steps of a fine grid differ too.
    Computed in double precision, as the reference does: the shortest period amplifies rounding.
    """
    fraction = torch.linspace(0.0, 1.0, width // 2, dtype=torch.float64, device=flow_time.device)
    period = MIN_PERIOD * (MAX_PERIOD / MIN_PERIOD) ** fraction
    angle = flow_time.double()[..., None] * (2 * math.pi / period)
    return torch.cat([angle.sin(), angle.cos()], dim=-1).float()


def _points_mask(
    m: int, horizon: int, before: int, valid: Tensor | None, device: torch.device
) -> Tensor | None:
    """Return which keys each action token sees (1 or N, 1, M * H, before + M * H); None for all.

    They are the blocks before without their padding, and the tokens of its own point of flow time.
    """
    if m == 1 and valid is None:
        return None
    point = torch.arange(m, device=device).repeat_interleave(horizon)
    own = (point[:, None] == point)[None]
    if valid is None:
        valid = torch.ones(1, before, dtype=torch.bool, device=device)
    past = valid[:, None].expand(-1, len(point), -1)
    return torch.cat([past, own.expand(len(valid), -1, -1)], dim=2)[:, None]
