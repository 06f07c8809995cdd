"""Evolutionary policy optimization: PPO on a population that shares one policy and one critic.

Each member is a gene that conditions the shared networks and owns an equal share of the
environments. All members learn from their own episodes as in PPO. The master (member 0) also learns
from the decisions of the others, by importance sampling. At intervals, members that are
significantly worse are replaced by children of the best. The deployed policy is the best member.

With a single member it is exactly `ppo`, bit for bit.
Left out of the papers: entropy bonuses that differ between members, and recurrent networks.
Letters: E envs, T chunk decisions, B minibatch rows, P population members, M scored flow steps, G
gene dim.
Sources: Wang et al. 2025 (EPO), Singla et al. 2024 (SAPG, split and aggregate).
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from pitune.policies import FlowPolicy
from pitune.policies.host_prefixes import on_device
from pitune.rl import ranks
from pitune.rl.algorithm import Algorithm, Needs
from pitune.rl.algorithms.evolution.epo_evolution import Fitness, evolve
from pitune.rl.algorithms.evolution.epo_population import (
    EPOConfig,
    Population,
    PopulationActor,
    PopulationCritic,
)
from pitune.rl.algorithms.ppo import critic_loss, policy_loss
from pitune.rl.experience.keys import select_decisions
from pitune.rl.experience.sub_dict import sub_dict
from pitune.rl.gradient_step import (
    Metrics,
    gradient_step,
    minibatches,
    run_epochs,
    to_floats,
)
from pitune.rl.gradients import row_weight
from pitune.rl.optimizers import adam
from pitune.rl.policy_gradient.advantage import generalized_advantage, standardize, value_size
from pitune.rl.policy_gradient.batch import ADVANTAGE_KEYS, add_next_features, advantage_batch
from pitune.rl.policy_gradient.information import Information
from pitune.rl.policy_gradient.loss import clip_notes, log_ratios
from pitune.rl.policy_gradient.policy_step import has_advantage, learns_from, policy_step
from pitune.rl.policy_gradient.prefixes import plan_prefixes
from pitune.rl.policy_gradient.rescoring import actor_score, rescore, rescore_notes, rescores
from pitune.rl.policy_gradient.surrogate import clipped_surrogate
from pitune.rl.registry import register


@register("epo", EPOConfig)
class EPO(Algorithm[EPOConfig]):
    """A population of PPO learners in one network.

    Example:
        >>> algorithm = EPO(EPOConfig(), policies.load("runs/push/pretrained"))  # doctest: +SKIP
        >>> metrics = algorithm.update(rollouts.collect())  # doctest: +SKIP
    """

    actor: PopulationActor

    def __init__(self, config: EPOConfig, policy: FlowPolicy) -> None:
        # population and actor
        width = policy.network.config.expert.width
        population = Population(config.num_members, config.gene_dim, width).to(policy.device)
        super().__init__(config, PopulationActor(policy, config.ppo.likelihood, population))
        self.needs = Needs(num_shares=config.num_members, success_signal=True)

        # critic, loss and optimizers
        rest = policy.feature_dim, policy.remainder_shape, config.ppo.critic_distribution
        critic = PopulationCritic(policy.critic_obs_dim, population, *rest)
        self.critic = critic.to(policy.device)
        self.networks |= {"population": population, "critic": self.critic}
        self.loss = policy_loss(self.actor, config.ppo)
        self.information = Information()
        ppo = config.ppo
        self.optimizers = {
            "actor": adam(self.actor.parameters(), lr=ppo.actor_learning_rate),
            "critic": adam(self.critic.parameters(), lr=ppo.critic_learning_rate),
        }

        # selection
        self.fitness = Fitness(config.num_members, config.fitness_decay)
        self.num_replaced = 0

    def plan_rollouts(self, num_decisions: int) -> list[str]:
        return plan_prefixes(self.actor, num_decisions, self.config.ppo.update)

    def notes(self) -> list[str]:
        notes = rescore_notes(self.actor.policy, self.config.ppo.rescore)
        return [*clip_notes(self.actor, self.config.ppo.clip), *notes]

    def update(self, rollout: TensorDictBase) -> dict[str, float]:
        # rollout with the member and the features of each observation
        config, ppo = self.config, self.config.ppo
        rollout = on_device(rollout, self.actor.policy.device)
        rollout["next", "member"] = rollout["member"]
        if self.critic.feature_dim:
            add_next_features(self.actor.policy, rollout)
        self.fitness.add(rollout)

        # decisions of all members, and those of the others for the master
        batch, metrics = advantage_batch(
            rollout, self.actor, self.critic, ppo.advantage, self.information
        )
        batch, gaps = self._rescored(batch)
        aggregates = config.num_members > 1 and config.aggregate > 0
        others = self.others(rollout) if aggregates and metrics["informative"] else None
        metrics |= gaps if others is None else gaps | {"aggregated": float(len(others))}

        # gradient steps
        update, target_kl = ppo.update, ppo.update.target_kl
        device = self.actor.policy.device
        rows = minibatches(len(batch), update.minibatch_size, update.num_epochs, device)
        learns = iter(learns_from(batch["advantage"], rows))
        metrics |= run_epochs(
            batch, rows, lambda part: self.minibatch_step(part, others, next(learns)), target_kl
        )
        self.num_updates += 1

        # selection
        if config.evolve_every and self.num_updates % config.evolve_every == 0:
            self._select()
        self.actor.best = self.fitness.best()
        return metrics | self._population_metrics(batch)

    def minibatch_step(
        self, batch: TensorDictBase, others: TensorDictBase | None, learns: bool | None = None
    ) -> dict[str, float]:
        """Take one gradient step on the critic and, after its warm-up, on the policy.

        The policy has none if all advantages are 0, because Adam would go on with its last ones.

        Args:
            batch: Decisions (B) of all members.
            others: Decisions of the other members for the master, a sample of which is used.
            learns: Whether an advantage differs from 0. By default it is read from the batch.
        """
        # sample of the others' decisions, of which ranks have different numbers
        weight = 1.0 if others is None else row_weight(len(others))
        if others is not None:
            num = max(1, len(batch) // self.config.num_members)
            rows = torch.randint(len(others), (num,), device=batch.device) if len(others) else None
            others = None if rows is None else sub_dict(others, rows)

        # critic
        ppo, step = self.config.ppo, f"update {self.num_updates}"
        value_metrics, _ = gradient_step(
            self.optimizers["critic"],
            lambda part: self._critic_loss(part, others, weight),
            batch,
            name="critic",
            step=step,
            max_grad_norm=ppo.update.max_grad_norm,
            num_parts=ppo.update.num_parts,
        )
        metrics = to_floats(value_metrics)

        # policy
        if self.num_updates < ppo.critic_warmup:
            return metrics
        learns = has_advantage(batch) if learns is None else learns
        return metrics | policy_step(
            self.optimizers["actor"],
            (lambda part: self._actor_loss(part, others, weight)) if learns else self.loss,
            self.loss.with_draws(batch),
            learns=learns,
            clip=ppo.clip,
            update=ppo.update,
            step=step,
        )

    @torch.no_grad()
    def others(self, rollout: TensorDictBase) -> TensorDictBase:
        """Return the other members' decisions (B) for the master.

        Their value targets are one-step targets with the master's values, because the master did
        not take the later decisions. `center` (B, M) is the log-ratio of the master before the
        update to the member that acted. The master's ratio is clipped around it.
        """
        ppo, advantage_config = self.config.ppo, self.config.ppo.advantage
        # values of the master
        relabeled = rollout.copy()
        relabeled["member"] = torch.zeros_like(rollout["member"])
        relabeled["next", "member"] = relabeled["member"]
        relabeled["state_value"] = self.critic.value(relabeled)
        relabeled["next", "state_value"] = self.critic.value(sub_dict(relabeled, "next"))
        advantage, target = generalized_advantage(
            relabeled, advantage_config.discount, 0.0, advantage_config.time_limit
        )
        relabeled["advantage"], relabeled["value_target"] = advantage, target

        # valid decisions of the other members
        chosen = (rollout["member"] != 0) & ~rollout["next", "invalid"].squeeze(-1)
        entries = (self.actor.in_keys, self.critic.in_keys, self.actor.out_keys, ADVANTAGE_KEYS)
        batch = sub_dict(select_decisions(relabeled, *entries), chosen)
        acted = batch.copy().set("member", rollout["member"][chosen])
        batch["action_log_prob"] = self._rescored(acted)[0]["action_log_prob"]

        # decisions that are likely enough under the master
        if not ranks.total(len(batch)):
            return batch
        parts = batch.split(ppo.update.minibatch_size) if len(batch) else [batch]
        batch["center"] = torch.cat([log_ratios(self.actor, part)[0] for part in parts])  # (B, M)
        near = (batch["center"].abs() <= self.config.log_ratio_cap).all(1)
        batch["advantage"] = standardize(batch["advantage"], size=value_size(batch))
        return sub_dict(batch, near)

    def _rescored(self, batch: TensorDictBase) -> tuple[TensorDictBase, dict[str, float]]:
        """Return decisions (B) with log-probabilities of the members that acted, and metrics."""
        ppo = self.config.ppo
        if not rescores(self.actor.policy, ppo.rescore):
            return batch, {}
        return rescore(batch, actor_score(self.actor), ppo.update.part_size)

    def _actor_loss(
        self, batch: TensorDictBase, others: TensorDictBase | None, weight: float = 1.0
    ) -> tuple[Tensor, Metrics]:
        loss, metrics = self.loss(batch)
        if others is not None:
            loss = loss + self.config.aggregate * weight * self.master_loss(others)
        return loss, metrics

    def _critic_loss(
        self, batch: TensorDictBase, others: TensorDictBase | None, weight: float = 1.0
    ) -> tuple[Tensor, Metrics]:
        loss, metrics = critic_loss(self.critic, batch, self.config.ppo.clip.value)
        if others is None:
            return loss, metrics
        off, _ = critic_loss(self.critic, others, self.config.ppo.clip.value)
        loss = loss + self.config.aggregate * weight * off
        return loss, {**metrics, "value_loss": loss}

    def master_loss(self, others: TensorDictBase) -> Tensor:
        """Return the master's loss on decisions (B) of the others."""
        log_ratio, _ = log_ratios(self.actor, others)
        clip = self.config.ppo.clip
        gain = clipped_surrogate(
            log_ratio,
            others["advantage"],
            clip.low,
            clip.high,
            clip.dual,
            center=others["center"],
        )
        return -gain.mean()

    def _select(self) -> None:
        replaced = evolve(
            self.actor.population,
            self.optimizers["actor"],
            self.fitness,
            deviations=self.config.selection_deviations,
            mutation_std=self.config.mutation_std,
        )
        self.num_replaced += len(replaced)

    @torch.no_grad()
    def _population_metrics(self, batch: TensorDictBase) -> dict[str, float]:
        """Return metrics of the members' success, and of the spread of their genes and actions."""
        if self.config.num_members == 1 or not len(batch):
            return {}
        rate = self.fitness.rate()
        metrics = {f"fitness/{i}": value for i, value in enumerate(rate.tolist()) if value == value}
        rows = sub_dict(batch, slice(32))
        # (P, B, h, d), from the same noise
        actions = [self.actor.member_actions(rows, m) for m in range(self.config.num_members)]
        return {
            **metrics,
            "best_member": float(self.actor.best),
            "replaced": float(self.num_replaced),
            "gene_spread": self.actor.population.spread(),
            "action_spread": float(torch.stack(actions).std(0).mean()),
        }

    def deployed_policy(self) -> FlowPolicy:
        """Return the best member as a separate policy."""
        return self.actor.member_policy(self.actor.best)

    def extra_state(self) -> dict[str, Any]:
        # the saved policy is the best member, so the shared bias is saved here
        bias = self.actor.policy.network.offset_bias.detach().clone()
        record = {"successes": self.fitness.successes, "episodes": self.fitness.episodes}
        numbers = {"best": self.actor.best, "replaced": self.num_replaced}
        return {**record, **numbers, "bias": bias, "informative_std": self.information.std}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            self.actor.policy.network.offset_bias.copy_(state["bias"])
        self.fitness.successes, self.fitness.episodes = state["successes"], state["episodes"]
        self.actor.best, self.num_replaced = state["best"], state["replaced"]
        self.information.std = state.get("informative_std", 0.0)
