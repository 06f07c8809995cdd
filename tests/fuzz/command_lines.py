"""Random command lines of all commands, from the options that the commands really have."""

from __future__ import annotations

import random
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pitune import envs, rl
from pitune.experiments.benchmarks import pi0, rollout
from pitune.experiments.command_line.main import COMMANDS
from pitune.experiments.compare import CompareConfig
from pitune.experiments.evaluate import EvaluateConfig
from pitune.experiments.inspect_run import InspectConfig
from pitune.experiments.norm_stats import NormStatsConfig
from pitune.experiments.pretrain import PretrainConfig
from pitune.experiments.quickstart import QuickstartConfig
from pitune.experiments.recipes import preset
from pitune.experiments.train import TrainConfig
from pitune.experiments.verify_checkpoint import VerifyConfig
from pitune.ranges import Device, Range, declared_types
from tests.fuzz.child import Ending, contents
from tests.fuzz.world import ENV_WORDS, LOOP, RESUME

Result = Callable[[Path, Ending], bool]
"""Whether a command left its result, from its --out and its end."""
JUNK = ("", "abc", "nan", "inf", "-inf", "-1", "0", "1e400", "1.5", "None", "true", "π", "--", "-x")
"""Values that hardly any option takes."""
HUGE = "1000000000000000"
KEEP_SMALL = frozenset(
    {"num_envs", "id", "num_iterations", "gradient_steps", "repeats", "fast", "max_minutes"}
)
"""Fields that keep the value of the base command, except for an invalid one."""


@dataclass(frozen=True)
class Option:
    """An option of a command: its flag, its declared type, and the field's name."""

    flag: str
    hint: Any
    name: str


@dataclass(frozen=True)
class Base:
    """A small command that works, its options, and how its result is seen."""

    words: tuple[str, ...]
    options: tuple[Option, ...]
    result: Result


@dataclass(frozen=True)
class Line:
    """A case: the words of a command, and its base."""

    words: tuple[str, ...]
    base: Base


def options_of(config: Any, parent: str = "") -> Iterator[Option]:
    """Yield the options of a config and of its blocks."""
    hints = declared_types(type(config))
    for item in fields(config):
        value, name = getattr(config, item.name), parent + item.name.replace("_", "-")
        if is_dataclass(value):
            yield from options_of(value, f"{name}.")
        else:
            yield Option(f"--{name}", hints[item.name], item.name)


def has(pattern: str) -> Result:
    """Return a test for a file in --out, or for --out itself."""
    return lambda out, _: bool(list(out.glob(pattern))) if pattern else out.is_file()


def shows(text: str) -> Result:
    """Return a test for a text in the outputs."""
    return lambda _, ending: text in ending.text


def bases() -> dict[str, Base]:
    """Return a command of every kind by its name."""
    env = envs.config_for("mock/Reach")
    clone = ("--checkpoint", "clone/pretrained")
    demonstrations = ("--demonstrations", "clone/demonstrations.safetensors")
    checkpoint, file = Path("clone/pretrained"), Path("x")
    found: dict[str, Base] = {}
    words: tuple[str, ...]
    for word in (*rl.presets(), "ppo:flow_noise", "dsrl:sac", "grpo:one_step"):
        config = TrainConfig(algorithm=preset(word), env=env)
        small = ("--num-iterations", "1", "--no-video", "--out", "new")
        # whole episodes of 20 steps, in chunks of 2
        whole = rl.registry.entry(word.partition(":")[0]).whole_episodes
        loop = (*LOOP, "--num-chunks", "10") if whole else LOOP
        words = ("train", word, *clone, *ENV_WORDS, *loop, *small, *_small_settings(config))
        done = has("summary.json")
        found[f"train {word}"] = Base(words, tuple(options_of(config)), done)
    resumed = TrainConfig(algorithm=rl.PPOConfig(), env=env)
    found["resume"] = Base(RESUME, tuple(options_of(resumed)), has("summary.json"))
    evaluated = EvaluateConfig(checkpoint=checkpoint, env=env)
    words = ("evaluate", *clone, *ENV_WORDS, "--episodes", "4")
    found["evaluate"] = Base(words, tuple(options_of(evaluated)), shows("success "))
    words = ("evaluate", "--checkpoint", "run", *ENV_WORDS, "--episodes", "4", "--out", "x.json")
    found["evaluate run"] = Base(words, tuple(options_of(evaluated)), shows("success "))
    cloning = ("--num-demonstrations", "2", "--gradient-steps", "2", "--minibatch-size", "8")
    words = ("pretrain", *ENV_WORDS, *cloning, "--out", "made")
    pretrained = tuple(options_of(PretrainConfig(env=env)))
    found["pretrain"] = Base(words, pretrained, has("pretrained/policy.json"))
    words = ("inspect", "run")
    found["inspect"] = Base(words, tuple(options_of(InspectConfig(run=file))), shows("Health"))
    words = ("norm-stats", *clone, *demonstrations, "--out", "stats.json")
    stats = NormStatsConfig(checkpoint=checkpoint, demonstrations=file, out=file)
    found["norm-stats"] = Base(words, tuple(options_of(stats)), has(""))
    io = ("--inputs", "openpi/inputs.safetensors", "--outputs", "openpi/outputs.safetensors")
    words = ("verify", "openpi/checkpoint", *io)
    verified = VerifyConfig(checkpoint=checkpoint, inputs=file, outputs=file)
    found["verify"] = Base(words, tuple(options_of(verified)), shows("passed"))
    fast = ("--env.id", "mock/Reach", "--fast", "--max-minutes", "0.01", "--wandb", "off")
    words = ("quickstart", *fast, "--out", "quick")
    quick = tuple(options_of(QuickstartConfig()))
    found["quickstart"] = Base(words, quick, has("*/*/*/summary.json"))
    fast = ("--env-ids", "mock/Reach", "--fast", "--max-minutes", "0.01", "--num-iterations", "1")
    words = ("compare", "--algorithms", "ppo", "--seeds", "0", *fast, "--out", "compared")
    compared = tuple(options_of(CompareConfig()))
    found["compare"] = Base(words, compared, has("comparison.md"))
    for word in ("algorithms", "environments", "likelihoods", "pipelines"):
        found[f"list {word}"] = Base(("list", word), (), lambda _, end: len(end.out) > 40)
    found["doctor"] = Base(("doctor",), (), shows("needed is here"))
    found["help"] = Base(("--help",), (), shows("usage: pitune"))
    sizes = ("--prompt-tokens", "4", "--flow-steps", "2", "--repeats", "1", "--no-training")
    timed = tuple(options_of(pi0.BenchmarkConfig()))
    found["bench pi0"] = Base(("bench", "pi0", *sizes), timed, shows("sample "))
    words = ("bench", "rollout", *ENV_WORDS, "--num-chunks", "2", "--repeats", "1")
    timed = tuple(options_of(rollout.BenchmarkConfig(env=env)))
    found["bench rollout"] = Base(words, timed, shows("raw simulator"))
    return found


def _small_settings(config: TrainConfig) -> tuple[str, ...]:
    """Return options that make an update small, for the algorithm of a config."""
    values = {
        "minibatch_size": "8",
        "demonstrations": "clone/demonstrations.safetensors",
        "warmup_decisions": "4",
        "warmup_rounds": "2",
        "gradient_steps": "2",
        "group_size": "2",
        "num_members": "2",
        "initial_fit_steps": "2",
        "num_critics": "2",
    }
    options = options_of(config.algorithm, "algorithm.")
    return tuple(word for o in options if o.name in values for word in (o.flag, values[o.name]))


def command_lines(seed: int, number: int) -> list[Line]:
    """Return random command lines, about a sixth of them without a mistake."""
    draw = random.Random(seed)
    table = bases()
    slow = {"quickstart", "compare", "doctor"}
    names = [name for name in table for _ in range(1 if name in slow else 3)]
    return [_line(table[draw.choice(names)], table, draw) for _ in range(number)]


def _line(base: Base, table: Mapping[str, Base], draw: random.Random) -> Line:
    words = list(base.words)
    for _ in range(draw.choice((0, 1, 1, 1, 2, 3))):
        words = _changed(words, base, table, draw)
    return Line(tuple(words), base)


def _changed(
    words: list[str], base: Base, table: Mapping[str, Base], draw: random.Random
) -> list[str]:
    """Return the words with one random change."""
    kind = draw.choice(("value",) * 10 + ("misspelled", "missing", "repeated", "foreign", "words"))
    if not base.options:
        kind = draw.choice(("words", "foreign"))
    if kind == "value":
        option = draw.choice(base.options)
        return [*words, option.flag, *_values(option, draw)]
    if kind == "misspelled":
        flag = draw.choice(base.options).flag
        cut = draw.randrange(2, len(flag))
        return [*words, flag[:cut] + flag[cut + 1 :], "1"]
    if kind == "missing":
        return [*words, draw.choice(base.options).flag]
    if kind == "repeated":
        option = draw.choice(base.options)
        return [*words, option.flag, *_values(option, draw), option.flag, *_values(option, draw)]
    if kind == "foreign":
        other = draw.choice([other for other in table.values() if other.options])
        option = draw.choice(other.options)
        return [*words, option.flag, *_values(option, draw)]
    return _with_other_words(words, draw)


def _with_other_words(words: list[str], draw: random.Random) -> list[str]:
    """Return the words with one dropped, doubled, swapped, replaced or added."""
    place = draw.randrange(max(1, len(words)))  # the only word may be dropped already
    junk = draw.choice(
        (*JUNK, *COMMANDS, "po", "ppo:x", "--help", "--help-all", "--import", "x.py")
    )
    return draw.choice(
        (
            words[:place] + words[place + 1 :],
            [*words[: place + 1], *words[place:]],
            [*words[:place], junk, *words[place + 1 :]],
            [*words, junk],
            [junk, *words],
        )
    )


def _values(option: Option, draw: random.Random) -> list[str]:
    """Return valid values of an option, values at the ends of its range, or invalid ones."""
    if draw.random() < 0.35 or option.name in KEEP_SMALL:
        return [draw.choice((*JUNK, HUGE if option.name == "minibatch_size" else "x" * 300))]
    return _valid(option.hint, draw)


def _valid(hint: Any, draw: random.Random) -> list[str]:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        ranges = [note for note in inner[1:] if isinstance(note, Range)]
        if any(isinstance(note, Device) for note in inner[1:]):
            return [draw.choice(("cpu", "cpu", "cuda", "gpu"))]
        return [_number(inner[0], ranges[0], draw)] if ranges else _valid(inner[0], draw)
    if origin in (Union, types.UnionType):
        return _valid(draw.choice(inner), draw)
    if origin is Literal:
        return [str(draw.choice(inner))]
    if origin is tuple:
        return [word for _ in range(draw.choice((1, 1, 2, 3))) for word in _valid(inner[0], draw)]
    if origin is dict:
        return draw.choice((["a", "b"], ["a"], []))
    if hint is type(None):
        return ["None"]
    if hint is bool:
        return []
    return [draw.choice(("clone", "clone/pretrained", "run", "new", "none/x", "/dev/full", "a b"))]


def _number(kind: type, valid: Range, draw: random.Random) -> str:
    """Return a number at or near an end of a range."""
    low, high = max(valid.low, -2.0), min(valid.high, 4.0)
    number = draw.choice((low, low + 1, high, (low + high) / 2))
    return str(round(number)) if kind is int else f"{number:g}"


def out_of(line: Line) -> str:
    """Return the last --out of a command line."""
    found = ""
    for word, following in zip(line.words, [*line.words[1:], ""], strict=True):
        if word == "--out":
            found = following
        elif word.startswith("--out="):
            found = word.removeprefix("--out=")
    return found


def faults_of_line(line: Line, folder: Path, before: dict[str, str], ending: Ending) -> list[str]:
    """Return the faults of a command that only it can have: no result, or lost checkpoints."""
    faults = []
    asked = {"-h", "--help", "--help-all", "--version"} & set(line.words)
    alone = not ending.err.strip() and ending.out.startswith("usage: ")  # a command without words
    if (
        ending.status == 0
        and not asked
        and not alone
        and not line.base.result(folder / out_of(line), ending)
    ):
        faults.append("status 0 without its result")
    after = contents(folder)
    kept = {"clone/pretrained", "finished", "openpi"}
    for name, code in before.items():
        if any(name.startswith(f"{start}/") for start in kept) and after.get(name) != code:
            faults.append(f"{name} was changed or removed")
    weights = [name for name in after if name.startswith("run/checkpoint_") and "safet" in name]
    if not weights:
        faults.append("the run lost all of its checkpoints")
    return faults
