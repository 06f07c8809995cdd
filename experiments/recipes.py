"""Settings that worked, per environment: a reproduced result is a function that returns a config.

How they were found is in docs/quickstart.md. An environment without a recipe gets the defaults.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pitune import envs, policies, rl
from pitune.policies import LikelihoodConfig
from pitune.rl.algorithms.fpo import plus_plus

DEMONSTRATIONS, GUIDANCE = "demonstrations.safetensors", "guidance.safetensors"
"""Files beside a clone: what was cloned, and what the clone has not seen."""

LIKELIHOODS = {
    "flow_sde": policies.FlowSDEConfig(),
    "one_step": policies.FlowSDEConfig(stochastic_steps="one"),
    "flow_noise": policies.FlowNoiseConfig(),
    "velocity_gaussian": policies.VelocityGaussianConfig(),
    "flow_matching": rl.FPOConfig().likelihood,
}
"""Likelihoods by the word that follows an algorithm's name and a colon."""


def _off_policy(config: rl.WSRLConfig, **changes: Any) -> rl.WSRLConfig:
    learner = config.learner
    off_policy = replace(learner.off_policy, **changes)
    return replace(config, learner=replace(learner, off_policy=off_policy))


VARIANTS: dict[str, dict[str, Callable[[Any], Any]]] = {
    "dsrl": {word: partial(replace, variant=word) for word in ("sac", "noise_aliased")},
    "dgn": {
        **{word: partial(replace, noise=word) for word in ("equal_size", "gaussian", "none")},
        "shuffled": partial(replace, shuffle_differences=True),
    },
    "wsrl": {
        "no_warmup": partial(_off_policy, warmup_decisions=0),
        "keep_data": partial(_off_policy, offline_share=0.5),
    },
    "fpo": {"plus_plus": plus_plus},
}
"""By algorithm: its variants, and its paper's baselines and ablations, by their word."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to clone a policy to a middling success rate and how long to fine-tune it."""

    env: envs.EnvConfig
    num_demonstrations: int = 14
    """Episodes that are cloned, and as many more that guide `dgn`: where the clone was fitted, its
    differences from what was demonstrated are too small to explore with."""
    gradient_steps: int = 1500
    """Steps of cloning."""
    num_chunks: int = 41
    """Chunk decisions per environment in one rollout."""
    num_iterations: int = 70
    eval_every: int = 10
    eval_episodes: int = 200
    stop_at: float = 0.95
    """Fine-tuning ends when the validation's interval is above this success rate [-]."""
    ppo: rl.PPOConfig = field(default_factory=rl.PPOConfig)
    """PPO for this environment."""
    dsrl: rl.DSRLConfig = field(
        default_factory=lambda: rl.DSRLConfig(
            variant="sac",
            steering=policies.SteeringConfig(magnitude=3.0),
            off_policy=rl.OffPolicyConfig(updates_per_decision=0.5),
        )
    )
    """DSRL for this environment; other algorithms take their defaults."""

    def for_algorithm(self, name: str) -> Recipe:
        """Return the same with rollouts as short as the algorithm wants them.

        What learns off-policy answers each decision with its updates, so a short rollout only
        means that a newer policy gathers. It is evaluated after every 1000 decisions, where new
        episodes begin; of few environments that is several episodes, of many it would be less than
        one, and the end of an episode would never be learned from. A rollout of whole episodes has
        about half the steps of one that is full, so there are twice as many.
        """
        algorithm = rl.preset(name.partition(":")[0])
        if isinstance(algorithm, rl.GRPOConfig):
            return replace(self, num_iterations=2 * self.num_iterations)
        if not isinstance(algorithm, rl.DSRLConfig | rl.WSRLConfig | rl.DGNConfig):
            return self
        decisions = 40_000 if isinstance(algorithm, rl.DSRLConfig) else 20_000
        env = replace(self.env, num_envs=min(25, self.env.num_envs))
        gathered = 5 * env.num_envs  # in an iteration
        return replace(
            self,
            env=env,
            num_chunks=5,
            num_iterations=decisions // gathered,
            eval_every=1000 // gathered,
        )

    def algorithm(self, name: str, folder: Path) -> rl.AlgorithmConfig:
        """Return an algorithm's config for this environment.

        Args:
            name: Registered name; after a colon one of its `VARIANTS`, or where it has none a key
                of `LIKELIHOODS` that replaces its own.
            folder: Where the demonstrations are.

        Raises:
            ValueError: nothing is registered under the name, the variant is unknown, or the
                algorithm has none.
        """
        word, _, variant = name.partition(":")
        config = rl.preset(word)
        config = self.dsrl if isinstance(config, rl.DSRLConfig) else config
        guided = isinstance(config, rl.DGNConfig)
        config = config.with_demonstrations(folder / (GUIDANCE if guided else DEMONSTRATIONS))
        config = _with(config, rl.PPOConfig, self.ppo)
        if not variant:
            return config
        variants = VARIANTS.get(word)
        if variants is None and _has(config, LikelihoodConfig):
            variants = {
                key: partial(_with, kind=LikelihoodConfig, value=value)
                for key, value in LIKELIHOODS.items()
            }
        if variants is None:
            raise ValueError(f"{word} has no variants; take algorithm={word!r} alone")
        if variant not in variants:
            raise ValueError(
                f"unknown variant {variant!r} in algorithm={name!r}; valid after the colon: "
                f"{', '.join(variants)}"
            )
        changed: rl.AlgorithmConfig = variants[variant](config)
        return changed

    def fast(self) -> Recipe:
        """Return the same with so few steps that it ends within two minutes on two cores.

        Enough of them that the warm-up of what learns off-policy ends.
        """
        num_iterations = max(6, -(-3000 // (self.num_chunks * self.env.num_envs)))
        return replace(
            self,
            gradient_steps=self.gradient_steps // 2,
            num_iterations=num_iterations,
            eval_every=num_iterations,
            eval_episodes=self.env.num_envs * max(1, 100 // self.env.num_envs),
        )


def recipe(env_id: str) -> Recipe:
    """Return the settings for an environment."""
    prefix = env_id.partition("/")[0]
    env = envs.EnvConfig(id=env_id)
    if prefix in ("maniskill", "metaworld"):
        # slow simulators: fewer copies, shorter rollouts, and more learning from each step
        frugal = rl.PPOConfig(update=rl.UpdateConfig(minibatch_size=256, num_epochs=5))
        return Recipe(
            env=replace(env, num_envs=20),
            num_demonstrations=30 if prefix == "maniskill" else 10,
            num_chunks=50,
            num_iterations=120,
            eval_every=20,
            eval_episodes=100,
            ppo=frugal,
        )
    if prefix == "mock":
        return Recipe(env=replace(env, num_workers=0), num_chunks=20, num_iterations=20)
    return Recipe(env=env)


def _with(config: Any, kind: type, value: Any) -> Any:
    """Return a config with every part of a kind replaced, itself included."""
    if isinstance(config, kind):
        return value
    parts = {f.name: getattr(config, f.name) for f in fields(config)}
    changes = {name: _with(v, kind, value) for name, v in parts.items() if is_dataclass(v)}
    return replace(config, **changes)


def _has(config: Any, kind: type) -> bool:
    if isinstance(config, kind):
        return True
    return any(_has(v, kind) for f in fields(config) if is_dataclass(v := getattr(config, f.name)))
