"""The flow policy behind TorchRL's actor interface, with a likelihood.

`LikelihoodActor` writes `action`, the `chain` of points from noise to action and its
`action_log_prob`; `get_dist(td)` scores a stored chain. TorchRL's losses and collectors take it
unchanged: the loss's "action" is the chain, the environment's is `action`.

The likelihood is that of the *unclipped* chain: clipping to the robot's bounds belongs to the
environment (the density of a clipped action has atoms). Noise enters only the entries that are
executed, and exactly those are scored.

Letters: N rows, M scored steps (K, or 1), K flow steps, H action horizon, A action dim.
"""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import InteractionType, TensorDictModuleBase
from tensordict.nn.probabilistic import interaction_type
from torch import Tensor

from pitune.policies.flow.kernels import FlowNoise, FlowSDE, Kernel
from pitune.policies.likelihood.config import (
    STEP_KERNELS,
    LikelihoodConfig,
    NoiseNetwork,
    VelocityHead,
    draw_flow_times,
)
from pitune.policies.likelihood.distributions import (
    ActionDistribution,
    ExactFlow,
    FlowChain,
    LossRatio,
)
from pitune.policies.network.pi0 import Context
from pitune.policies.policy import FlowPolicy


class LikelihoodActor(TensorDictModuleBase):
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
        self.noise_network: NoiseNetwork | VelocityHead | None = None
        sizes = (policy.network.config.expert.width, policy.network.config.action_dim)
        if config.kernel == "flow_noise":
            bounds = (config.noise_std_min, config.noise_std_max)
            self.noise_network = NoiseNetwork(*sizes, *bounds).to(policy.device)
        elif config.kernel == "velocity_gaussian":
            head = VelocityHead(*sizes, config.head_std, policy.grid.dt)
            self.noise_network = head.to(policy.device)
        self.in_keys = list(policy.obs_keys)
        self.log_prob_keys, self.dist_sample_keys = ["action_log_prob"], ["chain"]
        self.out_keys = ["action", "chain", "action_log_prob"]
        if policy.feature_dim:
            self.out_keys.append("features")
        if config.stochastic_steps == "one":
            self.out_keys.append("stochastic_step")
        if config.kernel == "flow_matching":
            self.out_keys += ["draw_noise", "draw_time"]

    def kernel(self) -> Kernel:
        """Return the transition kernel, with noise only in executed entries."""
        mask = self.policy.executed_mask()
        if self.noise_network is not None:
            return FlowNoise(self.noise_network, mask)
        return FlowSDE(self.config.noise_level, mask)

    def encode(self, td: TensorDictBase) -> Context:
        """Return the encoded observations (N) that sampling and scoring share."""
        return self.policy.encode(td)

    def get_dist(self, td: TensorDictBase) -> ActionDistribution:
        """Return the distribution over chains, given observations (N).

        A `stochastic_step` (N,) in the input says which step of each row is random; for a chain
        whose steps all are, it says which one to score. A flow-matching loss is measured at the
        input's `draw_noise` (N, M, H, A) and `draw_time` (N, M).

        Raises:
            ValueError: those draws are missing.
        """
        step = td.get("stochastic_step", None)
        step = None if step is None else step.to(self.policy.device)
        return self._distribution(td, self.encode(td), step)

    def _distribution(
        self, td: TensorDictBase, context: Context, step: Tensor | None
    ) -> ActionDistribution:
        """Return the distribution over chains, given encoded observations (N)."""
        if self.config.kernel == "flow_matching":
            return self._loss_ratio(td, context)
        if self.config.kernel == "ode":
            shape = (len(td), *self.policy.chunk_shape)
            field, device = self.policy.field(context), self.policy.device
            return ExactFlow(field, self.policy.grid, self.config, shape, device)
        return self._chains(context, len(td), step)

    def _loss_ratio(self, td: TensorDictBase, context: Context) -> LossRatio:
        if "draw_noise" not in td.keys() or "draw_time" not in td.keys():
            raise ValueError(
                "kernel='flow_matching' scores at the draws that were made when acting; the input "
                "has no draw_noise and draw_time, pass what the actor wrote"
            )
        field, mask = self.policy.field(context), self.policy.executed_mask()
        draws = td["draw_noise"].to(mask), td["draw_time"].to(mask)
        return LossRatio(field, self.policy.grid, self.config, *draws, mask)

    @torch.no_grad()
    def terminal_std(self, td: TensorDictBase) -> float:
        """Return the standard deviation that the last flow step gives executed entries.

        Averaged over decisions (N) with their chains [normalized action]. This jitter reaches the
        robot whole; in most kernels it is not the level or bound that was configured. For
        likelihoods that need no noise in the steps it is that of the finished chunk.
        """
        if self.config.kernel not in STEP_KERNELS:
            return self.config.action_noise
        last = torch.full((len(td),), self.policy.grid.flow_steps - 1, device=self.policy.device)
        dist = self._chains(self.encode(td), len(td), last)
        dist.log_prob(td["chain"])
        random = dist.scored_std > 0
        return float(dist.scored_std[random].mean())

    def _chains(self, context: Context, num: int, step: Tensor | None) -> FlowChain:
        """Return the distribution whose only random step is the given one (N,), or none."""
        shape = (num, *self.policy.chunk_shape)
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
        step = None  # a step that some earlier decision left in the input says nothing of this one
        if self.config.stochastic_steps == "one":
            step = torch.randint(self.policy.grid.flow_steps, td.shape, device=noise.device)
            td.set("stochastic_step", step)
        if self.config.kernel == "flow_matching":
            shape = (len(td), self.config.num_draws)
            td["draw_noise"] = torch.randn(*shape, *self.policy.chunk_shape, device=noise.device)
            times = draw_flow_times(shape, self.config.draw_times, self.policy.grid)
            td["draw_time"] = times.to(noise.device)
        with torch.no_grad():
            context = self.encode(td)
            dist = self._distribution(td, context, step)
            chain, log_prob = dist.sample_and_log_prob(noise)
        if self.policy.feature_dim:  # for critics: the prefix is dear to encode
            td.set("features", context.features)
        td.set("chain", chain)
        td.set("action", self.policy.executed(chain[:, -1], td))
        return td.set("action_log_prob", log_prob)
