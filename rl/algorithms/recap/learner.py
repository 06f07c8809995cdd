"""RECAP: clone all data, good and bad, under an indicator of its advantage.

An update adds the policy's own episodes to the recorded ones, trains a distributional value on the
returns of all of them, and marks each task's best decisions as positive. The policy is cloned on
all decisions with their indicator, which is dropped at times. It acts with the positive one, and
optionally with guidance away from the dropped one. Corrections by a human are always positive.

With the labels it is policy improvement: the policy under the positive indicator is proportional to
the data's policy times the probability of a positive indicator.
Letters: N rows, E envs, T chunk decisions.
Source: Physical Intelligence 2025 (π*0.6). Differs: the value is a small network beside the policy,
the indicator is a vector and not text, and each update goes on from the last weights.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from pitune.policies import FlowPolicy, LikelihoodActor, ModelInput
from pitune.policies.conditions import task_of
from pitune.policies.network.options.add import network_with_options
from pitune.policies.network.options.config import NetworkOptions
from pitune.policies.network.options.tokens.conditioning import ConditioningConfig, condition_of
from pitune.policies.preprocessing.model_input import MODEL_INPUT
from pitune.rl import ranks
from pitune.rl.algorithm import Algorithm, Needs
from pitune.rl.algorithms.bc import CloningStep, clone
from pitune.rl.algorithms.recap.config import RecapConfig
from pitune.rl.algorithms.recap.episodes import join, newest, of_demonstrations, of_rollout
from pitune.rl.algorithms.recap.labels import (
    advantages,
    indicators,
    longest_of_task,
    normalized_returns,
    return_bin,
    steps_ahead,
)
from pitune.rl.algorithms.recap.value import ReturnValue
from pitune.rl.datasets.demonstrations import RandomChunks, demonstrations_and_tasks
from pitune.rl.experience.demonstrations import IS_PAD, check_no_delay
from pitune.rl.experience.sub_dict import sub_dict
from pitune.rl.registry import register

VARIANTS: dict[str, dict[str, Any]] = {
    "offline": {"rollouts": False},
    "inverted": {"indicator": "inverted"},
    "shuffled": {"indicator": "shuffled"},
}


@register("recap", RecapConfig, variants=VARIANTS, whole_episodes=True, reads_demonstrations=True)
class Recap(Algorithm[RecapConfig]):
    """Clones all data under an indicator of its advantage, and acts with the positive one.

    Example:
        >>> algorithm = Recap(RecapConfig(), policy)  # doctest: +SKIP
        >>> metrics = algorithm.update(rollouts.collect())  # doctest: +SKIP
    """

    needs = Needs(success_signal=True, whole_episodes=True)
    actor: LikelihoodActor

    def __init__(self, config: RecapConfig, policy: FlowPolicy) -> None:
        check_no_delay(policy, "recap", "leave delay at its default")
        policy = with_indicator(policy, config.guidance_scale)
        super().__init__(config, LikelihoodActor(policy, config.likelihood))
        if not config.rollouts:
            self.needs = Needs(rollouts=False)

        # data
        table, task = demonstrations_and_tasks(policy, config.demonstrations, config.data)
        self._fps = table.fps
        self.recorded = of_demonstrations(table, task, policy.chunk_shape[0])
        self.own: TensorDictBase = TensorDict({}, [0])

        # value and policy
        self.value = ReturnValue(policy, config)
        self.step = CloningStep(policy, replace(config.cloning, ema_decay=0.0))
        self.networks["value"] = self.value.critic
        self.optimizers = {"policy": self.step.optimizer, "value": self.value.optimizer}

    @property
    def demonstrated_fps(self) -> float | None:
        return self._fps

    def update(self, rollout: TensorDictBase) -> dict[str, float]:
        # demonstrations and the policy's own episodes, with the labels of the present value
        if self.config.rollouts:
            self._add(rollout)
        data = join(self.recorded, self.own)
        metrics, label, returns = self.labeled(data)

        # cloning of all data with its indicator
        policy = self.actor.policy
        chunks = data.select(MODEL_INPUT, "action", IS_PAD, strict=False).copy()
        option = policy.network.config.options.conditioning
        values = {"advantage": label, "return": return_bin(returns, option.return_bins)}
        if option.task:
            values["task"] = task_of(ModelInput.of(data))
        # a copy, so that the stored rows get no condition
        chunks[MODEL_INPUT] = sub_dict(chunks, MODEL_INPUT).copy()
        chunks[MODEL_INPUT, "condition"] = condition_of(option.kinds, len(data), values)
        loss = clone(self.step, RandomChunks(chunks), self.config.cloning.gradient_steps)
        self.num_updates += 1
        return {**metrics, "flow_loss": loss}

    def labeled(self, data: TensorDictBase) -> tuple[dict[str, float], Tensor, Tensor]:
        """Train the value on data (N), and return metrics and each row's indicator and return."""
        config = self.config
        # returns and values
        scale = longest_of_task(data["length"], data["task"])
        returns = normalized_returns(
            data["time"], data["length"], data["solved"], scale, config.failure_cost
        )
        inputs = self.value.inputs(data)
        metrics = self.value.fit(inputs, returns)

        # advantages and indicators
        ahead = steps_ahead(data["time"], data["episode"], config.advantage_steps)
        value = self.value.values(inputs)
        advantage = advantages(value, returns, data["time"], ahead, scale)
        if config.indicator == "inverted":
            advantage = -advantage
        label = indicators(advantage, data["task"], data["forced"], config.positive_share)
        if config.indicator == "shuffled":
            label = label[ranks.of_first(torch.randperm(len(label)))]
        positive = label.float()
        solved = data["solved"].float()
        return (
            {
                **metrics,
                "decisions": float(len(data)),
                "positive_share": float(positive.mean()),
                "positive_solved": float((positive * solved).sum() / positive.sum().clamp(min=1)),
                "solved_share": float(solved.mean()),
                "advantage_std": float(advantage.std(correction=0)),
            },
            label,
            returns,
        )

    def _add(self, rollout: TensorDictBase) -> None:
        """Keep the whole episodes of a rollout (E, T), of all ranks.

        Each rank keeps all of them, because the labels compare the decisions of a task.
        """
        for rows in ranks.gathered(of_rollout(rollout, self.actor.policy)):
            if len(rows):
                self.own = join(self.own, rows) if len(self.own) else rows
        self.own = newest(self.own, self.config.capacity)

    def extra_state(self) -> dict[str, Any]:
        own = self.own.flatten_keys(".")
        return {
            "num_steps": self.step.num_steps,
            "num_value_steps": self.value.num_steps,
            "own": {key: value.clone() for key, value in own.items()},
        }

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.step.num_steps = state["num_steps"]
        self.value.num_steps = state["num_value_steps"]
        num = len(next(iter(state["own"].values()), ()))
        self.own = TensorDict(state["own"], [num]).unflatten_keys(".")


def with_indicator(policy: FlowPolicy, scale: float | None) -> FlowPolicy:
    """Return a policy that is conditioned on the advantage and acts with the positive one.

    A policy without this option gets it, with initial values that change no number.

    Args:
        policy: Shares its weights.
        scale: Scale of the guidance, None for the policy's own.

    Raises:
        ValueError: the policy's conditions lack the advantage, or their vectors are frozen.
    """
    # the option, with vectors of zeros where the policy lacks it
    wanted = NetworkOptions(conditioning=ConditioningConfig(advantage=True))
    network = policy.network
    if not network.config.options.conditioning.advantage:
        network = network_with_options(network, wanted, policy.info.lora)
    module = network.options["conditioning"]
    if not all(parameter.requires_grad for parameter in module.parameters()):
        raise ValueError(
            "recap trains the vectors of its indicator, but the group 'conditioning' is frozen; "
            "add it to finetune.trainable"
        )
    # act as after a positive advantage
    guidance = replace(policy.sampler.guidance, advantage="positive")
    guidance = guidance if scale is None else replace(guidance, scale=scale)
    sampler = replace(policy.sampler, guidance=guidance)
    return policy.replace(network=network, sampler=sampler)
