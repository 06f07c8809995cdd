"""A flow policy: network, preprocessing and sampler; what a checkpoint holds and a robot runs.

Letters: N rows, M points of flow time per row, H action horizon, h executed actions, A model action
dim, d robot action dim, S robot state dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from pitune.policies.flow.ode import Solver, integrate
from pitune.policies.flow.path import (
    TimeGrid,
    VelocityField,
    interpolate,
    sample_flow_time,
    target_velocity,
)
from pitune.policies.network.config import LAPTOP_EXPERT, Pi0Config
from pitune.policies.network.gemma import GemmaConfig
from pitune.policies.network.lora import LoRAConfig
from pitune.policies.network.pi0 import Context, Pi0
from pitune.policies.preprocessing.norm_stats import NormStats
from pitune.policies.preprocessing.preprocessor import Preprocessor, PreprocessorConfig
from pitune.policies.preprocessing.prompt import Encoder


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How a chunk is drawn and how much of it is executed; fine-tuned and deployed alike."""

    flow_steps: int = 4
    """K, steps from noise to action. Evaluate with the number that was trained."""
    execution_horizon: int = 4
    """h, how many of the H predicted actions are executed before the next decision."""
    solver: Solver = "euler"
    """ODE solver of the deployed policy."""
    accumulated_time: bool = False
    """Whether flow times are accumulated (openpi) or computed (lerobot); see `TimeGrid`."""


class FlowPolicy(nn.Module):
    """Velocity field + sampler: observation -> action chunk.

    Args:
        network: The π0 network, or its sizes for an untrained one.
        preprocessor: Norm statistics and scaling.
        sampler: Flow steps and execution horizon.

    Attributes:
        tokenizer: Of policies that read a prompt.
        lora: The low-rank updates that the network has, if any.
        tasks: Instructions in words, which the observations' `task_id` counts.
        origin: What the checkpoint's own format needs to be written again.

    Raises:
        ValueError: more actions would be executed than are predicted, or none; the network and
            the preprocessor differ in whether there are cameras or a prompt.
    """

    tokenizer: Encoder | None = None
    tasks: tuple[str, ...] = ()
    lora: LoRAConfig | None = None

    def __init__(
        self,
        network: Pi0 | Pi0Config,
        preprocessor: PreprocessorConfig,
        sampler: SamplerConfig,
    ) -> None:
        super().__init__()
        self.origin: dict[str, Any] = {}
        self.network = Pi0(network) if isinstance(network, Pi0Config) else network
        network = self.network.config
        for name, ours, theirs in (
            ("pictures", preprocessor.pictures is not None, network.vision is not None),
            ("prompt", preprocessor.prompt is not None, network.vocab_size > 0),
        ):
            if ours != theirs:
                raise ValueError(
                    f"the preprocessor has {'a' if ours else 'no'} {name} config, but the network "
                    f"{'reads' if theirs else 'does not read'} it"
                )
        if not 1 <= sampler.execution_horizon <= network.action_horizon:
            raise ValueError(
                f"execution_horizon={sampler.execution_horizon} must be between 1 and "
                f"action_horizon={network.action_horizon}"
            )
        # π0.5 reads its state in the prompt, whatever its width
        given = preprocessor.state.dim if network.family == "pi05" else 0
        state_dim = max(network.state_dim, given)
        self.preprocessor = Preprocessor(preprocessor, state_dim, network.action_dim)
        self.sampler = sampler

    @property
    def device(self) -> torch.device:
        """Where the policy computes; observations are moved there."""
        return self.network.action_out_proj.weight.device

    @property
    def grid(self) -> TimeGrid:
        """The flow times of the sampler."""
        return TimeGrid(self.sampler.flow_steps, self.sampler.accumulated_time)

    @property
    def obs_keys(self) -> list[str]:
        """What the policy reads of an observation."""
        pictures, prompt = self.preprocessor.config.pictures, self.preprocessor.config.prompt
        cameras = [] if pictures is None else list(pictures.cameras.values())
        task = [] if prompt is None else ["task_id"]
        return ["state", *(f"image/{camera}" for camera in cameras), *task]

    @property
    def feature_dim(self) -> int:
        """Width of the features of what the policy sees besides the state; 0 if that is all."""
        return 0 if self.network.vlm is None else self.network.config.feature_dim

    @property
    def chunk_shape(self) -> tuple[int, int]:
        """(H, A) of a chain's points."""
        return self.network.config.action_horizon, self.network.config.action_dim

    def executed_mask(self) -> Tensor:
        """Return 1 where an entry reaches the robot, 0 in padding and unexecuted steps (H, A)."""
        mask = torch.zeros(self.chunk_shape)
        mask[: self.sampler.execution_horizon, : self.preprocessor.action_dim] = 1
        return mask.to(self.device)

    @property
    def prefix_is_frozen(self) -> bool:
        """Whether there are pictures or a prompt, and nothing that encodes them is trained."""
        vlm = self.network.vlm
        return vlm is not None and not any(p.requires_grad for p in vlm.parameters())

    def encode(self, obs: TensorDictBase, prefix: Context | None = None) -> Context:
        """Return the context of observations (N), computed once and shared by all flow steps.

        Args:
            obs: Observations; with a prefix only their state is read.
            prefix: What `encode_prefix` returned for them; encoded anew by default.
        """
        if prefix is None:
            return self.network.encode(**self.inputs(obs))
        return self.network.with_state(prefix, self._model_state(obs))

    def encode_prefix(self, obs: TensorDictBase) -> Context:
        """Return the context of the pictures and prompt of observations (N), without their state.

        While `prefix_is_frozen` it is the same at any time, and may be kept.
        """
        inputs = self.inputs(obs)
        del inputs["state"]
        return self.network.encode_prefix(**inputs)

    def inputs(self, obs: TensorDictBase) -> dict[str, Tensor]:
        """Return the network's inputs, the arguments of `Pi0.encode`, for observations (N)."""
        state = obs["state"].to(self.device)
        inputs = {"state": self._model_state(obs)}
        pictures = self.preprocessor.config.pictures
        if pictures is not None:
            images = [obs[f"image/{camera}"] for camera in pictures.cameras.values()]
            inputs["images"] = self.preprocessor.pictures(images)
        if self.preprocessor.config.prompt is not None:
            words = self._instructions(obs)
            if self.tokenizer is None:
                raise ValueError(
                    "this policy reads a prompt, but has no tokenizer; pass one to `policies.load` "
                    "(--load.tokenizer)"
                )
            tokens, mask = self.preprocessor.tokens(words, state, self.tokenizer)
            inputs |= {"tokens": tokens, "token_mask": mask}
        return inputs

    def _model_state(self, obs: TensorDictBase) -> Tensor:
        """Return the normalized states (N, S) of observations."""
        return self.preprocessor.normalize_state(obs["state"].to(self.device))

    def _instructions(self, obs: TensorDictBase) -> list[str]:
        """Return what each robot is told (N)."""
        prompt = self.preprocessor.config.prompt
        default = None if prompt is None else prompt.default
        tasks = self.tasks or ((default,) if default is not None else ())
        task_id = obs.get("task_id", None)
        numbers = [0] * len(obs) if task_id is None else task_id.tolist()
        if not tasks or max(numbers, default=0) >= len(tasks):
            raise ValueError(
                f"an observation has task_id={max(numbers, default=0)}, but the policy knows "
                f"tasks={tasks}; set `policy.tasks` to the environment's, or give a default prompt"
            )
        return [tasks[number] for number in numbers]

    def field(self, context: Context) -> VelocityField:
        """Return the velocity field of encoded observations."""
        return lambda x, flow_time: self.network.velocity(context, x, flow_time)

    def draw_noise(self, num: int) -> Tensor:
        """Return starting points from the standard normal (N, H, A)."""
        return torch.randn(num, *self.chunk_shape, device=self.device)

    def executed(self, point: Tensor, obs: TensorDictBase | None = None) -> Tensor:
        """Return the actions to execute (N, h, d) [robot units] of normalized chunks (N, H, A).

        Args:
            point: Chunks.
            obs: The observations (N) of their decisions; only relative actions need them.
        """
        state = None if obs is None else obs["state"].to(self.device)
        point = point[:, : self.sampler.execution_horizon]
        return self.preprocessor.unnormalize_action(point, state)

    def sample_actions(self, obs: TensorDictBase, noise: Tensor | None = None) -> Tensor:
        """Return the deployed policy's chunk (N, h, d) [robot units].

        Args:
            obs: Observations (N).
            noise: Starting points (N, H, A); drawn from the standard normal by default.
        """
        chunk = self._integrated(obs, noise)
        return self.executed(chunk, obs)

    def sample_chunk(self, obs: TensorDictBase, noise: Tensor | None = None) -> Tensor:
        """Return all H predicted actions (N, H, d) [robot units], for a robot that chooses h."""
        state = obs["state"].to(self.device)
        return self.preprocessor.unnormalize_action(self._integrated(obs, noise), state)

    def _integrated(self, obs: TensorDictBase, noise: Tensor | None) -> Tensor:
        """Return normalized chunks (N, H, A) at the end of the ODE."""
        context = self.encode(obs)
        noise = self.draw_noise(len(obs)) if noise is None else noise
        return integrate(self.field(context), noise, self.grid, self.sampler.solver)

    def loss(
        self,
        obs: TensorDictBase,
        action: Tensor,
        noise: Tensor | None = None,
        flow_time: Tensor | None = None,
        prefix: Context | None = None,
    ) -> Tensor:
        """Return the flow-matching loss of every entry (N, H, A), or (N, H, d).

        Whether padded dimensions count is `PreprocessorConfig.loss_dims`. Steps past an episode's
        end count, as in the references; a caller that wants otherwise masks before the mean.

        Args:
            obs: Observations (N).
            action: Demonstrated chunks (N, H, d) [robot units].
            noise: (N, H, A), drawn by default.
            flow_time: (N,), drawn from the training law by default.
            prefix: What `encode_prefix` returned for the observations; encoded anew by default.
        """
        state = obs["state"].to(self.device)
        action = self.preprocessor.normalize_action(action.to(self.device), state)
        noise = self.draw_noise(len(action)) if noise is None else noise
        if flow_time is None:
            flow_time = sample_flow_time(len(action), action.device)
        x = interpolate(action, noise, flow_time[:, None, None])
        output = self.network.velocity(self.encode(obs, prefix), x[:, None], flow_time[:, None])
        loss = (output.velocity[:, 0].float() - target_velocity(action, noise)).square()
        if self.preprocessor.config.loss_dims == "robot":
            loss = loss[..., : self.preprocessor.action_dim]
        return loss


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
