"""A flow policy: network, preprocessing and sampler; what a checkpoint holds and a robot runs.

Letters: N rows, M points of flow time per row, H action horizon, h executed actions, A model action
dim, d robot action dim, S robot state dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from policies.flow import (
    TimeGrid,
    VelocityField,
    interpolate,
    sample_flow_time,
    target_velocity,
)
from policies.gemma import GemmaConfig
from policies.ode import Solver, integrate
from policies.pi0 import Context, Pi0
from policies.pi0_config import LAPTOP_EXPERT, Pi0Config
from policies.preprocessor import NormStats, Preprocessor, PreprocessorConfig


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How a chunk is drawn and how much of it is executed; fine-tuned and deployed alike."""

    flow_steps: int = 4
    """K, steps from noise to action. Evaluate with the number that was trained."""
    execution_horizon: int = 4
    """h, how many of the H predicted actions are executed before the next decision."""
    solver: Solver = "euler"
    """ODE solver of the deployed policy."""


class FlowPolicy(nn.Module):
    """Velocity field + sampler: observation -> action chunk.

    Args:
        network: Sizes of the π0 network.
        preprocessor: Norm statistics and scaling.
        sampler: Flow steps and execution horizon.

    Raises:
        ValueError: more actions would be executed than are predicted, or none.
    """

    def __init__(
        self, network: Pi0Config, preprocessor: PreprocessorConfig, sampler: SamplerConfig
    ) -> None:
        super().__init__()
        if not 1 <= sampler.execution_horizon <= network.action_horizon:
            raise ValueError(
                f"execution_horizon={sampler.execution_horizon} must be between 1 and "
                f"action_horizon={network.action_horizon}"
            )
        self.network = Pi0(network)
        self.preprocessor = Preprocessor(preprocessor, network.state_dim, network.action_dim)
        self.sampler = sampler

    @property
    def device(self) -> torch.device:
        """Where the policy computes; observations are moved there."""
        return self.network.action_out_proj.weight.device

    @property
    def grid(self) -> TimeGrid:
        """The flow times of the sampler."""
        return TimeGrid(self.sampler.flow_steps)

    @property
    def obs_keys(self) -> list[str]:
        """What the policy reads of an observation."""
        return ["state"]

    @property
    def chunk_shape(self) -> tuple[int, int]:
        """(H, A) of a chain's points."""
        return self.network.config.action_horizon, self.network.config.action_dim

    def executed_mask(self) -> Tensor:
        """Return 1 where an entry reaches the robot, 0 in padding and unexecuted steps (H, A)."""
        mask = torch.zeros(self.chunk_shape)
        mask[: self.sampler.execution_horizon, : self.preprocessor.action_dim] = 1
        return mask.to(self.device)

    def encode(self, obs: TensorDictBase) -> Context:
        """Return the context of observations (N), computed once and shared by all flow steps."""
        return self.network.encode(self.preprocessor.normalize_state(obs["state"].to(self.device)))

    def field(self, context: Context) -> VelocityField:
        """Return the velocity field of encoded observations."""
        return lambda x, flow_time: self.network.velocity(context, x, flow_time)

    def draw_noise(self, num: int) -> Tensor:
        """Return starting points from the standard normal (N, H, A)."""
        return torch.randn(num, *self.chunk_shape, device=self.device)

    def executed(self, point: Tensor) -> Tensor:
        """Return the actions to execute (N, h, d) [robot units] of normalised chunks (N, H, A)."""
        return self.preprocessor.unnormalize_action(point[:, : self.sampler.execution_horizon])

    def sample_actions(self, obs: TensorDictBase, noise: Tensor | None = None) -> Tensor:
        """Return the deployed policy's chunk (N, h, d) [robot units].

        Args:
            obs: Observations (N).
            noise: Starting points (N, H, A); drawn from the standard normal by default.
        """
        context = self.encode(obs)
        noise = self.draw_noise(len(obs)) if noise is None else noise
        return self.executed(integrate(self.field(context), noise, self.grid, self.sampler.solver))

    def loss(
        self,
        obs: TensorDictBase,
        action: Tensor,
        noise: Tensor | None = None,
        flow_time: Tensor | None = None,
    ) -> Tensor:
        """Return the flow-matching loss of every entry (N, H, A).

        Padded dimensions and steps past an episode's end count, as in openpi; a caller that wants
        otherwise masks before it takes the mean.

        Args:
            obs: Observations (N).
            action: Demonstrated chunks (N, H, d) [robot units].
            noise: (N, H, A), drawn by default.
            flow_time: (N,), drawn from the training law by default.
        """
        action = self.preprocessor.normalize_action(action.to(self.device))
        noise = self.draw_noise(len(action)) if noise is None else noise
        if flow_time is None:
            flow_time = sample_flow_time(len(action), action.device)
        x = interpolate(action, noise, flow_time[:, None, None])
        output = self.network.velocity(self.encode(obs), x[:, None], flow_time[:, None])
        return (output.velocity[:, 0].float() - target_velocity(action, noise)).square()


def small_policy(
    state: Tensor,
    action: Tensor,
    *,
    action_horizon: int,
    sampler: SamplerConfig,
    expert: GemmaConfig = LAPTOP_EXPERT,
) -> FlowPolicy:
    """Build an untrained state-only policy whose norm stats are those of demonstrations.

    Args:
        state: All demonstrated states (N, S) [robot units].
        action: All demonstrated actions (N, d) [robot units].
        action_horizon: H.
        sampler: Flow steps and execution horizon.
        expert: Sizes of the transformer.
    """
    network = Pi0Config(
        state_dim=state.shape[-1],
        action_dim=action.shape[-1],
        action_horizon=action_horizon,
        expert=expert,
    )
    stats = PreprocessorConfig(state=NormStats.of(state), action=NormStats.of(action))
    return FlowPolicy(network, stats, sampler)
