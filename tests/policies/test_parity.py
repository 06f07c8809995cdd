"""The network against the references' numbers, on their tiny checkpoints; see tests/fixtures."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pitune.experiments.verify_checkpoint import (
    VerifyConfig,
    compute,
    encoder_inputs,
    error_of,
    main,
    verify,
)
from pitune.policies.checkpoints.formats import load_network
from pitune.policies.network import flow_time, gemma, layers, pi0, siglip

FIXTURES = Path(__file__).parents[1] / "fixtures"
FAMILIES = ("pi0", "pi05")
TIGHT = 2e-5
"""Below what is promised, 1e-4: so that small mistakes show."""


def openpi(family: str) -> Path:
    return FIXTURES / "openpi" / f"{family}_tiny"


def config(family: str, **changes: object) -> VerifyConfig:
    folder = openpi(family)
    values = {
        "checkpoint": folder / "checkpoint",
        "inputs": folder / "inputs.safetensors",
        "outputs": folder / "outputs.safetensors",
    }
    return VerifyConfig(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_velocity_samples_and_all_gradients_are_openpis(family: str) -> None:
    errors, _ = verify(config(family))
    wanted = {"loss_elementwise", "v_t_joint", "v_t_cached", "traj_x", "gradients"}
    assert wanted | {f"sample_actions_{k}" for k in (1, 5, 10)} <= errors.keys()
    assert max(errors.values()) < TIGHT


@pytest.mark.parametrize("family", FAMILIES)
def test_lerobots_outputs(family: str) -> None:
    network = load_network(openpi(family) / "checkpoint", action_horizon=10)
    inputs = load_file(openpi(family) / "inputs.safetensors")
    outputs = load_file(FIXTURES / "lerobot" / f"{family}_tiny" / "outputs.safetensors")
    computed = compute(network, inputs, encoder_inputs(inputs), list(outputs), accumulated=False)
    assert computed.keys() == outputs.keys()
    for key, value in computed.items():
        assert (value - outputs[key]).abs().max() < TIGHT, key


@pytest.mark.parametrize(("family", "layout"), [("pi0", "released"), ("pi05", "trained")])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-4), ("bfloat16", 5e-2)])
def test_jax_checkpoints_and_outputs(
    family: str, layout: str, dtype: str, tolerance: float
) -> None:
    folder = FIXTURES / "openpi_jax" / f"{family}_tiny"
    errors, tolerated = verify(
        config(
            family,
            checkpoint=folder / layout,
            outputs=folder / f"outputs_{dtype}.npz",
            dtype=dtype,
        )
    )
    assert tolerated == tolerance
    assert {"v_t_joint", "loss_per_step", "sample_actions_10"} <= errors.keys()
    assert max(errors.values()) < tolerance


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_and_absent_cameras_change_nothing(family: str) -> None:
    network = load_network(openpi(family) / "checkpoint", action_horizon=10).requires_grad_(False)
    inputs = load_file(openpi(family) / "inputs.safetensors")
    arguments = encoder_inputs(inputs)
    x, time = inputs["noise"][:, None], torch.ones(2, 1)
    before = network.velocity(network.encode(inputs["state"], **arguments), x, time).velocity
    arguments["images"][~arguments["image_mask"]] = 0.5
    arguments["tokens"][~arguments["token_mask"]] = 17
    after = network.velocity(network.encode(inputs["state"], **arguments), x, time).velocity
    assert torch.equal(before, after)
    arguments["image_mask"] = arguments["image_mask"].clone()
    arguments["image_mask"][:, 2] = False
    masked = network.encode(inputs["state"], **arguments)
    cut = {key: value[:, :2] if "image" in key else value for key, value in arguments.items()}
    left_out = network.encode(inputs["state"], **cut)
    assert left_out.cache[0][0].shape[2] == masked.cache[0][0].shape[2] - 256
    velocities = [network.velocity(c, x, time).velocity for c in (masked, left_out)]
    assert torch.allclose(velocities[0], velocities[1], atol=1e-5)
    assert torch.allclose(masked.features, left_out.features, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_many_points_of_flow_time_in_one_pass_equal_one_by_one(family: str) -> None:
    network = load_network(openpi(family) / "checkpoint", action_horizon=10).requires_grad_(False)
    inputs = load_file(openpi(family) / "inputs.safetensors")
    context = network.encode(inputs["state"], **encoder_inputs(inputs))
    x, time = torch.randn(2, 4, 10, 32), torch.rand(2, 4)
    together = network.velocity(context, x, time).velocity
    for m in range(4):
        alone = network.velocity(context, x[:, m : m + 1], time[:, m : m + 1]).velocity[:, 0]
        assert torch.allclose(together[:, m], alone, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_changes_no_gradient(family: str) -> None:
    inputs = load_file(openpi(family) / "inputs.safetensors")
    gradients = []
    for checkpointing in (False, True):
        network = load_network(openpi(family) / "checkpoint", action_horizon=10)
        for module in network.modules():
            if isinstance(module, gemma.Gemma | siglip.Siglip):
                module.gradient_checkpointing = checkpointing
        names = [f"grad.{name}" for name, _ in network.named_parameters()]
        gradients.append(compute(network, inputs, encoder_inputs(inputs), names, accumulated=True))
    for key, value in gradients[0].items():
        assert torch.allclose(value, gradients[1][key], atol=1e-7), key


def replaced_source(module: object, name: str, old: str, new: str) -> Callable[..., object]:
    """Return a function of a module with a piece of its source replaced."""
    import inspect
    import textwrap

    owner, _, method = name.rpartition(".")
    function = getattr(getattr(module, owner), method) if owner else getattr(module, name)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) >= 1, (name, old)
    scope = dict(vars(module))
    exec(source.replace(old, new), scope)
    return scope[method or name]


MUTANTS = {
    "no sqrt on text": (pi0, "Pi0.embed_prefix", "words * math.sqrt(words.shape[-1])", "words"),
    "picture over sqrt": (
        pi0,
        "Pi0._picture_tokens",
        "rearrange(pictures,",
        "rearrange(pictures / math.sqrt(pictures.shape[-1]),",
    ),
    "no post_layernorm": (siglip, "Siglip.forward", "self.post_layernorm(x)", "x"),
    "exact gelu": (gemma, "MLP.forward", 'approximate="tanh"', 'approximate="none"'),
    "exact gelu in vision": (
        siglip,
        "VisionMLP.forward",
        'approximate="tanh"',
        'approximate="none"',
    ),
    "w for 1 + w": (layers, "RMSNorm.forward", "(1 + self.weight.float())", "self.weight.float()"),
    "adaRMS order": (
        layers,
        "AdaptiveRMSNorm.forward",
        "scale, shift, gate =",
        "shift, scale, gate =",
    ),
    "causal actions": (
        flow_time,
        "flow_time_mask",
        "index[:, None] == index",
        "torch.ones(len(index), len(index)).tril().bool()",
    ),
    "camera mask ignored": (
        pi0,
        "Pi0.embed_prefix",
        "repeat(image_mask.bool(),",
        "repeat(torch.ones_like(image_mask).bool(),",
    ),
    "positions by place": (
        pi0,
        "Pi0.encode_prefix",
        "(valid.cumsum(1) - 1).clamp(min=0)",
        "torch.arange(valid.shape[1]).expand_as(valid)",
    ),
    "action and time swapped": (
        pi0,
        "Pi0.embed_suffix",
        "torch.cat([action, time], dim=-1)",
        "torch.cat([time, action], dim=-1)",
    ),
    "cosine first": (
        flow_time,
        "flow_time_embedding",
        "[angle.sin(), angle.cos()]",
        "[angle.cos(), angle.sin()]",
    ),
    "no last SiLU": (
        pi0,
        "Pi0.embed_suffix",
        "silu(condition).to(self.compute_dtype)",
        "condition.to(self.compute_dtype)",
    ),
    "max_period 10": (flow_time, "flow_time_embedding", "MAX_PERIOD", "10.0"),
    "interleaved rotation": (
        gemma,
        "rotate",
        "x.float().chunk(2, dim=-1)",
        "(x.float()[..., ::2], x.float()[..., 1::2])",
    ),
    "state sees the actions' positions": (
        pi0,
        "Pi0._encode_state",
        "positions = valid.sum(1, keepdim=True)",
        "positions = valid.sum(1, keepdim=True) + 1",
    ),
}
ONLY = {
    "adaRMS order": "pi05",
    "no last SiLU": "pi05",
    "action and time swapped": "pi0",
    "state sees the actions' positions": "pi0",
}


@pytest.mark.parametrize("name", MUTANTS)
def test_known_mistakes_are_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, target, old, new = MUTANTS[name]
    mistaken = replaced_source(module, target, old, new)
    owner, _, method = target.rpartition(".")
    monkeypatch.setattr(getattr(module, owner) if owner else module, method, mistaken)
    if module is flow_time:  # the network imported the function
        monkeypatch.setattr(pi0, method, mistaken)
    for family in [ONLY[name]] if name in ONLY else FAMILIES:
        network = load_network(openpi(family) / "checkpoint", action_horizon=10)
        inputs = load_file(openpi(family) / "inputs.safetensors")
        truth = load_file(openpi(family) / "outputs.safetensors")["loss_elementwise"]
        with torch.no_grad():
            loss = compute(
                network, inputs, encoder_inputs(inputs), ["loss_elementwise"], accumulated=True
            )
        assert (loss["loss_elementwise"] - truth).abs().max() > TIGHT


def test_state_in_the_actions_block_is_noticed() -> None:
    # the expert would see state and actions as one block: the state token would see the actions
    network = load_network(openpi("pi0") / "checkpoint", action_horizon=10).requires_grad_(False)
    inputs = load_file(openpi("pi0") / "inputs.safetensors")
    vlm_only = network.encode(inputs["state"], **encoder_inputs(inputs))
    prefix = [(key[:, :, :-1], value[:, :, :-1]) for key, value in vlm_only.cache]
    assert vlm_only.valid is not None
    valid = vlm_only.valid[:, :-1]
    x = inputs["time"][:, None, None] * inputs["noise"]
    x = x + (1 - inputs["time"][:, None, None]) * inputs["actions"]
    tokens, _ = network.embed_suffix(x[:, None], inputs["time"][:, None])
    both = torch.cat([network.state_proj(inputs["state"])[:, None], tokens], dim=1)
    positions = valid.sum(1, keepdim=True) + torch.arange(11)
    mask = torch.cat([valid, torch.ones(2, 11, dtype=torch.bool)], dim=1)[:, None, None]
    hidden, _ = network.expert(both, positions, mask.expand(-1, -1, 11, -1), prefix)
    mistaken = network.action_out_proj(hidden[:, 1:])
    truth = load_file(openpi("pi0") / "outputs.safetensors")["v_t_joint"]
    assert (mistaken - truth).abs().max() > 3e-4


def run_script(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str, str]:
    """Return exit status, standard output and standard error of the script."""
    monkeypatch.setattr(sys, "argv", ["verify_checkpoint", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    printed = capsys.readouterr()
    return int(stop.value.code or 0), printed.out, printed.err


def test_script_prints_lines_or_json_and_fails_above_the_tolerance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = openpi("pi0")
    arguments = [
        folder / "checkpoint",
        *("--inputs", folder / "inputs.safetensors"),
        *("--outputs", folder / "outputs.safetensors"),
    ]
    status, out, _ = run_script(monkeypatch, capsys, *arguments, "--json")
    assert status == 0
    result = json.loads(out)
    assert result["passed"]
    assert result["errors"]["v_t_joint"] < 1e-4
    outputs = load_file(folder / "outputs.safetensors")
    changed: dict[str, Tensor] = {"v_t_joint": outputs["v_t_joint"] + 1e-3}
    save_file(changed, tmp_path / "outputs.safetensors")
    arguments[-1] = tmp_path / "outputs.safetensors"
    status, out, _ = run_script(monkeypatch, capsys, *arguments)
    assert status == 1
    assert "ABOVE" in out
    shutil.copytree(folder / "checkpoint", tmp_path / "checkpoint")
    status, _, error = run_script(monkeypatch, capsys, tmp_path / "checkpoint", *arguments[1:])
    assert status == 2
    assert "arch.json" in error  # 32 channels do not tell how many heads


def test_text_embeddings_are_scaled_by_the_root_of_the_width() -> None:
    network = load_network(openpi("pi0") / "checkpoint", action_horizon=10).requires_grad_(False)
    inputs = load_file(openpi("pi0") / "inputs.safetensors")
    embedded, _ = network.embed_prefix(**encoder_inputs(inputs))
    assert network.vlm is not None
    words = network.vlm.language_model.embed_tokens(inputs["tokens"])
    assert torch.allclose(embedded[:, -48:], words * math.sqrt(64))


def test_large_numbers_are_compared_in_relative_terms() -> None:
    reference = torch.tensor([0.0, 0.5, -1.0, 300.0, -4e4])
    assert error_of(reference * (1 + 1e-6), reference) < 1.1e-6
    assert error_of(reference + 1e-3, reference) == pytest.approx(1e-3, rel=1e-3)  # near zero
    assert error_of(torch.tensor([330.0]), torch.tensor([300.0])) == pytest.approx(0.1)
    assert math.isnan(error_of(torch.tensor([math.nan, 1.0]), torch.ones(2)))


def test_a_camera_that_the_network_lacks_is_refused_with_the_nearest() -> None:
    inputs = {"image_uint8.base_rgb": torch.zeros(1, 4, 4, 3, dtype=torch.uint8)}
    with pytest.raises(ValueError, match=r"\['base_rgb'\], but .* mean 'base_0_rgb' instead of"):
        encoder_inputs(inputs)


@pytest.mark.parametrize("tolerance", [-1.0, math.nan, math.inf])
def test_a_tolerance_without_a_meaning_is_refused(tolerance: float) -> None:
    with pytest.raises(ValueError, match=r"tolerance=.* must be at least 0"):
        VerifyConfig(checkpoint=Path("x"), inputs=Path("i"), outputs=Path("o"), tolerance=tolerance)
