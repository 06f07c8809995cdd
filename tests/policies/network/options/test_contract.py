"""The contract of every option of the network, and of every pair of options.

With an option, a published checkpoint computes the same numbers until the option is trained. A
trained one obeys all that the network without it obeys. tests/support/network_options.py lists
them.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fast_policies import with_fast_tokens
from lerobot_fixtures import NOISE, actions_of, lerobot_folder, robot_observation
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from network_options import (
    CASES,
    OptionCase,
    cases_and_families,
    gradients,
    pairs,
    perturb,
)
from openpi_fixtures import TOKENIZER, load_openpi, openpi_folder
from pitune.policies import (
    PIPELINES,
    FinetuneConfig,
    FlowPolicy,
    InferenceSession,
    LikelihoodActor,
    LoadConfig,
    ModelInput,
    NetworkOptions,
    Pi0,
    Pi0Config,
    apply_finetuning,
    likelihood_config,
    likelihoods,
    load,
    save,
)
from pitune.policies.checkpoints.weights import build
from pitune.policies.finetuning.memory import parameter_report
from pitune.policies.flow.ode import ode_log_likelihood
from pitune.policies.likelihood import distributions
from pitune.policies.network.config import Family
from pitune.policies.network.context import pack, unpack
from pitune.policies.network.extensions import new_parameters
from pitune.policies.network.options.add import network_with_options
from pitune.rl.experience.sub_dict import sub_dict
from vision_policies import vision_policy

SAME = 1e-6
"""Greatest difference of a velocity (about 1) that counts as the same numbers."""
SINGLES = list(cases_and_families(CASES))
PAIRS = list(cases_and_families(pairs()))
ALL = [*SINGLES, *PAIRS]
FAST = {(case.name, case.families[i % len(case.families)]) for i, case in enumerate(pairs())}
"""Every pair with one of its families. The tests with the other one are marked `slow`."""


def marks(case: OptionCase, family: Family) -> list[pytest.MarkDecorator]:
    return [pytest.mark.slow] if len(case.on) > 1 and (case.name, family) not in FAST else []


def named(rows: list[tuple[OptionCase, Family]]) -> Any:
    """Return the parametrization of a test by cases and families."""
    values = [
        pytest.param(
            case,
            family,
            id=f"{case.name}-{family}",
            marks=[pytest.mark.slow]
            if "+" in case.name and (case.name, family) not in FAST
            else [],
        )
        for case, family in rows
    ]
    return pytest.mark.parametrize(("case", "family"), values)


def identities(rows: list[tuple[OptionCase, Family]]) -> list[tuple[OptionCase, Family]]:
    return [row for row in rows if row[0].identity]


# The references' checkpoints


def inputs() -> dict[str, Tensor]:
    """Return inputs of the references' networks, with padding and an absent camera."""
    generator = torch.Generator().manual_seed(0)
    valid = torch.ones(2, 6, dtype=torch.bool)
    valid[0, 4:] = False
    return {
        "state": torch.randn(2, 32, generator=generator),
        "images": 2 * torch.rand(2, 2, 3, 224, 224, generator=generator) - 1,
        "image_mask": torch.tensor([[True, True], [True, False]]),
        "tokens": torch.randint(1024, (2, 6), generator=generator),
        "token_mask": valid,
    }


@pytest.fixture(scope="module")
def plain() -> dict[str, FlowPolicy]:
    """openpi's checkpoints without options."""
    return {family: load_openpi(family) for family in ("pi0", "pi05")}


@pytest.fixture(scope="module")
def prefixes(plain: dict[str, FlowPolicy]) -> dict[str, Any]:
    """The encoded pictures and prompts, which no option of the expert changes."""
    return {name: prefix_of(policy.network) for name, policy in plain.items()}


def prefix_of(network: Pi0) -> Any:
    given: dict[str, Any] = {k: v for k, v in inputs().items() if k != "state"}
    with torch.no_grad():
        return network.encode_prefix(**given)


def velocity(network: Pi0, context: Any) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 3, 10, 32, generator=generator)
    flow_time = torch.tensor([[0.2, 0.9, 0.4], [0.5, 1.0, 0.1]])
    with torch.no_grad():
        return network.velocity(context, x, flow_time).velocity


@named(identities(ALL))
def test_a_published_checkpoint_computes_the_same_numbers(
    case: OptionCase, family: Family, plain: dict[str, FlowPolicy], prefixes: dict[str, Any]
) -> None:
    before = plain[family].network
    network = network_with_options(before, case.options, None)
    prefix, state = prefixes[family], inputs()["state"]
    with torch.no_grad():
        expected = velocity(before, before.with_state(prefix, state))
    if case.options.registers.prefix:  # tokens of the prefix itself
        prefix = prefix_of(network)
    with torch.no_grad():
        found = velocity(network, network.with_state(prefix, state))
    assert float((found - expected).abs().max()) < SAME
    if case.has_parameters and not case.silent:  # the control: it is in the computation
        perturb(network)
        with torch.no_grad():
            changed = velocity(network, network.with_state(prefix, state))
        assert float((changed - expected).abs().max()) > 1e-4


@named(identities(SINGLES))
def test_loading_adds_an_option_to_a_checkpoint(case: OptionCase, family: Family) -> None:
    config = LoadConfig(tokenizer=TOKENIZER, options=case.options)
    policy = load(openpi_folder(family), config, PIPELINES[f"{family}_libero"])
    assert policy.network.config.options == case.options
    assert bool(new_parameters(policy.network)) == case.has_parameters
    before = load_openpi(family)
    given = {key: value[:1] for key, value in inputs().items()}
    x, time = torch.randn(1, 1, 10, 32), torch.full((1, 1), 0.7)
    with torch.no_grad():
        found, expected = (
            p.network.velocity(p.network.encode(**given), x, time).velocity
            for p in (policy, before)
        )
    assert float((found - expected).abs().max()) < SAME
    for key, value in before.network.state_dict().items():
        assert torch.equal(policy.network.state_dict()[key], value), key


@named(identities(SINGLES))
def test_lerobots_checkpoints_act_the_same(
    case: OptionCase, family: Family, tmp_path: Path
) -> None:
    folder = lerobot_folder(tmp_path, family)
    plain = actions_of(folder)
    if "memory" in case.on:
        policy = load(folder, LoadConfig(tokenizer=TOKENIZER, options=case.options))
        with_option = InferenceSession(policy).infer(robot_observation(), NOISE)
    else:
        with_option = actions_of(folder, options=case.options)
    assert np.abs(with_option - plain).max() < SAME


@named([row for row in ALL if not row[0].identity])
def test_an_option_that_changes_the_numbers_is_refused_by_name(
    case: OptionCase, family: Family, plain: dict[str, FlowPolicy]
) -> None:
    name = next(name for name, option in case.options.active() if option.pretrained_fault())
    message = rf"options\.{name}\..*, so pretrained weights would compute other numbers; take it"
    with pytest.raises(ValueError, match=message):
        network_with_options(plain[family].network, case.options, None)
    sizes = replace(plain[family].network.config, options=case.options)
    with pytest.raises(ValueError, match=message):
        build(sizes, plain[family].network.state_dict(), Path("here"))


@named(SINGLES)
@pytest.mark.parametrize("format", ["openpi", "lerobot"])
def test_exports_refuse_an_option_by_name(
    case: OptionCase, family: Family, format: str, tmp_path: Path
) -> None:
    policy = load_openpi(family, discrete_state=family == "pi05")
    policy.network.config = replace(policy.network.config, options=case.options)
    message = rf"{format} cannot hold the network options \['{case.on[0]}'\] of this policy; save"
    with pytest.raises(ValueError, match=message):
        save(policy, tmp_path / "export", format=format)


# Trained options, on a tiny policy with pictures and a prompt


def small(case: OptionCase, family: Family, trained: bool = True) -> FlowPolicy:
    """Return a tiny policy with the options, perturbed as if they had been trained."""
    policy = vision_policy(family)
    with torch.no_grad():  # the adaptive norms' gates start at 1, and other numbers at 0
        generator = torch.Generator().manual_seed(5)
        for value in policy.network.expert.parameters():
            value.add_(0.05 * torch.randn(value.shape, generator=generator))
    before = policy.network
    torch.manual_seed(0)
    network = Pi0(replace(before.config, options=case.options))
    network.load_state_dict(before.state_dict(), strict=False)
    if trained:
        perturb(network)
    return policy.replace(network=network)


def observations(policy: FlowPolicy, num: int = 3) -> TensorDict:
    generator = torch.Generator().manual_seed(2)
    obs = {
        "state": torch.rand(num, 4, generator=generator),
        "task_id": torch.arange(num) % 2,
    } | {
        f"image/{camera}": torch.randint(
            256, (num, 3, 20, 20), dtype=torch.uint8, generator=generator
        )
        for camera in ("front", "wrist")
    }
    if policy.has_memory:  # of a decision in the middle of an episode
        obs["memory"] = torch.randn(num, *policy.memory_shape, generator=generator)
    words = ("reach the goal", "go away from the goal and stop there")
    return policy.observation_preprocessor(words)(TensorDict(obs, [num]))


def points(policy: FlowPolicy, num: int, m: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(num, m, *policy.chunk_shape, generator=generator)
    return x, 0.05 + 0.9 * torch.rand(num, m, generator=generator)


def encoded(policy: FlowPolicy, td: TensorDictBase) -> Any:
    return policy.encode(ModelInput.of(td))


@named(ALL)
def test_many_flow_times_in_one_pass_equal_one_by_one_and_rows_are_independent(
    case: OptionCase, family: Family
) -> None:
    policy = small(case, family)
    td = observations(policy)
    x, time = points(policy, 3, 4)
    with torch.no_grad():
        together = policy.field(encoded(policy, td))(x, time).velocity
        for row in range(3):
            context = encoded(policy, sub_dict(td, slice(row, row + 1)))
            for m in range(4):
                one = policy.field(context)(x[row, m][None, None], time[row, m][None, None])
                assert torch.allclose(together[row, m], one.velocity[0, 0], atol=2e-5)


@named(ALL)
def test_flow_times_of_single_tokens_equal_one_of_all(case: OptionCase, family: Family) -> None:
    policy = small(case, family)
    x, time = points(policy, 3, 2)
    with torch.no_grad():
        context = encoded(policy, observations(policy))
        shared = policy.network.velocity(context, x, time).velocity
        each = time[..., None].expand(-1, -1, x.shape[2])
        single = policy.network.velocity(context, x, each).velocity
    assert torch.allclose(shared, single, atol=2e-5)


@named(ALL)
def test_padding_changes_nothing(case: OptionCase, family: Family) -> None:
    policy = small(case, family)
    network, td = policy.network, observations(policy)
    x, time = points(policy, 3, 2)
    model_input = sub_dict(td, "model_input")
    given = {
        "images": torch.rand(3, 3, 3, 28, 28),
        "image_mask": torch.tensor([[True, True, False]]).expand(3, -1),
        "tokens": model_input["tokens"],
        "token_mask": model_input["token_mask"],
    }
    state = torch.rand(3, 32)
    with torch.no_grad():
        before = network.velocity(network.encode(state, **given), x, time).velocity
        given["images"] = given["images"].clone()
        given["images"][:, 2] = 0.3
        given["tokens"] = torch.where(given["token_mask"], given["tokens"], 17)
        after = network.velocity(network.encode(state, **given), x, time).velocity
    assert torch.equal(before, after)


@named(ALL)
def test_a_stored_prefix_gives_the_same_numbers(case: OptionCase, family: Family) -> None:
    policy = small(case, family)
    rows = ModelInput.of(observations(policy))
    x, time = points(policy, 3, 2)
    with torch.no_grad():
        prefix = unpack(pack(policy.encode_prefix(rows)))
        stored = policy.field(policy.encode(rows, prefix))(x, time).velocity
        fresh = policy.field(policy.encode(rows))(x, time).velocity
    assert torch.equal(stored, fresh)


@named(ALL)
def test_a_sample_is_the_explicit_integration(case: OptionCase, family: Family) -> None:
    policy = small(case, family)
    rows = ModelInput.of(observations(policy))
    noise = torch.randn(3, *policy.chunk_shape, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        sampled = policy.sample_actions(rows, noise)
        x, steps = noise, policy.sampler.flow_steps
        for k in range(steps):
            time = torch.full((3, 1), 1 - k / steps)
            context = policy.encode(rows)  # afresh for each flow step
            x = x - policy.network.velocity(context, x[:, None], time).velocity[:, 0] / steps
        assert torch.allclose(policy.executed(x, rows), sampled, atol=1e-5)


@named(ALL)
def test_the_ratio_of_every_likelihood_is_one(
    case: OptionCase, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a coarse integration of the exact density, for time
    coarse = functools.partial(ode_log_likelihood, flow_steps=1, num_probes=1)
    monkeypatch.setattr(
        distributions, "ode_log_likelihood", lambda field, action, **_: coarse(field, action)
    )
    policy = small(case, family)
    td = observations(policy)
    for name in likelihoods():
        torch.manual_seed(0)
        added = set(case.options.conditioning.kinds) - {"instruction"}
        if name == "fast" and "language_head" in case.on and ("memory" in case.on or added):
            with pytest.raises(ValueError, match="which the tokens of actions do not read"):
                with_fast_tokens(policy)
            continue
        if name == "fast" and "language_head" not in case.on:
            with pytest.raises(ValueError, match="has no language head"):
                with_fast_tokens(policy)
            continue
        if name in case.refused_likelihoods:
            with pytest.raises(ValueError, match=rf"options\.({'|'.join(case.on)})"):
                LikelihoodActor(policy, likelihood_config(name))
            continue
        acting = with_fast_tokens(policy) if name == "fast" else policy
        actor = LikelihoodActor(acting, likelihood_config(name))
        acted = actor(td.clone())
        scores = []
        for _ in range(2):
            torch.manual_seed(1)  # of the probes of the exact density
            scores.append(actor.get_dist(acted).log_prob(acted["chain"]).detach())
        before = scores[1] if name == "ode" else acted["action_log_prob"]
        assert float(((scores[0] - before).exp() - 1).abs().max()) < 1e-3, name


@named(ALL)
def test_gradients_reach_the_parameters_and_the_memory_table_counts_them(
    case: OptionCase, family: Family
) -> None:
    for trained in (False, True):
        policy = small(case, family, trained)
        new = new_parameters(policy.network)
        action = torch.rand(3, policy.chunk_shape[0], 2)
        policy.loss(ModelInput.of(observations(policy)), action).mean().backward()
        found = gradients(policy.network, set(new))
        ends = case.unused if trained else (*case.unused, *case.unused_at_start)
        missing = {name for name, size in found.items() if size == 0}
        assert all(name.endswith(ends) for name in missing), missing
        if not trained:  # so the table names no more than it must
            present = {end for end in ends if any(name.endswith(end) for name in new)}
            assert all(any(name.endswith(end) for name in missing) for end in present), missing
    groups = set(new.values())
    if case.has_parameters:
        rows = {row.group: row for row in parameter_report(policy).rows}
        numbers = {g: 0 for g in groups}
        for name, value in policy.network.named_parameters():
            if name in new:
                numbers[new[name]] += value.numel()
        assert {g: rows[g].parameters for g in groups} == numbers
        trainable = apply_finetuning(policy, FinetuneConfig(trainable=tuple(sorted(groups))))
        names = {n for n, v in trainable.network.named_parameters() if v.requires_grad}
        assert names == set(new)


@named(ALL)
def test_saving_and_loading_restores_it_bit_for_bit_and_strictly(
    case: OptionCase, family: Family, tmp_path: Path
) -> None:
    policy = small(case, family)
    save(policy, tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again.network.config == policy.network.config
    written = json.loads((tmp_path / "saved" / "policy.json").read_text())
    assert Pi0Config.from_dict(written["network"]) == policy.network.config
    assert again.state_dict().keys() == policy.state_dict().keys()
    for key, value in policy.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key

    # the next gradient steps are the same, from the same random numbers
    losses = []
    for each in (policy, again):
        torch.manual_seed(0)
        losses.append([float(x) for x in steps(each)])
    assert losses[0] == losses[1]
    if not case.has_parameters:
        return
    written["network"].pop("options")
    (tmp_path / "saved" / "policy.json").write_text(json.dumps(written))
    with pytest.raises(ValueError, match="surplus keys"):  # the control
        load(tmp_path / "saved")


def steps(policy: FlowPolicy) -> Iterator[Tensor]:
    """Yield the losses of two gradient steps."""
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3)
    rows, action = ModelInput.of(observations(policy)), torch.rand(3, policy.chunk_shape[0], 2)
    for _ in range(2):
        optimizer.zero_grad()
        loss = policy.loss(rows, action).mean()
        loss.backward()
        optimizer.step()
        yield loss.detach()


@named(SINGLES)
def test_gradient_checkpointing_changes_no_gradient(case: OptionCase, family: Family) -> None:
    found = []
    for checkpointing in (False, True):
        policy = small(case, family)
        policy.network.expert.gradient_checkpointing = checkpointing
        torch.manual_seed(0)
        action = torch.rand(3, policy.chunk_shape[0], 2)
        policy.loss(ModelInput.of(observations(policy)), action).mean().backward()
        found.append({n: v.grad for n, v in policy.network.named_parameters()})
    for name, gradient in found[0].items():
        other = found[1][name]
        assert (gradient is None) == (other is None), name
        if gradient is not None and other is not None:
            assert torch.allclose(gradient, other, atol=1e-6), name


# The settings


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_the_settings_survive_json(case: OptionCase) -> None:
    assert NetworkOptions.from_dict(json.loads(json.dumps(asdict(case.options)))) == case.options
    assert NetworkOptions.from_dict({}).names == []


def test_all_options_have_a_row() -> None:
    assert {name for case in CASES for name in case.on} == set(asdict(NetworkOptions()))


def test_options_of_a_newer_version_are_named() -> None:
    with pytest.raises(ValueError, match=r"unknown fields \['telepathy'\] of NetworkOptions; a ne"):
        NetworkOptions.from_dict({"telepathy": {"on": True}})


def test_an_option_that_is_on_already_is_not_changed(plain: dict[str, FlowPolicy]) -> None:
    from pitune.policies.network.options.value_residual import ValueResidualConfig

    static, dynamic = (
        NetworkOptions(value_residual=ValueResidualConfig(mode=mode))
        for mode in ("static", "dynamic")
    )
    network = network_with_options(plain["pi0"].network, static, None)
    assert network_with_options(network, static, None).config == network.config
    message = r"options\.value_residual=.*'dynamic'.* cannot be added: the network has .*'static'"
    with pytest.raises(ValueError, match=message):
        network_with_options(network, dynamic, None)
