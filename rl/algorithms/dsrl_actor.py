"""The actor of DSRL, a frozen flow with starting noise from the noise actor.

Letters: N rows, H action horizon, h executed actions, A model action dim, W latent width, D width
of a critic's input.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from pitune.policies import Actor, FlowPolicy, ModelInput, NoiseSource
from pitune.policies.flow.ode import integrate
from pitune.policies.network.context import Context, pack
from pitune.rl.actor_critic.memory_plan import (
    MemoryPlan,
    example_input,
    plan_memory,
    row_bytes,
)
from pitune.rl.algorithms.dsrl_config import DSRLConfig
from pitune.rl.experience.demonstrations import Demonstrations


class NoiseSourceActor(Actor):
    """Explores by the latent noise, and writes the entries that DSRL stores.

    The latent is drawn from the noise actor, or from the standard normal until it is steered.

    Args:
        policy: A policy with a noise source.
        keep_context: Whether to write the encoded observation as `context`, so that the frozen
            flow can run again without encoding it.

    Raises:
        ValueError: the policy has no noise source.

    Example:
        >>> policy = policy.with_noise_source(SteeringConfig())  # doctest: +SKIP
        >>> NoiseSourceActor(policy, keep_context=False)(td)["latent"].shape  # doctest: +SKIP
        torch.Size([3, 2])
    """

    def __init__(self, policy: FlowPolicy, keep_context: bool) -> None:
        super().__init__(policy)
        if policy.noise_source is None:
            raise ValueError("the policy has no noise source; pass FlowPolicy(noise_source=...)")
        self.source: NoiseSource = policy.noise_source
        self.keep_context = keep_context
        self.out_keys = ["action", "latent", "critic_input"]
        if keep_context:
            self.out_keys.append("context")

    @torch.no_grad()
    def explore(self, td: TensorDictBase, noise: Tensor | None) -> TensorDictBase:
        # encoded observation
        policy, inputs = self.policy, ModelInput.of(td)
        context = policy.encode(inputs)
        stored = self._stored_entries(inputs, context)

        # latent and its action
        if self.source.steered:
            latent, _ = self.source.actor.sample(stored["critic_input"])
        else:
            latent = torch.randn(len(td), self.source.actor.latent_dim, device=policy.device)
        td.update(stored).set("latent", latent)
        return td.set("action", policy.executed(self.decode(context, latent), inputs))

    @torch.no_grad()
    def decode(self, context: Context, latent: Tensor) -> Tensor:
        """Return the flow's executed actions (N, h, A) [normalized] for latents (N, W).

        The flow runs as deployed, with the sampler's flow steps and solver.
        """
        policy = self.policy
        noise = self.source.noise_of(latent)  # (N, H, A)
        point = integrate(policy.field(context), noise, policy.grid, policy.sampler.solver)
        return point[:, : policy.sampler.execution_horizon]

    def encode(self, rows: TensorDictBase) -> TensorDict:
        """Return the stored entries of observations (N) with `model_input`."""
        inputs = ModelInput.of(rows)
        return self._stored_entries(inputs, self.policy.encode(inputs))

    def _stored_entries(self, inputs: ModelInput, context: Context) -> TensorDict:
        """Return `critic_input` (N, D) and, with `keep_context`, the packed `context`."""
        values: dict[str, Tensor | TensorDict] = {
            "critic_input": self.policy.critic_input(inputs, context)
        }
        if self.keep_context:
            values["context"] = pack(context)
        return TensorDict(values, batch_size=[len(inputs)])


@torch.no_grad()
def noise_plan(
    policy: FlowPolicy, config: DSRLConfig, demonstrations: Demonstrations | None
) -> MemoryPlan:
    """Return the size of DSRL's memory, from the size of one observation.

    Args:
        policy: A policy with a noise source.
        config: Settings.
        demonstrations: Those that are stored too, if any.
    """
    aliased, inputs = config.variant == "noise_aliased", example_input(policy)
    actor = NoiseSourceActor(policy, keep_context=aliased)
    encoded = actor.encode(TensorDict({"model_input": inputs.tensordict()}, [1]))
    plain = encoded.exclude("context")
    if aliased:
        plain = plain.set("model_input", inputs.tensordict())
    horizon = policy.sampler.execution_horizon
    decision_dim = actor.source.actor.latent_dim + horizon * policy.preprocessor.action_dim
    keep = aliased and config.keep_context
    return plan_memory(
        config.off_policy,
        policy.device,
        plain=row_bytes(plain, decision_dim, horizon),
        encoded=row_bytes(encoded, decision_dim, horizon) if keep else None,
        num_demonstrations=0 if demonstrations is None else len(demonstrations.action),
    )
