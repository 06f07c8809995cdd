"""The likelihood of FAST tokens: exact, and without a random flow step.

Letters: N rows, L tokens of a decision, H action horizon, A model action dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pitune.policies.by_tokens import chunks_of, fast_vocabulary, language_tower
from pitune.policies.decision import FAST_FAILED
from pitune.policies.fast.decoding import decode, score
from pitune.policies.fast.vocabulary import PADDING, FastVocabulary
from pitune.policies.likelihood.config import FastLikelihoodConfig
from pitune.policies.likelihood.distributions import ActionDistribution
from pitune.policies.likelihood.registry import Draws, Likelihood, register_likelihood
from pitune.policies.network.context import Context
from pitune.policies.network.options.language_head import text_of
from pitune.policies.policy import FlowPolicy

FAST_TOKENS = "fast_tokens"
"""Key of the choices of a decision."""


class FastChunks(ActionDistribution):
    """Distribution over the FAST tokens of chunks, given encoded observations (N).

    A chain has two points: the noise, which has no part in the tokens, and the chunk. A decision
    whose tokens are no chunk has a log-probability of 0 without a gradient, because another chunk
    was executed.

    Args:
        policy: Its language head samples and scores.
        vocabulary: Its FAST tokens.
        context: Encoded observations.
        config: Temperature and reductions.
        choices: Choices (N, L) to score, with `failed` (N,). None to sample.

    Attributes:
        chosen: Entries of the rollout that scoring needs, after sampling.

    Example:
        >>> dist = actor.get_dist(batch)  # doctest: +SKIP
        >>> dist.log_prob(batch["chain"]).shape  # (N, L)  # doctest: +SKIP
    """

    def __init__(
        self,
        policy: FlowPolicy,
        vocabulary: FastVocabulary,
        context: Context,
        config: FastLikelihoodConfig,
        choices: tuple[Tensor, Tensor] | None,
    ) -> None:
        self.policy, self.vocabulary, self.context = policy, vocabulary, context
        self.config, self.choices = config, choices
        self.tower, self.text = language_tower(policy), text_of(context)
        num = len(self.text.last)
        super().__init__(policy.grid, (num, *policy.chunk_shape), policy.device)

    def sample_and_log_prob(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return chains (N, 2, H, A) and the log-probabilities of their tokens.

        Args:
            noise: First points (N, H, A), and those of the flow where tokens are no chunk.
        """
        choices, log_prob = decode(self.tower, self.text, self.vocabulary, self.config.temperature)
        with torch.no_grad():
            chunk, failed = chunks_of(
                self.policy,
                self.vocabulary,
                choices,
                lambda: self.policy.solve(self.context, noise),
            )
        self.chosen = {FAST_TOKENS: choices, FAST_FAILED: failed}
        return torch.stack([noise, chunk], 1), self._reduce(log_prob, choices, failed)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probabilities of the given choices: (N, L), or (N,) if `ratio="joint"`.

        The chains (N, 2, H, A) follow from the choices and are not read.
        """
        choices, failed = self._given()
        log_prob, self._entropy = score(
            self.tower, self.text, self.vocabulary, choices, self.config.temperature
        )
        return self._reduce(log_prob, choices, failed)

    def entropy(self) -> Tensor:
        """Return the mean entropy per token (N,) of the choices that were scored last [nats]."""
        choices, _ = self._given()
        num = (choices != PADDING).sum(1)
        return self._entropy.sum(1) / num.clamp(min=1)

    def _given(self) -> tuple[Tensor, Tensor]:
        if self.choices is None:
            raise ValueError(
                f"the fast likelihood scores the tokens that were chosen when acting; the input "
                f"has no {FAST_TOKENS} and {FAST_FAILED}, pass the entries that the actor wrote"
            )
        return self.choices

    def _reduce(self, log_prob: Tensor, choices: Tensor, failed: Tensor) -> Tensor:
        """Return the log-probabilities (N,) or (N, L) of choices (N, L)."""
        # (N, 1) against (N, L)
        log_prob = torch.where(failed[:, None], 0.0, log_prob)
        if self.config.ratio == "step":
            return log_prob
        total = log_prob.sum(1)
        if self.config.reduction == "sum":
            return total
        return total / (choices != PADDING).sum(1).clamp(min=1)


@register_likelihood("fast", FastLikelihoodConfig)
class FastLikelihood(Likelihood[FastLikelihoodConfig]):
    """The FAST tokens of a chunk, sampled one after another and scored in one pass.

    The choices are `fast_tokens` (N, L), and `fast_failed` (N,) marks those that are no chunk.

    Raises:
        ValueError: the policy has no language head or no FAST tokenizer.

    Example:
        >>> likelihood = FastLikelihood(FastLikelihoodConfig(), policy)  # doctest: +SKIP
        >>> likelihood.draw_keys  # doctest: +SKIP
        ['fast_tokens', 'fast_failed']
    """

    def __init__(self, config: FastLikelihoodConfig, policy: FlowPolicy) -> None:
        super().__init__(config, policy)
        fast_vocabulary(policy)  # raises if there is none

    @property
    def draw_keys(self) -> list[str]:
        return [FAST_TOKENS, FAST_FAILED]

    def distribution(
        self, policy: FlowPolicy, context: Context, num: int, draws: Draws
    ) -> FastChunks:
        tokens, failed = draws.get(FAST_TOKENS, None), draws.get(FAST_FAILED, None)
        choices = None
        if tokens is not None and failed is not None:
            choices = tokens.to(policy.device), failed.to(policy.device)
        return FastChunks(policy, fast_vocabulary(policy), context, self.config, choices)
