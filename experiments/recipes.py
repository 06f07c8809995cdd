"""Settings that worked, per environment: a reproduced result is a function that returns a config.

docs/quickstart.md explains how they were found. An environment without a recipe gets the defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pitune import envs, policies, rl
from pitune.policies import LikelihoodConfig

DEMONSTRATIONS, GUIDANCE = "demonstrations.safetensors", "guidance.safetensors"
"""Files beside a clone: the cloned episodes, and episodes from which it was not cloned."""

DECISIONS: Mapping[str, int] = {"dsrl": 40_000}
"""Chunk decisions in a run of an off-policy algorithm, where they are not 20,000."""


def likelihood_words() -> dict[str, LikelihoodConfig]:
    """Return the trainable likelihoods by the word that follows an algorithm's name and a colon.

    They are the registered ones, `one_step` for Flow-SDE with one random step, and
    `flow_matching` with the settings of `fpo`.
    """
    words = {name: config for name, config in policies.likelihoods().items() if config.trainable}
    one_step = policies.FlowSDEConfig(stochastic_steps="one")
    return {**words, "one_step": one_step, "flow_matching": rl.FPOConfig().likelihood}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to clone a policy to a middling success rate and how long to fine-tune it.

    Example:
        >>> settings = recipe("mujoco/PickCube").for_algorithm("dgn")
        >>> settings.env.num_envs, settings.num_iterations
        (25, 160)
    """

    env: envs.EnvConfig
    num_demonstrations: int = 14
    """Episodes that are cloned. `dgn` is guided by as many more: a clone differs too little from
    the episodes that it was fitted to for the difference to guide exploration."""
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
        """Return the same with the rollout length and the number of iterations of an algorithm.

        An off-policy algorithm takes gradient steps after every decision, so with a short rollout
        a newer policy collects the data. It is evaluated after every 1000 decisions, and each
        evaluation begins new episodes. With 25 environments or fewer, whole episodes fit between
        two evaluations; with many, no episode would reach its end. A rollout of whole episodes has
        about half the steps of a full one, so there are twice as many.
        """
        entry = rl.registry.entry(name.partition(":")[0])
        if entry.whole_episodes:
            # whole episodes fill about half of a rollout
            return replace(self, num_iterations=2 * self.num_iterations)
        if not entry.off_policy:
            return self

        # short rollouts, because gradient steps follow each of them
        decisions = DECISIONS.get(entry.name, 20_000)
        env = replace(self.env, num_envs=min(25, self.env.num_envs))
        num_chunks = 5
        collected = num_chunks * env.num_envs  # decisions in an iteration
        return replace(
            self,
            env=env,
            num_chunks=num_chunks,
            num_iterations=decisions // collected,
            eval_every=1000 // collected,
        )

    def algorithm(self, name: str, folder: Path) -> rl.AlgorithmConfig:
        """Return an algorithm's config for this environment.

        Args:
            name: See `with_variant`.
            folder: Folder of the demonstrations.

        Raises:
            ValueError: nothing is registered under the name, the variant is unknown, or the
                algorithm has none.
        """
        entry = rl.registry.entry(name.partition(":")[0])
        file = GUIDANCE if entry.unseen_demonstrations else DEMONSTRATIONS
        config = entry.config()
        for part in (self.ppo, self.dsrl):
            config = _replace_parts(config, type(part), part)
        return with_variant(config.with_demonstrations(folder / file), name)

    def fast(self) -> Recipe:
        """Return the same with so few steps that it ends within two minutes on two cores.

        They are enough for the warm-up of an off-policy algorithm to end.
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
    env = envs.config_for(env_id)
    if prefix in ("libero", "maniskill", "metaworld"):
        # slow simulators: fewer copies, shorter rollouts, and more learning from each step
        frugal = rl.PPOConfig(update=rl.UpdateConfig(minibatch_size=256, num_epochs=5))
        return Recipe(
            # a scene of LIBERO takes half a gigabyte
            env=replace(env, num_envs=4 if prefix == "libero" else 20),
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


def with_variant(config: rl.AlgorithmConfig, name: str) -> rl.AlgorithmConfig:
    """Return a config with the variant or the likelihood that follows a colon in `name`.

    Args:
        config: Config of the algorithm.
        name: Registered name. After a colon follows one of the algorithm's variants, or, if it has
            none but a likelihood, one of `likelihood_words`.

    Raises:
        ValueError: the word after the colon is unknown, or the algorithm takes none.
    """
    word, colon, variant = name.partition(":")
    if not colon:
        return config

    # variants of the algorithm, or likelihoods of its settings
    entry = rl.registry.entry(word)
    if entry.variants:
        return entry.variant(variant, config)
    if not takes_likelihood(config):
        raise ValueError(f"{word} has no variants; take algorithm={word!r} alone")
    likelihoods = likelihood_words()
    if variant not in likelihoods:
        nearest = get_close_matches(variant, likelihoods, n=1)
        hint = f"; did you mean '{word}:{nearest[0]}'?" if nearest else ";"
        raise ValueError(
            f"unknown variant {variant!r} in algorithm={name!r}{hint} valid after the colon: "
            f"{', '.join(likelihoods)}"
        )
    changed: rl.AlgorithmConfig = _replace_parts(config, LikelihoodConfig, likelihoods[variant])
    return changed


def preset(word: str) -> rl.AlgorithmConfig:
    """Return the default config of a word such as `ppo` or `ppo:flow_noise`; see `with_variant`."""
    return with_variant(rl.preset(word.partition(":")[0]), word)


def algorithm_word(config: rl.AlgorithmConfig) -> str:
    """Return the word that selects the algorithm and the likelihood of a config.

    Example:
        >>> algorithm_word(rl.PPOConfig(likelihood=policies.FlowNoiseConfig()))
        'ppo:flow_noise'
    """
    name = rl.name_of(config)
    likelihood, default = (_part(c, LikelihoodConfig) for c in (config, rl.preset(name)))
    if type(likelihood) is type(default):
        return name
    return f"{name}:{policies.likelihood_name(likelihood)}"


def takes_likelihood(config: rl.AlgorithmConfig) -> bool:
    """Return whether a config holds a likelihood that a word can replace."""
    return _part(config, LikelihoodConfig) is not None


def _replace_parts(config: Any, kind: type, value: Any) -> Any:
    """Return a config with every nested part of a type replaced, itself included."""
    if isinstance(config, kind):
        return value
    parts = {f.name: getattr(config, f.name) for f in fields(config)}
    nested = {name: part for name, part in parts.items() if is_dataclass(part)}
    return replace(config, **{name: _replace_parts(p, kind, value) for name, p in nested.items()})


def _part(config: Any, kind: type) -> Any:
    """Return a config's nested part of a type, or itself, or None."""
    if isinstance(config, kind):
        return config
    parts = [getattr(config, f.name) for f in fields(config)]
    nested = (_part(part, kind) for part in parts if is_dataclass(part))
    return next((part for part in nested if part is not None), None)
