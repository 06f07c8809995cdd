"""An environment from outside the repository: one file, with an option of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

OUTSIDE = """
from dataclasses import dataclass

import torch

from pitune import envs


@dataclass(frozen=True, kw_only=True)
class LineOptions(envs.EnvOptions):
    length: float = 1.0  # of the line [m]


class Line:
    def __init__(self, name, config):
        envs.require_default(config, "cameras", config.id, "use mock/Reach")
        self.length = config.typed_options(LineOptions).length
        self.position = torch.zeros(config.num_envs)
        self.num_steps = torch.zeros(config.num_envs, dtype=torch.int64)
        self.spec = envs.EnvSpec(
            id=config.id,
            num_envs=config.num_envs,
            state_dim=1,
            action_low=(-1.0,),
            action_high=(1.0,),
            max_episode_steps=config.time_limit(10),
            control_hz=10.0,
            tasks=("go to the end of the line",),
            simulator="line 1.0",
        )

    def reset(self, seed, env_idx=None):
        rows = slice(None) if env_idx is None else env_idx
        self.position[rows] = self.length / 2 * (seed % 100) / 100
        self.num_steps[rows] = 0
        return self.obs()

    def step(self, action, active):
        self.position = torch.where(active, self.position + 0.1 * action[:, 0], self.position)
        self.num_steps = self.num_steps + active
        success = active & (self.position >= self.length)
        truncated = active & ~success & (self.num_steps >= self.spec.max_episode_steps)
        info = {"success": success, "invalid": torch.zeros_like(success)}
        return envs.StepResult(self.obs(), success.float(), success, truncated, info)

    def obs(self):
        task_id = torch.zeros(self.spec.num_envs, dtype=torch.int64)
        return {"state": self.position[:, None].clone(), "task_id": task_id}

    def render(self):
        raise RuntimeError("line/ has no pictures")

    def expert(self):
        raise ValueError("line/ has no expert")

    def close(self):
        pass


envs.register("line", Line, LineOptions, tasks=lambda: ("Straight",))
"""

USER = """
from dataclasses import dataclass, field

import torch
import tyro

import my_line
from pitune import envs

assert envs.prefixes()["line"] is my_line.LineOptions
assert envs.known_tasks("line") == ("Straight",)

# in Python
options = my_line.LineOptions(length=0.2)
env = envs.make(envs.EnvConfig(id="line/Straight", num_envs=2, options=options))
env.reset(torch.tensor([0, 0]))
for _ in range(3):
    result = env.step(torch.ones(2, 1), torch.tensor([True, False]))
assert result.terminated.tolist() == [True, False]
assert envs.make(envs.EnvConfig(id="line/Straight", num_envs=1)).env.length == 1.0

# on the command line
config = tyro.cli(
    envs.EnvConfig,
    args=["--options.length", "3.5", "--num-envs", "4"],
    default=envs.config_for("line/Straight"),
)
assert config == envs.EnvConfig(
    id="line/Straight", num_envs=4, options=my_line.LineOptions(length=3.5)
)
assert envs.make(config).env.length == 3.5

# and its options are refused elsewhere
try:
    envs.make(envs.EnvConfig(id="mock/Reach", options=options))
except ValueError as error:
    print(error)
"""


def test_an_outside_environment_takes_one_file(tmp_path: Path) -> None:
    (tmp_path / "my_line.py").write_text(OUTSIDE)
    (tmp_path / "user.py").write_text(USER)
    result = subprocess.run(
        [sys.executable, "user.py"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "options=LineOptions(length=0.2) cannot be used with id='mock/Reach'" in result.stdout
