"""The losses of cloning beside the flow's.

Letters: B rows, M scored flow steps (or loss draws), L tokens of a chunk, H action horizon, d robot
action dim, D width of the action expert.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torch.nn.functional import cross_entropy

from pitune.policies import FlowPolicy, ModelInput
from pitune.policies.by_tokens import fast_vocabulary, language_tower
from pitune.policies.network.context import Context
from pitune.policies.network.options.language_head import text_of, token_loss
from pitune.policies.network.options.status import DONE, INVALID, ONGOING
from pitune.policies.preprocessing.model_input import MODEL_INPUT
from pitune.rl import ranks
from pitune.rl.cloning.config import (
    LanguageLossConfig,
    LanguageRegularizationConfig,
    StatusLossConfig,
)
from pitune.rl.cloning.text_set import read_texts, text_loss, text_rows
from pitune.rl.datasets.demonstrations import is_file_of_ours
from pitune.rl.experience.sub_dict import Entry, sub_dict
from pitune.rl.gradient_step import Metrics


class AuxiliaryLosses:
    """Next-token losses and the loss of the status, for minibatches of demonstrated chunks.

    Args:
        policy: The trained policy.
        language: Weights of the next-token losses.
        status: Weight of the status.

    Raises:
        FileNotFoundError: the file of texts is missing.
        ValueError: the policy lacks what a loss needs.

    Example:
        >>> losses = AuxiliaryLosses(policy, LanguageLossConfig(), StatusLossConfig())
        ... # doctest: +SKIP
        >>> batch.update(losses.draws(batch))  # doctest: +SKIP
    """

    def __init__(
        self, policy: FlowPolicy, language: LanguageLossConfig, status: StatusLossConfig
    ) -> None:
        self.policy, self.language, self.status = policy, language, status
        self._sums: dict[str, Tensor] = {}
        self._num_steps = 0
        if language.fast_weight:
            fast_vocabulary(policy)  # raises if there is none
        self.texts = None
        if language.text is not None:
            self.texts = text_rows(policy, read_texts(language.text))
        if status.weight and not policy.network.config.options.status.is_on:
            raise ValueError(
                f"status.weight={status.weight} needs a network with the status head; make one "
                "with network_options.status.enabled=True, or leave the weight at 0"
            )

    def draws(self, batch: TensorDictBase) -> dict[str, Entry]:
        """Return the entries of a minibatch (B) that the losses need: tokens, texts and labels.

        Raises:
            ValueError: the status is learned, and the rows have no ends of episodes.
        """
        entries: dict[str, Entry] = {}
        if self.language.fast_weight:
            tokens, mask = fast_targets(self.policy, batch)
            entries |= {"target_tokens": tokens, "target_mask": mask}
        if self.texts is not None:
            entries["text"] = sub_dict(self.texts, torch.randint(len(self.texts), (len(batch),)))
        if self.status.weight:
            entries |= self._status_rows(batch)
        return entries

    def check_entries(self, entries: set[str]) -> None:
        """Check that chunks have the entries that the losses need.

        Args:
            entries: Names of the entries of a chunk.

        Raises:
            ValueError: the status is learned, and one is missing.
        """
        missing = [name for name in self._labels if name not in entries]
        if self.status.weight and missing:
            raise ValueError(
                f"status.weight={self.status.weight} needs {missing}, which these chunks lack: "
                "clone a demonstrations.safetensors, of several tasks or with "
                "status.invalid_share=0"
            )

    @property
    def _labels(self) -> list[str]:
        """Entries of chunks that the labels of the status come from."""
        return ["steps_left", "other_prompt"] if self.status.invalid_share else ["steps_left"]

    def _status_rows(self, batch: TensorDictBase) -> dict[str, Entry]:
        """Return the labels of a minibatch (B), its instructions and the weights of its flow."""
        self.check_entries(set(batch.keys()))
        # "done" where the episode succeeds within the actions that this decision executes
        device = batch["action"].device
        horizon = self.policy.sampler.execution_horizon
        done = (batch["steps_left"] > 0) & (batch["steps_left"] <= horizon)
        label = torch.where(done, DONE, ONGOING)
        if not self.status.invalid_share:
            return {"status_label": label}
        # instructions of another task for a random share of the rows (B,)
        other = sub_dict(batch, "other_prompt")
        invalid = torch.rand(len(batch), device=device) < self.status.invalid_share
        invalid &= other["exists"].to(device)
        inputs = sub_dict(batch, MODEL_INPUT).copy()
        for name in ("tokens", "token_mask"):
            inputs[name] = torch.where(invalid[:, None], other[name], inputs[name])
        if "task_id" in other.keys():  # of a velocity that is conditioned on the task
            inputs["task_id"] = torch.where(invalid, other["task_id"], inputs["task_id"])
        # these rows have no flow loss, because their actions do not follow the words
        kept = (~invalid).float()
        weight = kept / ranks.mean(kept).clamp(min=1 / len(batch))  # 1 on average
        label = torch.where(invalid, INVALID, label)
        return {MODEL_INPUT: inputs, "status_label": label, "flow_row_weight": weight}

    def __call__(
        self,
        batch: TensorDictBase,
        flow_loss: Tensor,
        prefix: Context | None,
        hidden: Tensor | None,
    ) -> tuple[Tensor, Metrics]:
        """Return the weighted sum of all losses of rows (B), and the single ones.

        Args:
            batch: Rows with the entries of `draws`.
            flow_loss: Their flow-matching loss, a scalar.
            prefix: Their encoded pictures and prompts, for the losses of the language head.
            hidden: Hidden states of their action tokens (B, M, H, D).
        """
        language, metrics = self.language, Metrics()
        total = flow_loss if language.flow_weight == 1 else language.flow_weight * flow_loss
        # loss of the FAST tokens
        if language.fast_weight and prefix is not None:
            tower, text = language_tower(self.policy), text_of(prefix)
            loss = token_loss(tower, text, batch["target_tokens"], batch["target_mask"])
            loss = self.weighted(loss, batch).mean()
            total, metrics["fast_loss"] = total + language.fast_weight * loss, loss
        # loss of the texts
        if self.texts is not None:
            loss = text_loss(self.policy, sub_dict(batch, "text")).mean()
            total, metrics["text_loss"] = total + language.text_weight * loss, loss
        # loss of the status: (B, M, 3) and (B, M) -> B * M classifications
        if self.status.weight and hidden is not None:
            logits = self.policy.network.options["status"](hidden)  # (B, M, 3)
            label = batch["status_label"][:, None].expand(-1, logits.shape[1])
            loss = cross_entropy(logits.flatten(0, 1), label.flatten())
            total, metrics["status_loss"] = total + self.status.weight * loss, loss
        return total, metrics

    def weighted(self, loss: Tensor, batch: TensorDictBase) -> Tensor:
        """Return a flow loss (B, ...) without the rows (B) that have another task's words."""
        weight = batch.get("flow_row_weight", None)
        # (B,) -> (B, 1, ...)
        return loss if weight is None else loss * weight.view(-1, *[1] * (loss.ndim - 1))

    def count(self, metrics: Metrics) -> None:
        """Add the losses of a gradient step to those of `means`."""
        for name in ("fast_loss", "text_loss", "status_loss"):
            if name in metrics:
                before = self._sums.get(name)
                self._sums[name] = metrics[name] if before is None else before + metrics[name]
        self._num_steps += 1

    def means(self) -> dict[str, float]:
        """Return and forget the mean losses of the gradient steps since the last call."""
        num = max(1, self._num_steps)
        means = {name: float(total) / num for name, total in self._sums.items()}
        self._sums, self._num_steps = {}, 0
        return means


def check_status_data(status: StatusLossConfig, path: Path | None, name: str) -> None:
    """Reject a dataset for the loss of the status, because it does not hold the ends of episodes.

    Args:
        status: Loss of the status.
        path: Of the demonstrations, None for those of an expert.
        name: Name of the setting.

    Raises:
        ValueError: it is a dataset, and the status is learned.
    """
    if status.weight and path is not None and not is_file_of_ours(path):
        raise ValueError(
            f"status.weight={status.weight} learns from the ends of episodes, which a LeRobot "
            f"dataset ({name}={path}) does not hold; clone a demonstrations.safetensors, or leave "
            "the weight at 0"
        )


def predicted_tokens(policy: FlowPolicy, config: Any) -> int:
    """Return the tokens that the language head predicts for each row of a minibatch, 0 for none.

    Args:
        policy: The trained policy.
        config: Settings of an algorithm, or of a part of it.
    """
    if isinstance(config, LanguageLossConfig | LanguageRegularizationConfig):
        num = fast_vocabulary(policy).max_tokens if config.fast_weight else 0
        if config.text is not None:
            num += text_rows(policy, read_texts(config.text))["answer"].shape[1]
        return num
    blocks = (getattr(config, entry.name) for entry in fields(config))
    found = (predicted_tokens(policy, block) for block in blocks if is_dataclass(block))
    return max(found, default=0)


def fast_targets(policy: FlowPolicy, batch: TensorDictBase) -> tuple[Tensor, Tensor]:
    """Return the FAST tokens (B, L) of demonstrated chunks, and False for padding.

    Args:
        policy: Normalizes the chunks.
        batch: Observations with `action` (B, H, d) [robot units].
    """
    vocabulary = fast_vocabulary(policy)
    state = ModelInput.of(batch).robot_state.to(policy.device)
    action = policy.preprocessor.normalize_action(batch["action"].to(policy.device), state)
    return vocabulary.targets(action[..., : policy.preprocessor.action_dim])
