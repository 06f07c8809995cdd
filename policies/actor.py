"""Flow policies behind TorchRL's actor interface.

`Actor` acts as deployed. `LikelihoodActor` explores with a likelihood: it writes `action`, the
`chain` of points from noise to action and its `action_log_prob`. `get_dist(td)` scores a stored
chain. TorchRL's losses and collectors take both unchanged: the loss's "action" is the chain, and
the environment's is `action`.

The likelihood is that of the *unclipped* chain. Clipping to the robot's bounds belongs to the
environment, because the density of a clipped action has atoms. Noise enters only the executed
entries, and exactly those are scored.

Letters: N rows, K flow steps, H action horizon, h executed actions, A model action dim, d robot
action dim, D width of the action expert.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from tensordict import TensorDictBase
from tensordict.nn import InteractionType, TensorDictModuleBase
from tensordict.nn.probabilistic import interaction_type
from torch import Tensor

from pitune.policies.conditions import check_stateless
from pitune.policies.decision import Decision, memory_marks
from pitune.policies.host_prefixes import PREFIX, HostPrefixes
from pitune.policies.likelihood.config import LikelihoodConfig
from pitune.policies.likelihood.distributions import ActionDistribution
from pitune.policies.likelihood.registry import likelihood_name, make_likelihood
from pitune.policies.network.context import Context, pack, stored_prefix
from pitune.policies.policy import FlowPolicy
from pitune.policies.policy_config import SamplerConfig
from pitune.policies.preprocessing.model_input import MODEL_INPUT, WRITTEN, ModelInput
from pitune.policies.recurrence import with_recalled_memory
from pitune.policies.under_delay import starting_points


class ActingPolicy(Protocol):
    """A policy that can be evaluated: a `FlowPolicy`, or one behind a server.

    Example:
        >>> from pitune.policies import SamplerConfig, small_policy
        >>> states, actions = torch.randn(50, 4), torch.randn(50, 2)
        >>> policy: ActingPolicy = small_policy(
        ...     states, actions, action_horizon=4, sampler=SamplerConfig()
        ... )
        >>> policy.chunk_shape  # (H, A)
        (4, 2)
    """

    sampler: SamplerConfig

    @property
    def chunk_shape(self) -> tuple[int, int]:
        """(H, A) of the starting noise."""

    def observation_preprocessor(self, tasks: Sequence[str]) -> TensorDictModuleBase:
        """Return the module that adds `model_input` to an environment's observations."""


class ActingModule(Protocol):
    """An actor that can be evaluated. It writes `action` (N, h, d) [robot units].

    Example:
        >>> from pitune.policies import SamplerConfig, small_policy
        >>> states, actions = torch.randn(50, 4), torch.randn(50, 2)
        >>> policy = small_policy(states, actions, action_horizon=4, sampler=SamplerConfig())
        >>> actor: ActingModule = Actor(policy)
        >>> actor.policy is policy
        True
    """

    @property
    def policy(self) -> ActingPolicy:
        """The policy that acts."""

    def evaluated(self) -> ActingModule:
        """Return the actor whose exploration is evaluated."""

    def __call__(self, td: TensorDictBase) -> TensorDictBase:
        """Write the actions for observations with `model_input`."""


class Actor(TensorDictModuleBase):
    """TorchRL's actor interface to a policy, without exploration.

    It acts as deployed in every exploration type. A subclass overrides `explore`, which is called
    in `ExplorationType.RANDOM`. In DETERMINISTIC every actor acts as deployed. A `noise` entry in
    the input replaces the fresh starting noise, and a trained noise source replaces both.

    Args:
        policy: The flow policy. Its parameters are this module's parameters.

    Example:
        >>> from tensordict import TensorDict
        >>> from pitune.policies import SamplerConfig, small_policy
        >>> states, actions = torch.randn(50, 4), torch.randn(50, 2)
        >>> policy = small_policy(states, actions, action_horizon=4, sampler=SamplerConfig())
        >>> obs = TensorDict({"state": states[:3]}, batch_size=[3])
        >>> Actor(policy)(policy.observation_preprocessor(())(obs))["action"].shape
        torch.Size([3, 4, 2])
    """

    out_keys: list[str]
    """Written entries. They are declared because mypy does not see the base class's setter."""

    def __init__(self, policy: FlowPolicy) -> None:
        super().__init__()
        self.policy = policy
        self.in_keys, self.out_keys = [MODEL_INPUT], ["action"]
        if policy.has_memory:
            self.out_keys.append(WRITTEN)

    def forward(self, td: TensorDictBase) -> TensorDictBase:
        noise = td.get("noise", None)
        noise = None if noise is None else noise.to(self.policy.device)
        if interaction_type() == InteractionType.DETERMINISTIC:
            with torch.no_grad():
                return td.update(self.deployed_entries(ModelInput.of(td), noise))
        return self.explore(td, noise)

    def write_memory(self, td: TensorDictBase, context: Context) -> None:
        """Write the memory that decisions (N) hand on, if the policy has one."""
        td.update(memory_marks(context.written))

    def evaluated(self) -> Actor:
        """Return the actor whose exploration is evaluated, this one by default.

        An actor that explores as several policies returns the one that is deployed.
        """
        return self

    def deployed_entries(self, inputs: ModelInput, noise: Tensor | None) -> dict[str, Tensor]:
        """Return the entries that the deployed policy writes: `action`, and marks of its decisions.

        The actions are (N, h, d) [robot units], and the marks (N,).
        """
        return self.entries_of(self.policy.decide(inputs, noise), inputs)

    def entries_of(self, decision: Decision, inputs: ModelInput) -> dict[str, Tensor]:
        """Return the entries of decisions for observations (N)."""
        return {"action": self.policy.executed(decision.chunk, inputs), **decision.marks}

    def explore(self, td: TensorDictBase, noise: Tensor | None) -> TensorDictBase:
        """Write `out_keys` for observations (N). The default does not explore.

        Args:
            td: Observations with `model_input`.
            noise: Starting points (N, H, A), or None for fresh ones.
        """
        with torch.no_grad():
            return td.update(self.deployed_entries(ModelInput.of(td), noise))


class LikelihoodActor(Actor):
    """An actor whose chains have a log-probability.

    Args:
        policy: The flow policy.
        config: Settings of the likelihood. Their type selects it, see `register_likelihood`.

    Attributes:
        likelihood: Samples and scores chains. Its learned noise is trained with the policy.
        keep_prefix: Whether decisions hold the encoded pictures and prompt as `prefix`, so that
            scoring does not encode them again. Only for frozen encoders, see `keep_prefixes`.
        prefixes_on_host: Whether they are held in memory of the host.
        host_prefixes: Place for those of the rollout that is being collected.

    Example:
        >>> from tensordict import TensorDict
        >>> from pitune.policies import FlowSDEConfig, SamplerConfig, small_policy
        >>> states, actions = torch.randn(50, 4), torch.randn(50, 2)
        >>> policy = small_policy(states, actions, action_horizon=4, sampler=SamplerConfig())
        >>> obs = TensorDict({"state": states[:3]}, batch_size=[3])
        >>> actor = LikelihoodActor(policy, FlowSDEConfig())
        >>> decision = actor(policy.observation_preprocessor(())(obs))
        >>> decision["chain"].shape, decision["action_log_prob"].shape
        (torch.Size([3, 5, 4, 2]), torch.Size([3, 4]))
    """

    keep_prefix: bool = False
    prefixes_on_host: bool = False
    host_prefixes: HostPrefixes | None = None

    def __init__(self, policy: FlowPolicy, config: LikelihoodConfig) -> None:
        super().__init__(policy)
        check_stateless(policy.sampler.guidance)
        if policy.sampler.decoder != config.decoder:
            raise ValueError(
                f"the likelihood {likelihood_name(config)!r} explores with the policy's "
                f"{config.decoder}, but the policy is deployed with "
                f"sampler.decoder={policy.sampler.decoder!r}; take the decoder "
                f"{config.decoder!r} (--load.decoder), or another likelihood"
            )
        self.config = config
        self.likelihood = make_likelihood(config, policy)
        self.log_prob_keys, self.dist_sample_keys = ["action_log_prob"], ["chain"]
        self.out_keys = [*self.out_keys, "chain", "action_log_prob"]
        if policy.feature_dim:
            self.out_keys.append("features")
        self.out_keys += self.likelihood.draw_keys

    def keep_prefixes(self, on_host: bool = False) -> None:
        """Store the encoded pictures and prompt of each decision from now on.

        Args:
            on_host: Whether to store them in memory of the host while a rollout is collected, and
                not with the other entries of a decision.

        Raises:
            ValueError: the policy has no frozen encoder, so that stored prefixes would be stale.
        """
        if not self.policy.prefix_is_frozen:
            raise ValueError(
                "prefixes can be stored only while the VLM is frozen: this policy has none, or "
                "trains it; encode the observations in each gradient step"
            )
        self.prefixes_on_host = on_host
        if not self.keep_prefix:
            self.keep_prefix = True
            self.out_keys = [*self.out_keys, PREFIX]

    def encode(self, td: TensorDictBase, prefix: Context | None = None) -> Context:
        """Return the encoded observations (N) that sampling and scoring share.

        Args:
            td: Observations.
            prefix: Their encoded pictures and prompt. By default they are encoded here.
        """
        return self.policy.encode(ModelInput.of(td), prefix, state_offset=self.state_offset(td))

    def encode_decisions(self, td: TensorDictBase) -> Context:
        """Return the encoded observations of decisions (N), from their prefixes if they have any.

        With a history of each, the memory that it read is written again, with a gradient.

        A collector carries the last decision's entries into the next input, so acting may not use
        this function.
        """
        return self.encode(with_recalled_memory(self.policy, td), stored_prefix(td))

    def state_offset(self, td: TensorDictBase) -> Tensor | None:
        """Return an offset (N, D) of the state tokens, or None for no offset (the default)."""
        return None

    def get_dist(self, td: TensorDictBase) -> ActionDistribution:
        """Return the distribution over chains, given observations (N).

        The input holds the random choices of the likelihood (`likelihood.draw_keys`). A
        `stochastic_step` (N,) is the only random step of each row. In a chain whose steps are all
        random, it is the only step that is scored.
        """
        return self.likelihood.distribution(self.policy, self.encode_decisions(td), len(td), td)

    def sample_chain(
        self, context: Context, noise: Tensor, draws: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, Mapping[str, Tensor]]:
        """Return chains (N, K + 1, H, A) of encoded observations, and their log-probabilities.

        The last result has the rollout's further entries of the likelihood, such as its tokens.

        Args:
            context: Encoded observations (N).
            noise: Starting points (N, H, A).
            draws: Random choices of the likelihood.
        """
        dist = self.likelihood.distribution(self.policy, context, len(noise), draws)
        noise = starting_points(noise, context, self.policy.sampler)
        return *dist.sample_and_log_prob(noise), dist.chosen

    @torch.no_grad()
    def terminal_std(self, td: TensorDictBase) -> float:
        """Return the standard deviation that the last flow step gives executed entries.

        The mean over decisions (N) with their chains [normalized action]. This jitter reaches the
        robot undamped. With most likelihoods it differs from the configured level or bound. A
        likelihood without random flow steps gives that of the finished chunk.
        """
        context = self.encode_decisions(td)
        return self.likelihood.terminal_std(self.policy, context, td["chain"])

    def explore(self, td: TensorDictBase, noise: Tensor | None) -> TensorDictBase:
        noise = self.policy.draw_noise(len(td)) if noise is None else noise
        # fresh draws: entries that an earlier decision left in the input are stale
        draws = self.likelihood.draw(self.policy, len(td))
        # chain, from the encoded observations
        with torch.no_grad():
            keeps = self.keep_prefix and (self.host_prefixes or not self.prefixes_on_host)
            prefix = self.policy.encode_prefix(ModelInput.of(td)) if keeps else None
            context = self.encode(td, prefix)
            num_layers = self.policy.loop_layers if self.config.compiled else math.inf
            sample = self.policy.compiled(LikelihoodActor.sample_chain, num_layers)
            chain, log_prob, chosen = sample(self, context, noise, draws)  # (N, K + 1, H, A)

        # entries of the rollout
        td.update({**draws, **chosen})
        self.write_memory(td, context)
        if self.policy.feature_dim:  # cached for the critics, because encoding is expensive
            td.set("features", context.features)
        if prefix is not None and self.host_prefixes is not None:
            self.host_prefixes.add(pack(prefix))
        elif prefix is not None:
            td.set(PREFIX, pack(prefix))
        td.set("chain", chain)
        td.set("action", self.policy.executed(chain[:, -1], ModelInput.of(td)))
        return td.set("action_log_prob", log_prob)
