"""`pretrain` of a policy that reads pictures and the instruction, and the commands that take it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pitune import envs, policies, rl
from pitune.experiments import pretrain as module
from pitune.experiments.evaluate import main as evaluate
from pitune.experiments.pretrain import PretrainConfig, pretrain
from pitune.experiments.pretraining import state
from pitune.experiments.runs.train_config import TrainConfig
from pitune.experiments.train import train
from pitune.rl.algorithms.bc import CloningStep

pytest.importorskip("tokenizers")
ENV = envs.EnvConfig(
    id="mock/Reach",
    num_envs=8,
    num_workers=0,
    max_episode_steps=8,
    cameras=("top", "side"),
    image_size=16,
    options=envs.MockOptions(num_tasks=2),
)
EXPERT = policies.GemmaConfig(
    width=16, depth=1, mlp_dim=16, num_heads=2, num_kv_heads=1, head_dim=8
)
VLM = policies.SmallVLMConfig(
    width=16, mlp_dim=16, vision_width=8, vision_depth=1, vision_mlp_dim=8, vision_heads=2
)


def config_of(out: Path, **changes: Any) -> PretrainConfig:
    config = PretrainConfig(
        env=ENV,
        out=out,
        num_demonstrations=6,
        gradient_steps=6,
        minibatch_size=16,
        expert=EXPERT,
        words=True,
        vlm=VLM,
    )
    return replace(config, **changes)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a clone that reads two cameras and two instructions."""
    folder = tmp_path_factory.mktemp("clone") / "out"
    pretrain(config_of(folder))
    return folder


@pytest.mark.parametrize("cameras", [(), ("top",), ("top", "side")])
@pytest.mark.parametrize("words", [False, True])
def test_the_network_has_what_the_options_name(
    cameras: tuple[str, ...], words: bool, tmp_path: Path
) -> None:
    env = replace(ENV, cameras=cameras)
    vlm = VLM if cameras or words else policies.SmallVLMConfig()
    pretrain(config_of(tmp_path / "a", env=env, words=words, vlm=vlm, gradient_steps=1))
    policy = policies.load(tmp_path / "a" / "pretrained")
    network = policy.network.config
    assert (network.vlm is not None) == (bool(cameras) or words)
    assert (network.vision is not None) == bool(cameras)
    assert (network.vocab_size > 0) == words == (policy.info.tokenizer is not None)
    keys = ["state", *(f"image/{camera}" for camera in cameras), *(["task_id"] if words else [])]
    assert policy.obs_keys == keys


def test_the_demonstrations_hold_pictures_as_bytes(clone: Path) -> None:
    demonstrations = rl.Demonstrations.load(clone / "demonstrations.safetensors")
    assert demonstrations.obs["image/top"].dtype == torch.uint8
    assert demonstrations.obs["image/top"].shape[1:] == (3, 16, 16)
    assert len(demonstrations.tasks) == 2


def test_every_part_of_the_network_is_cloned(tmp_path: Path) -> None:
    weights = []
    for steps in (1, 3):
        torch.manual_seed(0)
        pretrain(config_of(tmp_path / str(steps), gradient_steps=steps))
        weights.append(policies.load(tmp_path / str(steps) / "pretrained").state_dict())
    same = {name for name in weights[0] if torch.equal(weights[0][name], weights[1][name])}
    # the last layer of the language model ends in features that the actions do not read
    last = "language_model.layers.0."
    unread = [f"{last}self_attn.o_proj", f"{last}self_attn.q_proj", f"{last}mlp"]
    unread += ["post_attention", "language_model.norm"]
    trained = {name for name in same if not any(part in name for part in unread)}
    assert not trained


def test_an_interrupted_cloning_with_words_and_pictures_goes_on_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "SAVE_EVERY", 2)
    whole, broken = (config_of(tmp_path / name, picture_shift=2) for name in ("whole", "broken"))
    pretrain(whole)
    original, calls = CloningStep.__call__, iter(range(1, 100))

    def killed_later(self: CloningStep, chunks: Any) -> float:
        if next(calls) == 4:
            raise KeyboardInterrupt
        return original(self, chunks)

    with monkeypatch.context() as patch:
        patch.setattr(CloningStep, "__call__", killed_later)
        with pytest.raises(KeyboardInterrupt):
            pretrain(broken)
    pretrain(broken)
    for name in ("policy.safetensors", "policy.json", "tokenizer/tokenizer.json"):
        files = [config.out / "pretrained" / name for config in (whole, broken)]
        assert files[0].read_bytes() == files[1].read_bytes(), name


def test_the_words_choose_the_action(clone: Path) -> None:
    policy = policies.load(clone / "pretrained")
    obs = {
        "state": torch.zeros(2, 6),
        "image/top": torch.zeros(2, 3, 16, 16, dtype=torch.uint8),
        "image/side": torch.zeros(2, 3, 16, 16, dtype=torch.uint8),
        "task_id": torch.tensor([0, 1]),
    }
    noise = torch.zeros(2, *policy.chunk_shape)
    for tasks, equal in (
        (("reach the green goal", "reach the red goal"), False),
        (("a", "a"), True),
    ):
        chunk = policy.sample_actions(policy.model_input(obs, tasks), noise)
        assert torch.equal(chunk[0], chunk[1]) == equal


def test_a_picture_chooses_the_action(clone: Path) -> None:
    policy = policies.load(clone / "pretrained")
    pictures = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    pictures[1, :, 4:8, 4:8] = 255
    black = torch.zeros_like(pictures)
    noise = torch.zeros(2, *policy.chunk_shape)
    for names in (("image/top", "image/side"), ("image/side", "image/top")):
        obs = {"state": torch.zeros(2, 6), "task_id": torch.zeros(2, dtype=torch.int64)}
        obs |= {names[0]: pictures, names[1]: black}
        chunk = policy.sample_actions(policy.model_input(obs, ("reach",)), noise)
        assert not torch.equal(chunk[0], chunk[1])


def test_evaluate_plays_it_and_names_missing_cameras(
    clone: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ["--checkpoint", str(clone), "--env.id", "mock/Reach", "--env.num-envs", "4"]
    words += ["--episodes", "4", "--env.options.num-tasks", "2", "--env.image-size", "16"]
    out = tmp_path / "result.json"
    evaluate([*words, "--env.cameras", "top", "side", "--out", str(out)])
    assert json.loads(out.read_text())
    with pytest.raises(SystemExit):
        evaluate(words)
    assert "needs cameras ['side', 'top']" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(rl.presets()))
def test_every_algorithm_trains_it_and_resumes_exactly(
    name: str, clone: Path, tmp_path: Path, small_preset: Callable[[str], rl.AlgorithmConfig]
) -> None:
    algorithm = small_preset(name).with_demonstrations(clone / "demonstrations.safetensors")

    def run(out: Path, num_iterations: int, resume: bool = False) -> dict[str, torch.Tensor]:
        config = TrainConfig(
            algorithm=algorithm,
            env=ENV,
            checkpoint=clone / "pretrained",
            out=out,
            num_iterations=num_iterations,
            num_chunks=3,
            eval_every=1,
            eval_episodes=2,
            wandb="off",
            resume=resume,
        )
        train(config)
        return policies.load(sorted(out.glob("checkpoint_*"))[-1]).state_dict()

    whole = run(tmp_path / "whole", 2)
    run(tmp_path / "broken", 1)
    resumed = run(tmp_path / "broken", 2, resume=True)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_a_frozen_language_model_is_not_changed_by_fine_tuning(
    clone: Path, tmp_path: Path, small_preset: Callable[[str], rl.AlgorithmConfig]
) -> None:
    finetune = policies.FinetuneConfig(trainable=("action_expert", "projections"))
    config = TrainConfig(
        algorithm=small_preset("bc").with_demonstrations(clone / "demonstrations.safetensors"),
        env=ENV,
        checkpoint=clone / "pretrained",
        out=tmp_path / "run",
        finetune=finetune,
        num_iterations=1,
        num_chunks=3,
        eval_every=1,
        eval_episodes=2,
        wandb="off",
    )
    train(config)
    before = policies.load(clone / "pretrained").state_dict()
    after = policies.load(tmp_path / "run" / "checkpoint_000001").state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not [name for name in changed if "paligemma.model" in name]


def test_an_export_to_lerobot_loads_again_and_acts_the_same(clone: Path, tmp_path: Path) -> None:
    policy = policies.load(clone / "pretrained")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        policies.save(policy, tmp_path / "export", "lerobot")
        again = policies.load(tmp_path / "export")
    obs = {
        "state": torch.rand(2, 6),
        "image/top": torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8),
        "image/side": torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8),
    }
    noise = torch.zeros(2, *policy.chunk_shape)
    chunks = [
        each.sample_actions(each.model_input(obs, ("reach the red goal",)), noise)
        for each in (policy, again)
    ]
    assert torch.allclose(chunks[0], chunks[1], atol=1e-5)


def test_an_export_to_openpi_names_the_cameras_that_it_needs(clone: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"openpi's cameras are .* this policy's \['top', 'side'\]"
    ):
        policies.save(policies.load(clone / "pretrained"), tmp_path / "export", "openpi")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"words": False, "env": replace(ENV, cameras=())},
            r"vlm=.* has no use without pictures a",
        ),
        ({"env": replace(ENV, cameras=()), "picture_shift": 1}, r"picture_shift=1 has no use with"),
        (
            {"env": replace(ENV, image_size=20)},
            "patch_size=8 must divide image_size=20; ",
        ),
    ],
)
def test_a_setting_that_would_not_be_used_is_rejected(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        config_of(tmp_path, **changes)


def test_instructions_that_cannot_be_read_are_rejected_before_the_expert_plays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rl, "collect_demonstrations", lambda *_, **__: 1 / 0)
    with pytest.raises(ValueError, match=r"max_tokens=3 is less than the \d tokens of the instr"):
        pretrain(config_of(tmp_path / "a", vlm=replace(VLM, max_tokens=3)))
    with pytest.raises(ZeroDivisionError):
        pretrain(config_of(tmp_path / "b"))


def test_a_clone_of_a_version_without_words_is_known_again(tmp_path: Path) -> None:
    config = PretrainConfig(
        env=replace(ENV, cameras=()), out=tmp_path / "a", num_demonstrations=2, gradient_steps=1
    )
    pretrain(config)
    record = json.loads((config.out / "pretrain.json").read_text())
    for name in ("words", "vlm", "picture_shift"):
        del record["config"][name]
    (config.out / "pretrain.json").write_text(json.dumps(record))
    module.check_same_clone(config)
    with pytest.raises(ValueError, match="words: False -> True"):
        module.check_same_clone(replace(config, words=True))
