"""`formats` and what it reads and writes: the references' own checkpoints."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pitune import policies
from pitune.policies import PIPELINES, FlowPolicy, LoadConfig, Preprocessor, infer, load, save
from pitune.policies.checkpoints.formats import recognize
from pitune.policies.checkpoints.keys import EMBEDDING, EXPERT_HEAD, LM_HEAD
from pitune.policies.inference import observation
from pitune.policies.preprocessing.images import scaled_pictures

FIXTURES = Path(__file__).parents[2] / "fixtures"
TOKENIZER = FIXTURES / "tiny_tokenizer" / "paligemma_tokenizer.model"
FAMILIES = ("pi0", "pi05")
CAMERAS = {"base_0_rgb": "image", "left_wrist_0_rgb": "wrist_image"}


def openpi(family: str) -> Path:
    return FIXTURES / "openpi" / f"{family}_tiny" / "checkpoint"


def openpi_weights(family: str) -> dict[str, Tensor]:
    return load_file(openpi(family) / "model.safetensors")


@pytest.fixture
def lerobot(tmp_path: Path) -> Callable[[str], Path]:
    """Lay out a checkpoint as lerobot does: its json files, and openpi's weights renamed."""

    def make(family: str) -> Path:
        folder = tmp_path / f"lerobot_{family}"
        shutil.copytree(FIXTURES / "lerobot" / f"{family}_tiny" / "pretrained_model", folder)
        shutil.copy(FIXTURES / "openpi" / f"{family}_tiny" / "arch.json", folder)
        weights = openpi_weights(family)
        tensors = {f"model.{key}": value for key, value in weights.items()}
        tensors[f"model.{EMBEDDING}"] = weights[LM_HEAD]
        tensors[f"model.{LM_HEAD}"] = torch.full_like(weights[LM_HEAD], 7.0)  # stale, as there
        save_file(tensors, folder / "model.safetensors")
        return folder

    return make


def load_openpi(family: str, **changes: Any) -> FlowPolicy:
    pipeline = replace(PIPELINES[f"{family}_libero"], **changes)
    return load(openpi(family), LoadConfig(tokenizer=TOKENIZER), pipeline)


def raw_observation(family: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The robot's observation, and what the reference made of it."""
    stored = dict(np.load(FIXTURES / "openpi" / f"{family}_tiny" / "policy_io.npz"))
    raw = {key[4:]: value for key, value in stored.items() if key.startswith("raw/")}
    return {**raw, "prompt": str(raw["prompt"])}, stored


def inputs_of(policy: FlowPolicy, raw: dict[str, Any]) -> dict[str, Tensor]:
    inputs = policy.model_input(observation(policy, raw), (raw["prompt"],))
    tensors = dict(inputs.tensordict().items())
    return {**tensors, "images": scaled_pictures(tensors["images"])}


CASES = [("pi0", 0, 0), ("pi0", 1, 0)] + [("pi05", d, s) for d in (0, 1) for s in (0, 1)]


@pytest.mark.parametrize(("family", "delta", "discrete"), CASES)
def test_raw_observation_to_actions_as_openpi(family: str, delta: int, discrete: int) -> None:
    raw, stored = raw_observation(family)
    case = f"delta{delta}_discrete{discrete}"
    mask = (True,) * 6 + (False,) if delta else ()
    policy = load_openpi(family, delta_mask=mask, discrete_state=bool(discrete))
    inputs = inputs_of(policy, raw)
    assert torch.equal(inputs["tokens"][0], torch.from_numpy(stored[f"{case}/tokens"]))
    assert torch.equal(inputs["token_mask"][0], torch.from_numpy(stored[f"{case}/token_mask"]))
    state = stored[f"{case}/state"]
    assert np.abs(inputs["state"][0, : len(state)].numpy() - state).max() < 1e-6
    picture = ((inputs["images"][0, 0] + 1) / 2 * 255).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(picture, stored["delta0_discrete0/image.base_0_rgb"])
    actions = infer(policy, raw, stored["noise"])
    assert np.abs(actions - stored[f"{case}/actions"]).max() < 1e-4
    others = [other for other in CASES if other != (family, delta, discrete) and other[0] == family]
    for _, d, s in others:  # the cases differ by far more than the tolerance
        assert np.abs(actions - stored[f"delta{d}_discrete{s}/actions"]).max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_raw_observation_to_actions_as_lerobot(family: str, lerobot: Callable[[str], Path]) -> None:
    raw, _ = raw_observation(family)
    stored = load_file(FIXTURES / "lerobot" / f"{family}_tiny" / "policy_io.safetensors")
    policy = load(lerobot(family), LoadConfig(tokenizer=TOKENIZER, cameras=CAMERAS))
    inputs = inputs_of(policy, raw)
    assert torch.equal(inputs["tokens"], stored["tokens"])
    assert torch.equal(inputs["token_mask"], stored["token_mask"])
    actions = infer(policy, raw, stored["noise"][0].numpy())
    assert np.abs(actions - stored["actions"][0].numpy()).max() < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_the_trained_embedding_is_taken_and_not_the_stale_head(
    family: str, lerobot: Callable[[str], Path]
) -> None:
    key = f"network.{EMBEDDING}"
    trained = openpi_weights(family)[LM_HEAD]
    assert torch.equal(load(lerobot(family)).state_dict()[key], trained)
    assert torch.equal(load_openpi(family).state_dict()[key], trained)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fmt", ["pitune", "openpi", "lerobot"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip_is_exact(
    family: str, fmt: Any, dtype: torch.dtype, lerobot: Callable[[str], Path], tmp_path: Path
) -> None:
    config = LoadConfig(tokenizer=TOKENIZER)
    policy = load(lerobot(family), config) if fmt == "lerobot" else load_openpi(family)
    policy = policy.to(dtype) if dtype == torch.bfloat16 else policy
    policy.preprocessor.float()
    save(policy, tmp_path / "saved", format=fmt)
    again = load(
        tmp_path / "saved", config, PIPELINES[f"{family}_libero"] if fmt == "openpi" else None
    )
    assert again.preprocessor.config == policy.preprocessor.config
    assert again.sampler == policy.sampler
    assert again.network.config == policy.network.config
    assert again.state_dict().keys() == policy.state_dict().keys()
    for key, value in policy.state_dict().items():
        assert again.state_dict()[key].dtype == value.dtype == dtype
        assert torch.equal(again.state_dict()[key], value), key


@pytest.mark.parametrize("family", FAMILIES)
def test_written_files_have_the_quirks_that_the_reference_readers_want(
    family: str, lerobot: Callable[[str], Path], tmp_path: Path
) -> None:
    save(load_openpi(family), tmp_path / "openpi", format="openpi")
    with safe_open(tmp_path / "openpi" / "model.safetensors", "pt") as file:
        assert file.metadata() == {EMBEDDING: LM_HEAD}  # openpi's note of the tie
        assert set(file.keys()) == set(openpi_weights(family))
        assert EMBEDDING not in file.keys()  # both together are an unexpected key there
    stats = json.loads(
        (tmp_path / "openpi/assets/physical-intelligence/libero/norm_stats.json").read_text()
    )
    source = openpi(family) / "assets/physical-intelligence/libero/norm_stats.json"
    assert stats == json.loads(source.read_text())

    folder = lerobot(family)
    save(load(folder), tmp_path / "lerobot", format="lerobot")
    written = load_file(tmp_path / "lerobot" / "model.safetensors")
    assert written.keys() == load_file(folder / "model.safetensors").keys()
    assert torch.equal(written[f"model.{EMBEDDING}"], written[f"model.{LM_HEAD}"])
    assert f"model.{EXPERT_HEAD}" in written
    for name in ("config.json", "policy_preprocessor.json", "policy_postprocessor.json"):
        ours, theirs = ((place / name).read_text() for place in (tmp_path / "lerobot", folder))
        assert json.loads(ours) == json.loads(theirs)
    for file in folder.glob("policy_*processor*.safetensors"):
        again, before = load_file(tmp_path / "lerobot" / file.name), load_file(file)
        assert again.keys() == before.keys()
        assert all(torch.equal(again[key], before[key]) for key in before)


def test_openpi_policy_given_to_lerobot_computes_the_same_on_pictures_of_the_right_size(
    tmp_path: Path,
) -> None:
    policy = load_openpi("pi05", discrete_state=True, delta_mask=(True,) * 6 + (False,))
    with pytest.warns(UserWarning, match="antialias"):
        save(policy, tmp_path / "lerobot", format="lerobot")
    again = load(tmp_path / "lerobot", LoadConfig(tokenizer=TOKENIZER, cameras=CAMERAS))
    raw, stored = raw_observation("pi05")
    for name in ("image", "wrist_image"):
        raw[f"observation/{name}"] = raw[f"observation/{name}"][:224, :224]
    ours, theirs = infer(policy, raw, stored["noise"]), infer(again, raw, stored["noise"])
    assert np.abs(ours - theirs).max() < 1e-4


def test_what_lerobot_cannot_express_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="discrete_state"):
        save(load_openpi("pi05", discrete_state=False), tmp_path / "x", format="lerobot")
    assert not (tmp_path / "x").exists()


def test_small_policies_have_no_other_format(
    tiny_policy: Callable[..., FlowPolicy], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="vision-language model"):
        save(tiny_policy(), tmp_path / "x", format="openpi")
    with pytest.raises(
        ValueError, match=r"format='onnx' is unknown; writable are \['openpi', 'lerobot', 'pitune'"
    ):
        save(load_openpi("pi0"), tmp_path / "x", format="onnx")


def copy_openpi(family: str, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    shutil.copytree(openpi(family), folder)
    shutil.copy(openpi(family).parent / "arch.json", folder)
    return folder


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "model.safetensors")


def test_missing_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        load(tmp_path)


def test_truncated_weights_are_refused(tmp_path: Path) -> None:
    folder = copy_openpi("pi0", tmp_path)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="damaged or cut short"):
        load(folder, LoadConfig(pipeline="pi0_libero"))


def test_renamed_key_is_named_as_missing_and_surplus(tmp_path: Path) -> None:
    folder = copy_openpi("pi0", tmp_path)

    def rename(weights: dict[str, Tensor]) -> None:
        weights["action_out_projection.bias"] = weights.pop("action_out_proj.bias")

    rewrite(folder, rename)
    with pytest.raises(ValueError, match=r"missing keys \['action_out_proj.bias'\], surplus keys"):
        load(folder, LoadConfig(pipeline="pi0_libero"))


def test_wrong_shape_is_named(tmp_path: Path) -> None:
    folder = copy_openpi("pi0", tmp_path)
    rewrite(folder, lambda w: w.update({"action_out_proj.bias": torch.zeros(31)}))
    with pytest.raises(ValueError, match=r"action_out_proj.bias': \(\(31,\), \(32,\)\)"):
        load(folder, LoadConfig(pipeline="pi0_libero"))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_pickles_are_never_opened(tmp_path: Path, name: str) -> None:
    folder = copy_openpi("pi0", tmp_path)
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps({"weights": 1}))
    with pytest.raises(ValueError, match="pickle"):
        load(folder, LoadConfig(pipeline="pi0_libero"))
    torch.save({"weights": torch.zeros(1)}, folder / name)
    with pytest.raises(ValueError, match="pickle"):
        load(folder, LoadConfig(pipeline="pi0_libero"))


def test_openpi_needs_its_pipeline_and_the_right_one() -> None:
    with pytest.raises(ValueError, match="pi05_libero"):
        load(openpi("pi0"))
    with pytest.raises(ValueError, match="holds pi05 weights, but the pipeline is pi0's"):
        load(openpi("pi05"), LoadConfig(pipeline="pi0_libero"))


def test_settings_that_a_format_would_not_hear_are_refused(
    tmp_path: Path, lerobot: Callable[[str], Path], tiny_policy: Callable[..., FlowPolicy]
) -> None:
    save(tiny_policy(), tmp_path / "ours")
    for folder, unheard in (
        (tmp_path / "ours", {"action_horizon": 3}),
        (tmp_path / "ours", {"pipeline": "pi0_libero"}),
        (lerobot("pi0"), {"pipeline": "pi0_libero"}),
        (openpi("pi0"), {"pipeline": "pi0_libero", "state_padding": 0}),
    ):
        name, value = list(unheard.items())[-1]
        with pytest.raises(ValueError, match=rf"{name}={value!r} does not apply to .*; leave it"):
            load(folder, LoadConfig(**unheard))


def test_lerobot_type_that_is_not_that_of_the_weights_is_refused(
    lerobot: Callable[[str], Path],
) -> None:
    folder = lerobot("pi05")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "type": "pi0"}))
    with pytest.raises(ValueError, match="type='pi0', but the weights are pi05's"):
        load(folder)


def test_missing_norm_stats_are_refused_unless_asked_for(
    tmp_path: Path, lerobot: Callable[[str], Path]
) -> None:
    folder = copy_openpi("pi0", tmp_path)
    stats = tmp_path / "stats.json"
    shutil.move(folder / "assets/physical-intelligence/libero/norm_stats.json", stats)
    with pytest.raises(ValueError, match="no norm stats"):
        load(folder, LoadConfig(pipeline="pi0_libero"))
    given = load(folder, LoadConfig(pipeline="pi0_libero", norm_stats=stats))
    assert given.preprocessor.config == load_openpi("pi0").preprocessor.config
    bare = load(folder, LoadConfig(pipeline="pi0_libero", unnormalized=True))
    state = torch.arange(8.0)[None]
    assert torch.equal(bare.preprocessor.normalize_state(state)[:, :8], state)
    theirs = lerobot("pi0")
    for name in ("policy_preprocessor.json", "policy_postprocessor.json"):
        (theirs / name).unlink()
    with pytest.raises(ValueError, match="no norm stats"):
        load(theirs)


def test_edited_norm_stats_are_noticed(tmp_path: Path) -> None:
    save(load_openpi("pi0"), tmp_path / "ours")
    file = tmp_path / "ours" / "policy.json"
    description = json.loads(file.read_text())
    description["preprocessor"]["state"]["mean"][0] += 0.1
    file.write_text(json.dumps(description))
    with pytest.raises(ValueError, match="fingerprint"):
        load(tmp_path / "ours")


def test_padded_norm_stats_are_cut_to_the_robot(tmp_path: Path) -> None:
    folder = copy_openpi("pi0", tmp_path)
    file = folder / "assets/physical-intelligence/libero/norm_stats.json"
    stats = json.loads(file.read_text())
    for quantity in stats["norm_stats"].values():
        for values in quantity.values():
            values += [0.0] * (32 - len(values))
    file.write_text(json.dumps(stats))
    padded = load(folder, LoadConfig(pipeline="pi0_libero"))
    assert padded.preprocessor.config == load_openpi("pi0").preprocessor.config


def test_quantiles_that_are_not_there_are_refused(tmp_path: Path) -> None:
    folder = copy_openpi("pi05", tmp_path)
    file = folder / "assets/physical-intelligence/libero/norm_stats.json"
    stats = json.loads(file.read_text())
    for quantity in stats["norm_stats"].values():
        quantity["q01"] = quantity["q99"] = None
    file.write_text(json.dumps(stats))
    with pytest.raises(ValueError, match="q01 and q99"):
        load(folder, LoadConfig(pipeline="pi05_libero"))


def test_tokenizer_of_another_size_is_refused(tmp_path: Path) -> None:
    folder = copy_openpi("pi0", tmp_path)

    def shrink(weights: dict[str, Tensor]) -> None:
        for key in (LM_HEAD, EXPERT_HEAD):
            weights[key] = weights[key][:100].clone()

    rewrite(folder, shrink)
    with pytest.raises(ValueError, match="100"):
        load(folder, LoadConfig(pipeline="pi0_libero", tokenizer=TOKENIZER))


def test_policy_without_a_tokenizer_loads_but_names_it_in_the_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("OPENPI_DATA_HOME", raising=False)
    policy = load(openpi("pi0"), LoadConfig(pipeline="pi0_libero"))
    with pytest.raises(ValueError, match="needs a prompt, but has no tokenizer"):
        infer(policy, raw_observation("pi0")[0])


def test_tokenizer_travels_with_our_checkpoint(tmp_path: Path) -> None:
    raw, stored = raw_observation("pi0")
    save(load_openpi("pi0"), tmp_path / "ours")
    again = load(tmp_path / "ours")
    ours = infer(load_openpi("pi0"), raw, stored["noise"])
    assert np.array_equal(infer(again, raw, stored["noise"]), ours)


def test_lerobot_pi05_of_unknown_version_needs_the_padding_of_its_state(
    lerobot: Callable[[str], Path],
) -> None:
    folder = lerobot("pi05")
    file = folder / "policy_preprocessor.json"
    steps = json.loads(file.read_text())
    steps["steps"] = [
        step for step in steps["steps"] if step["registry_name"] != "relative_actions_processor"
    ]
    file.write_text(json.dumps(steps))
    with pytest.raises(ValueError, match="state_padding=32"):
        load(folder)
    policy = load(folder, LoadConfig(tokenizer=TOKENIZER, state_padding=32, cameras=CAMERAS))
    raw, _ = raw_observation("pi05")
    padded = inputs_of(policy, raw)["token_mask"].sum()
    short = load(folder, LoadConfig(tokenizer=TOKENIZER, state_padding=0, cameras=CAMERAS))
    assert padded > inputs_of(short, raw)["token_mask"].sum() + 24


def test_legacy_names_are_read(tmp_path: Path, lerobot: Callable[[str], Path]) -> None:
    folder = lerobot("pi0")
    expected = load(folder)
    file = folder / "model.safetensors"
    weights = load_file(file)
    prefix = "model.paligemma_with_expert.paligemma."
    old = {}
    for key, value in weights.items():
        if key == f"model.{EMBEDDING}":
            continue
        key = key.replace(prefix + "model.language_model.", prefix + "language_model.model.")
        key = key.replace(prefix + "model.vision_tower", prefix + "vision_tower")
        key = key.replace(prefix + "model.multi_modal", prefix + "multi_modal")
        key = key.replace(prefix + "lm_head", prefix + "language_model.lm_head")
        old[key] = value
    old[f"{prefix}language_model.lm_head.weight"] = weights[f"model.{EMBEDDING}"]
    stats = load_file(next(folder.glob("policy_preprocessor_*.safetensors")))
    for name in ("mean", "std"):
        old[f"normalize_inputs.buffer_observation_state.{name}"] = stats[
            f"observation.state.{name}"
        ]
        old[f"unnormalize_outputs.buffer_action.{name}"] = stats[f"action.{name}"]
    for extra in folder.glob("policy_*"):
        extra.unlink()
    file.unlink()
    save_file(old, file)
    policy = load(folder)
    assert all(
        torch.equal(policy.state_dict()[key], value) for key, value in expected.state_dict().items()
    )
    assert policy.preprocessor.config.state.mean == expected.preprocessor.config.state.mean


def test_every_published_pipeline_is_consistent() -> None:
    for name, pipeline in PIPELINES.items():
        assert name.startswith(pipeline.family + "_")
        assert len(pipeline.delta_mask) in (0, pipeline.action_dim)
        assert pipeline.execution_horizon <= pipeline.action_horizon
        assert pipeline.quantiles == (pipeline.family == "pi05")
        assert recognize(openpi(pipeline.family)) == "openpi"


def test_large_files_are_mapped_and_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pitune.policies.checkpoints.files.MAPPED_BYTES", 1000)
    policy = policies.load(openpi("pi0"), LoadConfig(pipeline="pi0_libero"))
    windows = [
        [int(end, 16) for end in line.split()[0].split("-")]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith("pi0_tiny/checkpoint/model.safetensors")
    ]
    for parameter in policy.network.parameters():
        assert any(low <= parameter.data_ptr() < high for low, high in windows)


def test_a_number_at_the_lower_quantile_is_in_the_first_bin() -> None:
    # float32 arithmetic about the middle of the range puts every fifth of these at -1.0000001
    words: list[str] = []

    class Words:
        def encode(self, text: str, bos: bool = True) -> list[int]:
            words.append(text)
            return [1]

    base = load_openpi("pi05", discrete_state=True).preprocessor.config
    generator = torch.Generator().manual_seed(0)
    for _ in range(25):
        low = torch.randn(8, generator=generator)
        high = low + torch.rand(8, generator=generator) + 0.1
        q01, q99 = (tuple(value.double().tolist()) for value in (low, high))
        config = replace(base, epsilon=0.0, state=replace(base.state, q01=q01, q99=q99))
        Preprocessor(config, 32, 32).tokens(["x"], low[None], Words())
    assert set(words) == {f"Task: x, State: {' '.join(['0'] * 8)};\nAction: "}


def test_settings_that_were_changed_are_given_back(
    lerobot: Callable[[str], Path], tmp_path: Path
) -> None:
    policy = load(lerobot("pi0"), LoadConfig(flow_steps=3, execution_horizon=4, action_horizon=6))
    save(policy, tmp_path / "back", format="lerobot")
    again = load(tmp_path / "back")
    assert (again.sampler.flow_steps, again.sampler.execution_horizon) == (3, 4)
    assert again.network.config.action_horizon == 6


def test_flat_norm_stats_are_floored_and_reported(tmp_path: Path) -> None:
    folder = copy_openpi("pi05", tmp_path)
    file = folder / "assets/physical-intelligence/libero/norm_stats.json"
    stats = json.loads(file.read_text())
    stats["norm_stats"]["state"]["q99"][2] = stats["norm_stats"]["state"]["q01"][2]
    file.write_text(json.dumps(stats))
    with pytest.warns(UserWarning, match=r"'state': \[2\]"):
        policy = load(folder, LoadConfig(pipeline="pi05_libero"))
    assert policy.preprocessor.normalize_state(torch.zeros(1, 8)).isfinite().all()


def test_a_prompt_that_is_not_one_text_is_refused() -> None:
    raw, stored = raw_observation("pi0")
    policy = load_openpi("pi0")
    alone = infer(policy, raw, stored["noise"])
    assert np.array_equal(infer(policy, {**raw, "prompt": [raw["prompt"]]}, stored["noise"]), alone)
    with pytest.raises(ValueError, match="one text"):
        infer(policy, {**raw, "prompt": ["a", "b"]})


def test_what_openpi_does_otherwise_is_said_or_refused(
    lerobot: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match="openpi will differ: prompts are cleaned"):
        save(load(lerobot("pi0")), tmp_path / "one", format="openpi")
    policy = load_openpi("pi05")
    other = replace(policy.preprocessor.config, normalization="zscore")
    with pytest.raises(ValueError, match="by quantile, this policy by zscore"):
        save(FlowPolicy(policy.network, other, policy.sampler), tmp_path / "x", format="openpi")
    assert not (tmp_path / "x").exists()


def test_lerobots_renamed_cameras_are_read_as_the_robot_sends_them(
    lerobot: Callable[[str], Path],
) -> None:
    folder = lerobot("pi0")
    file = folder / "policy_preprocessor.json"
    steps = json.loads(file.read_text())
    step = next(s for s in steps["steps"] if s["registry_name"].startswith("rename_obs"))
    step["config"]["rename_map"] = {"observation.images.image": "observation.images.base_0_rgb"}
    file.write_text(json.dumps(steps))
    pictures = load(folder).preprocessor.config.pictures
    assert pictures is not None
    assert pictures.cameras == {"base_0_rgb": "image", "left_wrist_0_rgb": "left_wrist_0_rgb"}
