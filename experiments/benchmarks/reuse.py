"""Time of the work that is done once instead of again, against its older form.

    python -m pitune.experiments.benchmarks.reuse

Both forms run in one process, in turn, and the table has the median of the repetitions. The older
forms are a frozen prefix that every gradient step encodes, Adam's loop, target networks one tensor
at a time, weights converted in every call, and advantages by TorchRL's vectorized form.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median

import torch
from rich.console import Console
from rich.table import Table
from torchrl.objectives.value.functional import vec_generalized_advantage_estimate

from pitune import envs, policies, rl
from pitune.experiments.command_line.errors import exit_with_message
from pitune.experiments.command_line.parsing import arguments, parse, program
from pitune.policies.network.config import LAPTOP_EXPERT, Pi0Config, tiny
from pitune.policies.network.held_casts import hold_casts
from pitune.policies.preprocessing.images import PicturesConfig
from pitune.ranges import PositiveInt, Settings
from pitune.rl import optimizers
from pitune.rl.actor_critic.q_ensemble import QEnsemble, make_target, polyak_update
from pitune.rl.policy_gradient.advantage import generalized_advantage_estimate

Work = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class ReuseConfig(Settings):
    """Measure what is reused against its older form.

    Example:
        >>> ReuseConfig(repetitions=1).num_chunks
        4
    """

    repetitions: PositiveInt = 3
    """Measurements of each form."""
    num_envs: PositiveInt = 8
    """Environments of the on-policy iteration."""
    num_chunks: PositiveInt = 4
    """Decisions per environment and rollout."""


@contextmanager
def loop_optimizers() -> Iterator[None]:
    """Make optimizers with torch's plain loop while the context is open."""
    fused, optimizers.FUSED_DEVICES = optimizers.FUSED_DEVICES, ()
    try:
        yield
    finally:
        optimizers.FUSED_DEVICES = fused


def on_policy_iteration(config: ReuseConfig, reuses: bool) -> Work:
    """Return one rollout and update of PPO on the tiny π0 with a frozen VLM."""
    torch.manual_seed(0)
    identity = policies.NormStats.identity
    preprocessor = policies.PreprocessorConfig(
        state=identity(4),
        action=identity(2),
        pictures=PicturesConfig(cameras={"base_0_rgb": "front"}, size=28, resize="torch"),
    )
    network = replace(tiny("pi0", action_horizon=8, image_size=28), vocab_size=0)
    sampler = policies.SamplerConfig(flow_steps=4, execution_horizon=4)
    policy = policies.FlowPolicy(policies.Pi0(network), preprocessor, sampler)
    trained = policies.FinetuneConfig(trainable=("action_expert", "projections"))
    policy = policies.apply_finetuning(policy, trained)
    update = rl.UpdateConfig(minibatch_size=16, prefix_gib=4.0 if reuses else 0.0)
    algorithm = rl.make(replace(rl.PPOConfig(critic_warmup=0), update=update), policy)
    env = envs.EnvConfig(
        id="mock/Reach", num_envs=config.num_envs, num_workers=0, cameras=("front",), image_size=28
    )
    rollouts = rl.Rollouts(envs.make(env), algorithm, config.num_chunks, seed=0)
    return lambda: algorithm.update(rollouts.collect())


def optimizer_step(network: torch.nn.Module) -> Work:
    """Return a step of Adam on all parameters of a network."""
    for value in network.parameters():
        value.grad = torch.full_like(value, 1e-3)
    return optimizers.adam(network.parameters(), lr=1e-4).step


def sampling(holds: bool) -> Work:
    """Return ten flow steps in bfloat16 with trained float32 weights."""
    torch.manual_seed(0)
    network = policies.Pi0(tiny("pi0", action_horizon=8, image_size=28))
    network.compute_dtype = torch.bfloat16
    hold_casts(network, holds)
    prefix = network.encode_prefix(torch.zeros(1, 1, 3, 28, 28), None, torch.ones(1, 4).long())
    context = network.with_state(prefix, torch.zeros(1, network.config.state_dim))
    x = torch.zeros(1, 1, network.config.action_horizon, network.config.action_dim)

    def sample() -> None:
        with torch.no_grad():
            for _ in range(10):
                network.velocity(context, x, torch.ones(1, 1))

    return sample


def advantages(estimate: Callable[..., object]) -> Work:
    """Return the advantages of 128 environments and 100 decisions, with a discount of each."""
    rows = torch.rand(5, 128, 100, 1)
    flags = torch.zeros(128, 100, 1, dtype=torch.bool)
    return lambda: estimate(0.9 + 0.1 * rows[0], 0.95, rows[1], rows[2], rows[3], flags, flags)


def forms(config: ReuseConfig) -> dict[str, tuple[Work, Work]]:
    """Return the older and the newer form of each kind of work."""
    laptop = Pi0Config(state_dim=8, action_dim=4, action_horizon=8, expert=LAPTOP_EXPERT)
    critics = QEnsemble(32, num_members=10, hidden=(256, 256))
    target = make_target(critics)

    @torch.no_grad()
    def one_by_one() -> None:
        for slow, fast in zip(target.parameters(), critics.parameters(), strict=True):
            slow.lerp_(fast, 0.005)

    with loop_optimizers():
        older = (
            on_policy_iteration(config, reuses=False),
            optimizer_step(policies.Pi0(laptop)),
            optimizer_step(QEnsemble(32, num_members=10, hidden=(256, 256))),
        )
    newer = (
        on_policy_iteration(config, reuses=True),
        optimizer_step(policies.Pi0(laptop)),
        optimizer_step(QEnsemble(32, num_members=10, hidden=(256, 256))),
    )
    names = ("PPO iteration, tiny π0, frozen VLM", "Adam, actor", "Adam, ten critics")
    return {
        **{name: (old, new) for name, old, new in zip(names, older, newer, strict=True)},
        "target networks": (one_by_one, lambda: polyak_update(target, critics, 0.005)),
        "ten flow steps in bfloat16": (sampling(holds=False), sampling(holds=True)),
        "advantages": (
            advantages(vec_generalized_advantage_estimate),
            advantages(generalized_advantage_estimate),
        ),
    }


def seconds(work: Work) -> float:
    """Return the time of one call [s]."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def benchmark(config: ReuseConfig) -> dict[str, float]:
    """Measure, print the table, and return the ratio of older to newer time by kind of work."""
    torch.set_num_threads(1)
    table = Table(title=f"older / newer time, medians of {config.repetitions}")
    for column in ("work", "older [ms]", "newer [ms]", "ratio"):
        table.add_column(column, justify="left" if column == "work" else "right")
    ratios = {}
    for name, pair in forms(config).items():
        # once without a clock, for caches and lazy initialization
        for work in pair:
            work()
        times = [[seconds(work) for work in pair] for _ in range(config.repetitions)]
        old, new = (median(column) for column in zip(*times, strict=True))
        ratios[name] = old / new
        table.add_row(name, f"{1000 * old:.3f}", f"{1000 * new:.3f}", f"{old / new:.2f}")
    Console(width=100).print(table)
    return ratios


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry."""
    with exit_with_message():
        description = __doc__ or ""
        prog = program("benchmarks.reuse")
        benchmark(parse(ReuseConfig, arguments(argv), prog=prog, description=description))


if __name__ == "__main__":
    main()
