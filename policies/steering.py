"""A steered policy: a frozen flow policy whose starting noise a small network chooses.

The noise actor reads the observation as the frozen policy has encoded it and says which noise the
flow starts from; the flow does the rest. No gradient passes through the flow, and its weights never
change. A checkpoint of a steered policy is the frozen policy plus the noise actor.

Letters: N rows, H action horizon, h executed actions, A model action dim, W latent width, D width
of what the noise actor reads.
Source: Wagenmaker et al. 2025 (DSRL).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import InteractionType
from tensordict.nn.probabilistic import interaction_type
from torch import Tensor, nn
from torch.nn.functional import softplus

from pitune.policies.actor import LikelihoodActor, LikelihoodConfig
from pitune.policies.flow.ode import integrate
from pitune.policies.network.pi0 import Context
from pitune.policies.policy import FlowPolicy

Layout = Literal["repeat", "per_step", "full"]


@dataclass(frozen=True, kw_only=True)
class SteeringConfig:
    """What of the starting noise is chosen, and by how large a network."""

    layout: Layout = "repeat"
    """One vector for all H steps; one per executed step (later steps repeat the last); or all H.
    One vector is the least to learn, but robs a policy whose noise must vary inside the chunk."""
    magnitude: float = 1.5
    """Bound of each entry of the noise [standard deviations]; smaller stays nearer to the mode."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the noise actor's hidden layers."""

    def __post_init__(self) -> None:
        if self.magnitude <= 0:
            raise ValueError(f"magnitude={self.magnitude} must be above 0")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SteeringConfig:
        """Rebuild from `dataclasses.asdict`, by way of JSON."""
        return cls(**{**values, "hidden": tuple(values["hidden"])})


class NoiseActor(nn.Module):
    """A Gaussian squashed into [-magnitude, magnitude]^W.

    Args:
        in_dim: D.
        latent_dim: W.
        magnitude: The bound.
        hidden: Widths of the hidden layers.
    """

    def __init__(
        self, in_dim: int, latent_dim: int, magnitude: float, hidden: Sequence[int]
    ) -> None:
        super().__init__()
        self.latent_dim, self.magnitude = latent_dim, magnitude
        layers: list[nn.Module] = []
        for narrow, wide in pairwise((in_dim, *hidden)):
            layers += [nn.Linear(narrow, wide), nn.LayerNorm(wide), nn.Tanh()]
        head = nn.Linear((in_dim, *hidden)[-1], 2 * latent_dim)
        nn.init.normal_(head.weight, std=0.01)  # starts near the middle, with unit spread
        nn.init.zeros_(head.bias)
        self.net = nn.Sequential(*layers, head)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log standard deviation before squashing, both (N, W)."""
        mean, log_std = self.net(x).chunk(2, dim=-1)
        return mean, log_std.clamp(-5.0, 2.0)

    def mode(self, x: Tensor) -> Tensor:
        """Return the deployed latent (N, W): the squashed mean."""
        return self.magnitude * torch.tanh(self.forward(x)[0])

    def sample(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return a latent (N, W), through which gradients flow, and its log-density (N,).

        The standard normal `noise` (N, W) is drawn by default.
        """
        mean, log_std = self.forward(x)
        z = mean + log_std.exp() * (torch.randn_like(mean) if noise is None else noise)
        return self.magnitude * torch.tanh(z), self.log_prob(z, mean, log_std)

    def log_prob(self, z: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
        """Return the log-density (N,) of the latent magnitude * tanh(z), in the latent's units."""
        normal = (
            -0.5 * ((z - mean) / log_std.exp()).square() - log_std - 0.5 * math.log(2 * math.pi)
        )
        # log(1 - tanh(z)^2) without the cancellation at large z
        squash = 2 * (math.log(2) - z - softplus(-2 * z))
        return (normal - squash - math.log(self.magnitude)).sum(-1)


class SteeredPolicy(FlowPolicy):
    """A frozen flow policy and its noise actor, as deployed.

    Until `steered` is set it acts as the frozen policy does, from fresh noise: an untrained noise
    actor is not the pretrained policy.

    Args:
        base: The policy to steer. Its modules become this policy's, and stop learning.
        steering: What is chosen.

    Raises:
        ValueError: the base policy is steered already.
    """

    def __init__(self, base: FlowPolicy, steering: SteeringConfig) -> None:
        if isinstance(base, SteeredPolicy):
            raise ValueError(
                "the policy is steered already; steer the checkpoint that it was made from"
            )
        nn.Module.__init__(self)  # the base's own modules are used, none is built
        self.network, self.preprocessor, self.sampler = (
            base.network,
            base.preprocessor,
            base.sampler,
        )
        self.tokenizer, self.tasks = base.tokenizer, base.tasks
        self.origin, self.lora = base.origin, base.lora
        self.requires_grad_(False)
        self.steering = steering
        horizon, action_dim = self.chunk_shape
        steps = {"repeat": 1, "per_step": self.sampler.execution_horizon, "full": horizon}
        self.latent_shape = (steps[steering.layout], action_dim)
        self.input_dim = self.preprocessor.model_state_dim + self.network.config.feature_dim
        self.noise_actor = NoiseActor(
            self.input_dim, math.prod(self.latent_shape), steering.magnitude, steering.hidden
        ).to(self.device)
        self.steered: Tensor
        self.register_buffer("steered", torch.zeros((), dtype=torch.bool, device=self.device))

    def noise_of(self, latent: Tensor) -> Tensor:
        """Return the starting points (N, H, A) that latents (N, W) stand for."""
        steps = latent.unflatten(-1, self.latent_shape)
        after = steps[:, -1:].expand(-1, self.chunk_shape[0] - steps.shape[1], -1)
        return torch.cat([steps, after], dim=1)

    def steering_input(self, obs: TensorDictBase, context: Context) -> Tensor:
        """Return what noise actor and critics read (N, D): state and pooled features."""
        state = self.preprocessor.normalize_state(obs["state"].to(self.device))
        return torch.cat([state, context.features.float()], dim=-1)

    @torch.no_grad()
    def decode(self, context: Context, latent: Tensor) -> Tensor:
        """Return the executed actions (N, h, A) [normalized] that the frozen flow makes of latents.

        As deployed: the sampler's flow steps and solver.
        """
        noise = self.noise_of(latent)
        point = integrate(self.field(context), noise, self.grid, self.sampler.solver)
        return point[:, : self.sampler.execution_horizon]

    def _integrated(self, obs: TensorDictBase, noise: Tensor | None) -> Tensor:
        """Return normalized chunks (N, H, A).

        Once steered, the noise actor's mode is the starting point, and `noise` is not used.
        """
        if not self.steered:
            return super()._integrated(obs, noise)
        context = self.encode(obs)
        latent = self.noise_actor.mode(self.steering_input(obs, context))
        noise = self.noise_of(latent)
        return integrate(self.field(context), noise, self.grid, self.sampler.solver)


def pack(context: Context) -> TensorDict:
    """Return a context's tensors (N) for a memory; keys and values of the layers side by side."""
    keys, values = (torch.stack(part, 1) for part in zip(*context.cache, strict=True))
    rest = {name: value for name, value in context._asdict().items() if name != "cache"}
    tensors = {name: value for name, value in rest.items() if value is not None}
    return TensorDict({"keys": keys, "values": values, **tensors}, batch_size=[len(keys)])


def unpack(packed: TensorDictBase) -> Context:
    """Return the context that `pack` took apart."""
    cache = list(zip(packed["keys"].unbind(1), packed["values"].unbind(1), strict=True))
    return Context(cache=cache, **dict(packed.exclude("keys", "values").items()))


class SteeredActor(LikelihoodActor):
    """The steered policy as TorchRL sees it; writes what a learner of steering stores.

    In `ExplorationType.RANDOM` the latent is drawn from the noise actor, or from the standard
    normal while the policy is not steered yet; in DETERMINISTIC it acts as deployed.

    Args:
        policy: The steered policy.
        keep_context: Whether `encoded` holds the prefix's keys and values, so that the frozen flow
            can be asked again without encoding the observation anew.
    """

    policy: SteeredPolicy

    def __init__(self, policy: SteeredPolicy, keep_context: bool = False) -> None:
        super().__init__(policy, LikelihoodConfig())
        self.keep_context = keep_context
        self.out_keys = ["action", "latent", "encoded"]

    def forward(self, td: TensorDictBase) -> TensorDictBase:
        policy = self.policy
        if interaction_type() == InteractionType.DETERMINISTIC:
            with torch.no_grad():
                return td.set("action", policy.sample_actions(td, td.get("noise", None)))
        with torch.no_grad():
            context = policy.encode(td)
            read = policy.steering_input(td, context)
            if policy.steered:
                latent, _ = policy.noise_actor.sample(read)
            else:
                latent = torch.randn(len(td), policy.noise_actor.latent_dim, device=policy.device)
            td.set("encoded", self._encoded(read, context))
            td.set("latent", latent)
            action = policy.executed(policy.decode(context, latent), td)
            return td.set("action", action)

    def encode(self, obs: TensorDictBase) -> TensorDict:
        """Return what is stored of observations (N) in the place of pictures."""
        context = self.policy.encode(obs)
        return self._encoded(self.policy.steering_input(obs, context), context)

    def _encoded(self, read: Tensor, context: Context) -> TensorDict:
        values: dict[str, Tensor | TensorDict] = {"input": read}
        if self.keep_context:
            values["context"] = pack(context)
        return TensorDict(values, batch_size=[len(read)])
