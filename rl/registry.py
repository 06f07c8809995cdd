"""Registered algorithms: name, config, class, variants and traits.

A new algorithm is a module with `@register("name", Config)` above its class. All modules in
`rl/algorithms` are imported here. A module elsewhere registers when it is imported. On the command
line, `pitune --import my_algorithm.py train my_algorithm ...` imports it.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from importlib import import_module
from typing import Any, TypeVar

from pitune.policies import FlowPolicy
from pitune.rl.algorithm import Algorithm, AlgorithmConfig

_BUILT_IN = "pitune.rl.algorithms"
_REGISTRY: dict[str, Entry] = {}
AlgorithmType = TypeVar("AlgorithmType", bound=type[Algorithm[Any]])
Variant = Mapping[str, Any] | Callable[[Any], AlgorithmConfig]
"""Settings by their dotted name in the config, or a function from config to config."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A registered algorithm.

    Example:
        >>> from pitune import rl
        >>> entry = rl.registry.entry("dgn")
        >>> entry.config.__name__, entry.off_policy, "equal_size" in entry.variants
        ('DGNConfig', True, True)
    """

    name: str
    """Name on the command line."""
    config: type[AlgorithmConfig]
    """Class of the settings."""
    algorithm: type[Algorithm[Any]]
    """Class of the algorithm, built from a config and a policy."""
    variants: Mapping[str, Variant] = field(default_factory=dict)
    """Settings of the paper's variants, baselines and ablations, by the name after the colon."""
    off_policy: bool = False
    """Whether it learns from a replay memory, with gradient steps after every decision."""
    whole_episodes: bool = False
    """Whether rollouts hold only whole episodes, and so about half as many steps."""
    reads_demonstrations: bool = False
    """Whether it requires a file of demonstrations."""
    unseen_demonstrations: bool = False
    """Whether the policy must not be cloned from these demonstrations."""
    memory: bool = False
    """Whether it fine-tunes policies with a memory."""

    @property
    def description(self) -> str:
        """First line of the class's docstring."""
        return (inspect.getdoc(self.algorithm) or "").partition("\n")[0]

    def variant(self, word: str, config: AlgorithmConfig | None = None) -> AlgorithmConfig:
        """Return a config with the settings of a variant.

        Args:
            word: Key of `variants`.
            config: Config to change, or None for the defaults.

        Raises:
            ValueError: the variant does not exist.
        """
        if word not in self.variants:
            nearest = get_close_matches(word, self.variants, n=1)
            hint = f"; did you mean '{self.name}:{nearest[0]}'?" if nearest else ";"
            raise ValueError(
                f"unknown variant {word!r} in algorithm='{self.name}:{word}'{hint} valid after the "
                f"colon: {', '.join(self.variants)}"
            )

        # a function of the config, or settings by their dotted names
        config = self.config() if config is None else config
        change = self.variants[word]
        if callable(change):
            return change(config)
        for name, value in change.items():
            config = _with(config, name.split("."), value)
        return config


def register(
    name: str,
    config: type[AlgorithmConfig],
    *,
    variants: Mapping[str, Variant] | None = None,
    off_policy: bool = False,
    whole_episodes: bool = False,
    reads_demonstrations: bool = False,
    unseen_demonstrations: bool = False,
    memory: bool = False,
) -> Callable[[AlgorithmType], AlgorithmType]:
    """Register the decorated class under `name`. A config of this type selects it.

    Args:
        name: Name on the command line.
        config: Class of the settings, each with a default.
        variants: See `Entry.variants`.
        off_policy: See `Entry.off_policy`.
        whole_episodes: See `Entry.whole_episodes`.
        reads_demonstrations: See `Entry.reads_demonstrations`.
        unseen_demonstrations: See `Entry.unseen_demonstrations`.
        memory: See `Entry.memory`.

    Raises:
        ValueError: the name or the config is registered already.

    Example:
        >>> from dataclasses import dataclass
        >>> from pitune import rl
        >>> @dataclass(frozen=True, kw_only=True)
        ... class MyConfig(rl.AlgorithmConfig):
        ...     learning_rate: float = 1e-4
        >>> @rl.register("mine", MyConfig, variants={"slow": {"learning_rate": 1e-5}})
        ... class Mine(rl.Algorithm[MyConfig]):
        ...     '''My own update.'''
    """
    if not config.__module__.startswith(f"{_BUILT_IN}."):
        _load_built_in()  # first, so that a name of a built-in algorithm is rejected here
    if name in _REGISTRY or config in {entry.config for entry in _REGISTRY.values()}:
        raise ValueError(f"algorithm {name!r} or its {config.__name__} is registered already")

    def decorate(algorithm: AlgorithmType) -> AlgorithmType:
        _REGISTRY[name] = Entry(
            name=name,
            config=config,
            algorithm=algorithm,
            variants=dict(variants or {}),
            off_policy=off_policy,
            whole_episodes=whole_episodes,
            reads_demonstrations=reads_demonstrations,
            unseen_demonstrations=unseen_demonstrations,
            memory=memory,
        )
        return algorithm

    return decorate


def entries() -> list[Entry]:
    """Return every registered algorithm, sorted by name."""
    _load_built_in()
    return [_REGISTRY[name] for name in sorted(_REGISTRY)]


def entry(name: str) -> Entry:
    """Return one registered algorithm.

    Raises:
        ValueError: no algorithm is registered under `name`.
    """
    _load_built_in()
    if name not in _REGISTRY:
        nearest = get_close_matches(name, _REGISTRY, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ";"
        raise ValueError(f"unknown algorithm {name!r}{hint} registered: {sorted(_REGISTRY)}")
    return _REGISTRY[name]


def presets() -> dict[str, AlgorithmConfig]:
    """Return the default config of every registered algorithm, by name."""
    return {entry.name: entry.config() for entry in entries()}


def preset(name: str) -> AlgorithmConfig:
    """Return the default config of one algorithm.

    Raises:
        ValueError: no algorithm is registered under `name`.
    """
    return entry(name).config()


def name_of(config: AlgorithmConfig) -> str:
    """Return the registered name of a config's algorithm.

    Raises:
        ValueError: no algorithm has this type of config.
    """
    for entry in entries():
        if type(config) is entry.config:
            return entry.name
    raise ValueError(
        f"no algorithm takes a {type(config).__name__}; registered: {sorted(_REGISTRY)}. "
        "Import the module that registers it first"
    )


def make(config: AlgorithmConfig, policy: FlowPolicy) -> Algorithm[Any]:
    """Build a policy's algorithm, selected by the type of the config.

    Raises:
        ValueError: no algorithm has this type of config, the algorithm trains another part than
            the policy acts with or would not use its memory, or the policy has a noise actor
            already. Training would change the weights that its noise actor was trained for.
    """
    name = name_of(config)
    if policy.has_memory and not entry(name).memory:
        able = [entry.name for entry in entries() if entry.memory]
        raise ValueError(
            f"the policy has a memory (options.memory), and {name} would not store or train it; "
            f"take one of {', '.join(able)}"
        )
    if policy.noise_source is not None:
        raise ValueError(
            "the checkpoint is steered (it has a noise actor); fine-tune the checkpoint that it "
            "was made from, or go on with its run by --resume"
        )
    algorithm = entry(name).algorithm
    if policy.sampler.decoder not in algorithm.decoders:
        raise ValueError(
            f"{name} trains a flow, but this policy acts with "
            f"sampler.decoder={policy.sampler.decoder!r}; load it with decoder='flow' "
            "(--load.decoder flow), or take ppo:fast or grpo:fast"
        )
    # the base class takes an actor, and registered ones build theirs from the policy
    build: Callable[..., Algorithm[Any]] = algorithm
    return build(config, policy)


def _load_built_in() -> None:
    """Import every module of `rl/algorithms`, which registers its algorithm."""
    for module in pkgutil.iter_modules(import_module(_BUILT_IN).__path__):
        import_module(f"{_BUILT_IN}.{module.name}")


def _with(config: Any, path: list[str], value: Any) -> Any:
    """Return a config with the setting at a dotted name replaced by a value."""
    name, *rest = path
    return replace(config, **{name: _with(getattr(config, name), rest, value) if rest else value})
