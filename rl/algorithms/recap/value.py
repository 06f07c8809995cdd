"""The value of RECAP: a distribution over the returns of all recorded episodes.

Letters: N rows, B minibatch rows.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from pitune.policies import FlowPolicy, ModelInput
from pitune.policies.preprocessing.model_input import MODEL_INPUT
from pitune.rl import ranks
from pitune.rl.algorithms.recap.config import RecapConfig
from pitune.rl.experience.sub_dict import Entry, sub_dict
from pitune.rl.experience.transitions import in_parts
from pitune.rl.gradient_step import Metrics, gradient_step
from pitune.rl.optimizers import adam
from pitune.rl.policy_gradient.value import ValueCritic, explained_variance


class ReturnValue:
    """A categorical value of observations, trained on Monte-Carlo returns.

    Args:
        policy: Gives the input: the state, and the pooled features of pictures and prompt.
        config: Bins, step size and number of steps.

    Example:
        >>> value = ReturnValue(policy, RecapConfig())  # doctest: +SKIP
        >>> metrics = value.fit(value.inputs(rows), returns)  # doctest: +SKIP
    """

    def __init__(self, policy: FlowPolicy, config: RecapConfig) -> None:
        self.policy, self.config = policy, config
        state_dim = policy.preprocessor.model_state_dim
        critic = ValueCritic(state_dim, policy.feature_dim, distribution=config.value)
        self.critic = critic.to(policy.device)
        rate = config.value_learning_rate
        self.optimizer = adam(self.critic.parameters(), lr=rate)
        self.num_steps = 0

    @torch.no_grad()
    def inputs(self, rows: TensorDictBase) -> TensorDict:
        """Return the critic's input of rows (N). The used time is 0, as data do not record it."""
        state = rows[MODEL_INPUT, "state"].to(self.policy.device)
        inputs: dict[str, Entry] = {
            MODEL_INPUT: TensorDict({"state": state}, [len(rows)]),
            "elapsed": state.new_zeros(len(rows), 1),
        }
        if self.policy.feature_dim:
            inputs["features"] = in_parts(rows.select(MODEL_INPUT), self._features)
        return TensorDict(inputs, [len(rows)])

    def fit(self, inputs: TensorDict, returns: Tensor) -> dict[str, float]:
        """Take gradient steps towards the returns (N), and return metrics.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        # gradient steps on random rows
        target = returns.to(self.policy.device)[:, None]  # (N, 1)
        table = inputs.copy().set("value_target", target)
        total = 0.0
        size = min(ranks.share(self.config.value_minibatch_size), len(table))
        for _ in range(self.config.value_steps):
            rows = torch.randint(len(table), (size,))
            metrics, _ = gradient_step(
                self.optimizer,
                self.loss,
                sub_dict(table, rows.to(target.device)),
                name="value",
                step=f"step {self.num_steps}",
            )
            total += float(metrics["value_loss"])
            self.num_steps += 1
        loss = {"value_loss": total / self.config.value_steps} if self.config.value_steps else {}
        # the fit on all rows, after the last step
        value = self.values(inputs)[:, None]
        return {**loss, "explained_variance": explained_variance(value, target.cpu())}

    def loss(self, batch: TensorDictBase) -> tuple[Tensor, Metrics]:
        """Return the cross-entropy [nats] of observations (B) with `value_target` (B, 1)."""
        bins, output = self.critic.distribution, self.critic.output(batch)
        loss = bins.cross_entropy(output, batch["value_target"]).mean()
        return loss, {"value_loss": loss}

    @torch.no_grad()
    def values(self, inputs: TensorDict) -> Tensor:
        """Return the values (N,) of the critic's inputs, on the CPU."""
        return self.critic.value(inputs).squeeze(-1).cpu()

    def _features(self, part: TensorDictBase) -> Tensor:
        return self.policy.encode(ModelInput.of(part), with_null=False).features
