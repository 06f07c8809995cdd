"""Mutants of off-policy learning: critics, actor-critic, dsrl, wsrl, dgn."""

from __future__ import annotations

from tests.mutation.mutant import Change, Mutants

CRITICS = (
    "tests/rl/actor_critic/test_td_step.py",
    "tests/rl/actor_critic/test_q_ensemble.py",
    "tests/rl/actor_critic/test_td.py",
)
INFORMATION = ("tests/rl/policy_gradient/test_information.py",)
WSRL = ("tests/rl/algorithms/test_wsrl.py",)
LEARNER = (
    "tests/rl/actor_critic/test_learner.py",
    *WSRL,
    "tests/rl/actor_critic/test_frozen_prefix.py",
)
DSRL = (
    "tests/rl/algorithms/test_dsrl_step.py",
    "tests/rl/algorithms/test_dsrl_actor.py",
    "tests/rl/algorithms/test_dsrl.py",
)
DGN = ("tests/rl/algorithms/test_dgn_step.py", "tests/rl/algorithms/test_dgn.py")

OFF_POLICY = [
    Mutants(
        "rl/actor_critic/q_ensemble.py",
        CRITICS,
        [
            Change(
                "targets follow by the rest",
                "lerp_(slow, fast, rate)",
                "lerp_(slow, fast, 1 - rate)",
            ),
            Change(
                "greatest critic",
                'values.amin(0) if how == "min"',
                'values.amax(0) if how == "min"',
            ),
            Change("subset ignored", "if 0 < subset < num:", "if num < subset < num:"),
            Change(
                "next value undiscounted",
                "reward + discount * (~terminated)",
                "reward + (~terminated)",
            ),
            Change(
                "values after the end",
                "discount * (~terminated) * next_value",
                "discount * next_value",
            ),
            Change(
                "gradient through the scale",
                "ranks.mean(value.detach().abs())",
                "ranks.mean(value.abs())",
                LEARNER,
            ),
            Change("layer norm left out", "layer_norm(y, y.shape[-1:])", "y"),
        ],
    ),
    Mutants(
        "rl/actor_critic/td.py",
        CRITICS,
        [
            Change(
                "target network replaced by the online one",
                "values = self.target(*inputs",
                "values = self.critic(*inputs",
            ),
            Change(
                "time of the decision in the next value",
                'self.time(sub_dict(batch, "next"))',
                "self.time(batch)",
            ),
            Change(
                "subset of REDQ ignored",
                "self.config.pessimism, self.config.critic_subset)",
                "self.config.pessimism)",
            ),
            Change(
                "value of the mean critic",
                "self.time(batch)), self.config.pessimism)",
                'self.time(batch)), "mean")',
            ),
            Change(
                "offline share reversed",
                "round(self.config.offline_share * size)",
                "round((1 - self.config.offline_share) * size)",
                (*CRITICS, *WSRL),
            ),
            Change(
                "time limit never ends",
                'ended = ended | batch["truncated"]',
                "ended = ended | ended",
            ),
            Change(
                "meaning of the time limit",
                'if config.time_limit == "terminal":',
                'if config.time_limit != "terminal":',
            ),
            Change(
                "critics that see the time",
                '(self.config.time_limit == "terminal")',
                '(self.config.time_limit != "terminal")',
            ),
            Change("sign of the offset", "+ config.reward_offset", "- config.reward_offset"),
            Change(
                "duration of a chunk",
                'batch["duration"].squeeze(-1).float()',
                '(batch["duration"] > 0).squeeze(-1).float()',
            ),
            Change(
                "critics follow the targets",
                "polyak_update(self.target, self.critic,",
                "polyak_update(self.critic, self.target,",
            ),
            Change(
                "time of the next decision",
                "torch.cat([*inputs, self.time(batch)], dim=-1)",
                'torch.cat([*inputs, self.time(sub_dict(batch, "next"))], dim=-1)',
            ),
            Change("mean over the critics", ".square().mean(1).sum()", ".square().mean()"),
            Change(
                "rounds in the warm-up",
                "return 0 if self.warming_up else self.config.warmup_rounds",
                "return self.config.warmup_rounds",
            ),
            Change("gradient to the next value", "next_value.detach()", "next_value"),
            Change(
                "rounds due again",
                "* self.num_decisions) - self.num_rounds",
                "* self.num_decisions)",
            ),
            Change(
                "warm-up forgotten",
                'self.num_warmup = state["num_warmup"]',
                'self.num_warmup = 0 * state["num_warmup"]',
                ("tests/rl/algorithms/test_algorithms.py",),
            ),
            Change(
                "rate of the targets",
                "self.critic, self.config.target_update_rate)",
                "self.critic, 2 * self.config.target_update_rate)",
            ),
        ],
    ),
    Mutants(
        "rl/actor_critic/temperature.py",
        DSRL,
        [Change("start of the temperature", "math.log(initial)", "initial")],
    ),
    Mutants(
        "rl/actor_critic/critic_input.py",
        (*LEARNER, *DGN),
        [
            Change("whole chunk", ": policy.num_planned, :", ":, :"),
        ],
    ),
    Mutants(
        "rl/actor_critic/actor.py",
        ("tests/rl/actor_critic/test_learner.py", *WSRL, *DGN),
        [
            Change(
                "sign of the noise",
                "chunk = chunk + self.perturb(",
                "chunk = chunk - self.perturb(",
            ),
            Change(
                "given noise ignored",
                "policy.draw_noise(len(td)) if noise is None else noise",
                "policy.draw_noise(len(td))",
            ),
        ],
    ),
    Mutants(
        "rl/actor_critic/learner.py",
        LEARNER,
        [
            Change(
                "actor away from values",
                "loss = -value.mean() / scale",
                "loss = value.mean() / scale",
            ),
            Change(
                "actor follows the targets",
                "value = self.off_policy.critic(obs, chunk",
                "value = self.off_policy.target(obs, chunk",
            ),
            Change(
                "optimistic actor",
                "self.off_policy.time(batch)).mean(0)",
                "self.off_policy.time(batch)).amax(0)",
            ),
            Change(
                "flow asked at the old observation",
                "executed_chunk(policy, next_context,",
                'executed_chunk(policy, encode_rows(policy, sub_dict(batch, "obs")),',
            ),
            Change(
                "value at the old observation",
                "critic_input(policy, next_rows, next_context)",
                'critic_input(policy, sub_dict(batch, "obs"))',
            ),
            Change(
                "value of another chunk learned",
                'value, obs, batch["chunk"])',
                "value, obs, next_chunk)",
            ),
            Change(
                "rounds of the actor",
                "self.num_rounds % self.config.actor_every == 0",
                "self.num_rounds % self.config.actor_every != 0",
            ),
            Change(
                "weight of cloning", "loss + config.cloning_coefficient * cloning", "loss + cloning"
            ),
            Change(
                "sign of the anchor",
                "loss + config.anchor_coefficient * distance",
                "loss - config.anchor_coefficient * distance",
            ),
            Change(
                "anchor moves along",
                "self.anchor = frozen_copy(policy) if",
                "self.anchor = policy if",
            ),
            Change(
                "scale of each part",
                "mean_size(value) if value_scale is None else value_scale",
                "mean_size(value)",
                ("tests/rl/test_gradient_step.py",),
            ),
            Change(
                "noise of the anchor",
                'batch["noise"], chunk)',
                'torch.randn_like(batch["noise"]), chunk)',
            ),
            Change(
                "rewards without information",
                "train_actor = train_actor and self.off_policy.informative",
                "train_actor = train_actor and True",
                INFORMATION,
            ),
            Change(
                "time in the actor's values",
                "chunk, self.off_policy.time(batch))",
                "chunk, 0 * self.off_policy.time(batch))",
            ),
        ],
    ),
    Mutants(
        "rl/actor_critic/stored_rows.py",
        LEARNER,
        [
            Change("next prefix of demonstrations", "prefix[table.step_after(horizon)]", "prefix"),
            Change(
                "next observations of demonstrations",
                'self._stored_obs(rows), self._stored_obs(sub_dict(rows, "next"))',
                "self._stored_obs(rows), self._stored_obs(rows)",
            ),
            Change(
                "next observations of rollouts",
                'self._stored_obs(rollout), self._stored_obs(sub_dict(rollout, "next"))',
                "self._stored_obs(rollout), self._stored_obs(rollout)",
            ),
            Change(
                "used time of demonstrations' next",
                '"elapsed": rows["next", "elapsed"]}',
                '"elapsed": 1 + rows["next", "elapsed"]}',
            ),
        ],
    ),
    Mutants(
        "rl/algorithms/dsrl.py",
        DSRL,
        [
            Change(
                "sign of the temperature's loss",
                'alpha * (-batch["log_prob"].mean() - target)',
                'alpha * (batch["log_prob"].mean() + target)',
            ),
            Change(
                "sign of the target entropy",
                'batch["log_prob"].mean() - target',
                'batch["log_prob"].mean() + target',
            ),
            Change(
                "target entropy not per entry",
                "self.config.target_entropy * self.source.actor.latent_dim",
                "self.config.target_entropy",
            ),
            Change(
                "sign of the entropy in the target",
                "value - self.temperature() * log_prob",
                "value + self.temperature() * log_prob",
            ),
            Change(
                "actor away from values", "* log_prob - value).mean()", "* log_prob + value).mean()"
            ),
            Change(
                "actor away from entropy",
                "(self.temperature().detach() * log_prob",
                "(-self.temperature().detach() * log_prob",
            ),
            Change(
                "gradient to the temperature", "self.temperature().detach()", "self.temperature()"
            ),
            Change(
                "optimistic actor",
                "reduce_ensemble(values, self.config.off_policy.pessimism)",
                "values.amax(0)",
            ),
            Change(
                "flow asked at the old observation",
                'self.chunk_of(sub_dict(batch, "next"), latent)',
                "self.chunk_of(batch, latent)",
            ),
            Change(
                "noise for the old observation",
                "self.source.actor.sample(next_obs)",
                "self.source.actor.sample(obs)",
            ),
            Change(
                "value at the old observation",
                "next_value(batch, next_obs, next_action)",
                "next_value(batch, obs, next_action)",
            ),
            Change(
                "entropy in the target inverted",
                "if self.config.entropy_in_target:",
                "if not self.config.entropy_in_target:",
            ),
            Change(
                "steered too late",
                "self.num_rounds >= self.config.actor_every",
                "self.num_rounds > 3 * self.config.actor_every",
            ),
            Change(
                "distilled from the targets",
                "target = self.off_policy.value(",
                "target = self.off_policy.next_value(",
            ),
            Change(
                "time of distillation",
                'time = batch["critic_input"], self.off_policy.time(batch)',
                'time = batch["critic_input"], 0 * self.off_policy.time(batch)',
            ),
            Change(
                "time of the actor",
                '"time": self.off_policy.time(batch)',
                '"time": 0 * self.off_policy.time(batch)',
            ),
            Change(
                "distillation noise of the actor alone",
                "device=latent.device) < 0.5",
                "device=latent.device) < 1.5",
            ),
            Change(
                "share of rounds of the actor",
                "self.num_rounds % self.config.actor_every == 0",
                "self.num_rounds % self.config.actor_every != 0",
            ),
            Change(
                "latents of demonstrations",
                'action = batch["chunk"] if self.aliased else',
                'action = 0 * batch["chunk"] if self.aliased else',
            ),
            Change(
                "rewards without information",
                "if self.off_policy.informative:",
                "if self.off_policy:",
                INFORMATION,
            ),
            Change(
                "steered without information",
                "self.config.actor_every and self.off_policy.informative:",
                "self.config.actor_every:",
                INFORMATION,
            ),
            Change(
                "entropy per entry",
                'metrics.pop("log_prob_mean")) / latent_dim',
                'metrics.pop("log_prob_mean"))',
            ),
        ],
    ),
    Mutants(
        "rl/algorithms/dsrl_actor.py",
        DSRL,
        [
            Change(
                "next observations of demonstrations",
                "sub_dict(encoded, following).set(",
                "encoded.copy().set(",
            ),
            Change(
                "next inputs of demonstrations",
                'stored["next", "model_input"] = rows["next", "model_input"]',
                'stored["next", "model_input"] = rows["model_input"]',
            ),
            Change(
                "next inputs of rollouts",
                'after["model_input"] = rollout["next", "model_input"]',
                'after["model_input"] = rollout["model_input"]',
            ),
            Change(
                "steered inverted", "if self.source.is_steered:", "if not self.source.is_steered:"
            ),
        ],
    ),
    Mutants(
        "policies/policy.py",
        (*LEARNER, *DGN),
        [Change("solver ignored", "noise, self.grid, self.sampler.solver)", "noise, self.grid)")],
    ),
    Mutants(
        "policies/noise_source.py",
        DSRL,
        [
            Change("units of the density", "- squash - math.log(self.magnitude)", "- squash"),
            Change("sign of the squashing", "normal - squash", "normal + squash"),
            Change("mode is not squashed", "torch.tanh(self.forward(x)[0])", "self.forward(x)[0]"),
            Change("later steps repeat the first", "repeat(steps[:, -1]", "repeat(steps[:, 0]"),
        ],
    ),
    Mutants(
        "rl/algorithms/wsrl.py",
        WSRL,
        [
            Change(
                "policy moves in the warm-up", "learn(rounds, not warm_up,", "learn(rounds, True,"
            ),
            Change("policy never moves", "learn(rounds, not warm_up,", "learn(rounds, warm_up,"),
            Change(
                "noise of the phases",
                "self.config.warmup_std if warming_up else",
                "self.config.warmup_std if not warming_up else",
            ),
            Change("noise of one side", "* torch.randn(shape", "* torch.rand(shape"),
        ],
    ),
    Mutants(
        "rl/algorithms/dgn.py",
        DGN,
        [
            Change(
                "sign of the difference",
                "normalize_chunk(policy, rows) - chunk",
                "chunk - normalize_chunk(policy, rows)",
            ),
            Change(
                "drawn noise in the difference",
                "zeros = torch.zeros(len(rows)",
                "zeros = torch.randn(len(rows)",
            ),
            Change(
                "success without noise inverted",
                "rate >= config.success_threshold",
                "rate < config.success_threshold",
            ),
            Change(
                "size of the white noise",
                "config.exploration_std * (scale or 1.0)",
                "config.exploration_std",
            ),
            Change(
                "time of a fit",
                "self.since_fit < config.fit_every",
                "self.since_fit <= config.fit_every",
            ),
            Change(
                "broken episodes count",
                '(outcome["done"] & ~outcome["invalid"])',
                'outcome["done"]',
            ),
            Change(
                "policy moves in the warm-up", "learn(rounds, not warm_up,", "learn(rounds, True,"
            ),
            Change(
                "schedule of the fitted noise",
                "return scale * self.noise_model.sample(obs)",
                "return self.noise_model.sample(obs)",
            ),
            Change(
                "schedule of noise of equal size",
                'return scale * self.noise_model.sample(obs, "equal_size")',
                'return self.noise_model.sample(obs, "equal_size")',
            ),
            Change(
                "window of successes",
                "[-self.config.success_window :]",
                "[: self.config.success_window]",
            ),
            Change(
                "steps of the first fit",
                "config.initial_fit_steps if first else",
                "config.initial_fit_steps if not first else",
            ),
        ],
    ),
    Mutants(
        "rl/algorithms/dgn_noise.py",
        DGN,
        [
            Change("sign of the likelihood", "loss = -model(", "loss = model("),
            Change(
                "rows that do not shrink", "diagonal[..., None] * lower.tril(-1)", "lower.tril(-1)"
            ),
            Change("scale of dropout", ".bernoulli_(keep).div_(keep)", ".bernoulli_(keep)"),
            Change("size of equal noise", "(length / self.dim).sqrt()", "length.sqrt()"),
            Change("mean in the size", "+ dist.mean.square().sum(-1)", ""),
            Change("minibatch of differences", "difference[rows]", "difference[: len(rows)]"),
        ],
    ),
]
