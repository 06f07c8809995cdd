"""The settings of an environment: those that all adapters share, and an adapter's own options."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from typing import Annotated, Any, Literal, TypeVar

from pitune.envs.success import SuccessRule
from pitune.ranges import PositiveFloat, PositiveInt, Range, Settings

Reward = Literal["sparse", "dense"]
WorkersOn = Literal["processes", "ray"]


@dataclass(frozen=True, kw_only=True)
class EnvOptions(Settings):
    """Base class of the options that belong to one adapter.

    A subclass is a frozen, keyword-only dataclass whose fields all have defaults. Its fields become
    flags of the command line (`--env.options.control-mode`).

    Example:
        >>> @dataclass(frozen=True, kw_only=True)
        ... class BlocksOptions(EnvOptions):
        ...     num_blocks: int = 3
        >>> BlocksOptions(num_blocks=4).num_blocks
        4
    """


Options = TypeVar("Options", bound=EnvOptions)


@dataclass(frozen=True, kw_only=True)
class EnvConfig(Settings):
    """An environment: its name, the number of parallel environments, and the processes.

    Example:
        >>> config = EnvConfig(id="mock/Reach", num_envs=4, num_workers=0)
        >>> (config.prefix, config.task)
        ('mock', 'Reach')
    """

    id: str = "mujoco/PickCube"
    """`mujoco/<task>`, `maniskill/<task>`, `metaworld/<task>`, `libero/<suite>/<task>`,
    `gym/<id>` or `mock/<name>`, or a suite of several tasks."""
    num_envs: PositiveInt = 100
    """Environments that step together."""
    num_workers: Annotated[int, Range(low=0, high=1024)] = 2
    """Processes (or MuJoCo threads) that share the environments. 0 runs them in this process.
    A simulator that steps all environments in one call (`mock/`, ManiSkill on a GPU, a vector
    environment of Gymnasium) has no use for workers."""
    workers_on: WorkersOn = "processes"
    """Where the workers run: `processes` of this machine, or actors of a `ray` cluster, for single
    CPU simulators. Results are equal bit for bit."""
    ray_address: str | None = None
    """Address of the Ray cluster, for example `auto`. By default Ray is started on this machine."""
    reward: Reward = "sparse"
    """`sparse` is 1 on success and else 0, `dense` is the simulator's own reward."""
    success: SuccessRule = "once"
    """Success of an episode: solved `once` at any of its steps, or solved `at_end`, at its last
    step. They differ where success does not end an episode."""
    max_episode_steps: PositiveInt | None = None
    """Time limit [environment steps]. The task's own by default."""
    cameras: tuple[str, ...] = ()
    """Cameras whose pictures enter the observation."""
    image_size: PositiveInt = 64
    """Height and width of the pictures [pixels]."""
    instruction: str | None = None
    """Instruction in words for all episodes, in place of the environment's own."""
    control_hz: PositiveFloat | None = None
    """Control steps per simulated second [Hz]. The environment's own by default; another one is
    rejected where it cannot be chosen."""
    start_timeout: PositiveFloat = 180.0
    """Longest time for a worker to make its environments [s]."""
    reset_timeout: PositiveFloat = 120.0
    """Longest time for a worker to begin the episodes of its environments [s]."""
    step_timeout: PositiveFloat = 120.0
    """Longest time for a worker to step its environments [s]."""
    max_failures: PositiveInt = 10
    """Episodes in a row that one environment may lose to its own faults: a start that cannot be
    made, numbers that are not finite, an exception, a time-out. The run ends at this number."""
    options: EnvOptions = field(default_factory=EnvOptions)
    """Options of the adapter. The plain `EnvOptions` stands for the adapter's defaults."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.instruction is not None and not self.instruction.strip():
            raise ValueError(
                f"instruction={self.instruction!r} has no words; pass some, or leave it out"
            )

    @property
    def prefix(self) -> str:
        """The part of `id` before the first slash."""
        return self.id.partition("/")[0]

    @property
    def task(self) -> str:
        """The part of `id` after the first slash."""
        return self.id.partition("/")[2]

    def typed_options(self, kind: type[Options]) -> Options:
        """Return the options as an instance of the adapter's own class.

        Args:
            kind: The adapter's class. Its defaults replace a plain `EnvOptions`.

        Raises:
            ValueError: the options belong to another adapter.
        """
        if isinstance(self.options, kind):
            return self.options
        if type(self.options) is EnvOptions:
            return kind()
        raise ValueError(
            f"options={self.options} cannot be used with id={self.id!r}, which takes "
            f"{kind.__name__}; make the config with envs.config_for({self.id!r})"
        )

    def time_limit(self, default: int) -> int:
        """Return `max_episode_steps`, or `default` where it is None."""
        return default if self.max_episode_steps is None else self.max_episode_steps


def require_default(settings: EnvConfig | EnvOptions, name: str, env_id: str, advice: str) -> None:
    """Reject a setting that an adapter cannot honor.

    Example:
        >>> require_default(EnvConfig(reward="dense"), "reward", "gym/Pendulum-v1", "use mujoco/")
        Traceback (most recent call last):
        ValueError: reward='dense' is not supported by gym/Pendulum-v1; leave reward at 'sparse', \
or use mujoco/

    Args:
        settings: The config or the options that hold the setting.
        name: Name of the field.
        env_id: The environment, for the message.
        advice: Another way out, for the message: a clause that can follow "or".

    Raises:
        ValueError: the field differs from its default.
    """
    value, default = getattr(settings, name), _default(settings, name)
    if value != default:
        raise ValueError(
            f"{name}={value!r} is not supported by {env_id}; leave {name} at {default!r}, "
            f"or {advice}"
        )


def _default(settings: EnvConfig | EnvOptions, name: str) -> Any:
    declared = next(item for item in fields(settings) if item.name == name)
    if declared.default_factory is not MISSING:
        return declared.default_factory()
    return declared.default
