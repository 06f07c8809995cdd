"""A policy that acts by its FAST tokens.

Letters: N rows, L tokens of a decision, H action horizon, A model action dim.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from pitune.policies.decision import FAST_FAILED, Decision
from pitune.policies.fast.decoding import decode
from pitune.policies.fast.vocabulary import FastVocabulary
from pitune.policies.network.context import Context
from pitune.policies.network.gemma import Gemma
from pitune.policies.network.options.language_head import text_of
from pitune.policies.policy_parts import PolicyParts

Flow = Callable[[], Tensor]
"""Returns the flow's chunks (N, H, A) for the same observations, if they are needed."""


def language_tower(policy: PolicyParts) -> Gemma:
    """Return the language model that predicts tokens.

    Raises:
        ValueError: the policy has no language head.
    """
    vlm = policy.network.vlm
    if vlm is None or not policy.network.config.options.language_head.is_on:
        raise ValueError(
            "the policy has no language head, so it predicts no tokens; take one with words and "
            "options.language_head.enabled=True"
        )
    return vlm.language_model


def fast_vocabulary(policy: PolicyParts) -> FastVocabulary:
    """Return the FAST tokens of a policy.

    Raises:
        ValueError: the policy has no language head, no FAST tokenizer, or no tokenizer of text.
    """
    language_tower(policy)
    info = policy.info
    if info.fast is None or info.tokenizer is None:
        missing = "FAST tokenizer" if info.fast is None else "tokenizer"
        raise ValueError(
            f"the policy has no {missing}, so it has no FAST tokens; clone one with them (pitune "
            "pretrain --words --language.fast-weight 1), or load one (--load.fast-tokenizer)"
        )
    shape = (policy.chunk_shape[0], policy.preprocessor.action_dim)
    size = policy.network.config.vocab_size
    parts = info.fast, info.tokenizer, size, shape, policy.sampler.fast
    return FastVocabulary(*parts, policy.device)


def chunks_of(
    policy: PolicyParts,
    vocabulary: FastVocabulary,
    choices: Tensor,
    flow: Flow,
) -> tuple[Tensor, Tensor]:
    """Return the chunks (N, H, A) to execute for choices (N, L), and which are not theirs (N,).

    A chunk that cannot be decoded is the flow's.

    Args:
        policy: Has `sampler.fast.on_failure`.
        vocabulary: Its FAST tokens.
        choices: The choices.
        flow: Makes the chunks of the flow.

    Raises:
        RuntimeError: a row cannot be decoded, and `on_failure` is "error".
    """
    chunk, failed = vocabulary.chunks(choices)
    # from the robot's dims to those of the model (N, H, A)
    chunk = pad(chunk, (0, policy.chunk_shape[1] - chunk.shape[-1]))
    if not failed.any():
        return chunk, failed
    num = f"{int(failed.sum())} of {len(failed)} decisions have FAST tokens that are no chunk"
    if policy.sampler.fast.on_failure == "error":
        raise RuntimeError(
            f"{num}, and sampler.fast.on_failure='error' executes nothing for them; train the "
            "language head longer, or take on_failure='flow' or constrained=True"
        )
    warnings.warn(f"{num}; the flow's chunk is executed in their place", stacklevel=2)
    # (N, 1, 1) against (N, H, A)
    return torch.where(failed[:, None, None], flow(), chunk), failed


def decide_by_tokens(policy: PolicyParts, context: Context, flow: Flow) -> Decision:
    """Return the decisions of the deployed policy by its FAST tokens.

    See `chunks_of` for the arguments and the errors.
    """
    vocabulary = fast_vocabulary(policy)
    tower, text = language_tower(policy), text_of(context)
    choices, _ = decode(tower, text, vocabulary, policy.sampler.fast.temperature)
    chunk, failed = chunks_of(policy, vocabulary, choices, flow)
    return Decision(chunk, {FAST_FAILED: failed})
