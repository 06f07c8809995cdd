"""`pi0`, `gemma`: the network against the same one written without its tricks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, linear, silu

from pitune.policies import GemmaConfig, Pi0, Pi0Config
from pitune.policies.network.flow_time import flow_time_embedding
from pitune.policies.network.gemma import Attention
from pitune.policies.network.layers import RMSNorm, rotary_angles, rotate

EXPERT = GemmaConfig(width=24, depth=3, mlp_dim=32, num_heads=4, num_kv_heads=2, head_dim=8)
CONFIG = Pi0Config(state_dim=5, action_dim=3, action_horizon=4, expert=EXPERT)
STATE_ALONE = torch.tensor([[True] + [False] * 4] + [[True] * 5] * 4)
"""Which of [state, actions] each token sees."""


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def network() -> Pi0:
    """A network all of whose weights are random, the norms' too."""
    network = Pi0(CONFIG)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network.requires_grad_(False)


def inputs(num_rows: int = 6, num_points: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """State, noisy actions, flow times."""
    shape = (num_rows, num_points, CONFIG.action_horizon, CONFIG.action_dim)
    return torch.randn(num_rows, 5), torch.randn(shape), torch.rand(num_rows, num_points)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + weight)


def turn(x: Tensor) -> Tensor:
    """Rotary positions 0, 1, ... of (N, L, heads, head dim), with complex numbers."""
    half = x.shape[-1] // 2
    frequency = 10000 ** (-torch.arange(half) / half)
    angle = torch.arange(x.shape[1])[:, None, None] * frequency
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones(()), angle)
    return torch.cat([turned.real, turned.imag], -1)


def joint_forward(
    network: Pi0, state: Tensor, x: Tensor, flow_time: Tensor, visible: Tensor
) -> tuple[Tensor, Tensor]:
    """Velocity (N, H, A) and hidden states (N, 1 + H, D) of one pass over [state, actions].

    Without cache and library attention: `visible` (1 + H, 1 + H) is the whole block mask.
    """
    weights = dict(network.state_dict())

    def apply(name: str, z: Tensor) -> Tensor:
        return linear(z, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    width, heads, head_dim = EXPERT.width, EXPERT.num_heads, EXPERT.head_dim
    index = torch.arange(width // 2).double()  # the shortest period amplifies rounding
    angle = 2 * math.pi * flow_time[:, None].double() / (4e-3 * 1000 ** (index / (len(index) - 1)))
    time = torch.cat([angle.sin(), angle.cos()], -1).float()[:, None].expand(-1, x.shape[1], -1)
    actions = torch.cat([apply("action_in_proj", x), time], -1)
    actions = apply("action_time_mlp_out", silu(apply("action_time_mlp_in", actions)))
    z = torch.cat([apply("state_proj", state)[:, None], actions], 1)
    n, length, _ = z.shape
    prefix = "paligemma_with_expert.gemma_expert.model"
    for i in range(EXPERT.depth):
        layer = f"{prefix}.layers.{i}"
        y = rms_norm(z, weights[f"{layer}.input_layernorm.weight"])
        query, key, value = (
            apply(f"{layer}.self_attn.{part}_proj", y).view(n, length, -1, head_dim)
            for part in "qkv"
        )
        query, key = turn(query), turn(key)
        shared = heads // EXPERT.num_kv_heads
        key, value = key.repeat_interleave(shared, 2), value.repeat_interleave(shared, 2)
        logits = torch.einsum("nqhd,nkhd->nhqk", query, key) / math.sqrt(head_dim)
        attention = logits.masked_fill(~visible, -math.inf).softmax(-1)
        y = torch.einsum("nhqk,nkhd->nqhd", attention, value).reshape(n, length, -1)
        z = z + apply(f"{layer}.self_attn.o_proj", y)
        y = rms_norm(z, weights[f"{layer}.post_attention_layernorm.weight"])
        gate = gelu(apply(f"{layer}.mlp.gate_proj", y), approximate="tanh")
        z = z + apply(f"{layer}.mlp.down_proj", gate * apply(f"{layer}.mlp.up_proj", y))
    hidden = rms_norm(z, weights[f"{prefix}.norm.weight"])
    return apply("action_out_proj", hidden[:, 1:]), hidden


def test_cached_passes_equal_the_joint_pass_under_the_block_mask(network: Pi0) -> None:
    state, x, flow_time = inputs()
    context = network.encode(state)
    output = network.velocity(context, x, flow_time)
    velocity, hidden = joint_forward(network, state, x[:, 0], flow_time[:, 0], STATE_ALONE)
    assert torch.allclose(output.velocity[:, 0], velocity, atol=1e-5)
    assert output.hidden is not None
    assert torch.allclose(output.hidden[:, 0], hidden[:, 1:], atol=1e-5)
    assert torch.allclose(context.features, hidden[:, 0], atol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [torch.ones(5, 5, dtype=torch.bool), torch.ones(5, 5, dtype=torch.bool).tril()],
    ids=["state_sees_actions", "causal"],
)
def test_the_joint_pass_under_another_mask_is_another_velocity(network: Pi0, wrong: Tensor) -> None:
    state, x, flow_time = inputs()
    right = network.velocity(network.encode(state), x, flow_time).velocity[:, 0]
    other, _ = joint_forward(network, state, x[:, 0], flow_time[:, 0], wrong)
    assert float((right - other).abs().max()) > 1e-2


def test_many_points_of_flow_time_in_one_pass_equal_one_pass_each(network: Pi0) -> None:
    state, x, flow_time = inputs(num_points=5)
    context = network.encode(state)
    together = network.velocity(context, x, flow_time)
    assert together.velocity.shape == (6, 5, 4, 3)
    for point in range(5):
        here = slice(point, point + 1)
        alone = network.velocity(context, x[:, here], flow_time[:, here])
        assert torch.allclose(together.velocity[:, here], alone.velocity, atol=1e-5)
        assert together.hidden is not None
        assert alone.hidden is not None
        assert torch.allclose(together.hidden[:, here], alone.hidden, atol=1e-5)


def test_an_action_influences_its_own_point_only(network: Pi0) -> None:
    state, x, flow_time = inputs(num_points=3)
    context = network.encode(state)
    before = network.velocity(context, x, flow_time).velocity
    x[:, 1, 2] += 10
    moved = (network.velocity(context, x, flow_time).velocity - before).abs().amax((0, 3))
    assert torch.equal(moved[[0, 2]], torch.zeros(2, 4))
    assert float(moved[1].min()) > 1e-3  # every action of the chunk sees it: no causal order


def test_the_flow_time_of_a_point_influences_that_point_only(network: Pi0) -> None:
    state, x, flow_time = inputs(num_points=3)
    context = network.encode(state)
    before = network.velocity(context, x, flow_time).velocity
    flow_time[:, 1] = flow_time[:, 1] / 2 + 0.2
    moved = (network.velocity(context, x, flow_time).velocity - before).abs().amax((0, 2, 3))
    assert torch.equal(moved[[0, 2]], torch.zeros(2))
    assert float(moved[1]) > 1e-3


def test_asking_for_velocities_leaves_the_encoded_observation_alone(network: Pi0) -> None:
    state, x, flow_time = inputs(num_points=2)
    context = network.encode(state)
    copies = [tensor.clone() for pair in context.cache for tensor in pair]
    first = network.velocity(context, x, flow_time).velocity
    network.velocity(context, x + 1, flow_time / 2)
    assert torch.equal(network.velocity(context, x, flow_time).velocity, first)
    assert len(context.cache) == EXPERT.depth
    after = [tensor for pair in context.cache for tensor in pair]
    assert all(torch.equal(a, b) for a, b in zip(copies, after, strict=True))


def test_the_state_changes_the_velocity_of_its_row_only(network: Pi0) -> None:
    state, x, flow_time = inputs()
    before = network.velocity(network.encode(state), x, flow_time).velocity
    state[2] += 1
    moved = network.velocity(network.encode(state), x, flow_time).velocity - before
    assert float(moved[2].abs().min()) > 1e-4
    moved[2] = 0
    assert torch.equal(moved, torch.zeros_like(moved))


def test_the_gradient_reaches_every_parameter_that_the_velocity_depends_on(network: Pi0) -> None:
    state, x, flow_time = inputs()
    network.requires_grad_(True)
    network.velocity(network.encode(state), x, flow_time).velocity.square().sum().backward()
    without = {name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()}
    assert without == set()


def test_flow_time_embedding_matches_numbers_worked_by_hand() -> None:
    # width 4 has the periods 4e-3 and 4, width 6 also their geometric mean sqrt(4e-3 * 4)
    quarter = flow_time_embedding(torch.tensor([1e-3]), 4)  # a quarter of the shortest period
    small = math.pi / 2000
    by_hand = torch.tensor([[1.0, math.sin(small), 0.0, math.cos(small)]])
    assert torch.allclose(quarter, by_hand, atol=1e-6)
    middle = 2 * math.pi * 0.25 / math.sqrt(0.016)
    embedded = flow_time_embedding(torch.tensor(0.25), 6)
    assert float(embedded[1]) == pytest.approx(math.sin(middle), abs=1e-5)
    assert float(embedded[4]) == pytest.approx(math.cos(middle), abs=1e-5)
    assert embedded.dtype == torch.float32


def test_rms_norm_of_weight_zero_only_scales_to_unit_mean_square() -> None:
    norm, x = RMSNorm(2), torch.tensor([3.0, 4.0])
    by_hand = x / math.sqrt(12.5)
    assert torch.allclose(norm(x)[0], by_hand, atol=1e-6)
    norm.weight.data = torch.tensor([1.0, -1.0])  # twice, and nothing
    assert torch.allclose(norm(x)[0], torch.tensor([2 * by_hand[0], 0.0]), atol=1e-6)
    half = RMSNorm(2)(torch.tensor([300.0, 400.0], dtype=torch.float16))[0]  # 160000 overflows half
    assert half.dtype == torch.float16
    assert torch.allclose(half.float(), by_hand, atol=1e-3)


def test_rotary_turns_the_halves_of_a_head_against_each_other() -> None:
    # position 3, head dim 4: angles 3 and 3 * 10000^(-1/2) = 0.03, of the pairs (0, 2) and (1, 3)
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    fast, slow = 3.0, 0.03
    by_hand = torch.tensor(
        [
            1 * math.cos(fast) - 3 * math.sin(fast),
            2 * math.cos(slow) - 4 * math.sin(slow),
            3 * math.cos(fast) + 1 * math.sin(fast),
            4 * math.cos(slow) + 2 * math.sin(slow),
        ]
    )
    turned = rotate(x.view(1, 1, 1, 4), rotary_angles(torch.tensor([[3]]), 4))
    assert torch.allclose(turned.flatten(), by_hand, atol=1e-5)
    still = rotate(x.view(1, 1, 1, 4), rotary_angles(torch.tensor([[0]]), 4))
    assert torch.equal(still.flatten(), x)


def test_rotary_attention_depends_on_distances_alone() -> None:
    query, key = torch.randn(2, 1, 1, 1, 8)
    products = [
        (
            rotate(query, rotary_angles(torch.tensor([[a]]), 8))
            * rotate(key, rotary_angles(torch.tensor([[b]]), 8))
        ).sum()
        for a, b in ((2, 5), (11, 14), (2, 6))
    ]
    assert torch.allclose(products[0], products[1], atol=1e-5)
    assert float((products[0] - products[2]).abs()) > 1e-3


def test_grouped_query_attention_is_attention_with_repeated_heads() -> None:
    grouped = Attention(EXPERT)
    sizes: dict[str, Any] = {"width": 24, "depth": 3, "mlp_dim": 32, "num_heads": 4, "head_dim": 8}
    full = Attention(GemmaConfig(**sizes, num_kv_heads=4))
    weights = grouped.state_dict()
    for part in ("k_proj.weight", "v_proj.weight"):
        heads = weights[part].view(2, 8, 24).repeat_interleave(2, 0)  # heads 0, 0, 1, 1
        weights[part] = heads.reshape(32, 24)
    full.load_state_dict(weights)
    x, rotation = torch.randn(5, 7, 24), rotary_angles(torch.arange(7).expand(5, 7), 8)
    assert torch.allclose(grouped(x, rotation, None, None)[0], full(x, rotation, None, None)[0])


def test_parameter_names_and_shapes_are_openpis() -> None:
    expert = "paligemma_with_expert.gemma_expert.model"
    names = {
        "state_proj.weight": (24, 5),
        "state_proj.bias": (24,),
        "action_in_proj.weight": (24, 3),
        "action_in_proj.bias": (24,),
        "action_time_mlp_in.weight": (24, 48),
        "action_time_mlp_in.bias": (24,),
        "action_time_mlp_out.weight": (24, 24),
        "action_time_mlp_out.bias": (24,),
        "action_out_proj.weight": (3, 24),
        "action_out_proj.bias": (3,),
        f"{expert}.norm.weight": (24,),
    }
    for i in range(3):
        names |= {
            f"{expert}.layers.{i}.input_layernorm.weight": (24,),
            f"{expert}.layers.{i}.post_attention_layernorm.weight": (24,),
            f"{expert}.layers.{i}.self_attn.q_proj.weight": (32, 24),
            f"{expert}.layers.{i}.self_attn.k_proj.weight": (16, 24),
            f"{expert}.layers.{i}.self_attn.v_proj.weight": (16, 24),
            f"{expert}.layers.{i}.self_attn.o_proj.weight": (24, 32),
            f"{expert}.layers.{i}.mlp.gate_proj.weight": (32, 24),
            f"{expert}.layers.{i}.mlp.up_proj.weight": (32, 24),
            f"{expert}.layers.{i}.mlp.down_proj.weight": (24, 32),
        }
    assert {key: tuple(value.shape) for key, value in Pi0(CONFIG).state_dict().items()} == names


def test_sizes_that_do_not_fit_are_refused() -> None:
    sizes: dict[str, Any] = {"width": 8, "depth": 1, "mlp_dim": 8}
    with pytest.raises(ValueError, match="num_heads=4 must be a multiple of num_kv_heads=3"):
        GemmaConfig(**sizes, num_heads=4, num_kv_heads=3, head_dim=8)
    with pytest.raises(ValueError, match="head_dim=7 must be even"):
        GemmaConfig(**sizes, num_heads=4, num_kv_heads=2, head_dim=7)
