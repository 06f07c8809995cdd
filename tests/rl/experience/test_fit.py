"""`check_fit`: the advice fits the environment, and a prompt needs words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pitune import envs, rl
from vision_policies import ENV, vision_policy


@pytest.mark.parametrize(
    ("id", "advice"),
    [
        ("gym/my:Robot-v0", "let the environment return them as image/<camera> in a Dict"),
        ("metaworld/reach-v3", "pass --env.cameras"),
        ("mujoco/PickCube", "pass --env.cameras"),
        ("maniskill/PickCube-v1", "pass --env.cameras"),
    ],
)
def test_missing_cameras_have_a_remedy_that_the_environment_has(id: str, advice: str) -> None:
    spec = envs.make(replace(ENV, cameras=("front",))).spec
    message = rf"needs cameras \['wrist'\], {id} was made with \['front'\]; {advice}"
    with pytest.raises(ValueError, match=message):
        rl.check_fit(vision_policy(), replace(spec, id=id))


@pytest.mark.parametrize("tasks", [("",), ("open it", " ")])
def test_a_policy_with_a_prompt_refuses_an_environment_without_words(
    tasks: tuple[str, ...],
) -> None:
    spec = envs.make(ENV).spec
    rl.check_fit(vision_policy(), spec)
    with pytest.raises(ValueError, match=r"needs a prompt, but the instructions are .*--env.instr"):
        rl.check_fit(vision_policy(), replace(spec, tasks=tasks))
