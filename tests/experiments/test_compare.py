"""`compare`, `comparison` and the recipes' words for algorithms."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pitune import envs, experiments, rl
from pitune.experiments.compare import CompareConfig, compare
from pitune.experiments.quickstart import QuickstartConfig, QuickstartEnv, make_clone, make_guidance
from pitune.experiments.recipes import Recipe, likelihood_words, recipe
from pitune.experiments.runs.comparison import (
    FinishedRun,
    comparison_table,
    draw_curves,
    seed_band,
    summary_table,
)
from pitune.experiments.train import TrainConfig
from pitune.policies import likelihood_config, likelihood_name
from pitune.rl.algorithms.fpo import plus_plus
from pitune.rl.evaluation.statistics import fisher_p_value, wilson_interval


def small_recipe(env_id: str) -> Recipe:
    env = envs.EnvConfig(id=env_id, num_envs=20, num_workers=0, max_episode_steps=8)
    return Recipe(
        env=env,
        gradient_steps=5,
        num_chunks=5,
        num_iterations=2,
        eval_every=1,
        eval_episodes=20,
        ppo=rl.PPOConfig(update=rl.UpdateConfig(minibatch_size=50, num_epochs=1), critic_warmup=0),
    )


@pytest.fixture
def config_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., CompareConfig]:
    monkeypatch.setattr(experiments.quickstart, "recipe", small_recipe)
    monkeypatch.setattr(experiments.train, "learning_curve", lambda *_: None)

    def make(*algorithms: str, **changes: Any) -> CompareConfig:
        config = CompareConfig(
            algorithms=algorithms, env_ids=("mock/Reach",), seeds=(0,), out=tmp_path / "compare"
        )
        return replace(config, **changes)

    return make


def run(name: str, seed: int, rates: list[float], after: int = 90) -> FinishedRun:
    """Return a run with a success rate before training, and those of its evaluations."""

    def evaluation(successes: int) -> dict[str, Any]:
        low, high = wilson_interval(successes, 100)
        return {
            "successes": successes,
            "episodes": 100,
            "success_rate": successes / 100,
            "wilson_low": low,
            "wilson_high": high,
        }

    before, now = (
        {"deployed": evaluation(n), "exploring": evaluation(n - 5)}
        for n in (round(100 * rates[0]), after)
    )
    summary = {
        "env": "mock/Reach",
        "seed": seed,
        "before": before,
        "after": now,
        "env_steps": 1000 * (len(rates) - 1),
        "train_seconds": 60.0,
    }
    steps = [1000.0 * i for i in range(1, len(rates))]
    return FinishedRun(name, summary, "abc", steps, rates[1:])


# The command


def test_one_command_compares_algorithms_on_the_same_clone(config_of: Callable) -> None:
    config = config_of("ppo:one_step", "grpo", seeds=(0, 1))
    runs = compare(config)
    assert [(r.name, r.summary["seed"]) for r in runs] == [
        (name, seed) for seed in (0, 1) for name in config.algorithms
    ]
    for seed in (0, 1):
        folder = config.out / "mock-Reach" / f"seed_{seed}"
        names = ("pretrained", "ppo-one_step", "grpo")
        assert all((folder / name).is_dir() for name in names)
        before = [r.summary["before"]["deployed"] for r in runs if r.summary["seed"] == seed]
        assert before[0] == before[1]  # the clone, on the same starts
    saved = json.loads((folder / "ppo-one_step" / "config.json").read_text())["config"]
    assert saved["algorithm"]["likelihood"]["stochastic_steps"] == "one"
    table = (config.out / "comparison.md").read_text()
    assert table.count("| `mock/Reach` |") == 2 + 2 * 3  # summary; two seeds, their mean
    assert (config.out / "comparison.png").stat().st_size > 1000


def test_what_is_finished_is_not_run_again_and_longer_lists_extend_it(
    config_of: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare(config_of("ppo"))
    trained: list[str] = []
    original = experiments.quickstart.train

    def noted(config: TrainConfig) -> dict[str, Any]:
        trained.append(config.out.name)
        return original(config)

    monkeypatch.setattr(experiments.quickstart, "train", noted)
    runs = compare(config_of("ppo", "fpo"))
    assert trained == ["fpo"]
    assert [r.name for r in runs] == ["ppo", "fpo"]


def test_guidance_holds_demonstrations_that_the_clone_has_not_seen(tmp_path: Path) -> None:
    settings = small_recipe("mock/Reach")
    job = QuickstartConfig(algorithm="ppo", env=QuickstartEnv(id="mock/Reach"), out=tmp_path)
    make_clone(job, settings)
    make_guidance(job, settings)
    assert not (job.folder / "guidance.safetensors").exists()  # ppo does not need it
    make_guidance(replace(job, algorithm="dgn:equal_size"), settings)
    cloned, unseen = (
        rl.Demonstrations.load(job.folder / f"{name}.safetensors")
        for name in ("demonstrations", "guidance")
    )
    assert cloned.num_episodes == unseen.num_episodes == 14
    seen = set(map(tuple, cloned.obs["state"].tolist()))
    assert seen.isdisjoint(map(tuple, unseen.obs["state"].tolist()))


def test_what_was_interrupted_goes_on(config_of: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of("ppo")
    finish = experiments.train.Trainer._finish
    monkeypatch.setattr(experiments.train.Trainer, "_finish", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        compare(config)
    monkeypatch.setattr(experiments.train.Trainer, "_finish", finish)
    (again,) = compare(config)
    assert again.summary["iterations"] == 2
    assert len(again.steps) == 2


def test_what_was_killed_before_its_first_checkpoint_begins_anew(
    config_of: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of("ppo")
    evaluation = experiments.train.Trainer._final_evaluation
    monkeypatch.setattr(experiments.train.Trainer, "_final_evaluation", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        compare(config)
    monkeypatch.setattr(experiments.train.Trainer, "_final_evaluation", evaluation)
    assert compare(config)[0].summary["iterations"] == 2


def test_finished_runs_of_other_settings_are_not_taken_for_these(
    config_of: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of("ppo")
    compare(config)
    other = replace(small_recipe("mock/Reach"), ppo=rl.PPOConfig(clip=rl.PPOClipConfig(high=0.5)))
    monkeypatch.setattr(experiments.quickstart, "recipe", lambda _: other)
    with pytest.raises(ValueError, match=r"started with another config; .*clip.high: 0.2 -> 0.5"):
        compare(config)


def test_a_hurried_comparison_has_folders_of_its_own(config_of: Callable) -> None:
    folders = {
        fast: experiments.compare._job(config_of("ppo", fast=fast), "mock/Reach", 0, "ppo").folder
        for fast in (False, True)
    }
    assert folders[False].parent.name == "mock-Reach"
    assert folders[True].parent.name == "mock-Reach-fast"


def test_what_takes_no_steps_is_compared_too(config_of: Callable) -> None:
    runs = compare(config_of("bc", "ppo"))
    assert [run.steps[-1] > 0 for run in runs] == [False, True]
    assert (config_of("bc").out / "comparison.png").stat().st_size > 1000


def test_algorithms_are_refused_before_anything_runs(config_of: Callable) -> None:
    config = config_of("ppo", "pppo")
    with pytest.raises(ValueError, match="unknown algorithm 'pppo'; did you mean 'ppo'"):
        compare(config)
    assert not config.out.exists()


@pytest.mark.parametrize(
    "changes", [{"algorithms": ()}, {"seeds": (0, 0)}, {"env_ids": ("a/b", "a/b")}]
)
def test_lists_are_checked(changes: dict) -> None:
    (name,) = changes
    with pytest.raises(ValueError, match=rf"{name}=.* must name at least one, and none twice"):
        CompareConfig(**changes)


def test_the_command_line(
    config_of: Callable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    out = config_of("ppo").out
    words = ["compare", "--algorithms", "filtered_bc", "ppo", "--env-ids", "mock/Reach"]
    monkeypatch.setattr(sys, "argv", [*words, "--seeds", "3", "--out", str(out)])
    experiments.compare.main()
    shown = capsys.readouterr().out
    assert "`filtered_bc` | 3 |" in shown
    assert "`ppo` | 3 |" in shown


# Table and curves


def test_steps_to_the_level_are_those_of_the_first_evaluation_that_reached_it() -> None:
    assert run("ppo", 0, [0.4, 0.7, 0.8, 0.6]).steps_to_level == 2000
    assert run("ppo", 0, [0.4, 0.7]).steps_to_level is None


def test_steps_to_the_level_count_from_a_clone_below_it_only() -> None:
    above = run("ppo", 0, [0.9, 0.7, 0.8])
    assert above.steps_to_level is None
    assert " | started above | " in comparison_table([above])
    assert " | started above | " in summary_table([above])
    mixed = summary_table([above, run("ppo", 1, [0.4, 0.7, 0.8])])
    assert " | 2,000 (1 of 2 started above) | " in mixed


def test_the_table_has_every_seed_with_intervals_and_their_mean() -> None:
    runs = [run("ppo", 1, [0.4, 0.9]), run("ppo", 0, [0.4, 0.5, 0.8], after=80)]
    lines = comparison_table([*runs, run("grpo", 0, [0.4, 0.6], after=42)]).splitlines()
    assert [line.split(" | ")[1:3] for line in lines[2:6]] == [
        ["`grpo`", "0"],
        ["`ppo`", "0"],
        ["`ppo`", "1"],
        ["`ppo`", "mean of 2"],
    ]
    assert "40.0% [30.9%, 49.8%] (40/100)" in lines[3]
    assert " | 2,000 | 2,000 | 1.0 min |" in lines[3]
    assert " | never | " in lines[2]
    assert "| 85.0% |" in lines[5]
    assert "| 1,500 [1,000, 2,000] |" in lines[5]
    assert "| 50.0% at 1,000 | 2,000 |" in lines[3]  # the lowest on the way
    assert "Commit abc." in lines[-1]
    assert "| 0.9 |" in lines[2]  # 42 against 40 of 100: no difference


def test_the_summary_has_a_line_for_all_seeds() -> None:
    runs = [run("ppo", 1, [0.4, 0.9]), run("ppo", 0, [0.4, 0.5, 0.8], after=80)]
    runs += [run("grpo", seed, [0.4, rate], after=42) for seed, rate in ((0, 0.6), (1, 0.8))]
    lines = summary_table(runs).splitlines()
    assert lines[2:] == [
        "| `mock/Reach` | `grpo` | 2 | 40.0% | 42.0% | 42.0% | 1 of 2 seeds | 1,000 | 1.0 min |",
        "| `mock/Reach` | `ppo` | 2 | 40.0% | 85.0% | 80.0% | 1,500 [1,000, 2,000] | 1,500 "
        "| 1.0 min |",
    ]


def test_bands_reach_from_the_worst_to_the_best_seed_and_who_ended_stays() -> None:
    runs = [run("ppo", 0, [0.4, 0.6, 0.8]), run("ppo", 1, [0.2, 0.8])]
    steps, mean, low, high = seed_band(runs, num=3)
    # from the first evaluation on: the one before training is on other starts
    assert steps.tolist() == [1000, 1500, 2000]
    assert mean.tolist() == pytest.approx([0.7, 0.75, 0.8])
    assert low.tolist() == pytest.approx([0.6, 0.7, 0.8])
    assert high.tolist() == pytest.approx([0.8, 0.8, 0.8])


def test_curves_are_drawn_for_several_environments(tmp_path: Path) -> None:
    other = run("fpo", 0, [0.1, 0.2])
    other.summary["env"] = "mock/Other"
    draw_curves([run("ppo", 0, [0.4, 0.6]), other], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_fishers_test_by_hand() -> None:
    """Three of three against none of three: 2 / C(6, 3)."""
    assert fisher_p_value((0, 3), (3, 3)) == pytest.approx(0.1)
    assert fisher_p_value((2, 4), (2, 4)) == pytest.approx(1)


# Words for algorithms


def test_a_word_after_the_colon_changes_the_likelihood_and_nothing_else() -> None:
    settings = recipe("maniskill/PickCube-v1")
    plain = settings.algorithm("ppo", Path())
    assert plain == settings.ppo != rl.PPOConfig()
    noisy = settings.algorithm("ppo:flow_noise", Path())
    assert noisy == replace(settings.ppo, likelihood=likelihood_config("flow_noise"))
    population = settings.algorithm("epo:one_step", Path())
    assert isinstance(population, rl.EPOConfig)
    assert population.ppo == replace(settings.ppo, likelihood=likelihood_words()["one_step"])
    assert settings.algorithm("grpo", Path()) == rl.GRPOConfig()
    cloning = settings.algorithm("bc", Path("here"))
    assert cloning == rl.BCConfig(demonstrations=Path("here/demonstrations.safetensors"))


def test_papers_variants_and_ablations_are_words(tmp_path: Path) -> None:
    settings = recipe("mujoco/PickCube")

    def config(name: str) -> Any:
        return settings.algorithm(name, tmp_path)

    assert config("dsrl:sac") == config("dsrl")
    assert config("dsrl:noise_aliased") == replace(config("dsrl"), variant="noise_aliased")
    assert config("dgn:equal_size") == replace(config("dgn"), noise="equal_size")
    assert config("dgn:shuffled").shuffle_differences
    assert config("wsrl:no_warmup").learner.off_policy.warmup_decisions == 0
    kept = config("wsrl:keep_data").learner.off_policy
    assert (kept.offline_share, kept.demonstrations.parent) == (0.5, tmp_path)
    assert config("fpo:plus_plus") == plus_plus(config("fpo"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ppo:nonsense", "unknown variant 'nonsense' in algorithm='ppo:nonsense'; .*valid after"),
        ("bc:flow_noise", "bc has no variants; take algorithm='bc' alone"),
        ("fpo:flow_sde", "unknown variant 'flow_sde' in .*; valid after the colon: plus_plus"),
    ],
)
def test_words_that_mean_nothing_are_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe("mujoco/PickCube").algorithm(name, Path())


def test_every_algorithm_and_likelihood_has_a_word() -> None:
    settings = recipe("mujoco/PickCube")
    for name, default in rl.presets().items():
        assert type(settings.algorithm(name, Path())) is type(default)
    names = {likelihood_name(config) for config in likelihood_words().values()}
    assert names == {"flow_sde", "flow_noise", "velocity_gaussian", "flow_matching", "fast"}
