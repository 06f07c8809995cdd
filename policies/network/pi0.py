"""The π0 and π0.5 networks: encode an observation once, then evaluate the velocity per flow step.

The tokens are in blocks, `[pictures, prompt] [state] [actions]`. A token attends to its own block
and to the blocks before it. A vision-language model processes pictures and prompt. The action
expert processes state and actions, and attends to the model's cached keys and values. A policy
without cameras and without a prompt is the same network with an empty prefix.

- **π0** has a state token, and its action tokens are `MLP(concat(action, flow time))`.
- **π0.5** has the state in its prompt, and the flow time modulates every norm of the expert.

Parameter names are openpi's.
In shapes, `prefix` is the number of tokens of pictures and prompt.
Letters: B rows, V cameras, M scored flow steps, H action horizon, A model action dim, S model state
dim, L prompt tokens, D width of a tower, C, Y, X image channels and pixels.
Source: Black et al. 2024; Physical Intelligence 2025; openpi `models_pytorch/pi0_pytorch.py`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor
from torch.nn.functional import silu

from pitune.compilation import compilable
from pitune.policies.flow.path import FlowOutput
from pitune.policies.network.context import Context
from pitune.policies.network.flow_time import flow_time_embedding, flow_time_mask
from pitune.policies.network.gemma import Cache
from pitune.policies.network.options.blocks import drop_words, with_registers, with_state_tokens
from pitune.policies.network.options.insulation import for_expert
from pitune.policies.network.options.language_head import prompt_end
from pitune.policies.network.options.tokens.gated_tokens import Extra
from pitune.policies.network.options.tokens.memory import with_read_memory
from pitune.policies.network.parts import Pi0Parts
from pitune.policies.network.siglip import Siglip
from pitune.policies.network.towers import check_prefix_inputs


class Pi0(Pi0Parts):
    """Velocity field of action chunks, conditioned on an observation.

    Args:
        config: Sizes.

    Attributes:
        compute_dtype: Precision of the towers. The projections around them, the flow and the
            densities stay float32.
        compilation: Compiles the encoders and the velocity. None leaves them as they are.
        extensions: Modules that pretrained weights lack, by name. Each maps the action tokens
            (B, M, H, D) to action tokens, see `pitune.policies.network.extensions`.
        options: Modules of options that act around the towers, by name.
        blueprint: The network without memory, of which a sharded one is copied.

    Example:
        >>> from pitune.policies.network.config import LAPTOP_EXPERT, Pi0Config
        >>> sizes = Pi0Config(state_dim=4, action_dim=2, action_horizon=8, expert=LAPTOP_EXPERT)
        >>> network = Pi0(sizes)
        >>> context = network.encode(torch.zeros(3, 4))  # (B, S)
        >>> x, flow_time = torch.randn(3, 1, 8, 2), torch.ones(3, 1)  # (B, M, H, A), (B, M)
        >>> network.velocity(context, x, flow_time).velocity.shape
        torch.Size([3, 1, 8, 2])
    """

    blueprint: tuple[Pi0]

    def encode(
        self,
        state: Tensor,
        images: Tensor | None = None,
        image_mask: Tensor | None = None,
        tokens: Tensor | None = None,
        token_mask: Tensor | None = None,
        state_offset: Tensor | None = None,
    ) -> Context:
        """Return the context of observations. All flow steps share it.

        Args:
            state: Normalized states (B, S). π0.5 ignores them.
            images: (B, V, C, Y, X) in [-1, 1].
            image_mask: False for missing cameras (B, V). All are present by default.
            tokens: Prompts (B, L) int64.
            token_mask: False for padding (B, L). No token is padding by default.
            state_offset: Added to π0's state token (B, D) or (1, D), or to π0.5's condition of
                flow time, e.g. a gene of a population.
        """
        prefix = None
        if self.vlm is not None:
            prefix = self.encode_prefix(images, image_mask, tokens, token_mask)
        return self.with_state(prefix, state, state_offset)

    @compilable
    def encode_prefix(
        self,
        images: Tensor | None = None,
        image_mask: Tensor | None = None,
        tokens: Tensor | None = None,
        token_mask: Tensor | None = None,
        dropped: Tensor | None = None,
        embedded: Tensor | None = None,
        with_features: bool = True,
    ) -> Context:
        """Return the context of pictures and prompt. It does not depend on the action expert.

        See `encode` for the arguments. In the rows of `dropped` (B,) the words are dropped.
        `embedded` is the result of `embed_pictures`, for several prompts with the same pictures.
        Without features, which only critics read, the last layer computes no more than its keys
        and values.

        Raises:
            ValueError: the network has no vision-language model.
        """
        if self.vlm is None:
            raise ValueError(
                "this network has vlm=None, so it reads its state alone and has no prefix to "
                "encode; use `encode`"
            )
        parts = images, image_mask, tokens, token_mask, dropped, embedded
        prefix, valid = self.embed_prefix(*parts)
        positions = (valid.cumsum(1) - 1).clamp(min=0)
        is_padded = image_mask is not None or token_mask is not None
        mask = valid[:, None, None] if is_padded else None
        cache_only = not with_features and not self.config.options.language_head.is_on
        hidden, cache, registers = self.vlm.encode(prefix, positions, mask, cache_only)
        valid_tokens = valid if is_padded else None
        if cache_only:
            features = hidden.new_zeros(len(hidden), 0).float()
            return Context(cache, features, valid_tokens, registers=registers)
        weight = valid[..., None].float()  # (B, prefix, 1)
        features = (hidden.float() * weight).sum(1) / weight.sum(1)
        last = prompt_end(hidden, valid, self.config.options)
        return Context(cache, features, valid_tokens, last=last, registers=registers)

    @compilable
    def with_state(
        self, prefix: Context | None, state: Tensor, state_offset: Tensor | None = None
    ) -> Context:
        """Return the context of a prefix, if there is one, and of states (B, S).

        π0 adds its state token, and `state_offset` (B, D) or (1, D) to it. π0.5 has none, because
        its prompt contains the state, and adds the offset to the flow-time condition.

        Raises:
            ValueError: π0.5 is called without a prefix.
        """
        prefix = for_expert(prefix, self.config.options)
        if self.config.family == "pi05":
            if prefix is None:
                raise ValueError(
                    "π0.5 reads its state from the prompt, but prefix is None; pass the context "
                    "that `encode_prefix` returned"
                )
            context = prefix._replace(condition_offset=state_offset)
        elif prefix is None:
            hidden, cache, valid = self._encode_state(state, None, state_offset)
            context = Context(cache, hidden[:, -1].float(), valid)
        else:
            _, cache, valid = self._encode_state(state, prefix, state_offset)
            context = prefix._replace(cache=cache, valid=valid)
        return with_state_tokens(self, context, state)

    def embed_prefix(
        self,
        images: Tensor | None,
        image_mask: Tensor | None,
        tokens: Tensor | None,
        token_mask: Tensor | None,
        dropped: Tensor | None = None,
        embedded: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the prefix's tokens (B, prefix, D) and False for their padding (B, prefix).

        See `encode_prefix` for the arguments.

        Raises:
            ValueError: pictures or a prompt are missing, or the network does not read them.
        """
        check_prefix_inputs(self.config, images, tokens)
        vlm = self.vlm
        parts: list[Tensor] = []
        masks: list[Tensor] = []
        if images is not None and vlm is not None:
            pictures = self._picture_tokens(images) if embedded is None else embedded
            if image_mask is None:
                image_mask = images.new_ones(images.shape[:2], dtype=torch.bool)
            patches = pictures.shape[1] // images.shape[1]
            parts.append(pictures)
            masks.append(repeat(image_mask.bool(), "b v -> b (v p)", p=patches))
        if tokens is not None and vlm is not None:
            words = vlm.language_model.embed_tokens(tokens).to(self.compute_dtype)
            words = drop_words(self, words, dropped)
            parts.append(words * math.sqrt(words.shape[-1]))
            masks.append(
                torch.ones_like(tokens).bool() if token_mask is None else token_mask.bool()
            )
        return torch.cat(parts, dim=1), torch.cat(masks, dim=1)

    @compilable
    def embed_pictures(self, images: Tensor) -> Tensor:
        """Return the tokens (B, V * patches, D) of pictures (B, V, C, Y, X) in [-1, 1].

        Raises:
            ValueError: the network has no vision tower.
        """
        if self.vlm is None or self.config.vision is None:
            raise ValueError("this network reads no pictures, so it embeds none; use `encode`")
        return self._picture_tokens(images)

    def _picture_tokens(self, images: Tensor) -> Tensor:
        """`embed_pictures` for methods that gather sharded weights. They must not nest."""
        vlm: Any = self.vlm
        tower: Siglip = vlm.vision_tower["vision_model"]
        pictures = tower(rearrange(images, "b v c y x -> (b v) c y x"), self.compute_dtype)
        pictures = vlm.multi_modal_projector["linear"](pictures)  # (B * V, patches, D)
        return rearrange(pictures, "(b v) p d -> b (v p) d", b=len(images))

    def _encode_state(
        self, state: Tensor, prefix: Context | None, offset: Tensor | None
    ) -> tuple[Tensor, Cache, Tensor | None]:
        """Return the state token's hidden state (B, 1, D), the cache with it, and the new padding.

        The token is a block of its own, so it cannot attend to the actions.
        """
        token = self.state_proj(state)  # (B, D)
        if offset is not None:
            token = token + offset
        tokens = token[:, None].to(self.compute_dtype)  # (B, 1, D)
        cache, valid, extra = None, None, None
        if prefix is not None:
            cache, valid = prefix.cache, prefix.valid
            extra = Extra(side=prefix.side or {})
        # only a state without a prefix has a use for its hidden state
        rest: dict[str, Any] = {"extra": extra, "cache_only": prefix is not None}
        if valid is None:
            before = 0 if cache is None else cache[0][0].shape[2]
            positions = torch.full(tokens.shape[:2], before, device=state.device)
            return *self.expert(tokens, positions, None, cache, **rest), None
        positions = valid.sum(1, keepdim=True)
        valid = torch.cat([valid, torch.ones_like(valid[:, :1])], dim=1)
        return *self.expert(tokens, positions, valid[:, None, None], cache, **rest), valid

    @compilable
    def velocity(self, context: Context, x: Tensor, flow_time: Tensor) -> FlowOutput:
        """Return the velocity and the expert's features at M flow times per row, in one pass.

        The tokens of a row's M flow times are in one sequence and share the row's cache. A mask
        keeps the flow times from attending to each other.

        Args:
            context: Encoded observations of B rows.
            x: Noisy action chunks (B, M, H, A) [normalized action].
            flow_time: (B, M), or (B, M, H) for flow times of single action tokens.
        """
        b, m, horizon, _ = x.shape
        tokens, condition = self.embed_suffix(x, flow_time, context.condition_offset)
        tokens = with_read_memory(self, context, tokens)
        extra, tokens, condition = with_registers(self, context, tokens, condition, m)
        before, valid = context.cache[0][0].shape[2], context.valid
        own = torch.arange(horizon + extra.registers, device=x.device)
        steps = repeat(own, "l -> (m l)", m=m)
        if valid is None:
            positions = (before + steps).expand(b, -1)  # (B, M * (H + registers))
        else:
            positions = valid.sum(1, keepdim=True) + steps
        mask = flow_time_mask(m, horizon, before, valid, x.device, extra.registers)
        hidden, _ = self.expert(tokens, positions, mask, context.cache, condition, extra)
        hidden = rearrange(hidden, "b (m l) d -> b m l d", m=m)[:, :, :horizon].to(x.dtype)
        output = self.action_out_proj(hidden)
        prediction = self.config.options.prediction
        return FlowOutput(prediction.velocity(output, x, flow_time), hidden)

    def embed_suffix(
        self, x: Tensor, flow_time: Tensor, condition_offset: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the action tokens (B, M * H, D) and the norms' condition, if any.

        The condition is (B, M, D), or (B, M * H, D) for flow times of single tokens (B, M, H). The
        offset (B or 1, D) is added to it before its last nonlinearity, as a bias. The extensions
        apply to the tokens here.
        """
        width = self.config.expert.width
        time = flow_time_embedding(flow_time, width).to(x.dtype)  # (B, M, D) or (B, M, H, D)
        action = self.action_in_proj(x)  # (B, M, H, D)
        condition = None
        if self.config.family == "pi05":
            condition = self.time_mlp_out(silu(self.time_mlp_in(time))).flatten(1, -2)
            if condition_offset is not None:
                condition = condition + condition_offset[:, None]
            condition = silu(condition).to(self.compute_dtype)
        else:
            if time.ndim == 3:
                time = repeat(time, "b m d -> b m h d", h=x.shape[2])
            action = torch.cat([action, time], dim=-1)
            action = self.action_time_mlp_out(silu(self.action_time_mlp_in(action)))
        for extension in self.extensions.values():
            action = extension(action)
        return rearrange(action, "b m h d -> b (m h) d").to(self.compute_dtype), condition
