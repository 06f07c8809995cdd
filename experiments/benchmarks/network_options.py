"""Loss and success of cloned policies with options of the network, at equal compute.

    pitune bench network_options --env.id mujoco/PickCube --out runs/options

Every option is cloned from the same demonstrations, three seeds each. The steps of an option are
those of the plain network times the ratio of their costs [FLOP], so that all cost the same. `wider`
is a control: a plain network with more parameters. The loss is that of held-out demonstrations.
It writes network_options.json into --out after each clone, and continues from it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from rich.console import Console
from tensordict import TensorDictBase
from torch.utils.flop_counter import FlopCounterMode

from pitune import envs, policies, rl
from pitune.experiments.benchmarks.option_clones import Clone, read_clones, table, write_clones
from pitune.experiments.command_line.errors import exit_with_message
from pitune.experiments.command_line.parsing import arguments, parse, program
from pitune.policies import FlowPolicy, GemmaConfig, ModelInput, NetworkOptions
from pitune.policies.network.options.hyper_connections import HyperConnectionsConfig
from pitune.policies.network.options.linear_norms import LinearNormsConfig
from pitune.policies.network.options.prediction import PredictionConfig
from pitune.policies.network.options.tokens.registers import RegistersConfig
from pitune.policies.network.options.tokens.state_tokens import StateTokensConfig
from pitune.policies.network.options.value_residual import ValueResidualConfig
from pitune.ranges import PositiveFloat, PositiveInt, Seed, Settings, Threads
from pitune.rl.algorithms.bc import CloningStep
from pitune.rl.experience.sub_dict import sub_dict

RESULTS = "network_options.json"
FREE = ("out", "seeds", "options", "threads")
"""Settings that a clone does not depend on."""
EXPERT = GemmaConfig(width=64, depth=4, mlp_dim=128, num_heads=4, num_kv_heads=1, head_dim=16)
HELD_OUT_TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Flow times of the held-out loss."""
OPTIONS: Mapping[str, NetworkOptions] = {
    "plain": NetworkOptions(),
    "value_residual": NetworkOptions(value_residual=ValueResidualConfig(mode="static")),
    "value_residual_dynamic": NetworkOptions(value_residual=ValueResidualConfig(mode="dynamic")),
    "registers": NetworkOptions(registers=RegistersConfig(num=4)),
    "hyper_connections": NetworkOptions(hyper_connections=HyperConnectionsConfig(streams=4)),
    "linear_norms": NetworkOptions(linear_norms=LinearNormsConfig(mode="full")),
    "gated_linear_norms": NetworkOptions(linear_norms=LinearNormsConfig(mode="gated")),
    "predicted_action": NetworkOptions(prediction=PredictionConfig(output="action", loss="action")),
    "state_encoder": NetworkOptions(state_tokens=StateTokensConfig(encoders=("mlp",))),
    "immiscible_noise": NetworkOptions(),
    "wider": NetworkOptions(),
}
"""Rows of the table."""
ASSIGNED = ("immiscible_noise",)
"""Rows that are cloned with an optimal assignment of noise to chunks."""


@dataclass(frozen=True, kw_only=True)
class NetworkOptionsConfig(Settings):
    """Clone policies with options of the network.

    Example:
        >>> NetworkOptionsConfig(seeds=(0,)).gradient_steps
        1500
    """

    env: envs.EnvConfig = field(default_factory=lambda: envs.EnvConfig(num_envs=20))
    options: tuple[str, ...] = tuple(OPTIONS)
    """Rows of the table, the first of which is the reference of the cost."""
    seeds: tuple[Seed, ...] = (0, 1, 2)
    """Seeds of the weights and the minibatches."""
    demonstrations: PositiveInt = 30
    """Successful episodes of the expert to clone."""
    held_out: PositiveInt = 10
    """Further ones for the loss."""
    gradient_steps: PositiveInt = 1500
    """Steps of the plain network."""
    minibatch_size: PositiveInt = 64
    """Chunks per gradient step."""
    learning_rate: PositiveFloat = 1e-3
    """AdamW's first step size, which falls by a cosine [-]."""
    action_horizon: PositiveInt = 4
    """H, actions that one decision predicts."""
    episodes: PositiveInt = 200
    """Episodes of each clone."""
    out: Path = Path("runs/network_options")
    """Folder of the numbers."""
    threads: Threads = 1
    """Threads of PyTorch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [name for name in self.options if name not in OPTIONS]
        if unknown or not self.options:
            raise ValueError(f"options names {unknown}; valid are {list(OPTIONS)}, name some")


def measure(config: NetworkOptionsConfig) -> list[Clone]:
    """Return all clones. Those of an earlier, interrupted call are read from --out."""
    torch.set_num_threads(config.threads)
    env = envs.make(config.env)
    train, held_out = collected(config, env)
    reference = step_cost(config, new_policy(config, config.options[0], train), train)
    # clones of another call count only with the same settings
    values = {name: value for name, value in asdict(config).items() if name not in FREE}
    identity = json.loads(json.dumps(values, default=str))
    clones = read_clones(config.out / RESULTS, identity)
    for seed in config.seeds:
        for name in config.options:
            if any((c.option, c.seed) == (name, seed) for c in clones):
                continue
            clones.append(cloned(config, name, seed, env, train, held_out, reference))
            write_clones(config.out / RESULTS, identity, clones)
    env.close()
    return clones


def collected(
    config: NetworkOptionsConfig, env: envs.CheckedEnv
) -> tuple[rl.Demonstrations, rl.Demonstrations]:
    """Return demonstrations to clone, and those for the loss. They are kept in --out."""
    num = config.demonstrations + config.held_out
    file = config.out / "demonstrations.safetensors"
    if not file.is_file():
        config.out.mkdir(parents=True, exist_ok=True)
        rl.collect_demonstrations(env, num, seed=0).save(file)
    every = rl.Demonstrations.load(file)
    # the last episodes are held out
    last = every.episode.unique()[config.demonstrations]
    return part(every, every.episode < last), part(every, every.episode >= last)


def part(demonstrations: rl.Demonstrations, rows: torch.Tensor) -> rl.Demonstrations:
    """Return the demonstrations of some steps (N,) bool."""
    parts = {
        name: getattr(demonstrations, name)
        for name in ("action", "episode", "reward", "terminated")
    }
    parts = {name: None if value is None else value[rows] for name, value in parts.items()}
    obs = {key: value[rows] for key, value in demonstrations.obs.items()}
    return replace(demonstrations, obs=obs, **parts)


def new_policy(
    config: NetworkOptionsConfig, name: str, demonstrations: rl.Demonstrations
) -> FlowPolicy:
    """Return an untrained policy with an option."""
    state = demonstrations.obs["state"]
    if not isinstance(state, torch.Tensor):
        raise TypeError("the demonstrations hold no states")
    return policies.small_policy(
        state,
        demonstrations.action,
        action_horizon=config.action_horizon,
        sampler=policies.SamplerConfig(flow_steps=4, execution_horizon=config.action_horizon),
        expert=replace(EXPERT, width=80, mlp_dim=160) if name == "wider" else EXPERT,
        options=OPTIONS[name],
    )


def step_cost(
    config: NetworkOptionsConfig, policy: FlowPolicy, demonstrations: rl.Demonstrations
) -> int:
    """Return the matrix products of a gradient step, forward and backward [FLOP]."""
    chunks = demonstrations.preprocess(policy).chunks(config.action_horizon)
    rows = sub_dict(chunks, slice(config.minibatch_size))
    with FlopCounterMode(display=False) as counter:
        policy.loss(ModelInput.of(rows), rows["action"]).mean().backward()
    policy.zero_grad()
    return int(counter.get_total_flops())


def cloned(
    config: NetworkOptionsConfig,
    name: str,
    seed: int,
    env: envs.CheckedEnv,
    train: rl.Demonstrations,
    held_out: rl.Demonstrations,
    reference: int,
) -> Clone:
    """Return one clone with its losses and its success.

    Args:
        config: Settings.
        name: Row of the table.
        seed: Of the weights and the minibatches.
        env: Plays the episodes.
        train: Demonstrations to clone.
        held_out: Demonstrations of the loss.
        reference: Cost of a step of the plain network [FLOP].
    """
    # fewer steps for an option whose step costs more
    start = time.monotonic()
    torch.manual_seed(seed)
    policy = new_policy(config, name, train)
    cost = step_cost(config, policy, train) / reference
    steps = round(config.gradient_steps / cost)
    torch.manual_seed(seed)
    step = CloningStep(
        policy,
        rl.BCConfig(
            learning_rate=config.learning_rate,
            warmup_steps=0,
            decay_steps=steps,
            final_fraction=0.01,
            weight_decay=1e-4,
            ema_decay=0.0,
            minibatch_size=config.minibatch_size,
            immiscible_noise=name in ASSIGNED,
        ),
    )
    chunks = train.preprocess(policy).chunks(config.action_horizon)
    losses = [step(drawn(chunks, config.minibatch_size)) for _ in range(steps)]
    # loss and success
    unseen = held_out.preprocess(policy).chunks(config.action_horizon)
    outcome = rl.evaluate(env, policies.Actor(policy), config.episodes)
    return Clone(
        option=name,
        seed=seed,
        steps=steps,
        cost=cost,
        parameters=sum(value.numel() for value in policy.parameters()),
        train_loss=sum(losses[-(steps // 10) :]) / (steps // 10),
        held_out_loss=held_out_loss(policy, unseen),
        successes=sum(outcome.success),
        episodes=config.episodes,
        seconds=time.monotonic() - start,
    )


def drawn(chunks: TensorDictBase, size: int) -> TensorDictBase:
    """Return random chunks."""
    return sub_dict(chunks, torch.randint(len(chunks), (size,)))


@torch.no_grad()
def held_out_loss(policy: FlowPolicy, chunks: TensorDictBase) -> float:
    """Return the velocity's squared error on chunks (N), the same draws for every policy."""
    generator = torch.Generator().manual_seed(0)
    m = len(HELD_OUT_TIMES)
    noise = torch.randn(len(chunks), m, *policy.chunk_shape, generator=generator)
    times = torch.tensor(HELD_OUT_TIMES).expand(len(chunks), -1)
    error = policy.loss(ModelInput.of(chunks), chunks["action"], noise, times)  # (N, M, H, A)
    if policy.network.config.options.prediction.loss == "action":
        error = error / times[..., None, None].square()
    return float(error.mean())


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry."""
    with exit_with_message():
        config = parse(
            NetworkOptionsConfig,
            arguments(argv),
            prog=program("bench network_options"),
            description=__doc__,
        )
        Console().print(table(measure(config)))


if __name__ == "__main__":
    main()
