"""The flow policy behind TorchRL's actor interface, with a likelihood.

`FlowActor` writes `action`, the `chain` of points from noise to action and its `action_log_prob`;
`get_dist(td)` scores a stored chain. TorchRL's losses and collectors take it unchanged: the loss's
"action" is the chain, the environment's is `action`.

The likelihood is that of the *unclipped* chain: clipping to the robot's bounds belongs to the
environment (the density of a clipped action has atoms). Noise enters only the entries that are
executed, and exactly those are scored.

Letters: N rows, M scored steps (K, or 1), K flow steps, H action horizon, A action dim.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from tensordict import TensorDictBase
from tensordict.nn import InteractionType, TensorDictModuleBase
from tensordict.nn.probabilistic import interaction_type
from torch import Tensor, nn
from torch.distributions import Distribution

from policies.flow import (
    FlowNoise,
    FlowOutput,
    FlowSDE,
    Kernel,
    TimeGrid,
    VelocityField,
    sample_chain,
    score_chain,
)
from policies.policy import FlowPolicy


@dataclass(frozen=True, kw_only=True)
class LikelihoodConfig:
    """Which noise makes the flow's steps random, and what is summed into a log-probability."""

    kernel: Literal["flow_sde", "flow_noise"] = "flow_sde"
    """Flow-SDE keeps the ODE's marginals; Flow-Noise learns the size of the noise."""
    stochastic_steps: Literal["one", "all"] = "all"
    """Every step is random, or one per sample, drawn anew each time."""
    noise_level: float = 0.5
    """Flow-SDE's noise; see `FlowSDE` [-]."""
    noise_std_min: float = 0.08
    """Flow-Noise: least standard deviation [normalised action]."""
    noise_std_max: float = 0.16
    """Flow-Noise: greatest standard deviation; equal to the least for a constant noise."""
    reduction: Literal["sum", "mean"] = "sum"
    """A sum over a step's entries is its true log-density; a mean tempers the ratio."""
    ratio: Literal["joint", "step"] = "step"
    """One ratio per scored step, each clipped by itself, or one per decision (their product)."""

    def __post_init__(self) -> None:
        if not 0 < self.noise_std_min <= self.noise_std_max:
            raise ValueError(
                f"noise_std_min={self.noise_std_min} must be above 0 and at most "
                f"noise_std_max={self.noise_std_max}"
            )


class NoiseNetwork(nn.Module):
    """Standard deviation of Flow-Noise from the expert's features, inside fixed bounds.

    Starts in the (geometric) middle of its bounds. Source: πRL; the bounds are on the log-variance.
    """

    def __init__(self, width: int, action_dim: int, std_min: float, std_max: float) -> None:
        super().__init__()
        self.log_min, self.log_max = math.log(std_min), math.log(std_max)
        head = nn.Linear(64, action_dim)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        layers = [nn.Linear(width, 128), nn.Tanh(), nn.Linear(128, 64), nn.Tanh()]
        self.net = nn.Sequential(*layers, head)

    def forward(self, output: FlowOutput, flow_time: Tensor) -> Tensor:
        """Return the standard deviation (N, M, H, A) [normalised action]."""
        if output.hidden is None:
            raise ValueError("Flow-Noise needs the network's hidden features, but there are none")
        fraction = 0.5 * (torch.tanh(self.net(output.hidden.float())) + 1)
        return (self.log_min + fraction * (self.log_max - self.log_min)).exp()


class FlowChain(Distribution):
    """Distribution over chains (K + 1, H, A), given encoded observations of N rows.

    Args:
        field: Velocity field of the rows.
        kernel: Transition kernel; samples and scores.
        grid: Flow times.
        config: Reductions.
        stochastic_step: The random step of each row (N,), or None if all are random.
        shape: (N, H, A).
        num_scored: Entries of a point that are executed, so random and scored.
        device: Where the chains live.
    """

    arg_constraints = {}  # noqa: RUF012 - torch's own attribute

    def __init__(
        self,
        field: VelocityField,
        kernel: Kernel,
        grid: TimeGrid,
        config: LikelihoodConfig,
        stochastic_step: Tensor | None,
        shape: tuple[int, int, int],
        num_scored: int,
        device: torch.device,
    ) -> None:
        self.field, self.kernel, self.grid, self.config = field, kernel, grid, config
        self.stochastic_step, self.shape, self.num_scored = stochastic_step, shape, num_scored
        self.device = device
        super().__init__(
            torch.Size(shape[:1]),
            torch.Size([grid.flow_steps + 1, *shape[1:]]),
            validate_args=False,
        )

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:  # type: ignore[override]
        """Return chains (N, K + 1, H, A) from fresh noise."""
        if len(sample_shape):
            raise ValueError(
                f"sample_shape={tuple(sample_shape)} is not supported; repeat the rows"
            )
        return self.sample_from(torch.randn(self.shape, device=self.device))

    def sample_from(self, noise: Tensor) -> Tensor:
        """Return chains (N, K + 1, H, A) that start at the given noise (N, H, A)."""
        return self.sample_and_log_prob(noise)[0]

    def sample_and_log_prob(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return chains from the given noise and their log-probabilities, in one pass."""
        with torch.no_grad():
            chain, entries = sample_chain(
                self.field, noise, self.grid, self.kernel, self.stochastic_step
            )
        return chain, self._reduce(entries)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of chains (N,), or (N, M) with `ratio="step"`."""
        entries, transition = score_chain(
            self.field, value, self.grid, self.kernel, self.stochastic_step
        )
        self.scored_std = transition.std.expand_as(transition.mean)
        return self._reduce(entries)

    def entropy(self) -> Tensor:
        """Return the mean entropy per random entry (N,) of the chain that was scored last.

        Only a learned noise has an entropy to train; Flow-SDE's is a constant.
        """
        random = self.scored_std > 0
        std = torch.where(random, self.scored_std, torch.ones_like(self.scored_std))
        entropy = (std.log() + 0.5 * math.log(2 * math.pi * math.e)) * random
        return entropy.flatten(1).sum(-1) / random.flatten(1).sum(-1)

    def _reduce(self, entries: Tensor) -> Tensor:
        """Return the configured log-probability of entries (N, M, H, A): (N,) or (N, M)."""
        steps = entries.sum((-2, -1))
        if self.config.reduction == "mean":
            steps = steps / self.num_scored
        return steps.sum(-1) if self.config.ratio == "joint" else steps


class FlowActor(TensorDictModuleBase):
    """The policy as TorchRL sees it.

    In `ExplorationType.RANDOM` it samples the stochastic chain; in DETERMINISTIC it acts as
    deployed: the ODE from fresh noise. A `noise` entry in the input replaces the fresh noise.

    Args:
        policy: The flow policy; its parameters are this module's parameters.
        config: The likelihood.
    """

    def __init__(self, policy: FlowPolicy, config: LikelihoodConfig) -> None:
        super().__init__()
        self.policy, self.config = policy, config
        self.noise_network: NoiseNetwork | None = None
        if config.kernel == "flow_noise":
            self.noise_network = NoiseNetwork(
                policy.network.config.expert.width,
                policy.network.config.action_dim,
                config.noise_std_min,
                config.noise_std_max,
            ).to(policy.device)
        self.in_keys = list(policy.obs_keys)
        self.log_prob_keys, self.dist_sample_keys = ["action_log_prob"], ["chain"]
        self.out_keys = ["action", "chain", "action_log_prob"]
        if config.stochastic_steps == "one":
            self.out_keys.append("stochastic_step")

    def kernel(self) -> Kernel:
        """Return the transition kernel, with noise only in executed entries."""
        mask = self.policy.executed_mask()
        if self.noise_network is not None:
            return FlowNoise(self.noise_network, mask)
        return FlowSDE(self.config.noise_level, mask)

    def get_dist(self, td: TensorDictBase) -> FlowChain:
        """Return the distribution over chains, given observations (N).

        A `stochastic_step` (N,) in the input says which step of each row is random; for a chain
        whose steps all are, it says which one to score.
        """
        context = self.policy.encode(td)
        step = td.get("stochastic_step", None)
        step = None if step is None else step.to(self.policy.device)
        shape = (len(td), *self.policy.chunk_shape)
        return FlowChain(
            self.policy.field(context),
            self.kernel(),
            self.policy.grid,
            self.config,
            step,
            shape,
            num_scored=int(self.policy.executed_mask().sum()),
            device=self.policy.device,
        )

    def forward(self, td: TensorDictBase) -> TensorDictBase:
        noise = td.get("noise", None)
        noise = self.policy.draw_noise(len(td)) if noise is None else noise
        if interaction_type() == InteractionType.DETERMINISTIC:
            with torch.no_grad():
                return td.set("action", self.policy.sample_actions(td, noise))
        if self.config.stochastic_steps == "one":
            step = torch.randint(self.policy.grid.flow_steps, td.shape, device=noise.device)
            td.set("stochastic_step", step)
        with torch.no_grad():
            chain, log_prob = self.get_dist(td).sample_and_log_prob(noise)
        td.set("chain", chain)
        td.set("action", self.policy.executed(chain[:, -1], td))
        return td.set("action_log_prob", log_prob)
