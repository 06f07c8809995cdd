"""Time of the work that is done once instead of again, against its older form.

    python -m pitune.experiments.benchmarks.reuse
    python -m pitune.experiments.benchmarks.reuse --only ppo --size pi0 --image-size 224 \
        --dtype bfloat16 --device cuda

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
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table
from torchrl.objectives.value.functional import vec_generalized_advantage_estimate

from pitune import envs, policies, rl
from pitune.experiments.benchmarks.parts.clock import wait_for
from pitune.experiments.command_line.errors import exit_with_message
from pitune.experiments.command_line.parsing import arguments, parse, program
from pitune.policies.network.config import LAPTOP_EXPERT, Pi0Config, pi0, tiny
from pitune.policies.network.held_casts import hold_casts
from pitune.policies.preprocessing.images import PicturesConfig
from pitune.ranges import DeviceName, PositiveFloat, PositiveInt, Settings, Threads
from pitune.rl import optimizers
from pitune.rl.actor_critic.q_ensemble import QEnsemble, make_target, polyak_update
from pitune.rl.policy_gradient.advantage import generalized_advantage_estimate

Work = Callable[[], object]
SLOTS = {"base_0_rgb": "front", "left_wrist_0_rgb": "wrist"}
"""Camera of the environment for each slot of π0."""


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
    minibatch_size: PositiveInt = 16
    """Decisions of a gradient step."""
    prefix_gib: PositiveFloat = 4.0
    """Memory for the prefixes that the newer form keeps [GiB]."""
    only: Literal["all", "ppo"] = "all"
    """`ppo` measures the on-policy iteration alone."""
    size: Literal["tiny", "pi0"] = "tiny"
    """Network of the on-policy iteration. `pi0` is the real size, with random weights."""
    cameras: Literal[1, 2] = 1
    """Pictures per observation."""
    image_size: PositiveInt = 28
    """Side of a picture [pixels], a multiple of 14. π0 is trained with 224."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the network's towers."""
    device: DeviceName = "cpu"
    """Where the on-policy iteration computes."""
    torch_threads: Threads = 1
    """Threads of PyTorch on the CPU."""


@contextmanager
def loop_optimizers() -> Iterator[None]:
    """Make optimizers with torch's plain loop while the context is open."""
    fused, optimizers.FUSED_DEVICES = optimizers.FUSED_DEVICES, ()
    try:
        yield
    finally:
        optimizers.FUSED_DEVICES = fused


def frozen_policy(config: ReuseConfig) -> policies.FlowPolicy:
    """Return a π0 with random weights whose VLM is frozen."""
    identity = policies.NormStats.identity
    slots = dict(list(SLOTS.items())[: config.cameras])
    preprocessor = policies.PreprocessorConfig(
        state=identity(4),
        action=identity(2),
        pictures=PicturesConfig(cameras=slots, size=config.image_size, resize="torch"),
    )
    if config.size == "tiny":
        sizes = tiny("pi0", action_horizon=8, image_size=config.image_size)
    else:
        sizes = pi0(action_horizon=8)
    with torch.device(config.device):
        network = policies.Pi0(replace(sizes, vocab_size=0))
    sampler = policies.SamplerConfig(flow_steps=4, execution_horizon=4)
    trained = policies.FinetuneConfig(
        trainable=("action_expert", "projections"), dtype=config.dtype
    )
    policy = policies.FlowPolicy(network, preprocessor, sampler).to(config.device)
    return policies.apply_finetuning(policy, trained)


def on_policy_iteration(config: ReuseConfig, reuses: bool) -> Work:
    """Return one rollout and update of PPO on a π0 with a frozen VLM."""
    torch.manual_seed(0)
    policy = frozen_policy(config)
    update = rl.UpdateConfig(
        minibatch_size=config.minibatch_size, prefix_gib=config.prefix_gib if reuses else 0.0
    )
    algorithm = rl.make(replace(rl.PPOConfig(critic_warmup=0), update=update), policy)
    env = envs.EnvConfig(
        id="mock/Reach",
        num_envs=config.num_envs,
        num_workers=0,
        cameras=tuple(SLOTS.values())[: config.cameras],
        image_size=config.image_size,
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
    with loop_optimizers():
        older = on_policy_iteration(config, reuses=False)
    iteration = {
        f"PPO iteration, {config.size} π0, frozen VLM": (
            older,
            on_policy_iteration(config, reuses=True),
        )
    }
    return iteration if config.only == "ppo" else iteration | small_forms()


def small_forms() -> dict[str, tuple[Work, Work]]:
    """Return the older and the newer form of the work that needs no environment."""
    laptop = Pi0Config(state_dim=8, action_dim=4, action_horizon=8, expert=LAPTOP_EXPERT)
    critics = QEnsemble(32, num_members=10, hidden=(256, 256))
    target = make_target(critics)

    @torch.no_grad()
    def one_by_one() -> None:
        for slow, fast in zip(target.parameters(), critics.parameters(), strict=True):
            slow.lerp_(fast, 0.005)

    def optimized() -> tuple[Work, Work]:
        members = QEnsemble(32, num_members=10, hidden=(256, 256))
        return optimizer_step(policies.Pi0(laptop)), optimizer_step(members)

    with loop_optimizers():
        older = optimized()
    newer = optimized()
    return {
        "Adam, actor": (older[0], newer[0]),
        "Adam, ten critics": (older[1], newer[1]),
        "target networks": (one_by_one, lambda: polyak_update(target, critics, 0.005)),
        "ten flow steps in bfloat16": (sampling(holds=False), sampling(holds=True)),
        "advantages": (
            advantages(vec_generalized_advantage_estimate),
            advantages(generalized_advantage_estimate),
        ),
    }


def seconds(work: Work, device: str = "cpu") -> float:
    """Return the time of one call, to the end of its work on an accelerator [s]."""
    start = time.perf_counter()
    work()
    wait_for(torch.device(device))
    return time.perf_counter() - start


def benchmark(config: ReuseConfig) -> dict[str, float]:
    """Measure, print the table, and return the ratio of older to newer time by kind of work."""
    torch.set_num_threads(config.torch_threads)
    table = Table(title=f"older / newer time, medians of {config.repetitions}")
    for column in ("work", "older [ms]", "newer [ms]", "ratio"):
        table.add_column(column, justify="left" if column == "work" else "right")
    ratios = {}
    for name, pair in forms(config).items():
        # once without a clock, for caches and lazy initialization
        for work in pair:
            work()
        times = [[seconds(work, config.device) for work in pair] for _ in range(config.repetitions)]
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
