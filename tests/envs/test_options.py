"""Options of the adapters: on the command line, in the environment, and refused where unusable."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import tyro

from pitune import envs
from pitune.envs import EnvConfig

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command with an environment, as in `pitune.experiments`."""

    env: EnvConfig = field(default_factory=EnvConfig)


def parse(env_id: str, *flags: str) -> EnvConfig:
    """Return the config of a command line whose default is made for `env_id`."""
    return tyro.cli(Command, args=flags, default=Command(env=envs.config_for(env_id))).env


# The command line


@pytest.mark.parametrize(
    ("env_id", "flags", "options"),
    [
        (
            "maniskill/PickCube-v1",
            "--env.options.control-mode pd_joint_pos --env.options.backend cpu "
            "--env.options.obs-mode rgb+state --env.options.no-exact-seeds",
            envs.ManiSkillOptions(
                control_mode="pd_joint_pos", backend="cpu", obs_mode="rgb+state", exact_seeds=False
            ),
        ),
        (
            "metaworld/reach-v3",
            "--env.options.camera gripperPOV --env.options.render-size 64",
            envs.MetaWorldOptions(camera="gripperPOV", render_size=64),
        ),
        (
            "mujoco/PickCube",
            "--env.options.num-threads 3 --env.options.shadows --env.options.obs-mode rgb",
            envs.TabletopOptions(num_threads=3, shadows=True, obs_mode="rgb"),
        ),
        ("mock/Reach", "--env.options.num-tasks 2", envs.MockOptions(num_tasks=2)),
    ],
)
def test_every_option_is_a_typed_flag(env_id: str, flags: str, options: Any) -> None:
    config = parse(env_id, *flags.split(), "--env.num-envs", "7")
    assert config == envs.config_for(env_id, num_envs=7, options=options)
    assert parse(env_id) == envs.config_for(env_id)


def test_keyword_arguments_of_gymnasium_keep_their_types() -> None:
    flags = "a 1 b 1.5 c True d False e rgb_array f 1e-3 g -2"
    options = parse("gym/Pendulum-v1", "--env.options.kwargs", *flags.split()).options
    assert isinstance(options, envs.GymOptions)
    expected = {"a": 1, "b": 1.5, "c": True, "d": False, "e": "rgb_array", "f": 0.001, "g": -2}
    assert options.kwargs == expected
    assert [type(value) for value in options.kwargs.values()] == [
        type(value) for value in expected.values()
    ]


@pytest.mark.parametrize(
    ("env_id", "flags", "hint"),
    [
        ("mock/Reach", "--env.options.control-mode x", "control-mode"),
        ("maniskill/PickCube-v1", "--env.options.backend gpu", "gpu"),
        ("metaworld/reach-v3", "--env.options.camera front", "front"),
    ],
)
def test_a_flag_that_the_adapter_does_not_have_is_refused(
    env_id: str, flags: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(env_id, *flags.split())
    captured = capsys.readouterr()
    assert hint in captured.out + captured.err


def test_help_describes_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("maniskill/PickCube-v1", "--help")
    text = capsys.readouterr().out
    assert "--env.options.control-mode" in text
    assert "meaning of" in text


def test_an_environment_without_an_id_of_its_own_parses_as_before() -> None:
    command = tyro.cli(Command, args=["--env.id", "mock/Reach", "--env.num-envs", "2"])
    assert command.env == EnvConfig(id="mock/Reach", num_envs=2)
    assert envs.make(command.env).spec.num_envs == 2


# The environment


def test_keyword_arguments_reach_gymnasium() -> None:
    def speed(**kwargs: Any) -> float:
        """Return the pendulum's speed after one step without torque."""
        options = envs.GymOptions(kwargs=kwargs)
        config = EnvConfig(
            id="gym/Pendulum-v1", num_envs=1, num_workers=0, reward="dense", options=options
        )
        env = envs.make(config)
        env.reset(torch.tensor([3]))
        return env.step(torch.zeros(1, 1), torch.tensor([True])).obs["state"][0, 2].item()

    assert speed() == speed(g=10.0)
    assert speed() != speed(g=1.62)


def test_threads_of_the_embedded_simulator_are_an_option_or_the_workers() -> None:
    for num_workers, num_threads, expected in ((3, None, 3), (3, 2, 2), (0, None, 1)):
        options = envs.TabletopOptions(num_threads=num_threads)
        config = EnvConfig(
            id="mujoco/PickCube", num_envs=4, num_workers=num_workers, options=options
        )
        env = envs.make(config)
        assert len(env.env.physics._thread_data) == expected  # type: ignore[attr-defined]
        env.close()


# Settings that cannot be honored


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            EnvConfig(id="gym/Pendulum-v1", cameras=("top",)),
            r"cameras=\('top',\) is not supported by gym/Pendulum-v1; leave cameras at \(\), or",
        ),
        (
            EnvConfig(id="gym/Pendulum-v1", num_workers=0),
            r"reward='sparse' of gym/Pendulum-v1 is 1 on success .* pass --env.reward dense",
        ),
        (
            EnvConfig(id="gym/Pendulum-v1", image_size=32),
            r"image_size=32 is not supported by gym/Pendulum-v1; .* pictures of this size",
        ),
        *(
            (EnvConfig(id=id, control_hz=7), rf"control_hz=7 is not supported by {id}, which takes")
            for id in ("mock/Reach", "mock/Script", "mock/TwoGoals", "mujoco/PickCube")
        ),
        (
            EnvConfig(id="gym/Pendulum-v1", num_workers=0, reward="dense", control_hz=7),
            "control_hz=7 is not supported by gym/Pendulum-v1, which takes 20 control steps",
        ),
        (
            EnvConfig(
                id="mock/Reach", options=envs.MockOptions(num_tasks=2), instruction="go there"
            ),
            r"instruction='go there' cannot replace the 2 instructions of mock/Reach",
        ),
        (
            EnvConfig(id="metaworld/peg-insert-side-v3", cameras=("top",)),
            r"cameras=\['top'\] do not exist in metaworld/peg-insert-side-v3; it has \['behind",
        ),
        (
            EnvConfig(id="mock/Script", cameras=("top",)),
            r"cameras=\('top',\) is not supported by mock/Script; .* or use mock/Reach",
        ),
        (
            EnvConfig(id="mock/TwoGoals", reward="dense"),
            r"reward='dense' is not supported by mock/TwoGoals; .* or use mock/Reach",
        ),
        (
            EnvConfig(id="mock/Script", options=envs.MockOptions(num_tasks=2)),
            r"num_tasks=2 is not supported by mock/Script; leave num_tasks at 1, or use mock/Reach",
        ),
        (
            EnvConfig(id="mujoco/PickCube", options=envs.TabletopOptions(obs_mode="rgb")),
            r"obs_mode='rgb' is not supported by mujoco/PickCube without cameras; .* or name its c",
        ),
        (
            EnvConfig(id="mujoco/PickCube", options=envs.TabletopOptions(shadows=True)),
            r"shadows=True is not supported by mujoco/PickCube without cameras; .* or name its cam",
        ),
        (
            EnvConfig(id="gym/Pendulum-v1", options=envs.GymOptions(kwargs={"gravity": 3})),
            r"kwargs={'gravity': 3} are not accepted by gym/Pendulum-v1: .*'gravity'.*; pass arg",
        ),
        (
            EnvConfig(
                id="gym/Pendulum-v1", options=envs.GymOptions(kwargs={"max_episode_steps": 3})
            ),
            r"kwargs={'max_episode_steps': 3} of gym/Pendulum-v1 must not set the time limit; set",
        ),
    ],
)
def test_a_setting_that_the_adapter_cannot_honor_is_refused(
    config: EnvConfig, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        envs.make(config)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"control_hz": 0.0}, "control_hz=0.0 must be above 0"),
        ({"start_timeout": -1.0}, "start_timeout=-1.0 must be above 0"),
        ({"reset_timeout": float("inf")}, "reset_timeout=inf must be above 0 and finite"),
        ({"step_timeout": float("nan")}, "step_timeout=nan must be above 0"),
        ({"max_failures": 0}, "max_failures=0 must be at least 1"),
        ({"image_size": 0}, "image_size=0 must be at least 1"),
        ({"instruction": " "}, "instruction=' ' has no words"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EnvConfig(**setting)


@pytest.mark.parametrize("id", ["mock/Reach", "mujoco/PickCube"])
def test_settings_of_all_adapters_are_honored(id: str) -> None:
    spec = envs.make(EnvConfig(id=id, num_envs=1, num_workers=0)).spec
    config = EnvConfig(
        id=id, num_envs=1, num_workers=0, control_hz=spec.control_hz, instruction="do it"
    )
    assert envs.make(config).spec.tasks == ("do it",)


def test_options_without_their_simulator_need_no_import() -> None:
    """The classes and the lists of tasks are available where a simulator is not installed."""
    code = (
        "import sys\n"
        "for name in ('mani_skill', 'metaworld', 'libero', 'sapien', 'gymnasium.envs.mujoco'):\n"
        "    sys.modules[name] = None\n"  # an import of these raises
        "from pitune import envs\n"
        "for prefix, options in envs.prefixes().items():\n"
        "    assert envs.config_for(f'{prefix}/x').options == options()\n"
        "    assert envs.known_tasks(prefix)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
