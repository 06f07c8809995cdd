"""`memory` and `activations`: the table's numbers against what torch keeps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

from pitune.policies import (
    FlowPolicy,
    GemmaConfig,
    NetworkOptions,
    NormStats,
    Pi0Config,
    PreprocessorConfig,
)
from pitune.policies import SamplerConfig as Sampler
from pitune.policies.finetuning.activations import activation_bytes
from pitune.policies.finetuning.memory import (
    GroupMemory,
    MemoryReport,
    available_bytes,
    check_memory,
    parameter_report,
    readable,
)
from pitune.policies.finetuning.trainable import FinetuneConfig, apply_finetuning
from pitune.policies.network.config import Family, pi0, pi05
from pitune.policies.network.lora import LoRAConfig
from pitune.policies.network.options.hyper_connections import HyperConnectionsConfig
from pitune.policies.network.options.language_head import (
    LanguageHeadConfig,
    text_of,
    token_loss,
)
from pitune.policies.network.options.tokens.memory import MemoryConfig, with_written_memory
from pitune.policies.network.options.tokens.registers import RegistersConfig
from pitune.policies.network.options.tokens.state_tokens import StateTokensConfig
from pitune.policies.network.siglip import SiglipConfig
from pitune.policies.preprocessing.images import PicturesConfig
from pitune.policies.preprocessing.prompt import PromptConfig

GIB = 2**30


def make_policy(network: Pi0Config, *, image_size: int = 112) -> FlowPolicy:
    preprocessor = PreprocessorConfig(
        state=NormStats.identity(8),
        action=NormStats.identity(7),
        pictures=PicturesConfig(cameras={"base": "a", "wrist": "b"}, size=image_size),
        prompt=PromptConfig(max_tokens=48),
    )
    return FlowPolicy(network, preprocessor, Sampler(execution_horizon=1))


def middling(family: Family) -> Pi0Config:
    """Sizes at which activations weigh more than small change."""
    expert = GemmaConfig(
        width=128,
        depth=3,
        mlp_dim=512,
        num_heads=8,
        num_kv_heads=1,
        head_dim=32,
        adaptive=family == "pi05",
    )
    return Pi0Config(
        state_dim=32,
        action_dim=32,
        action_horizon=16,
        family=family,
        expert=expert,
        vlm=replace(expert, width=192, mlp_dim=768, adaptive=False),
        vision=SiglipConfig(width=96, depth=3, mlp_dim=384, num_heads=4, image_size=112),
        vocab_size=128,
    )


def saved_bytes(policy: FlowPolicy, batch_size: int, predicted: int = 0) -> int:
    """Return what autograd saves in one pass, each memory once and no parameter."""
    network = policy.network
    parameters = {value.data_ptr() for value in network.parameters()}
    kept: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        memory = value.untyped_storage()
        if memory.data_ptr() not in parameters:
            kept[memory.data_ptr()] = memory.nbytes()
        return value  # which keeps it alive, so that no address is given twice

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        context = network.encode(
            torch.randn(batch_size, 32),
            torch.rand(batch_size, 2, 3, 112, 112),
            tokens=torch.randint(128, (batch_size, 48)),
        )
        memory = policy.empty_memory(batch_size)
        if memory is not None:
            context = with_written_memory(network, context, memory)
        x, flow_time = torch.randn(batch_size, 1, 16, 32), torch.rand(batch_size, 1)
        velocity = network.velocity(context, x, flow_time).velocity
        loss = velocity.square().mean()
        if predicted:
            tokens = torch.randint(128, (batch_size, predicted))
            tower: Any = network.vlm
            mask = torch.ones_like(tokens).bool()
            loss = loss + token_loss(tower.language_model, text_of(context), tokens, mask).mean()
    return sum(kept.values())


@pytest.mark.parametrize("family", ["pi0", "pi05"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "trainable", [("all",), ("vlm",), ("vision",), ("action_expert", "projections")]
)
def test_activations_are_estimated_within_15_percent(
    family: Family, dtype: str, trainable: tuple
) -> None:
    torch.manual_seed(0)
    policy = make_policy(middling(family))
    apply_finetuning(policy, FinetuneConfig(trainable=trainable, dtype=dtype))  # type: ignore[arg-type]
    assert activation_bytes(policy, 4) == pytest.approx(saved_bytes(policy, 4), rel=0.15)


OPTIONS: dict[str, NetworkOptions] = {
    "2 fixed streams": NetworkOptions(
        hyper_connections=HyperConnectionsConfig(streams=2, dynamic=False)
    ),
    "4 streams": NetworkOptions(hyper_connections=HyperConnectionsConfig(streams=4)),
    "registers": NetworkOptions(registers=RegistersConfig(num=16)),
    "prefix registers": NetworkOptions(registers=RegistersConfig(prefix=32)),
    "state tokens": NetworkOptions(state_tokens=StateTokensConfig(parts=(1,) * 16)),
    "memory": NetworkOptions(memory=MemoryConfig(num_tokens=16)),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", OPTIONS)
def test_activations_of_options_are_counted(name: str, dtype: Any) -> None:
    torch.manual_seed(0)
    # the action expert alone, which weighs more without the vision-language model
    trainable = ("all",) if "prefix" in name else ("action_expert", OPTIONS[name].names[0])
    found: list[tuple[int, int]] = []
    for options in (NetworkOptions(), OPTIONS[name]):
        policy = make_policy(replace(middling("pi0"), options=options))
        groups = trainable if options.names else trainable[:1]
        apply_finetuning(policy, FinetuneConfig(trainable=groups, dtype=dtype))
        found.append((activation_bytes(policy, 4), saved_bytes(policy, 4)))
    (plain, plain_saved), (estimate, saved) = found
    assert estimate == pytest.approx(saved, rel=0.15)
    # the option's own share, which is at least a tenth here
    assert saved > 1.1 * plain_saved
    assert estimate - plain == pytest.approx(saved - plain_saved, rel=0.3)


def test_the_logits_of_a_language_head_are_counted() -> None:
    head = NetworkOptions(language_head=LanguageHeadConfig(enabled=True))
    sizes = replace(middling("pi0"), options=head, vocab_size=8192)
    policy = make_policy(sizes)
    apply_finetuning(policy, FinetuneConfig())
    without, with_text = (
        (activation_bytes(policy, 4, num), saved_bytes(policy, 4, num)) for num in (0, 24)
    )
    assert with_text[0] == pytest.approx(with_text[1], rel=0.15)
    assert with_text[0] - without[0] == pytest.approx(with_text[1] - without[1], rel=0.3)
    assert with_text[1] > 1.1 * without[1]
    report = parameter_report(policy, 4, predicted=24)
    assert report.activation_bytes == with_text[0]


def test_activations_grow_with_the_batch_and_shrink_with_checkpointing() -> None:
    policy = make_policy(middling("pi0"))
    apply_finetuning(policy, FinetuneConfig())
    one = activation_bytes(policy, 1)
    assert activation_bytes(policy, 8) == 8 * one
    apply_finetuning(policy, FinetuneConfig(gradient_checkpointing=True))
    assert activation_bytes(policy, 1) < 0.6 * one
    policy.network.requires_grad_(False)
    assert activation_bytes(policy, 8) == 0


@pytest.mark.parametrize("config", [FinetuneConfig(), FinetuneConfig(trainable=("vision",))])
def test_weights_gradients_and_moments_are_counted_exactly(config: FinetuneConfig) -> None:
    policy = make_policy(middling("pi0"))
    apply_finetuning(policy, replace(config, dtype="bfloat16"))
    report = parameter_report(policy)
    weights = list(policy.parameters())
    assert sum(row.parameters for row in report.rows) == sum(v.numel() for v in weights)
    assert sum(row.weight_bytes for row in report.rows) == sum(v.nbytes for v in weights)
    for value in weights:
        if value.requires_grad:
            value.grad = torch.ones_like(value)
    gradients = sum(v.grad.nbytes for v in weights if v.grad is not None)
    assert sum(row.gradient_bytes for row in report.rows) == gradients
    optimizer = torch.optim.AdamW(v for v in weights if v.requires_grad)
    optimizer.step()
    moments = sum(
        state[name].nbytes
        for state in optimizer.state.values()
        for name in ("exp_avg", "exp_avg_sq")
    )
    assert sum(row.adam_bytes for row in report.rows) == moments
    total = sum(v.nbytes for v in weights) + gradients + moments + report.activation_bytes
    assert report.total_bytes == total


def full_size(network: Pi0Config, config: FinetuneConfig) -> FlowPolicy:
    """A policy of the published size that takes no memory."""
    with torch.device("meta"):
        policy = make_policy(network, image_size=224)
    apply_finetuning(policy, config)
    return policy


@pytest.mark.parametrize(
    ("network", "expert", "projections", "total"),
    [
        (pi0(), 311_464_960, 3_248_160, 3_238_048_528),
        (pi05(), 427_932_672, 2_165_792, 3_353_433_872),
    ],
)
def test_the_published_sizes(network: Pi0Config, expert: int, projections: int, total: int) -> None:
    # the numbers of parameters in openpi's own networks, less its dead ones
    report = parameter_report(full_size(network, FinetuneConfig()))
    rows = {row.group: row for row in report.rows}
    assert rows["action_expert"].parameters == expert
    assert rows["vlm"].parameters == 1_981_884_416 + 526_647_296
    assert rows["vision"].parameters == 412_442_352 + 2_361_344
    assert rows["projections"].parameters == projections
    assert report.trained == sum(row.parameters for row in report.rows) == total
    assert sum(row.gradient_bytes for row in report.rows) == 4 * total


def test_lora_of_the_expert_fits_where_everything_does_not() -> None:
    full = parameter_report(full_size(pi0(), FinetuneConfig()), batch_size=8)
    config = FinetuneConfig(
        trainable=("projections",),
        lora=LoRAConfig(rank=32, alpha=32),
        dtype="bfloat16",
        gradient_checkpointing=True,
    )
    small = parameter_report(full_size(pi0(), config), batch_size=8)
    check_memory(small, 16 * GIB)
    with pytest.raises(ValueError, match=r"training needs \d+\.\d\d GiB more") as error:
        check_memory(full, 24 * GIB)
    for part in (
        "3,238,048,528 trained parameters",
        "gradients 12.06 GiB, Adam 24.13 GiB",
        "activations of minibatch 8 about",
        "24.00 GiB are free",
        "train fewer groups or with LoRA, compute in bfloat16, turn gradient checkpointing on, or "
        "take a smaller minibatch",
    ):
        assert part in str(error.value)


def report_of(weights: int, gradients: int, adam: int, activations: int) -> MemoryReport:
    row = GroupMemory(
        group="vlm",
        parameters=7,
        trained=5,
        weight_bytes=weights,
        gradient_bytes=gradients,
        adam_bytes=adam,
    )
    return MemoryReport(rows=(row,), batch_size=3, activation_bytes=activations)


def test_what_fits_by_a_byte_fits() -> None:
    report = report_of(1000, 10, 20, 5)
    assert report.total_bytes == 1035
    check_memory(report, 35)  # the weights are there already
    check_memory(report, 42, other=7)
    with pytest.raises(ValueError, match="training needs"):
        check_memory(report, 34)
    with pytest.raises(ValueError, match="training needs"):
        check_memory(report, 41, other=7)


def test_the_table_lists_every_part_of_the_memory() -> None:
    text = report_of(3 * GIB, 2**20, 2**21, 5 * 2**20).text()
    for part in ("vlm", "7", "5", "3.00 GiB", "1.00 MiB", "2.00 MiB", "5.00 MiB", "minibatch 3"):
        assert part in text
    assert "3.01 GiB" in text  # all of it
    assert "\x1b" not in text
    policy = make_policy(middling("pi0"))
    assert all(
        group in parameter_report(policy).text()
        for group in ("action_expert", "vlm", "vision", "projections", "activations")
    )


def test_the_table_names_the_observations_of_the_host_and_does_not_add_them() -> None:
    report = report_of(3 * GIB, 2**20, 2**21, 5 * 2**20)
    kept = replace(report, prefix_bytes=GIB, host_prefix_bytes=7 * GIB)
    assert kept.total_bytes == report.total_bytes + GIB
    assert kept.rank_bytes(4) == report.rank_bytes(4) + GIB
    text = kept.text()
    assert "1.00 GiB" in text
    assert "7.00 GiB of the host" in text
    assert "of the host" not in report.text()


def test_a_group_that_is_not_there_has_no_row() -> None:
    expert = GemmaConfig(width=16, depth=1, mlp_dim=16, num_heads=2, num_kv_heads=1, head_dim=8)
    network = Pi0Config(state_dim=4, action_dim=3, action_horizon=2, expert=expert)
    stats = PreprocessorConfig(state=NormStats.identity(4), action=NormStats.identity(3))
    report = parameter_report(FlowPolicy(network, stats, Sampler(execution_horizon=1)))
    assert [row.group for row in report.rows] == ["action_expert", "projections"]


def test_free_memory_is_the_machine_s() -> None:
    total = psutil.virtual_memory().total
    assert 0 < available_bytes(torch.device("cpu")) < total


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0.00 MiB"), (2**19, "0.50 MiB"), (GIB, "1.00 GiB")]
)
def test_bytes_in_words(number: int, words: str) -> None:
    assert readable(number) == words
