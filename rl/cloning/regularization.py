"""Language losses as a regularizer of reinforcement learning.

The language model keeps what it has learned while the flow is fine-tuned: with knowledge insulation
the policy gradient does not reach it, and the losses on its own tokens do.

    loss = policy gradient + text_weight * loss of texts + fast_weight * loss of FAST tokens

Letters: B minibatch rows.
Source: Driess et al. 2025 (knowledge insulation), who train both losses together.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from pitune.policies import FlowPolicy, ModelInput
from pitune.rl.cloning.config import (
    LanguageLossConfig,
    LanguageRegularizationConfig,
    StatusLossConfig,
)
from pitune.rl.cloning.losses import AuxiliaryLosses
from pitune.rl.datasets.demonstrations import demonstrations_for
from pitune.rl.experience.sub_dict import Entry, sub_dict
from pitune.rl.gradient_step import Metrics

LANGUAGE = "language"
"""Entry of a minibatch with the drawn texts and demonstrations."""


class LanguageRegularizer:
    """Next-token losses on texts and on the FAST tokens of demonstrations.

    Args:
        policy: The trained policy.
        config: Weights, texts and demonstrations.

    Raises:
        FileNotFoundError: the file of texts or of demonstrations is missing.
        ValueError: the policy lacks what a loss needs, or its language model is frozen.

    Example:
        >>> regularizer = LanguageRegularizer(policy, config)  # doctest: +SKIP
        >>> loss, metrics = regularizer(batch.update(regularizer.draws(8)))  # doctest: +SKIP
    """

    def __init__(self, policy: FlowPolicy, config: LanguageRegularizationConfig) -> None:
        language = LanguageLossConfig(
            fast_weight=config.fast_weight, text_weight=config.text_weight, text=config.text
        )
        self.policy, self.config = policy, config
        self.losses = AuxiliaryLosses(policy, language, StatusLossConfig())
        vlm = policy.network.vlm
        if vlm is None or not any(p.requires_grad for p in vlm.parameters()):
            raise ValueError(
                f"language.text_weight={config.text_weight} and "
                f"language.fast_weight={config.fast_weight} train the language model, and it is "
                "frozen; add vlm to finetune.trainable, or set both to 0"
            )
        self.chunks: TensorDictBase | None = None
        if config.demonstrations is not None:
            table = demonstrations_for(policy, config.demonstrations, config.data)
            self.chunks = table.chunks(policy.chunk_shape[0])

    def draws(self, num_rows: int) -> dict[str, Entry]:
        """Return the entry of a minibatch (B) with random texts and chunks of demonstrations."""
        rows: TensorDictBase = TensorDict({}, [num_rows])
        if self.chunks is not None:
            rows = sub_dict(self.chunks, torch.randint(len(self.chunks), (num_rows,)))
        rows = rows.to(self.policy.device)
        return {LANGUAGE: rows.update(self.losses.draws(rows))}

    def __call__(self, batch: TensorDictBase) -> tuple[Tensor, Metrics]:
        """Return the weighted losses of a minibatch (B), a scalar, and the single ones.

        Args:
            batch: Rows with the entry of `draws`.
        """
        rows, prefix = sub_dict(batch, LANGUAGE), None
        if self.chunks is not None:
            prefix = self.policy.encode_prefix(ModelInput.of(rows), with_null=False)
        return self.losses(rows, torch.zeros((), device=self.policy.device), prefix, None)
