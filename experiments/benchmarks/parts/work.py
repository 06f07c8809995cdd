"""The work that `pitune bench` measures: a small policy, its algorithms, and their parts.

Letters: E envs, N rows, H action horizon, A model action dim, K flow steps.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from tensordict import TensorDict, TensorDictBase

from pitune import envs, policies, rl
from pitune.experiments.benchmarks.update import with_settings
from pitune.policies import FlowPolicy, FlowSDEConfig, LikelihoodActor, ModelInput
from pitune.policies.network.config import LAPTOP_EXPERT
from pitune.ranges import DeviceName, PositiveInt, Settings
from pitune.rl.experience.sub_dict import sub_dict

Size = Literal["laptop", "tiny"]


@dataclass(frozen=True, kw_only=True)
class WorkConfig(Settings):
    """Sizes of the measured work.

    Example:
        >>> WorkConfig(num_envs=8).grown("flow_steps").flow_steps
        8
    """

    size: Size = "laptop"
    """`laptop` reads the state alone. `tiny` reads two pictures too."""
    num_envs: PositiveInt = 16
    """E, rows of a decision."""
    action_horizon: PositiveInt = 4
    """H, actions of a chunk, all of which are executed."""
    flow_steps: PositiveInt = 4
    """K."""
    width: PositiveInt = 64
    """Width of the transformer."""
    minibatch_size: PositiveInt = 128
    """Decisions of a gradient step."""
    device: DeviceName = "cpu"
    """Where the policy computes. The simulator stays on the CPU."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the towers. Trained weights are float32, and all weights are trained."""

    def grown(self, name: str) -> WorkConfig:
        """Return the sizes with one of them doubled."""
        changes: dict[str, Any] = {name: 2 * getattr(self, name)}
        return replace(self, **changes)

    @property
    def env(self) -> envs.EnvConfig:
        """The environment, which is embedded."""
        cameras = ("front", "wrist") if self.size == "tiny" else ()
        return envs.EnvConfig(
            id="mock/Reach",
            num_envs=self.num_envs,
            num_workers=0,
            cameras=cameras,
            image_size=32,
            max_episode_steps=4 * self.action_horizon,
        )


GRADIENT_STEPS = 2
"""Gradient steps of an update that does not follow from the rollout."""
GROWTH = ("num_envs", "action_horizon", "flow_steps", "width")
"""Sizes whose doubling is measured."""


@dataclass(frozen=True)
class Part:
    """A part of the work.

    Example:
        >>> Part(lambda: 1, "encode").act()
        1
    """

    act: Callable[[], int]
    """Does the work, and returns how often."""
    bare: str
    """Part of the bare network that it is compared with."""


class Work:
    """A policy with random weights, and everything that is measured with it.

    Args:
        config: Sizes.
        folder: For demonstrations and checkpoints.
        compiled: Whether the policy is compiled.
        algorithms: Names of the algorithms.

    Example:
        >>> work = Work(WorkConfig(num_envs=2), folder, False, ["ppo"])  # doctest: +SKIP
        >>> work.parts()["encode"].act()  # doctest: +SKIP
        1
    """

    def __init__(
        self, config: WorkConfig, folder: Path, compiled: bool, algorithms: list[str]
    ) -> None:
        self.config, self.folder, self.algorithms = config, folder, algorithms
        torch.manual_seed(0)
        self.env = envs.make(config.env)
        demonstrations = rl.collect_demonstrations(self.env, 4 * config.num_envs, seed=0)
        self.file = folder / "demonstrations.safetensors"
        demonstrations.save(self.file)
        self.policy = self._policy(demonstrations).to(config.device)
        policies.apply_finetuning(self.policy, policies.FinetuneConfig(dtype=config.dtype))
        if compiled:
            self.policy.compile_functions()

    def _policy(self, demonstrations: rl.Demonstrations) -> FlowPolicy:
        config = self.config
        expert = replace(LAPTOP_EXPERT, width=config.width, mlp_dim=2 * config.width)
        return policies.small_policy(
            demonstrations.obs["state"],
            demonstrations.action,
            action_horizon=config.action_horizon,
            sampler=policies.SamplerConfig(
                flow_steps=config.flow_steps, execution_horizon=config.action_horizon
            ),
            expert=expert,
            cameras=config.env.cameras,
            image_size=config.env.image_size,
        )

    def parts(self) -> dict[str, Part]:
        """Return the parts by name. Those of the bare network come first."""
        num, k, policy = self.config.num_envs, self.config.flow_steps, self.policy
        actor = LikelihoodActor(policy, FlowSDEConfig())
        env_obs = TensorDict(self.env.reset(torch.arange(num)), batch_size=[num])
        obs = policy.observation_preprocessor(self.env.spec.tasks)(env_obs)
        inputs, noise = ModelInput.of(obs).to(policy.device), policy.draw_noise(num)
        time_half = torch.full((num, 1), 0.5, device=policy.device)
        with torch.no_grad():
            context = policy.encode(inputs)
            decisions = actor(obs.clone())

        def times(number: int, act: Callable[[], Any]) -> Callable[[], int]:
            def repeated() -> int:
                with torch.no_grad():
                    for _ in range(number):
                        act()
                return 1

            return repeated

        def step() -> Any:
            return policy.field(context)(noise[:, None], time_half)

        def score() -> Any:
            return actor.get_dist(decisions).log_prob(decisions["chain"])

        parts = {
            "encode": Part(times(1, lambda: policy.encode(inputs)), "encode"),
            "one flow step": Part(times(1, step), "one flow step"),
            f"sample, K = {k}": Part(times(1, lambda: policy.solve(context, noise)), "steps"),
            "act with log-probabilities": Part(times(1, lambda: actor(obs.clone())), "decision"),
            f"score, K = {k}": Part(times(1, score), "pass"),
        }
        parts |= {f"gradient step, {name}": self._update(name) for name in self.algorithms}
        parts["rollout, per decision"] = self._rollout(actor)
        parts["write a checkpoint"] = Part(self._write, "decision")
        parts["read a checkpoint"] = Part(self._read, "decision")
        return parts

    def bare(self) -> dict[str, Callable[[], int]]:
        """Return the computations of the bare network: module calls with random tensors."""
        config, network, device = self.config, self.policy.network, self.policy.device
        num, k, rows = config.num_envs, config.flow_steps, config.minibatch_size
        inputs = {n: self._network_inputs(n) for n in (num, rows)}

        def velocity(n: int, m: int, context: Any) -> Any:
            x = torch.randn(n, m, *self.policy.chunk_shape, device=device)
            return network.velocity(context, x, torch.full((n, m), 0.5, device=device)).velocity

        def encoded(n: int) -> Any:
            return network.encode(**inputs[n])

        def step(repeats: int, encodes: bool = False, m: int = 1) -> Callable[[], int]:
            def act() -> int:
                with torch.no_grad():
                    context = encoded(num) if encodes else first
                    for _ in range(repeats):
                        velocity(num, m, context)
                return 1

            return act

        def train() -> int:
            velocity(rows, k, encoded(rows)).square().mean().backward()
            network.zero_grad(set_to_none=True)
            return 1

        with torch.no_grad():
            first = encoded(num)
        return {
            "encode": step(0, encodes=True),
            "one flow step": step(1),
            "steps": step(k),
            "decision": step(k, encodes=True),
            "pass": step(1, encodes=True, m=k),
            "training pass": train,
        }

    def _network_inputs(self, num: int) -> dict[str, Any]:
        """Return random inputs of the network (N)."""
        sizes, device = self.policy.network.config, self.policy.device
        inputs: dict[str, Any] = {"state": torch.randn(num, sizes.state_dim, device=device)}
        if sizes.vision is not None:
            size, cameras = sizes.vision.image_size, len(self.config.env.cameras)
            pictures = torch.rand(num, cameras, 3, size, size, device=device)
            inputs["images"] = 2 * pictures - 1
        return inputs

    def _algorithm(self, name: str) -> tuple[rl.Algorithm[Any], TensorDictBase]:
        """Return an algorithm with small settings, and a rollout for it."""
        config = self.config
        values = {
            "demonstrations": self.file,
            "minibatch_size": config.minibatch_size,
            "gradient_steps": GRADIENT_STEPS,
            "num_epochs": 1,
            "critic_warmup": 0,
            "group_size": 2,
            "num_pairs": 2,
            "warmup_decisions": 1,
            "warmup_rounds": 1,
            "initial_fit_steps": 1,
            "fit_every": 1_000_000,
        }
        policy = deepcopy(self.policy)
        algorithm = rl.make(with_settings(rl.preset(name), values), policy)
        # two minibatches of decisions, and the whole episodes that some algorithms need
        num_chunks = max(4, 4 * -(-2 * config.minibatch_size // (4 * config.num_envs)))
        rollouts = rl.Rollouts(self.env, algorithm, num_chunks, seed=0)
        rollout = rollouts.collect()
        # rewards must differ, or policy gradients take no step
        if algorithm.needs.rollouts:
            outcome = sub_dict(rollout, "next")
            outcome["reward_steps"] = torch.rand_like(outcome["reward_steps"])
            success = outcome["success"]
            outcome["success"] = torch.rand(success.shape, device=success.device) < 0.5
        return algorithm, rollout

    def _update(self, name: str) -> Part:
        """Return the updates of an algorithm, counted in minibatches, or in rounds off policy."""
        algorithm, rollout = self._algorithm(name)

        def act() -> int:
            metrics = algorithm.update(rollout)
            num = metrics.get("rounds", metrics.get("gradient_steps", GRADIENT_STEPS))
            return max(1, round(num))

        return Part(act, "training pass")

    def _rollout(self, actor: LikelihoodActor) -> Part:
        """Return the collection of four decisions, simulator included."""
        algorithm = rl.make(rl.preset("ppo"), deepcopy(actor.policy))
        rollouts = rl.Rollouts(self.env, algorithm, 4, seed=0)

        def act() -> int:
            rollouts.collect()
            return 4

        return Part(act, "decision")

    def _write(self) -> int:
        self._checkpoint = Path(tempfile.mkdtemp(dir=self.folder)) / "checkpoint"
        policies.save(self.policy, self._checkpoint)
        return 1

    def _read(self) -> int:
        policies.load(self._checkpoint)
        return 1


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder that is removed in the end."""
    return tempfile.TemporaryDirectory(prefix="pitune-bench-")
