"""Mutants of the policy gradients: ppo, grpo, fpo, epo, their shared parts, and cloning."""

from __future__ import annotations

from tests.mutation.mutant import Change, Mutants

INFORMATION = ("tests/rl/policy_gradient/test_information.py",)
RECORD = tuple(
    f"{INFORMATION[0]}::{name}"
    for name in (
        "test_rewards_tell_actions_apart_if_they_or_the_lengths_they_count_differ",
        "test_rewards_of_steps_that_do_not_count_are_no_information",
        "test_the_end_of_a_broken_episode_is_no_information",
    )
)
RESCORING = ("tests/rl/policy_gradient/test_rescoring.py",)
SELECTION = ("tests/rl/algorithms/test_epo_selection.py",)
ADVANTAGE = ("tests/rl/policy_gradient/test_advantage.py",)
SURROGATE = ("tests/rl/policy_gradient/test_surrogate.py",)
PPO = ("tests/rl/algorithms/test_ppo.py", "tests/rl/algorithms/test_ppo_options.py")
GRPO = ("tests/rl/algorithms/test_grpo_groups.py", "tests/rl/algorithms/test_grpo.py")
FPO = ("tests/rl/algorithms/test_fpo.py",)
EPO = ("tests/rl/algorithms/test_epo_step.py", "tests/rl/algorithms/test_epo.py")
BC = ("tests/rl/algorithms/test_cloning_step.py", "tests/rl/algorithms/test_bc.py")
FILTERED_BC = ("tests/rl/algorithms/test_filtered_bc.py",)
REFERENCE = ("tests/rl/policy_gradient/test_reference_and_value.py",)
STEP = ("tests/rl/test_gradient_step.py",)
OWN_GRADIENT = (f"{STEP[0]}::test_each_step_has_a_gradient_of_its_own",)
MINIBATCHES = (f"{STEP[0]}::test_minibatches_are_random_and_of_one_size",)
EPOCHS = (f"{STEP[0]}::test_an_update_ends_after_the_step_that_went_too_far",)

POLICY_GRADIENT = [
    Mutants(
        "rl/policy_gradient/advantage.py",
        ADVANTAGE,
        [
            Change(
                "rewards after the end", "reward_steps * live * powers", "reward_steps * powers"
            ),
            Change(
                "broken simulators end the task",
                'over = outcome["done"] & ~outcome["invalid"]',
                'over = outcome["done"]',
            ),
            Change(
                "meaning of the time limit",
                'if time_limit == "terminal"',
                'if time_limit != "terminal"',
            ),
            Change(
                "duration of a chunk",
                'outcome["duration"].float()',
                '(outcome["duration"] > 0).float()',
            ),
            Change(
                "equal advantages",
                "differ = std > max(epsilon, ROUNDING * size)",
                "differ = std > 0",
            ),
            Change(
                "rounding of values",
                "max(epsilon, ROUNDING * size)",
                "max(epsilon, 0 * size)",
                INFORMATION,
            ),
            Change(
                "rounding of scores",
                "keepdim=True) > ROUNDING * size",
                "keepdim=True) > 0 * size",
                INFORMATION,
            ),
            Change(
                "mean of counted episodes",
                "keepdim=True) / num) * weight",
                "keepdim=True) / score.shape[1]) * weight",
                (*ADVANTAGE, *GRPO),
            ),
            Change(
                "advantage of uncounted episodes",
                "keepdim=True) / num) * weight",
                "keepdim=True) / num)",
                (*ADVANTAGE, *GRPO),
            ),
            Change(
                "deviation of the batch",
                "square / num.clamp(min=1)",
                "square / weight.numel()",
                (*ADVANTAGE, *GRPO),
            ),
        ],
    ),
    Mutants(
        "rl/policy_gradient/batch.py",
        (*ADVANTAGE, "tests/rl/algorithms/test_ppo.py"),
        [
            Change(
                "broken decisions kept",
                '~rollout["next", "invalid"].squeeze(-1)',
                '~(rollout["next", "invalid"] & False).squeeze(-1)',
            ),
            Change(
                "next value is the present one",
                'critic.value(sub_dict(rollout, "next"))',
                "critic.value(rollout)",
            ),
            Change(
                "scale of returns",
                'critic.rescale(batch["value_target"])',
                'critic.rescale(batch["state_value"])',
                PPO,
            ),
            Change(
                "advantages as they are",
                'standardize(batch["advantage"], size=size)',
                'batch["advantage"]',
            ),
            Change(
                "advantages without information",
                "size=size) * informative",
                "size=size)",
                INFORMATION,
            ),
        ],
    ),
    Mutants(
        "rl/policy_gradient/information.py",
        INFORMATION,
        [
            Change("only the first rewards inform", "if record.informative():", "if not self.std:"),
            Change("rewards never inform", "if record.informative():", "if record is None:"),
            Change(
                "errors of a critic inform",
                "return self.std > 0 and std >= LEAST_SHARE * self.std",
                "return self.std > 0",
            ),
            Change(
                "a critic that learned is ignored",
                "return self.std > 0 and std >= LEAST_SHARE * self.std",
                "return False",
            ),
            Change("size of the last advantages", "self.std = std", "self.std = 1.0 * self.std"),
        ],
    ),
    Mutants(
        "rl/experience/reward_record.py",
        RECORD,
        [
            Change(
                "rewards in broken simulators",
                'outcome["live"] & valid[..., None]',
                'outcome["live"] & (valid[..., None] | True)',
            ),
            Change(
                "rewards of steps that were not executed",
                '(outcome["reward_steps"], live)',
                '(outcome["reward_steps"], valid[..., None].expand_as(live))',
            ),
            Change(
                "length without rewards informs",
                "scale * self.high + offset != 0 and _differ(",
                "_differ(",
            ),
            Change(
                "ends of broken episodes", '["done"].squeeze(-1) & valid', '["done"].squeeze(-1)'
            ),
            Change("length never informs", "offset != 0 and", "offset == 0 and"),
            Change("rounding informs", "high - low > ROUNDING *", "high - low > 0 *"),
        ],
    ),
    Mutants(
        "rl/policy_gradient/rescoring.py",
        (*RESCORING, *PPO),
        [
            Change(
                "rescored values dropped",
                'set("action_log_prob", new)',
                'set("action_log_prob", new + gap)',
            ),
            Change(
                "rescoring by the precision",
                "!= torch.float32 if setting is None",
                "== torch.float32 if setting is None",
            ),
            Change(
                "rows of a repeated part", "log_prob[start - first :]", "log_prob[: num - start]"
            ),
            Change("steps of a chain", "(len(batch),), k, device", "(len(batch),), 0 * k, device"),
        ],
    ),
    Mutants(
        "rl/policy_gradient/episodes.py",
        GRPO,
        [
            Change(
                "broken episodes count",
                'counted = flags["done"] & ~flags["invalid"]',
                'counted = flags["done"]',
            ),
            Change(
                "number of an episode",
                "done.long().cumsum(1) - done.long()",
                "done.long().cumsum(1)",
            ),
            Change(
                "discount of a chunk",
                'discount ** outcome["duration"].squeeze(-1).float()',
                'discount ** (outcome["duration"] > 0).squeeze(-1).float()',
            ),
            Change(
                "returns leak into the episode before",
                "torch.where(done[:, t], torch.zeros_like(following), following)",
                "1 * following",
            ),
            Change(
                "flags of the first decision",
                "written[row, column] = True",
                "written[row, column] = False",
            ),
            Change("order of groups", '"(shares size) episodes ->', '"(size shares) episodes ->'),
        ],
    ),
    Mutants(
        "rl/policy_gradient/loss.py",
        PPO,
        [
            Change(
                "ratio inverted",
                'dist.log_prob(batch["chain"]) - batch["action_log_prob"]',
                'batch["action_log_prob"] - dist.log_prob(batch["chain"])',
            ),
            Change("sign of the loss", "loss = -(gain", "loss = (gain"),
            Change("weights ignored", "else gain * weight)", "else gain)", GRPO),
            Change(
                "sign of the entropy",
                "(-self.entropy_coefficient * entropy)",
                "(self.entropy_coefficient * entropy)",
            ),
            Change(
                "sign of the divergence", "loss + self.kl_coefficient", "loss - self.kl_coefficient"
            ),
            Change("sign of cloning", "loss + self.bc_coefficient", "loss - self.bc_coefficient"),
            Change(
                "old value of one step",
                ".gather(1, step[:, None])",
                ".gather(1, 0 * step[:, None])",
            ),
        ],
    ),
    Mutants(
        "rl/policy_gradient/reference.py",
        (*REFERENCE, *PPO),
        [
            Change(
                "divergence turned round",
                "kl_divergence(dist.scored.transition, reference.scored.transition)",
                "kl_divergence(reference.scored.transition, dist.scored.transition)",
            ),
            Change(
                "velocities of padding",
                "- reference.velocity).square() * mask",
                "- reference.velocity).square()",
            ),
            Change(
                "mean of velocities",
                "difference.sum((-2, -1)) / mask.sum((-2, -1))",
                "difference.mean((-2, -1))",
            ),
            Change(
                "reference moves along", "self.actor = frozen_copy(actor)", "self.actor = actor"
            ),
            Change(
                "noise of the reference's chunk",
                'context, batch["reference_noise"]',
                'context, batch["cloning_noise"]',
            ),
            Change(
                "frozen parts copied",
                "deepcopy(module, memo=shared)",
                "deepcopy(module)",
                PPO[1:],
            ),
        ],
    ),
    Mutants(
        "rl/policy_gradient/surrogate.py",
        SURROGATE,
        [
            Change("optimistic surrogate", "gains.min(dim=-1)", "gains.max(dim=-1)"),
            Change(
                "clip on one side",
                "        clipped = log_ratio.clamp(low, high)",
                "        clipped = log_ratio.clamp(max=high)",
            ),
            Change(
                "center of the clip",
                "center + low), center + high)",
                "center + low), high)",
                (*SURROGATE, *EPO),
            ),
            Change(
                "dual clip from above",
                "torch.maximum(gain, dual_clip * advantage)",
                "torch.minimum(gain, dual_clip * advantage)",
            ),
            Change(
                "dual clip of good decisions",
                "torch.where(advantage < 0, torch.maximum",
                "torch.where(advantage > 0, torch.maximum",
            ),
            Change(
                "width of the parabola", "(2 * clip_low)", "(2 * clip_high)", (*SURROGATE, *FPO)
            ),
            Change(
                "parabola of good decisions",
                "torch.where(advantage < 0, parabola",
                "torch.where(advantage > 0, parabola",
                (*SURROGATE, *FPO),
            ),
            Change(
                "optimistic value loss",
                "torch.maximum(loss, (near - target)",
                "torch.minimum(loss, (near - target)",
            ),
            Change("value clip on one side", ".clamp(-clip, clip)", ".clamp(max=clip)"),
            Change(
                "product of a trajectory",
                "(total / length)[index]",
                "total[index]",
                (*SURROGATE, *GRPO),
            ),
            Change(
                "estimate of the divergence",
                "ratio.mean() - 1 + (-log_ratio).mean()",
                "ratio.mean() - 1 - (-log_ratio).mean()",
            ),
        ],
    ),
    Mutants(
        "rl/policy_gradient/value.py",
        (*REFERENCE, *PPO),
        [
            Change(
                "mean of returns",
                "(self.output(td)) * self.return_std + self.return_mean",
                "(self.output(td)) * self.return_std",
            ),
            Change(
                "second moment of returns",
                "(old_std.square() + old_mean.square())",
                "old_std.square()",
            ),
            Change(
                "bias in the new scale",
                "add_(old_mean - self.return_mean)",
                "add_(self.return_mean - old_mean)",
            ),
            Change(
                "critic without the time",
                'td["elapsed"], old, memory)',
                '0 * td["elapsed"], old, memory)',
            ),
        ],
    ),
    Mutants(
        "rl/gradient_step.py",
        STEP,
        [
            Change(
                "parts of unequal size",
                "(part_loss * (share * weight)).backward",
                "(part_loss / len(parts) * weight).backward",
            ),
            Change(
                "metrics of unequal parts",
                "torch.stack(weighed).sum()",
                "torch.stack(values).mean()",
            ),
            Change(
                "gradients add up",
                "optimizer.zero_grad(set_to_none=True)",
                "parameters = list(parameters)",
                OWN_GRADIENT,
            ),
            Change(
                "gradients of other networks",
                ".backward(inputs=gradients.leaves(parameters))",
                ".backward()",
            ),
            Change("target of the divergence", "> target_kl:", "< target_kl:", EPOCHS),
            Change(
                "ragged minibatches",
                "ranks.least(num // size)",
                "ranks.least(-(-num // size))",
                MINIBATCHES,
            ),
            Change(
                "minibatches in order",
                "torch.randperm(num)[",
                "torch.arange(num)[",
                MINIBATCHES,
            ),
        ],
    ),
    Mutants(
        "rl/policy_gradient/policy_step.py",
        INFORMATION,
        [
            Change("steps without information", "if not learns:", "if not len(batch):"),
            Change("information of single rows", "[part].any()", "[part].all()", PPO),
        ],
    ),
    Mutants(
        "rl/algorithms/ppo.py",
        PPO,
        [
            Change(
                "warm-up of the critic",
                "self.num_updates >= self.config.critic_warmup",
                "self.num_updates > self.config.critic_warmup",
            ),
            Change(
                "clip of values ignored",
                "critic_loss(self.critic, part, self.config.clip.value)",
                'critic_loss(self.critic, part, float("inf"))',
            ),
            Change(
                "values clipped around targets",
                "value_loss(value, old, target, clip)",
                "value_loss(value, target, target, clip)",
            ),
            Change(
                "sides of the clip",
                "clip_low=clip.low, clip_high=clip.high",
                "clip_low=clip.high, clip_high=clip.low",
            ),
            Change(
                "rescoring inverted",
                "if rescores(self.actor.policy, config.rescore):",
                "if not rescores(self.actor.policy, config.rescore):",
            ),
            Change(
                "steps without information",
                'iter(learns_from(batch["advantage"], rows))',
                "iter([True for _ in rows])",
                INFORMATION,
            ),
            Change("dual clip ignored", ", dual_clip=clip.dual", ""),
        ],
    ),
    Mutants(
        "rl/algorithms/grpo.py",
        GRPO,
        [
            Change(
                "broken winners count", "wins = (success & counted).sum(1)", "wins = success.sum(1)"
            ),
            Change(
                "all counted episodes succeeded", "(wins < counted.sum(1))  #", "(wins < size)  #"
            ),
            Change("all episodes failed", "kept = (wins > 0) &", "kept = (wins >= 0) &"),
            Change(
                "episodes of two rollouts confused",
                'part["episode"] + offset',
                'part["episode"] + 0 * offset',
            ),
            Change(
                "episodes of two rollouts touch",
                'int(part["episode"].max()) + 1',
                'int(part["episode"].max())',
            ),
            Change(
                "advantages of dropped groups",
                "counted & kept[:, None], config.advantage_scale",
                "counted, config.advantage_scale",
            ),
            Change(
                "decisions of broken episodes",
                "chosen = ungrouped(counted & kept[:, None]",
                "chosen = ungrouped((counted | True) & kept[:, None]",
            ),
            Change(
                "long episodes weigh more",
                "weight = weight / length[:, None]",
                "weight = weight * length[:, None]",
            ),
            Change(
                "groups of equal scores",
                "kept = kept & (advantage != 0).any(1)",
                "kept = kept & (advantage == advantage).any(1)",
                INFORMATION,
            ),
            Change(
                "mean weight", 'batch["weight"] / ranks.mean(batch["weight"])', 'batch["weight"]'
            ),
            Change(
                "share of kept groups",
                "math.ceil(self.config.min_kept * num_groups)",
                "math.floor(self.config.min_kept * num_groups)",
            ),
            Change(
                "discount ignored", "episodes(rollout, config.discount)", "episodes(rollout, 1.0)"
            ),
            Change(
                "episodes split into parts",
                '            group="episode" if whole_episodes else None,',
                "            group=None,",
                (*STEP, *GRPO),
            ),
            Change(
                "sides of the clip",
                "clip_low=clip.low, clip_high=clip.high)",
                "clip_low=clip.high, clip_high=clip.low)",
            ),
            Change(
                "pending groups never cleared",
                "self.pending, self.num_pending_groups = [], 0",
                "self.pending = []",
            ),
        ],
    ),
    Mutants(
        "rl/algorithms/fpo.py",
        FPO,
        [
            Change(
                "clamp on the upper side only",
                "clamp(-config.log_ratio_clamp, config.log_ratio_clamp)",
                "clamp(max=config.log_ratio_clamp)",
            ),
            Change(
                "clamp on the lower side only",
                "clamp(-config.log_ratio_clamp, config.log_ratio_clamp)",
                "clamp(min=-config.log_ratio_clamp)",
            ),
            Change(
                "warm-up of the critic",
                "self.num_updates >= self.config.critic_warmup",
                "self.num_updates > self.config.critic_warmup",
            ),
            Change(
                "choice of the surrogate",
                'config.surrogate == "asymmetric"',
                'config.surrogate != "asymmetric"',
            ),
            Change(
                "sides of the clip",
                "config.clip.low, config.clip.high)",
                "config.clip.high, config.clip.low)",
            ),
            Change(
                "steps without information",
                'learns_from(batch["advantage"], rows)',
                "[True for _ in rows]",
                INFORMATION,
            ),
            Change(
                "sign of the flow loss",
                '-float(batch["action_log_prob"].mean())',
                'float(batch["action_log_prob"].mean())',
            ),
        ],
    ),
    Mutants(
        "rl/algorithms/epo.py",
        EPO,
        [
            Change(
                "aggregate left out of the critic",
                "loss = loss + self.config.aggregate * weight * off",
                "loss = 1 * loss",
            ),
            Change(
                "broken decisions of others kept",
                '(rollout["member"] != 0) & ~rollout["next", "invalid"].squeeze(-1)',
                '(rollout["member"] != 0)',
            ),
            Change(
                "master's own decisions twice",
                '(rollout["member"] != 0)',
                '(rollout["member"] >= 0)',
            ),
            Change(
                "weight of the aggregate",
                "self.config.aggregate * weight * self.master_loss(others)",
                "weight * self.master_loss(others)",
            ),
            Change(
                "near decisions left out",
                "<= self.config.log_ratio_cap",
                ">= self.config.log_ratio_cap",
            ),
            Change(
                "next value of the member",
                'relabeled["next", "member"] = relabeled["member"]',
                'relabeled["next", "member"] = rollout["member"]',
            ),
            Change(
                "targets of many steps",
                "advantage_config.discount, 0.0,",
                "advantage_config.discount, 1.0,",
            ),
            Change(
                "time of selection",
                "self.num_updates % config.evolve_every == 0",
                "self.num_updates % config.evolve_every != 0",
            ),
            Change(
                "deployed member", "self.actor.best = self.fitness.best()", "self.actor.best = 0"
            ),
            Change("clip around one", 'center=others["center"]', "center=None"),
            Change("share of the sample", "len(batch) // self.config.num_members", "len(batch)"),
            Change("sign of the master's loss", "return -gain.mean()", "return gain.mean()"),
            Change(
                "advantages as they are",
                'standardize(batch["advantage"], size=value_size(batch))',
                'batch["advantage"]',
            ),
            Change(
                "steps without information",
                'learns_from(batch["advantage"], rows)',
                "[True for _ in rows]",
                INFORMATION,
            ),
            Change(
                "decisions of others without information",
                'if aggregates and metrics["informative"] else None',
                "if aggregates else None",
                (*INFORMATION, *EPO),
            ),
        ],
    ),
    Mutants(
        "rl/algorithms/evolution/epo_population.py",
        EPO,
        [
            Change(
                "gradient of the critic into genes",
                'population.genes.detach()[td["member"]',
                'population.genes[td["member"]',
            ),
            Change(
                "shares are no neighbors",
                "return rows * len(self) // num_envs",
                "return rows % len(self)",
            ),
            Change(
                "folded member",
                "offset = self._member_offset(member)",
                "offset = self._member_offset(self.best)",
            ),
            Change(
                "deployed member",
                "noise, self._member_offset(self.best)",
                "noise, self._member_offset(0)",
            ),
        ],
    ),
    Mutants(
        "rl/algorithms/evolution/epo_evolution.py",
        EPO,
        [
            Change("nothing is forgotten", "total *= self.decay", "total *= 1.0"),
            Change("one parent", "genes[parents].mean(0)", "genes[parents[0]]"),
            Change("moments of the old gene", "value[member] = 0", "value[member] *= 1"),
            Change(
                "broken episodes count",
                '(outcome["done"] & ~outcome["invalid"])',
                'outcome["done"]',
            ),
            Change("least number of episodes", ">= self.min_episodes", "> 0"),
            Change("number of replaced members", "max(1, len(genes) // 4)", "len(genes)"),
            Change("record of a child", "fitness.forget(member)", "fitness.best()"),
            Change(
                "chance among many members",
                "num_members * (num_members - 1) // 2",
                "1",
                SELECTION,
            ),
            Change(
                "members instead of pairs",
                "num_members * (num_members - 1) // 2",
                "num_members",
                SELECTION,
            ),
            Change(
                "members without a record compared",
                "int((~rate.isnan()).sum())",
                "len(rate)",
                SELECTION,
            ),
            Change("side of the test", ".cdf(-deviations)", ".cdf(deviations)", SELECTION),
            Change("size of mutations", "mutation_std * torch.randn_like", "0 * torch.randn_like"),
        ],
    ),
    Mutants(
        "rl/algorithms/bc.py",
        BC,
        [
            Change(
                "warm-up of the step size",
                "peak * (1 + step) / (1 + warmup)",
                "peak * step / (1 + warmup)",
            ),
            Change("decay of the step size", "0.5 * (1 + math.cos", "0.5 * (1 - math.cos"),
            Change("start of the decay", "(step - warmup) / max(1,", "step / max(1,"),
            Change(
                "law of flow times",
                "sample_flow_time(num * draws, policy.device)",
                "torch.rand(num * draws)",
            ),
            Change("average stands still", "self.ema.update()", "self.ema.state_dict()"),
            Change("number of steps", "self.num_steps += 1", "self.num_steps += 2"),
            Change(
                "raw weights deployed",
                "self._averaged.enter_context(self.step.ema.swapped())",
                "self.step.ema.state_dict()",
            ),
        ],
    ),
    Mutants(
        "rl/algorithms/filtered_bc.py",
        FILTERED_BC,
        [
            Change("cloned noise", 'chosen["chain"][:, -1]', 'chosen["chain"][:, 0]'),
            Change("only the last chunk", "good[:, t] = succeeds", "good[:, t] = success[:, t]"),
            Change(
                "failures after a success",
                "torch.where(done[:, t], success[:, t], succeeds)",
                "success[:, t] | succeeds",
            ),
        ],
    ),
]
