"""The network's input, computed once per observation and used by all later stages.

    env obs + tasks -> ObservationPreprocessor -> `model_input` -> actor, rollout, replay, critics

Resizing and tokenizing happen here and nowhere else. The instructions belong to the environment or
to the demonstrations. They are an argument, and the policy does not store them.
Letters: N rows, S model state dim, s robot state dim, V cameras, Y, X image pixels, L prompt
tokens, R steps of a remainder, A model action dim, d robot action dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from pitune.policies.preprocessing.preprocessor import Preprocessor
from pitune.policies.preprocessing.prompt import Encoder

MODEL_INPUT = "model_input"
"""Key of the network's input in rollouts, batches and replay rows."""
MEMORY, WRITTEN = "memory", "written_memory"
"""Keys of the memory that a decision reads, and of the one that it writes."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ModelInput:
    """The network's input for observations (N): normalized, resized and tokenized.

    Example:
        >>> inputs = ModelInput(state=torch.zeros(3, 8), robot_state=torch.zeros(3, 4))
        >>> len(inputs), sorted(inputs.tensordict().keys())
        (3, ['robot_state', 'state'])
    """

    state: Tensor
    """Normalized and padded states (N, S)."""
    robot_state: Tensor
    """The measured states (N, s) [robot units], for relative actions."""
    images: Tensor | None = None
    """Resized pictures (N, V, 3, Y, X): uint8, or float32 in [-1, 1] with lerobot's resizing."""
    tokens: Tensor | None = None
    """Prompts (N, L) int64."""
    token_mask: Tensor | None = None
    """Mask of the prompts (N, L) bool, False in padding."""
    remainder: Tensor | None = None
    """Rest of the chunk that is being executed (N, R, A) [normalized action], under a delay."""
    delay: Tensor | None = None
    """Actions of it that are executed before the new chunk arrives (N,) int64. -1 without one."""
    last_action: Tensor | None = None
    """The last executed action (N, d) [normalized action], 0 at the start of an episode. For
    critics that read it."""
    task_id: Tensor | None = None
    """Task of each row (N,) int64, among those of a velocity that is conditioned on it."""
    condition: Tensor | None = None
    """Conditions of the velocity (N, kinds) int64, -1 where one is dropped. None acts as the
    sampler's `guidance` sets."""
    memory: Tensor | None = None
    """Memory that the decision reads (N, memory, D), of a policy with one."""

    def __len__(self) -> int:
        return len(self.state)

    @classmethod
    def of(cls, rows: TensorDictBase) -> ModelInput:
        """Return the rows' `model_input`.

        Raises:
            ValueError: the rows have no `model_input`.
        """
        values = rows.get(MODEL_INPUT, None)
        if values is None:
            raise ValueError(
                f"the rows have no {MODEL_INPUT!r}, only {sorted(map(str, rows.keys()))}; apply "
                "`policy.observation_preprocessor(env.spec.tasks)` to the observations first"
            )
        return cls(**{name: values.get(name, None) for name in _NAMES})

    @classmethod
    def cat(cls, parts: Sequence[ModelInput]) -> ModelInput:
        """Return the rows of several inputs of one policy, in their order."""
        rows: dict[str, Tensor] = {}
        for name in _NAMES:
            values = [getattr(part, name) for part in parts]
            if values[0] is not None:
                rows[name] = torch.cat(values)
        return cls(**rows)

    def tensordict(self) -> TensorDict:
        """Return the tensors that are not None, as a nested entry of rollouts and replay rows."""
        values = {name: getattr(self, name) for name in _NAMES}
        present = {name: value for name, value in values.items() if value is not None}
        return TensorDict(present, batch_size=[len(self)])

    def to(self, device: torch.device) -> ModelInput:
        """Return the input on a device."""
        values = {name: getattr(self, name) for name in _NAMES}
        moved = {name: value.to(device) for name, value in values.items() if value is not None}
        return ModelInput(**moved)


_NAMES = tuple(field.name for field in fields(ModelInput))
"""The names of the tensors. `torch.compile` cannot trace `fields`."""


class ObservationPreprocessor(TensorDictModuleBase):
    """TensorDict module that adds `model_input` to observations.

    A prompt without the state depends on the task alone, so its tokens are computed once per task
    and looked up by `task_id`.

    Args:
        preprocessor: Norm stats, picture and prompt settings.
        tokenizer: Tokenizer of a policy with a prompt.
        tasks: Instructions indexed by `task_id`. Without any, the prompt's default is used.
        conditions: Tasks that the velocity is conditioned on, by their words.

    Raises:
        ValueError: the policy has a prompt, but there is no tokenizer, or an instruction has no
            words, or the velocity is conditioned on other tasks. When called: a `task_id` is not an
            index into the tasks, or it is missing and there are several tasks.

    Example:
        >>> from tensordict import TensorDict
        >>> from pitune.policies import NormStats, PreprocessorConfig
        >>> stats = NormStats.identity(2)
        >>> config = PreprocessorConfig(state=stats, action=stats, normalization="none")
        >>> preprocess = ObservationPreprocessor(Preprocessor(config, 4, 2), None, ())
        >>> rows = preprocess(TensorDict({"state": torch.ones(1, 2)}, batch_size=[1]))
        >>> rows["model_input", "state"].tolist()
        [[1.0, 1.0, 0.0, 0.0]]
    """

    out_keys: list[str]
    """Written entries. They are declared because mypy does not see the base class's setter."""

    def __init__(
        self,
        preprocessor: Preprocessor,
        tokenizer: Encoder | None,
        tasks: Sequence[str],
        conditions: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.in_keys, self.out_keys = [*preprocessor.obs_keys], [MODEL_INPUT]
        self._conditions = task_numbers(conditions, tasks) if conditions else None
        self._preprocessor, self._tokenizer = preprocessor, tokenizer
        self._tasks, self._table = tuple(tasks), None
        prompt = preprocessor.config.prompt
        if prompt is None:
            return
        if tokenizer is None:
            raise ValueError(
                "this policy needs a prompt, but has no tokenizer; pass one to `policies.load` "
                "(--load.tokenizer)"
            )

        # a policy with one prompt needs no table of tasks
        if not self._tasks and prompt.default is not None:
            self._tasks = (prompt.default,)
        self._tasks = with_words(self._tasks, prompt.default)
        # prompts without the state are tokenized once per task
        if self._tasks and not prompt.discrete_state:
            states = torch.zeros(len(self._tasks), preprocessor.state_dim)
            self._table = preprocessor.tokens(list(self._tasks), states, tokenizer)

    @torch.no_grad()
    def forward(self, td: TensorDictBase) -> TensorDictBase:
        inputs = self._preprocessor.images_and_state(td)
        if self._preprocessor.config.prompt is not None:
            tokens, mask = self.prompts(td)
            inputs |= {"tokens": tokens, "token_mask": mask}
        if self._conditions is not None:
            task_id, device = self._task_ids(td), inputs["state"].device
            if len(td):  # the least and the greatest, in one read
                self._check_tasks(torch.stack(task_id.aminmax()).tolist())
            inputs["task_id"] = self._conditions.to(device)[task_id.to(device)]
        if "remainder" in td.keys():  # under a decision delay
            remainder = td["remainder"].to(inputs["state"].device)
            inputs["remainder"] = self._preprocessor.normalize_action(
                remainder, inputs["robot_state"]
            )
            inputs["delay"] = td["delay"].to(remainder.device)
        if "last_action" in td.keys():  # for critics that read it
            inputs["last_action"] = self._last_action(td, inputs["robot_state"])
        if MEMORY in td.keys():
            inputs["memory"] = td[MEMORY].to(inputs["state"].device)
        return td.set(MODEL_INPUT, ModelInput(**inputs).tensordict())

    def _last_action(self, td: TensorDictBase, robot_state: Tensor) -> Tensor:
        """Return the last executed actions (N, d) [normalized action], 0 where there is none."""
        action = td["last_action"].to(robot_state.device)[:, None]  # (N, 1, d)
        normalized = self._preprocessor.normalize_action(action, robot_state)[:, 0]
        normalized = normalized[:, : action.shape[-1]]
        return torch.where(td["has_acted"].to(normalized.device)[:, None], normalized, 0.0)

    def prompts(self, obs: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Return the tokens of observations (N, L) and their mask (N, L)."""
        device = self._preprocessor.state_offset.device
        task_id = self._task_ids(obs)
        if self._table is not None:  # (tasks, L) -> (N, L)
            if "task_id" in obs.keys() and len(obs):  # the least and the greatest, in one read
                self._check_tasks(torch.stack(task_id.aminmax()).tolist())
            tokens, mask = self._table = tuple(column.to(device) for column in self._table)
            task_id = task_id.to(device)
            return tokens[task_id], mask[task_id]

        # prompts that hold the state of their row
        if self._tokenizer is None:
            raise ValueError("a policy with a prompt needs a tokenizer")
        tasks = task_id.tolist()
        self._check_tasks(tasks)
        words = [self._tasks[i] for i in tasks]
        tokens, mask = self._preprocessor.tokens(words, obs["state"], self._tokenizer)
        return tokens.to(device), mask.to(device)

    def _task_ids(self, obs: TensorDictBase) -> Tensor:
        """Return the task of each row (N,). Without a `task_id` it is the only task."""
        task_id = obs.get("task_id", None)
        if task_id is None and len(self._tasks) > 1:
            raise ValueError(
                f"the observations have no task_id, but there are {len(self._tasks)} tasks, "
                f"{self._tasks}; add the index of each row's task, or pass one task"
            )
        if task_id is None:
            return torch.zeros(len(obs), dtype=torch.int64, device=obs["state"].device)
        return task_id

    def _check_tasks(self, tasks: list[int]) -> None:
        """Raise ValueError for an index without a task."""
        for task in tasks:
            if not 0 <= task < len(self._tasks):
                raise ValueError(
                    f"an observation has task_id={task}, but the tasks are {self._tasks}; "
                    "pass the environment's table of tasks, or give the policy a default prompt"
                )


def task_numbers(known: Sequence[str], tasks: Sequence[str]) -> Tensor:
    """Return the number of each of some tasks among those of a condition (tasks,) int64.

    Args:
        known: Tasks of the condition, `ConditioningConfig.tasks`.
        tasks: Instructions of an environment, a dataset or a robot, in the order of `task_id`.

    Raises:
        ValueError: a task is none of the condition's, or there is none.
    """
    unknown = [words for words in tasks if words not in known]
    if unknown or not tasks:
        given = f"{unknown} are none of them" if unknown else "the observations have no task"
        raise ValueError(
            f"the velocity is conditioned on the tasks {list(known)} (options.conditioning.task), "
            f"and {given}; play these tasks, or take a policy without this condition"
        )
    return torch.tensor([known.index(words) for words in tasks])


def with_words(tasks: Sequence[str], default: str | None) -> tuple[str, ...]:
    """Return instructions in which the default replaces those without words.

    Raises:
        ValueError: an instruction has no words, and there is no default.
    """
    if default is None and not all(words.strip() for words in tasks):
        raise ValueError(
            f"this policy needs a prompt, but the instructions are {list(tasks)[:5]}; name the "
            "task in words: with --env.instruction, in the environment's info of reset() as "
            "`instruction`, or in the `prompt` of a robot's observation"
        )
    return tuple(words if words.strip() else default or "" for words in tasks)
