"""The actor of DSRL, a frozen flow with starting noise from the noise actor, and its replay rows.

Letters: N rows, E envs, T chunk decisions, H action horizon, h executed actions, A model action
dim, W latent width, D width of a critic's input.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from pitune.policies import Actor, FlowPolicy, ModelInput, NoiseSource
from pitune.policies.network.context import Context, pack
from pitune.policies.preprocessing.model_input import WRITTEN
from pitune.rl.actor_critic.memory_plan import (
    MemoryPlan,
    example_input,
    plan_memory,
    row_bytes,
)
from pitune.rl.algorithms.dsrl_config import DSRLConfig
from pitune.rl.experience.demonstrations import Demonstrations
from pitune.rl.experience.sub_dict import sub_dict
from pitune.rl.experience.transitions import encode_next, in_parts, normalize_chunk, transitions


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
        self.out_keys = [*self.out_keys, "latent", "critic_input"]
        if keep_context:
            self.out_keys.append("context")

    @torch.no_grad()
    def explore(self, td: TensorDictBase, noise: Tensor | None) -> TensorDictBase:
        # encoded observation
        policy, inputs = self.policy, ModelInput.of(td)
        context = policy.encode(inputs)
        stored = self._stored_entries(inputs, context)

        # latent and its action
        if self.source.is_steered:
            latent, _ = self.source.actor.sample(stored["critic_input"])
        else:
            latent = torch.randn(len(td), self.source.actor.latent_dim, device=policy.device)
        td.update(stored).set("latent", latent)
        self.write_memory(td, context)
        return td.set("action", policy.executed(self.decode(context, latent), inputs))

    @torch.no_grad()
    def decode(self, context: Context, latent: Tensor) -> Tensor:
        """Return the flow's executed actions (N, h, A) [normalized] for latents (N, W).

        The flow runs as deployed, with the sampler's flow steps and solver.
        """
        noise = self.source.noise_of(latent)  # (N, H, A)
        return self.policy.solve(context, noise)[:, : self.policy.num_planned]

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


class NoiseRows:
    """Replay rows with encoded observations, `latent` and `chunk`.

    Args:
        actor: Writes the encoded observations.
        stores_inputs: Whether rows also hold observations, which are encoded in each round.

    Example:
        >>> rows = NoiseRows(actor, stores_inputs=False)  # doctest: +SKIP
        >>> memory.push(rows.of_rollout(rollout))  # doctest: +SKIP
    """

    def __init__(self, actor: NoiseSourceActor, stores_inputs: bool) -> None:
        self.actor, self.stores_inputs = actor, stores_inputs
        own = ("action", "latent", WRITTEN)
        self.encoded_keys = [key for key in actor.out_keys if key not in own]

    def of_rollout(self, rollout: TensorDictBase) -> TensorDictBase:
        """Return the valid decisions of a rollout (E, T) as rows (N)."""
        encoded = rollout.select(*self.encoded_keys)
        after = encode_next(rollout, encoded, self.actor.encode)
        before = encoded.copy().set("latent", rollout["latent"])
        before["chunk"] = normalize_chunk(self.actor.policy, rollout)
        if self.stores_inputs:
            before["model_input"] = rollout["model_input"]
            after["model_input"] = rollout["next", "model_input"]
        return transitions(rollout, before, after)

    @torch.no_grad()
    def of_demonstrations(self, demonstrations: Demonstrations) -> TensorDictBase:
        """Return demonstrations as rows (N), with zeros as latents."""
        # encoded observations
        policy = self.actor.policy
        rows = demonstrations.transitions(policy.sampler.execution_horizon)
        rows = rows.to(policy.device)
        encoded = in_parts(rows, self.actor.encode)
        following = demonstrations.step_after(policy.sampler.execution_horizon)

        # rows
        stored: TensorDictBase = rows.exclude("action", *demonstrations.obs).clone().update(encoded)
        stored["next"] = sub_dict(encoded, following).set("elapsed", rows["next", "elapsed"])
        if self.stores_inputs:
            stored["model_input"] = rows["model_input"]
            stored["next", "model_input"] = rows["next", "model_input"]
        latent_dim = self.actor.source.actor.latent_dim
        stored["latent"] = torch.zeros(len(rows), latent_dim, device=policy.device)
        return stored.set("chunk", normalize_chunk(policy, rows))


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
    chunk_dim = policy.num_planned * policy.preprocessor.action_dim
    decision_dim = actor.source.actor.latent_dim + chunk_dim
    keep = aliased and config.keep_context
    return plan_memory(
        config.off_policy,
        policy.device,
        plain=row_bytes(plain, decision_dim, horizon),
        encoded=row_bytes(encoded, decision_dim, horizon) if keep else None,
        num_demonstrations=0 if demonstrations is None else len(demonstrations.action),
    )
