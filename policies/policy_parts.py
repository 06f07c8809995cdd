"""The parts of a flow policy, and the sizes that follow from them.

Letters: N rows, H action horizon, h executed actions, R steps of a remainder, A model action dim, d
robot action dim, s robot state dim, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from pitune.compilation import LOOP_LAYERS, Compilation
from pitune.policies.conditions import check_guidance
from pitune.policies.flow.path import TimeGrid
from pitune.policies.flow.real_time import with_prefix
from pitune.policies.network.config import Pi0Config
from pitune.policies.network.context import Context
from pitune.policies.network.options.tokens.conditioning import INSTRUCTION_NULL
from pitune.policies.network.pi0 import Pi0
from pitune.policies.noise_source import NoiseSource
from pitune.policies.policy_config import (
    PolicyInfo,
    SamplerConfig,
    check_decoder,
    check_parts,
    check_real_time,
    make_preprocessor,
)
from pitune.policies.preprocessing.critic_input import old_chunk_dim
from pitune.policies.preprocessing.model_input import ModelInput, ObservationPreprocessor
from pitune.policies.preprocessing.preprocessor import Preprocessor, PreprocessorConfig
from pitune.policies.under_delay import (
    executed_steps,
    num_executed,
    remainder_of,
    remainder_steps,
)

Function = TypeVar("Function", bound=Callable[..., Any])


class PolicyParts(nn.Module):
    """Network, preprocessor, sampler, noise source and facts. `FlowPolicy` computes with them.

    See `FlowPolicy` for the arguments and the errors.

    Example:
        >>> from pitune.policies import SamplerConfig, small_policy
        >>> states, actions = torch.randn(50, 4), torch.randn(50, 2)
        >>> policy = small_policy(states, actions, action_horizon=8, sampler=SamplerConfig())
        >>> policy.chunk_shape, policy.num_planned
        ((8, 2), 4)
    """

    def __init__(
        self,
        network: Pi0 | Pi0Config,
        preprocessor: PreprocessorConfig | Preprocessor,
        sampler: SamplerConfig,
        noise_source: NoiseSource | None = None,
        info: PolicyInfo | None = None,
    ) -> None:
        super().__init__()
        self.network = Pi0(network) if isinstance(network, Pi0Config) else network
        if isinstance(preprocessor, PreprocessorConfig):
            preprocessor = make_preprocessor(preprocessor, self.network.config)
        self.preprocessor, self.sampler = preprocessor, sampler
        self.noise_source, self.info = noise_source, info or PolicyInfo()
        check_parts(self.network.config, self.preprocessor.config, sampler)
        check_real_time(sampler, self.info)
        check_decoder(sampler, self.network.config, noise_source is not None)
        check_guidance(self.network.config, sampler)

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return self.network.action_out_proj.weight.device

    @property
    def grid(self) -> TimeGrid:
        """The flow times of the sampler."""
        return TimeGrid(self.sampler.flow_steps, self.sampler.accumulated_time)

    @property
    def obs_keys(self) -> list[str]:
        """Keys of the observations that the policy uses."""
        keys = self.preprocessor.obs_keys
        return list(dict.fromkeys([*keys, "task_id"])) if self.condition_tasks else keys

    @property
    def condition_tasks(self) -> tuple[str, ...]:
        """Tasks that the velocity is conditioned on."""
        return self.network.config.options.conditioning.tasks

    @property
    def feature_dim(self) -> int:
        """Width of the pooled features of pictures and prompt, 0 without them."""
        return 0 if self.network.vlm is None else self.network.config.feature_dim

    @property
    def chunk_shape(self) -> tuple[int, int]:
        """(H, A) of a chain's points."""
        return self.network.config.action_horizon, self.network.config.action_dim

    @property
    def remainder_steps(self) -> int:
        """R, steps of the old chunk that a decision reads. 0 without a decision delay."""
        return remainder_steps(self.sampler, self.chunk_shape[0])

    @property
    def num_planned(self) -> int:
        """H + R, actions that a decision hands to the robot."""
        return self.sampler.execution_horizon + self.remainder_steps

    @property
    def critic_state_dim(self) -> int:
        """Width of a critic's input without features and time."""
        old = old_chunk_dim(*self.remainder_shape)
        return self.critic_obs_dim + old + math.prod(self.memory_shape)

    @property
    def memory_shape(self) -> tuple[int, int]:
        """(memory, D) of the memory that decisions hand on, (0, D) without one."""
        config = self.network.config
        return config.options.memory.num_tokens, config.expert.width

    @property
    def has_memory(self) -> bool:
        """Whether a decision depends on the earlier ones of its episode."""
        return self.memory_shape[0] > 0

    def memory_of(self, inputs: ModelInput) -> Tensor:
        """Return the memory (N, memory, D) that decisions read.

        Raises:
            ValueError: the observations have none.
        """
        if inputs.memory is None:
            raise ValueError(
                "the policy has a memory (options.memory), but the observations have none; add "
                "the one that the last decision wrote, or `policy.empty_memory(num)` at the "
                "beginning of an episode"
            )
        return inputs.memory.to(self.device)

    def empty_memory(self, num: int) -> Tensor | None:
        """Return the memory (N, memory, D) of episodes that begin, None without a memory."""
        return torch.zeros(num, *self.memory_shape, device=self.device) if self.has_memory else None

    @property
    def critic_obs_dim(self) -> int:
        """Width of the state in a critic's input, with the last action if critics read it."""
        last = self.preprocessor.action_dim if self.reads_last_action else 0
        return self.preprocessor.model_state_dim + last

    @property
    def reads_last_action(self) -> bool:
        """Whether critics read the last executed action."""
        return self.network.config.options.critic_input.last_action

    def last_action_entries(self, action: Tensor, episode: Tensor) -> dict[str, Tensor]:
        """Return the observations' entries of the last action, for consecutive steps (N).

        They are empty if critics do not read it.

        Args:
            action: Executed actions (N, d) [robot units].
            episode: Episode of each step (N,).
        """
        if not self.reads_last_action:
            return {}
        has_acted = episode == episode.roll(1)
        has_acted[:1] = False
        return {"last_action": action.roll(1, 0), "has_acted": has_acted}

    @property
    def remainder_shape(self) -> tuple[int, int]:
        """(R, d) of the old chunk's part that a decision reads."""
        return self.remainder_steps, self.preprocessor.action_dim

    def executed_mask(self, context: Context | None = None) -> Tensor:
        """Return 1 for executed entries, 0 for padding and unexecuted steps.

        Args:
            context: Observations (N). Those under a decision delay have a mask for each row,
                (N, 1, H, A), in which the old chunk's actions are 0. The others share one (H, A).
        """
        # executed steps, and the robot's dimensions among those of the network
        horizon, action_dim = self.chunk_shape
        remainder = None if context is None else remainder_of(context)
        steps = executed_steps(self.sampler, horizon, remainder, self.device)
        is_robots = torch.arange(action_dim, device=self.device) < self.preprocessor.action_dim
        mask = (steps[..., None] & is_robots).float()
        return mask if remainder is None else mask[:, None]

    @property
    def executes_all(self) -> bool:
        """Whether every entry of a chunk is executed, if no old chunk precedes it."""
        horizon, action_dim = self.chunk_shape
        return num_executed(self.sampler) >= horizon and action_dim == self.preprocessor.action_dim

    def compiled(self, function: Function, num_layers: float = 0) -> Function:
        """Return the compiled form of a function, or the function if none are compiled.

        Args:
            function: Its arguments are modules, settings and tensors with rows (N, ...).
            num_layers: Layers that a loop in it runs through. A long loop stays as it is, and the
                network's methods inside it are compiled.
        """
        compilation = self.network.compilation
        if compilation is None or torch.compiler.is_compiling() or num_layers > LOOP_LAYERS:
            return function
        return compilation(function)

    @property
    def is_traceable(self) -> bool:
        """Whether the flow depends on no values. One that continues an old chunk asks for rows."""
        return self.remainder_steps == 0

    @property
    def loop_layers(self) -> float:
        """Layers that a sampling loop runs through, infinite if it cannot be compiled."""
        num_layers = self.grid.flow_steps * self.network.config.expert.depth
        return num_layers if self.is_traceable else math.inf

    def compile_functions(self, backend: str = "inductor") -> None:
        """Compile the policy's functions from now on, each at its first call.

        Policies that share the network, and later copies, are compiled too.

        Args:
            backend: Of `torch.compile`.

        Raises:
            RuntimeError: the machine has no C++ compiler.
        """
        self.network.compilation = Compilation(self.device, backend)

    def executed(self, point: Tensor, inputs: ModelInput) -> Tensor:
        """Return the actions to execute (N, h, d) [robot units] of normalized chunks (N, H, A).

        Under a decision delay they are h + R, of which the first are those of the old chunk.
        """
        remainder = remainder_of(inputs)
        point = point if remainder is None else with_prefix(point, remainder)
        state = inputs.robot_state.to(self.device)
        return self.preprocessor.unnormalize_action(point[:, : self.num_planned], state)

    @property
    def prefix_is_frozen(self) -> bool:
        """Whether there are pictures or a prompt, and no module that encodes them is trained."""
        vlm = self.network.vlm
        if vlm is None or any(p.requires_grad for p in vlm.parameters()):
            return False
        nulls = (p for name, p in self.network.named_parameters() if name == INSTRUCTION_NULL)
        return not any(null.requires_grad for null in nulls)

    def model_input(
        self,
        obs: TensorDictBase | Mapping[str, Tensor],
        tasks: Sequence[str] = (),
        memory: Tensor | None = None,
    ) -> ModelInput:
        """Return the network's input for observations (N).

        Args:
            obs: `state` (N, s), and `image/<camera>` and `task_id` if the policy uses them.
            tasks: Instructions indexed by `task_id`. Without any, the prompt's default is used.
            memory: Memory that the decision reads (N, memory, D), of a policy with one.
        """
        rows = {key: obs[key] for key in self.obs_keys if key in obs.keys()}
        td = TensorDict(rows, batch_size=[len(obs["state"])])
        inputs = ModelInput.of(self.observation_preprocessor(tasks)(td))
        return inputs if memory is None else replace(inputs, memory=memory)

    def draw_noise(self, num: int) -> Tensor:
        """Return starting points from the standard normal (N, H, A)."""
        return torch.randn(num, *self.chunk_shape, device=self.device)

    def normalized_chunk(self, rows: TensorDictBase) -> Tensor:
        """Return the chunks to clone (N, H, A) [normalized action] of rows (N) with `action`."""
        state = ModelInput.of(rows).robot_state.to(self.device)
        return self.preprocessor.normalize_action(rows["action"].to(self.device), state)

    def observation_preprocessor(self, tasks: Sequence[str]) -> ObservationPreprocessor:
        """Return the module that adds `model_input` to an environment's observations.

        Args:
            tasks: The environment's instructions, `EnvSpec.tasks`.
        """
        tokenizer, conditions = self.info.tokenizer, self.condition_tasks
        return ObservationPreprocessor(self.preprocessor, tokenizer, tasks, conditions)
