"""`trainable`: what is said to train does, and nothing else."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from pitune.policies import (
    FlowPolicy,
    GemmaConfig,
    NormStats,
    PolicyInfo,
    PreprocessorConfig,
    SamplerConfig,
)
from pitune.policies.finetuning.trainable import (
    FinetuneConfig,
    apply_finetuning,
    group_of,
    trained_parameters,
)
from pitune.policies.network.config import Family, Pi0Config, tiny
from pitune.policies.network.lora import LoRAConfig
from pitune.policies.preprocessing.images import PicturesConfig
from pitune.policies.preprocessing.prompt import PromptConfig

GROUPS: dict[str, tuple[str, ...]] = {
    "action_expert": ("paligemma_with_expert.gemma_expert.",),
    "vlm": ("paligemma_with_expert.paligemma.model.language_model.",),
    "vision": (
        "paligemma_with_expert.paligemma.model.vision_tower.",
        "paligemma_with_expert.paligemma.model.multi_modal_projector.",
    ),
    "projections": ("action_", "state_proj", "time_mlp"),
}


class Letters:
    """A tokenizer of bytes."""

    def encode(self, text: str, bos: bool = True) -> list[int]:
        return [2] * bos + list(text.encode())


def make_policy(family: Family = "pi0") -> FlowPolicy:
    torch.manual_seed(0)
    preprocessor = PreprocessorConfig(
        state=NormStats.identity(8),
        action=NormStats.identity(7),
        pictures=PicturesConfig(cameras={"base": "front", "wrist": "hand"}, size=28),
        prompt=PromptConfig(max_tokens=12, default="push"),
    )
    network, sampler = tiny(family, image_size=28), SamplerConfig(execution_horizon=2)
    return FlowPolicy(network, preprocessor, sampler, info=PolicyInfo(tokenizer=Letters()))


def loss(policy: FlowPolicy) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (2, 3, 3, 28, 28), generator=generator).byte()
    obs = TensorDict(
        {
            "state": torch.randn(3, 8, generator=generator),
            "image/front": images[0],
            "image/hand": images[1],
        },
        [3],
    )
    action = torch.randn(3, 10, 7, generator=generator)
    noise = torch.randn(3, 10, 32, generator=generator)
    return policy.loss(policy.model_input(obs), action, noise, torch.tensor([0.2, 0.5, 0.9])).mean()


def trained_names(policy: FlowPolicy) -> set[str]:
    return {name for name, _ in trained_parameters(policy.network)}


def with_gradient(policy: FlowPolicy) -> set[str]:
    loss(policy).backward()
    return {
        name
        for name, value in policy.network.named_parameters()
        if value.grad is not None and value.grad.abs().max() > 0
    }


@pytest.mark.parametrize("family", ["pi0", "pi05"])
@pytest.mark.parametrize("group", GROUPS)
def test_a_group_trains_alone(family: Family, group: str) -> None:
    policy = make_policy(family)
    apply_finetuning(policy, FinetuneConfig(trainable=(group,)))
    names = {name for name, _ in policy.network.named_parameters()}
    expected = {name for name in names if name.startswith(GROUPS[group])}
    assert trained_names(policy) == expected
    reached = with_gradient(policy)
    assert reached
    assert reached <= expected
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    torch.optim.AdamW(policy.parameters(), lr=1e-3).step()
    changed = {
        name.removeprefix("network.")
        for name, value in policy.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert reached <= changed <= expected


@pytest.mark.parametrize("family", ["pi0", "pi05"])
def test_the_groups_are_the_whole_network_once(family: Family) -> None:
    policy = make_policy(family)
    names = [name for name, _ in policy.network.named_parameters()]
    apply_finetuning(policy, FinetuneConfig())
    assert trained_names(policy) == set(names)
    for name in names:
        assert [g for g, prefixes in GROUPS.items() if name.startswith(prefixes)] == [
            group_of(name)
        ]


def test_groups_add_up_and_the_last_word_holds() -> None:
    policy = make_policy()
    apply_finetuning(policy, FinetuneConfig(trainable=("vision",)))
    apply_finetuning(policy, FinetuneConfig(trainable=("action_expert", "projections")))
    prefixes = (*GROUPS["action_expert"], *GROUPS["projections"])
    assert all(name.startswith(prefixes) for name in trained_names(policy))
    assert {group_of(name) for name in trained_names(policy)} == {"action_expert", "projections"}


def test_lora_freezes_the_layers_that_it_stands_on() -> None:
    policy = make_policy()
    lora = LoRAConfig(rank=2, alpha=2, targets=("gemma_expert.*.q_proj", "fc1"))
    apply_finetuning(policy, FinetuneConfig(trainable=("action_expert",), lora=lora))
    names = trained_names(policy)
    assert not any(name.endswith(("q_proj.weight", "fc1.weight", "fc1.bias")) for name in names)
    assert any(name.endswith("k_proj.weight") for name in names)
    adapters = {name for name in names if "lora_" in name}
    assert len(adapters) == 2 * (2 + 3)  # the vision tower's too, though its group is frozen
    expert = GROUPS["action_expert"]
    assert all(name.startswith(expert) for name in names - adapters)


def test_lora_alone() -> None:
    policy = make_policy()
    lora = LoRAConfig(rank=2, alpha=2)
    apply_finetuning(policy, FinetuneConfig(trainable=(), lora=lora))
    names = trained_names(policy)
    assert len(names) == 2 * 2 * 7
    assert all(name.endswith(("lora_a", "lora_b")) for name in names)
    assert with_gradient(policy) == {name for name in names if name.endswith("lora_b")}


@pytest.mark.parametrize("family", ["pi0", "pi05"])
def test_gradient_checkpointing_changes_no_number(family: Family) -> None:
    gradients = []
    for checkpointing in (False, True):
        policy = make_policy(family)
        apply_finetuning(policy, FinetuneConfig(gradient_checkpointing=checkpointing))
        towers = [m for m in policy.modules() if hasattr(m, "gradient_checkpointing")]
        assert [m.gradient_checkpointing for m in towers] == [checkpointing] * 3
        kept = saved_bytes(policy)
        loss(policy).backward()
        values = {n: v.grad for n, v in policy.network.named_parameters() if v.grad is not None}
        gradients.append((kept, values))
    (much, first), (little, second) = gradients
    assert little < 0.5 * much
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-5, atol=1e-7)
    apply_finetuning(policy, FinetuneConfig())
    assert saved_bytes(policy) == much


def saved_bytes(policy: FlowPolicy) -> int:
    kept = []

    def pack(value: Tensor) -> Tensor:
        kept.append(value.nbytes)
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        loss(policy)
    return sum(kept)


@pytest.mark.parametrize("family", ["pi0", "pi05"])
def test_bfloat16_keeps_master_weights_and_sensitive_layers_in_float32(family: Family) -> None:
    policy = make_policy(family)
    exact = loss(policy).item()
    apply_finetuning(policy, FinetuneConfig(trainable=("action_expert",), dtype="bfloat16"))
    assert policy.network.compute_dtype == torch.bfloat16
    for name, value in policy.network.named_parameters():
        kept = value.requires_grad or any(
            part in name
            for part in ("norm", "patch_embedding", "position_embedding", "action_", "state_proj")
        )
        kept |= name.startswith("time_mlp")
        assert value.dtype == (torch.float32 if kept else torch.bfloat16), name
    assert loss(policy).item() == pytest.approx(exact, rel=5e-2)
    assert with_gradient(policy)
    gradients = [value.grad for _, value in trained_parameters(policy)]
    assert all(gradient is not None for gradient in gradients)
    assert {gradient.dtype for gradient in gradients if gradient is not None} == {torch.float32}


def test_a_bfloat16_checkpoint_is_trained_in_float32() -> None:
    policy = make_policy()
    policy.network.bfloat16()
    apply_finetuning(policy, FinetuneConfig(trainable=("vlm",)))
    assert {value.dtype for value in policy.network.parameters()} == {torch.float32}
    assert policy.network.compute_dtype == torch.float32


def test_small_updates_are_not_lost_in_bfloat16() -> None:
    policy = make_policy()
    policy.network.bfloat16()
    apply_finetuning(policy, FinetuneConfig(dtype="bfloat16"))
    before = {name: value.clone() for name, value in policy.network.named_parameters()}
    loss(policy).backward()
    torch.optim.SGD(policy.parameters(), lr=1e-6).step()
    name = "paligemma_with_expert.gemma_expert.model.layers.0.mlp.down_proj.weight"
    after = dict(policy.network.named_parameters())[name]
    assert not torch.equal(after, before[name])
    assert torch.equal(after.bfloat16(), before[name].bfloat16())


def test_an_unknown_group_is_named() -> None:
    with pytest.raises(ValueError, match=r"unknown groups \['expert'\]; valid are \['action_expe"):
        FinetuneConfig(trainable=("expert", "vlm"))


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match=r"trainable is empty and there is no lora, so nothing"):
        FinetuneConfig(trainable=())


def state_only() -> FlowPolicy:
    expert = GemmaConfig(width=16, depth=1, mlp_dim=16, num_heads=2, num_kv_heads=1, head_dim=8)
    network = Pi0Config(state_dim=4, action_dim=3, action_horizon=2, expert=expert)
    stats = PreprocessorConfig(state=NormStats.identity(4), action=NormStats.identity(3))
    return FlowPolicy(network, stats, SamplerConfig(execution_horizon=1))


def test_a_group_that_the_network_lacks_is_named() -> None:
    policy = state_only()
    message = (
        r"groups \['vlm', 'vision'\] that this network lacks; it has "
        r"\['action_expert', 'projections'\]"
    )
    with pytest.raises(ValueError, match=message):
        apply_finetuning(policy, FinetuneConfig(trainable=("vlm", "action_expert", "vision")))
    apply_finetuning(policy, FinetuneConfig())
    assert trained_names(policy) == {name for name, _ in policy.network.named_parameters()}


def test_an_unknown_lora_target_is_named() -> None:
    lora = LoRAConfig(rank=2, alpha=2, targets=("language_model.*.q_proj",))
    with pytest.raises(ValueError, match=r"LoRA target 'language_model\.\*\.q_proj' matches no la"):
        apply_finetuning(state_only(), FinetuneConfig(lora=lora))
