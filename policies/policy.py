"""A flow policy: network, preprocessing, sampler and, optionally, a source of its starting noise.

Letters: N rows, M scored flow steps (or loss draws), H action horizon, h executed actions, A model
action dim, d robot action dim, s robot state dim, D width.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from pitune.policies.by_tokens import decide_by_tokens
from pitune.policies.conditions import encode_state, encode_words, guided, with_dropped
from pitune.policies.decision import Decision, memory_marks
from pitune.policies.flow.delay import DelayConfig
from pitune.policies.flow.ode import integrate
from pitune.policies.flow.path import (
    VelocityField,
    interpolate,
    sample_flow_time,
    target_velocity,
)
from pitune.policies.flow.real_time import with_prefix
from pitune.policies.network.context import Context
from pitune.policies.network.options.tokens.memory import with_written_memory
from pitune.policies.noise_source import NoiseSource, SteeringConfig
from pitune.policies.policy_config import check_noise
from pitune.policies.policy_parts import PolicyParts
from pitune.policies.preprocessing.critic_input import (
    critic_input,
    critic_state,
    old_chunk,
    old_chunk_dim,
)
from pitune.policies.preprocessing.model_input import ModelInput
from pitune.policies.status import with_status
from pitune.policies.under_delay import continued_field, remainder_of, starting_points


class FlowPolicy(PolicyParts):
    """Velocity field and sampler, from observations to action chunks.

    Args:
        network: The π0 network, or the sizes of an untrained one.
        preprocessor: Norm statistics and scaling.
        sampler: Flow steps and execution horizon.
        noise_source: Chooses the starting noise. The default is fresh standard-normal noise.
        info: Origin, tokenizer and adapters.

    Raises:
        ValueError: `execution_horizon` is not between 1 and H, only one of the network and the
            preprocessor has cameras or a prompt, or the sampler needs a policy that was cloned
            with clean beginnings.

    Example:
        >>> import torch
        >>> from pitune.policies import SamplerConfig, small_policy
        >>> states, actions = torch.randn(50, 4), torch.randn(50, 2)
        >>> policy = small_policy(states, actions, action_horizon=4, sampler=SamplerConfig())
        >>> inputs = policy.model_input({"state": states[:3]})
        >>> policy.sample_actions(inputs).shape
        torch.Size([3, 4, 2])
    """

    def replace(self, **changes: Any) -> FlowPolicy:
        """Return a policy with some parts replaced and the others shared.

        Args:
            **changes: Arguments of the constructor.
        """
        names = ("network", "preprocessor", "sampler", "noise_source", "info")
        return FlowPolicy(**{**{name: getattr(self, name) for name in names}, **changes})

    def with_noise_source(self, config: SteeringConfig) -> FlowPolicy:
        """Return this policy with a new noise source; the modules that they share stop learning.

        The noise actor reads the state and the features of the encoded observation. A policy that
        has no pictures and no prompt has features too, those of its state token.

        Raises:
            ValueError: the policy has a noise source already, or its critics read the last action.
        """
        if self.noise_source is not None:
            raise ValueError(
                "the policy is steered already; steer the checkpoint that it was made from"
            )
        if self.reads_last_action:
            raise ValueError(
                "a noise actor reads the critics' input, and a robot's observation has no last "
                "action; steer a policy without options.critic_input.last_action"
            )
        self.requires_grad_(False)
        width = self.preprocessor.model_state_dim + self.network.config.feature_dim
        width += old_chunk_dim(config.remainder_steps, self.preprocessor.action_dim)
        width += math.prod(self.memory_shape)
        horizon = self.sampler.execution_horizon
        source = NoiseSource(config, self.chunk_shape, horizon, width).to(self.device)
        return self.replace(noise_source=source)

    def with_delay(self, delay: DelayConfig) -> FlowPolicy:
        """Return this policy under another decision delay.

        Raises:
            ValueError: it cannot act under this delay.
        """
        return self.replace(sampler=replace(self.sampler, delay=delay))

    def encode(
        self,
        inputs: ModelInput,
        prefix: Context | None = None,
        state_offset: Tensor | None = None,
        with_null: bool = True,
        with_features: bool = True,
    ) -> Context:
        """Return the context of observations (N), computed once and shared by all flow steps.

        Args:
            inputs: Observations (N). With a prefix, only their state is used.
            prefix: The result of `encode_prefix` for them. By default they are encoded here.
            state_offset: Offset (N, D) or (1, D) that is added to the state token.
            with_null: Whether guidance follows. Otherwise nothing is encoded for it.
            with_features: Whether critics or a noise source follow, which read them.
        """
        if prefix is None and self.network.vlm is not None:
            prefix = self.encode_prefix(inputs, with_null, with_features)
        else:
            prefix = with_dropped(self.network, prefix, inputs.condition)
        prefix = prefix if with_null or prefix is None else prefix._replace(null=None)
        context = encode_state(self.network, self.sampler.guidance, inputs, prefix, state_offset)
        if self.has_memory:
            context = with_written_memory(self.network, context, self.memory_of(inputs))
        if inputs.remainder is None or inputs.delay is None:
            return context
        old = inputs.remainder.to(self.device), inputs.delay.to(self.device)
        return context._replace(remainder=old[0], delay=old[1])

    def encode_prefix(
        self, inputs: ModelInput, with_null: bool = True, with_features: bool = True
    ) -> Context:
        """Return the context of pictures and prompt, without the state. See `encode`.

        While `prefix_is_frozen` it does not change during training and may be stored. With guidance
        away from the dropped instruction it has that prefix too, as `null`.
        """
        guidance = self.sampler.guidance if with_null else None
        return encode_words(self.network, guidance, inputs.to(self.device), with_features)

    def critic_input(
        self, inputs: ModelInput, context: Context | None, steps: int | None = None
    ) -> Tensor:
        """Return the input (N, D) of critics and noise models: state and pooled features.

        For a policy with the state alone the features are those of its state token.

        Args:
            inputs: Observations (N).
            context: The same, encoded, or None to leave the features out.
            steps: Steps of the old chunk that are added, R by default.
        """
        features, state = None if context is None else context.features, inputs.state
        steps = self.remainder_steps if steps is None else steps
        state, shape = state.to(self.device), (steps, self.preprocessor.action_dim)
        old = old_chunk(inputs.remainder, inputs.delay, state, shape)
        state = critic_state(state, inputs.last_action, self.reads_last_action)
        memory = self.memory_of(inputs) if self.has_memory else None
        return critic_input(state, features, old_chunk=old, memory=memory)

    def field(self, context: Context) -> VelocityField:
        """Return the velocity field of encoded observations, which may continue an old chunk."""
        flow = guided(self.network, context, self.sampler.guidance)
        return continued_field(flow, context, self.sampler)

    def solve(self, context: Context, noise: Tensor) -> Tensor:
        """Return the chunks (N, H, A) at the end of the ODE from noise (N, H, A), normalized.

        The actions of an old chunk that are executed first are at their beginning.
        """
        return self.compiled(FlowPolicy._solve, self.loop_layers)(self, context, noise)

    def _solve(self, context: Context, noise: Tensor) -> Tensor:
        remainder = remainder_of(context)
        noise = starting_points(noise, context, self.sampler)
        chunk = integrate(self.field(context), noise, self.grid, self.sampler.solver)
        return chunk if remainder is None else with_prefix(chunk, remainder)

    def sample_actions(self, inputs: ModelInput, noise: Tensor | None = None) -> Tensor:
        """Return the deployed policy's executed actions (N, h, d) [robot units]. See `decide`."""
        return self.executed(self.decide(inputs, noise).chunk, inputs)

    def sample_chunk(self, inputs: ModelInput, noise: Tensor | None = None) -> Tensor:
        """Return all predicted actions (N, H, d) [robot units], for a robot that chooses h."""
        chunk = self.decide(inputs, noise).chunk
        return self.preprocessor.unnormalize_action(chunk, inputs.robot_state.to(self.device))

    def decide(
        self,
        inputs: ModelInput,
        noise: Tensor | None = None,
        state_offset: Tensor | None = None,
    ) -> Decision:
        """Return the deployed policy's decisions: normalized chunks (N, H, A), with their marks.

        Args:
            inputs: Observations (N).
            noise: Starting points (N, H, A), drawn by default. A trained noise source replaces
                them, given or not.
            state_offset: See `encode`.
        """
        source = self.noise_source
        source = source if source is not None and source.is_steered else None
        context = self.encode(inputs, state_offset=state_offset, with_features=source is not None)
        if source is not None:
            noise = source(self.critic_input(inputs, context, source.config.remainder_steps))
        elif noise is None:
            noise = self.draw_noise(len(inputs))
        check_noise(noise, (len(inputs), *self.chunk_shape))
        flow = partial(self.solve, context, noise)
        if self.sampler.decoder == "fast":
            return with_status(self, context, decide_by_tokens(self, context, flow))
        return with_status(self, context, Decision(flow(), memory_marks(context.written)))

    def loss(
        self,
        inputs: ModelInput,
        action: Tensor,
        noise: Tensor | None = None,
        flow_time: Tensor | None = None,
        prefix: Context | None = None,
        state_offset: Tensor | None = None,
    ) -> Tensor:
        """Return the flow-matching loss of every entry (N, H, A), or (N, M, H, A).

        `PreprocessorConfig.loss_dims` decides whether padded dimensions count (A) or not (d). Steps
        past an episode's end count, as in the references; mask them before the mean.

        Args:
            inputs: Observations (N).
            action: Demonstrated chunks (N, H, d) [robot units].
            noise: Noise (N, H, A), drawn by default, or M draws for each chunk (N, M, H, A).
            flow_time: Flow times (N,), or (N, M) with M draws, or (N, H) for those of single steps.
                The default is drawn from the training distribution.
            prefix: The result of `encode_prefix`. By default the observations are encoded here.
            state_offset: See `encode`.
        """
        return self.loss_and_hidden(inputs, action, noise, flow_time, prefix, state_offset)[0]

    def loss_and_hidden(
        self,
        inputs: ModelInput,
        action: Tensor,
        noise: Tensor | None = None,
        flow_time: Tensor | None = None,
        prefix: Context | None = None,
        state_offset: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the result of `loss` and the hidden states of the action tokens (N, M, H, D)."""
        # random draws
        noise = self.draw_noise(len(action)) if noise is None else noise
        is_single = noise.ndim == 3
        noise = noise[:, None] if is_single else noise  # (N, M, H, A)
        check_noise(noise[:, 0], (len(action), *self.chunk_shape))
        if flow_time is None:
            flow_time = sample_flow_time(noise.shape[:2].numel(), self.device)
            flow_time = flow_time.reshape(noise.shape[:2])  # (N, M)
        elif is_single:
            flow_time = flow_time[:, None]  # (N, 1), or (N, 1, H) for those of single steps

        compute = self.compiled(FlowPolicy._loss) if self.is_traceable else FlowPolicy._loss
        loss, hidden = compute(self, inputs, action, noise, flow_time, prefix, state_offset)
        return (loss[:, 0] if is_single else loss), hidden

    def _loss(
        self,
        inputs: ModelInput,
        action: Tensor,
        noise: Tensor,
        flow_time: Tensor,
        prefix: Context | None,
        state_offset: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        # target, and velocity at the points of flow time
        state = inputs.robot_state.to(self.device)
        action = self.preprocessor.normalize_action(action.to(self.device), state)
        per_step = flow_time if flow_time.ndim == 3 else flow_time[..., None]  # (N, M, H or 1)
        x = interpolate(action[:, None], noise, per_step[..., None])  # (N, M, H, A)
        context = self.encode(inputs, prefix, state_offset, with_null=False, with_features=False)
        output = self.network.velocity(context, x, flow_time)

        # squared error
        loss = (output.velocity.float() - target_velocity(action[:, None], noise)).square()
        loss = self.network.config.options.prediction.weighted(loss, per_step[..., None])
        if self.preprocessor.config.loss_dims == "robot":
            loss = loss[..., : self.preprocessor.action_dim]
        return loss, output.hidden
