"""`pitune evaluate`: seeds, comparison, sweeps, words, folders and the shape of its results."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pitune import envs, policies, rl
from pitune.envs.mock.registration import MockOptions
from pitune.experiments.evaluate import EvaluateConfig, evaluate, main
from pitune.policies.flow.delay import DelayConfig
from pitune.policies.preprocessing.own_tokenizer import make_tokenizer

ENV = envs.EnvConfig(id="mock/Reach", num_envs=4, num_workers=0, max_episode_steps=8)
TWO_TASKS = replace(ENV, options=MockOptions(num_tasks=2))


@pytest.fixture(scope="module")
def checkpoints(tiny_policy: Callable, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("policies")
    for seed in (0, 1):
        policies.save(tiny_policy(horizon=4, seed=seed), folder / str(seed))
    return [folder / "0", folder / "1"]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the checkpoint of a policy that reads the words of two tasks."""
    folder = tmp_path_factory.mktemp("reader")
    tasks = envs.make(TWO_TASKS).spec.tasks
    tokenizer = make_tokenizer(tasks, folder / "tokenizer.json", max_vocabulary=512, max_tokens=32)
    torch.manual_seed(0)
    policy = policies.small_policy(
        torch.rand(50, 6),
        2 * torch.rand(50, 2) - 1,
        action_horizon=4,
        sampler=policies.SamplerConfig(flow_steps=2, execution_horizon=2),
        tokenizer=tokenizer,
    )
    policies.save(policy, folder / "policy")
    return folder / "policy"


@pytest.fixture
def config(checkpoints: list[Path], tmp_path: Path) -> EvaluateConfig:
    return EvaluateConfig(
        checkpoint=checkpoints[0], env=ENV, episodes=10, out=tmp_path / "out.json", device="cpu"
    )


def record_of(config: EvaluateConfig) -> dict[str, Any]:
    evaluate(config)
    assert config.out is not None
    return dict(json.loads(config.out.read_text()))


# Rows


def test_a_row_has_its_task_start_outcome_and_length(config: EvaluateConfig) -> None:
    result = record_of(config)["result"]
    assert len(result["rows"]) == result["episodes"] == 10
    assert result["rows"][3].keys() == {
        *("evaluation_seed", "index", "seed", "task_id", "task"),
        *("success_once", "success_at_end", "length", "episode_return", "invalid"),
    }
    assert [row["index"] for row in result["rows"]] == list(range(10))
    (task,) = result["tasks"]
    assert (task["successes"], task["episodes"]) == (result["successes"], 10)
    assert task["wilson_low"] == result["wilson_low"]
    assert result["mean_over_tasks"] is None


def test_several_seeds_have_rows_of_their_own_and_a_total(config: EvaluateConfig) -> None:
    both = record_of(replace(config, seeds=(0, 5)))["result"]
    single = [record_of(replace(config, seed=seed))["result"] for seed in (0, 5)]
    assert both["episodes"] == 20
    assert both["successes"] == sum(part["successes"] for part in single)
    for part, seed in zip(single, (0, 5), strict=True):
        rows = [row for row in both["rows"] if row["evaluation_seed"] == seed]
        assert rows == part["rows"]
        assert both["seeds"][str(seed)]["successes"] == part["successes"]
    assert not {row["seed"] for row in single[0]["rows"]} & {
        row["seed"] for row in single[1]["rows"]
    }


def test_the_rows_are_those_of_rl_evaluate(config: EvaluateConfig) -> None:
    result = evaluate(config)
    actor = policies.Actor(policies.load(config.checkpoint))
    assert result == rl.evaluate(envs.make(ENV), actor, 10)


# Comparison


def test_another_checkpoint_plays_the_same_starts(
    config: EvaluateConfig, checkpoints: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    record = record_of(replace(config, compare=checkpoints[1], seeds=(0, 1), episodes=20))
    first, second = record["result"], record["compare"]
    starts = [[(r["evaluation_seed"], r["seed"]) for r in s["rows"]] for s in (first, second)]
    assert starts[0] == starts[1]
    total = record["comparison"]["total"]
    assert record["comparison"]["paired"] is True
    assert total["pairs"] == 40
    wins = sum(
        b["success_once"] and not a["success_once"]
        for a, b in zip(first["rows"], second["rows"], strict=True)
    )
    assert total["solved_by_compare_alone"] == wins
    gap = second["success_rate"] - first["success_rate"]
    assert total["difference"] == pytest.approx(gap)
    assert total["difference_low"] <= gap <= total["difference_high"]
    out = capsys.readouterr().out
    assert "on the 40 starts of both: solved by --compare alone" in out
    alone = record_of(replace(config, checkpoint=checkpoints[1], episodes=20))["result"]
    assert alone["rows"] == [row for row in second["rows"] if row["evaluation_seed"] == 0]


def test_the_comparison_has_each_task(
    config: EvaluateConfig, reader: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = record_of(replace(config, checkpoint=reader, compare=reader, env=TWO_TASKS))
    tests = record["comparison"]["tasks"]
    assert sum(test["pairs"] for test in tests) == 10
    assert all((test["p_value"], test["difference"]) == (1.0, 0.0) for test in tests)
    assert record["result"]["mean_over_tasks"]["tasks"] == len(tests) == 2
    assert "paired comparison" in capsys.readouterr().out


def test_without_fixed_starts_the_comparison_is_unpaired(
    config: EvaluateConfig,
    checkpoints: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make = envs.make

    def unseeded(settings: envs.EnvConfig) -> envs.CheckedEnv:
        env = make(settings)
        env.spec = replace(env.spec, deterministic_reset=False)
        return env

    monkeypatch.setattr(envs, "make", unseeded)
    record = record_of(replace(config, compare=checkpoints[1]))
    assert record["seeded_starts"] is False
    assert record["comparison"]["paired"] is False
    assert "pairs" not in record["comparison"]["total"]
    assert "unpaired, because a seed does not fix the starts" in capsys.readouterr().out


# Sweeps


def test_each_cell_has_its_settings_and_the_same_starts(config: EvaluateConfig) -> None:
    vary = (("execution_horizon", "1", "4"), ("flow_steps", "2", "3"))
    cells = record_of(replace(config, vary=vary))["cells"]
    assert [cell["settings"] for cell in cells] == [
        {"execution_horizon": h, "flow_steps": k} for h in (1, 4) for k in (2, 3)
    ]
    starts = [[row["seed"] for row in cell["result"]["rows"]] for cell in cells]
    assert all(other == starts[0] for other in starts)
    policy = policies.load(config.checkpoint)
    sampler = replace(policy.sampler, execution_horizon=4, flow_steps=3)
    expected = rl.evaluate(envs.make(ENV), policies.Actor(policy.replace(sampler=sampler)), 10)
    returns = [row["episode_return"] for row in cells[3]["result"]["rows"]]
    assert returns == expected.episode_return


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        (("execution_horizon", "1", "5"), "execution_horizon=5 cannot be played: .*between 1 and"),
        (("flow_steps", "0"), "flow_steps=0 cannot be played: flow_steps=0 must be at least 1"),
        (("delay.steps", "3"), "delay.steps=3 cannot be played: .*"),
        (("real_time.max_weight", "2.0"), "real_time is set, but delay.seam='plain' does not"),
        (("flow_step", "1"), "did you mean 'flow_steps'"),
    ],
)
def test_a_cell_that_cannot_be_played_is_refused_before_any_episode(
    vary: tuple[str, ...],
    message: str,
    config: EvaluateConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rl, "evaluate", lambda *_, **__: pytest.fail("an episode was played"))
    monkeypatch.setattr(envs, "make", lambda *_: pytest.fail("an environment was made"))
    with pytest.raises(ValueError, match=message):
        evaluate(replace(config, vary=(vary,)))


def test_delays_and_their_seams_can_be_varied(config: EvaluateConfig) -> None:
    dense = replace(config, env=replace(ENV, reward="dense"))
    vary = (("delay.steps", "0", "2"), ("delay.seam", "plain", "ensemble"))
    cells = record_of(replace(dense, vary=vary, stochastic=False))["cells"]
    returns = [cell["result"]["mean_return"] for cell in cells]
    assert returns[0] == record_of(dense)["result"]["mean_return"]
    assert len(set(returns)) >= 3


# Words


def test_shuffled_instructions_reach_the_policy_and_the_result(
    config: EvaluateConfig, reader: Path
) -> None:
    config = replace(config, checkpoint=reader, env=replace(TWO_TASKS, reward="dense"))
    own = record_of(config)
    shuffled = record_of(replace(config, shuffle_instructions=True))
    tasks = own["environment"]["instructions"]
    assert shuffled["instructions"] == {"0": tasks[::-1]}
    assert "instructions" not in own
    rows = [record["result"]["rows"] for record in (own, shuffled)]
    for a, b in zip(*rows, strict=True):
        assert (a["seed"], a["task_id"]) == (b["seed"], b["task_id"])
    assert any(a["episode_return"] != b["episode_return"] for a, b in zip(*rows, strict=True))


def test_shuffled_instructions_without_effect_are_refused(
    config: EvaluateConfig, reader: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"has no effect on .*, whose policy has no prompt"):
        evaluate(replace(config, shuffle_instructions=True))
    tokenizer = make_tokenizer(
        ["reach"], tmp_path / "tokenizer.json", max_vocabulary=512, max_tokens=32
    )
    sampler = policies.SamplerConfig(flow_steps=2, execution_horizon=2)
    states, actions = torch.rand(50, 4), torch.rand(50, 2)
    policy = policies.small_policy(
        states, actions, action_horizon=4, sampler=sampler, tokenizer=tokenizer
    )
    policies.save(policy, tmp_path / "policy")
    with pytest.raises(ValueError, match="no task has other words"):
        evaluate(replace(config, checkpoint=tmp_path / "policy", shuffle_instructions=True))


# Folders


def test_a_finished_evaluation_is_printed_again_and_a_longer_one_goes_on(
    config: EvaluateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, folder=tmp_path / "evaluation")
    first = record_of(config)
    whole = record_of(replace(config, folder=tmp_path / "whole", episodes=14, seeds=(0, 1)))
    with monkeypatch.context() as patch:
        patch.setattr(rl, "evaluate", lambda *_, **__: pytest.fail("an episode was played"))
        assert record_of(config)["result"] == first["result"]
    longer = record_of(replace(config, episodes=14, seeds=(0, 1)))
    assert longer["result"] == whole["result"]
    assert (tmp_path / "evaluation" / "table.md").read_text().startswith("# mock/Reach, 14 epis")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env": replace(ENV, max_episode_steps=9)}, "env.max_episode_steps: 8 -> 9"),
        ({"env": replace(ENV, num_envs=5)}, "env.num_envs: 4 -> 5"),
        ({"delay": DelayConfig(steps=1)}, "delay.steps: 0 -> 1"),
        ({"env": replace(ENV, success="at_end")}, "env.success: 'once' -> 'at_end'"),
    ],
)
def test_a_folder_of_another_evaluation_is_refused(
    changes: dict[str, Any], message: str, config: EvaluateConfig, tmp_path: Path
) -> None:
    config = replace(config, folder=tmp_path / "evaluation")
    evaluate(config)
    with pytest.raises(ValueError, match=f"another config; different: {message}.*--folder"):
        evaluate(replace(config, **changes))


def test_a_checkpoint_that_has_changed_is_refused(
    config: EvaluateConfig, checkpoints: list[Path], tmp_path: Path
) -> None:
    config = replace(config, folder=tmp_path / "evaluation")
    evaluate(config)
    with pytest.raises(ValueError, match=r"holds rows of another checkpoint \(SHA-256 .*, now"):
        evaluate(replace(config, checkpoint=checkpoints[1]))
    evaluate(replace(config, compare=checkpoints[1]))
    with pytest.raises(ValueError, match="holds rows of another compare"):
        evaluate(replace(config, compare=checkpoints[0]))


def test_versions_that_have_changed_are_refused(
    config: EvaluateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, folder=tmp_path / "evaluation")
    evaluate(config)
    file = tmp_path / "evaluation" / "evaluation.json"
    record = json.loads(file.read_text())
    record["config"]["versions"]["torch"] = "2.0"
    file.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"different: versions.torch: '2.0' -> "):
        evaluate(config)


def test_a_folder_with_something_else_is_refused(config: EvaluateConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="is a file; pass another --folder"):
        evaluate(replace(config, folder=tmp_path / "file"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileExistsError, match="holds a run; pass another --folder"):
        evaluate(replace(config, folder=tmp_path))
    evaluate(replace(config, folder=tmp_path / "evaluation"))
    (tmp_path / "evaluation" / "evaluation.json").unlink()
    with pytest.raises(FileExistsError, match=r"evaluation.json is missing; restore"):
        evaluate(replace(config, folder=tmp_path / "evaluation"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stochastic": True}, "cannot go on with stochastic=True"),
        ({"delay": DelayConfig(steps=1, max_steps=2)}, "cannot go on with delay.max_steps=2"),
        ({"vary": (("delay.max_steps", "1"),)}, "cannot go on with delay.max_steps=1"),
        ({"checkpoint": Path("ws://127.0.0.1:1")}, "folder=.* needs the policy itself"),
    ],
)
def test_episodes_that_depend_on_each_other_are_not_continued(
    changes: dict[str, Any], message: str, config: EvaluateConfig, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(replace(config, folder=tmp_path / "evaluation", **changes))
    assert not (tmp_path / "evaluation").exists()


def test_a_server_decides_its_own_settings(config: EvaluateConfig) -> None:
    server = Path("ws://127.0.0.1:1")
    varied = replace(config, vary=(("flow_steps", "1"),))
    for changed in (replace(varied, checkpoint=server), replace(varied, compare=server)):
        with pytest.raises(ValueError, match="vary needs the policy itself, not a server"):
            evaluate(changed)


# Settings


def test_a_result_that_could_not_be_written_is_refused_before_any_episode(
    config: EvaluateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rl, "evaluate", lambda *_, **__: pytest.fail("an episode was played"))
    with pytest.raises(FileExistsError, match=r"out=.* is a folder; pass a file"):
        evaluate(replace(config, out=tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        evaluate(replace(config, out=tmp_path / "file" / "out.json"))
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(PermissionError, match="cannot be written; make it writable"):
        evaluate(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1, "seeds": (0, 1)}, "seed=1 and seeds=.* are both set"),
        ({"seeds": (0, 0)}, r"seeds=\(0, 0\) must not repeat a seed"),
        ({"shards": 2}, "shards=2 needs a folder"),
        ({"shard": "1/2"}, "shard=1/2 needs a folder"),
        ({"shard": "1/2", "shards": 2, "folder": Path("x")}, "pass one of both"),
        ({"shard": "3/2", "folder": Path("x")}, "shard='3/2' must be a number, a slash"),
        ({"shard": "a", "folder": Path("x")}, "shard='a' must be a number, a slash"),
        ({"films": 2, "out": None}, "films=2 need a place; pass --folder, or --out"),
        ({"film_grid": True}, "film_grid=True has no episodes"),
        ({"films": 1, "shard": "1/2", "folder": Path("x")}, "after all shares are played"),
        ({"record": Path("x"), "folder": Path("y")}, "record=x takes all episodes .*leave folder"),
        ({"record": Path("x"), "shuffle_instructions": True}, "leave shuffle_instructions"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    changes: dict[str, Any], message: str, config: EvaluateConfig
) -> None:
    with pytest.raises(ValueError, match=message):
        replace(config, **changes)


def test_the_command_line_takes_all_of_it(
    checkpoints: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(
        [
            *("--checkpoint", str(checkpoints[0]), "--compare", str(checkpoints[1])),
            *("--env.id", "mock/Reach", "--env.num-envs", "4", "--env.num-workers", "0"),
            *("--episodes", "4", "--seeds", "0", "1", "--device", "cpu"),
            *("--vary", "execution_horizon", "1", "4", "--vary", "flow_steps", "2"),
            *("--folder", str(tmp_path / "evaluation")),
        ]
    )
    out = capsys.readouterr().out
    assert "deployed settings, on the same starts" in out
    cells = json.loads((tmp_path / "evaluation" / "result.json").read_text())["cells"]
    assert len(cells) == 2
    assert {cell["comparison"]["total"]["pairs"] for cell in cells} == {8}
