"""Mistakes in a command line: each message names the mistake, and what is valid."""

from __future__ import annotations

from pathlib import Path

import pytest

from pitune.experiments.train import parse

MISTAKES = {
    "ppo --algorithm.group-size 4": "--algorithm.group-size, 4; it is an option of grpo;",
    "grpo --algorithm.advantage.gae-lambda 0.9": "it is an option of fpo, ppo;",
    "ppo --algorithm.likelihood.std-min 0.1": "it is an option of ppo:flow_noise;",
    "epo --algorithm.ppo.likelihood.num-draws 4": "it is an option of epo:flow_matching;",
    "ppo --algorithm.off-policy.capacity 4": "it is an option of dsrl;",
    "ppo --algorithm.learner.off_policy.capacity=4": "it is an option of dgn, wsrl;",
    "ppo --env.options.control-mode x": "it is an option of maniskill/ environments;",
    "ppo --algorithm.clp.low 0.1": "did you mean --algorithm.clip.low?",
    "ppo --algorithm.nonsense 0.1": "unrecognized options: --algorithm.nonsense, 0.1;",
    "po": "unknown algorithm 'po'; did you mean 'ppo'?",
    "ppo:flow_nois": "did you mean 'ppo:flow_noise'? valid after the colon: fast, flow_sde,",
    "dsrl:sak": "did you mean 'dsrl:sac'? valid after the colon: sac, noise_aliased",
    "ppo --env.id muoco/PickCube": "did you mean 'mujoco/PickCube'?",
    "ppo --env.num-envs abc": "--env.num-envs takes a whole number, not 'abc';",
    "ppo --seed 2.5": "--seed takes a whole number, not '2.5';",
    "ppo --max-minutes soon": "--max-minutes takes a number, not 'soon';",
    "ppo --load.flow-steps true": "--load.flow-steps takes INT or None, not ['true'];",
    "ppo --load.cameras a": "--load.cameras takes pairs: NAME VALUE;",
    "ppo --env.num-envs 0": "env.num_envs=0 must be at least 1;",
    "ppo --algorithm.advantage.discount 2": "algorithm.advantage.discount=2.0 must be above 0 and",
    "dsrl --algorithm.off-policy.hidden 64 0": "off-policy.hidden[1]=0 must be at least 1",
    "ppo --device gpu": "device='gpu' is no device; valid: cpu, cuda, cuda:0,",
    "ppo --out=": "--out= has no value",
    "ppo --out  --seed 1": "an argument after --out is empty",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_named_with_a_way_out(line: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011, the message is compared below
        parse(line.split(" "))
    assert MISTAKES[line] in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_value_may_end_with_an_equals_sign(tmp_path: Path) -> None:
    out = tmp_path / "rate="
    assert parse(["ppo", f"--out={out}"]).out == out


def test_the_help_shows_the_range_of_every_number(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        parse(["ppo", "--help-all"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert (
        "Discount per environment step, not per chunk [-]. Valid: above 0 and at most 1." in shown
    )
    assert "Seed of the policy's noise and of the environments' starts. Valid: at least 0" in shown
