"""The options' formulas: value residual, registers, hyper-connections, norms, state tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from einops import repeat
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from network_options import perturb
from pitune.policies import GemmaConfig, NetworkOptions, Pi0, Pi0Config
from pitune.policies.network.context import pack, unpack
from pitune.policies.network.gemma import Attention, Gemma, Layer
from pitune.policies.network.options.hyper_connections import (
    HyperConnection,
    HyperConnectionsConfig,
    collapse,
    expand,
)
from pitune.policies.network.options.linear_norms import LinearNorm, LinearNormsConfig
from pitune.policies.network.options.tokens.gated_tokens import Extra, TokenGate
from pitune.policies.network.options.tokens.registers import RegistersConfig
from pitune.policies.network.options.tokens.state_tokens import (
    StateEncoder,
    StateTokensConfig,
    register_state_encoder,
)
from pitune.policies.network.options.value_residual import ValueResidual, ValueResidualConfig
from pitune.rl.experience.sub_dict import sub_dict

SIZES = GemmaConfig(width=16, depth=3, mlp_dim=32, num_heads=4, num_kv_heads=2, head_dim=8)
STATE_ONLY = Pi0Config(state_dim=5, action_dim=2, action_horizon=4, expert=SIZES)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def network(options: NetworkOptions, trained: bool = True, **changes: Any) -> Pi0:
    torch.manual_seed(0)
    made = Pi0(replace(STATE_ONLY, options=options, **changes))
    if trained:
        perturb(made)
    return made


def velocity(made: Pi0, x: Tensor, state: Tensor) -> Tensor:
    return made.velocity(made.encode(state), x, torch.full(x.shape[:2], 0.6)).velocity


# Cached and uncached


@pytest.mark.parametrize(
    "options",
    [
        NetworkOptions(),
        NetworkOptions(value_residual=ValueResidualConfig(mode="static")),
        NetworkOptions(value_residual=ValueResidualConfig(mode="dynamic")),
        NetworkOptions(hyper_connections=HyperConnectionsConfig(streams=3)),
        NetworkOptions(linear_norms=LinearNormsConfig(mode="gated")),
        NetworkOptions(linear_norms=LinearNormsConfig(mode="full")),
    ],
    ids=lambda options: "+".join(options.names) or "plain",
)
def test_state_and_actions_in_one_uncached_pass_equal_the_cached_ones(
    options: NetworkOptions,
) -> None:
    made, state, x = network(options), torch.randn(3, 5), torch.randn(3, 1, 4, 2)
    tokens, _ = made.embed_suffix(x, torch.full((3, 1), 0.6))
    both = torch.cat([made.state_proj(state)[:, None], tokens], dim=1)
    mask = torch.ones(5, 5, dtype=torch.bool)
    mask[0, 1:] = False  # the state token does not attend to the actions
    hidden, _ = made.expert(both, torch.arange(5).expand(3, -1), mask[None, None])
    uncached = made.action_out_proj(hidden[:, 1:])
    assert torch.allclose(uncached, velocity(made, x, state)[:, 0], atol=2e-6)
    # the control: a state token that attends to the actions gives other numbers
    hidden, _ = made.expert(both, torch.arange(5).expand(3, -1), None)
    assert not torch.allclose(made.action_out_proj(hidden[:, 1:]), uncached, atol=1e-5)


# Value residual


def test_the_share_of_each_head_moves_the_values_to_the_first_layers() -> None:
    mix = ValueResidual(ValueResidualConfig(mode="dynamic"), width=6, num_heads=2)
    x, value, first = torch.randn(3, 5, 6), torch.randn(3, 2, 5, 4), torch.randn(3, 2, 5, 4)
    assert torch.equal(mix(x, value, first), value)
    with torch.no_grad():
        mix.bias.copy_(torch.tensor([1.0, 0.25]))
    mixed = mix(x, value, first)
    assert torch.allclose(mixed[:, 0], first[:, 0], atol=1e-6)
    assert torch.allclose(mixed[:, 1], 0.25 * first[:, 1] + 0.75 * value[:, 1], atol=1e-6)
    with torch.no_grad():
        mix.weight.normal_()  # type: ignore[union-attr]
    share = mix.bias + x @ mix.weight.T  # type: ignore[union-attr]
    expected = value[2, 1, 4] + share[2, 4, 1] * (first[2, 1, 4] - value[2, 1, 4])
    assert torch.allclose(mix(x, value, first)[2, 1, 4], expected, atol=1e-5)


def attentions(made: Pi0) -> list[Attention]:
    return [layer.self_attn for layer in made.expert.layers if isinstance(layer, Layer)]


def test_the_first_layers_values_get_gradient_through_the_residual() -> None:
    """T-L2: with the first layer's own attention cut off."""
    for share in (0.0, 0.5):
        made = network(NetworkOptions(value_residual=ValueResidualConfig(mode="static")), False)
        first, *others = attentions(made)
        with torch.no_grad():
            first.o_proj.weight.zero_()
            for other in others:
                assert other.value_residual is not None
                other.value_residual.bias.fill_(share)
        velocity(made, torch.randn(2, 1, 4, 2), torch.randn(2, 5)).square().mean().backward()
        gradient = first.v_proj.weight.grad
        assert isinstance(gradient, Tensor)
        assert bool(gradient.abs().max() > 1e-6) == (share > 0)


def test_the_first_layer_has_no_residual() -> None:
    made = network(NetworkOptions(value_residual=ValueResidualConfig(mode="static")))
    present = [attention.value_residual is not None for attention in attentions(made)]
    assert present == [False, True, True]


# Registers


def test_registers_leave_positions_and_outputs_of_the_actions() -> None:
    made = network(NetworkOptions(registers=RegistersConfig(num=3)))
    state, x = torch.randn(2, 5), torch.randn(2, 2, 4, 2)
    context = made.encode(state)
    output = made.velocity(context, x, torch.tensor([[0.3, 0.8], [0.6, 0.1]]))
    assert output.velocity.shape == x.shape
    assert output.hidden is not None
    assert output.hidden.shape == (2, 2, 4, 16)
    # without the gates the actions are those of a network without registers
    plain = network(NetworkOptions(), trained=False)
    plain.load_state_dict(made.state_dict(), strict=False)
    with torch.no_grad():
        for layer in made.expert.layers:
            layer.self_attn.gates["registers"].gate.zero_()  # type: ignore[union-attr, index]
    assert torch.allclose(velocity(made, x, state), velocity(plain, x, state), atol=1e-6)


def test_registers_belong_to_their_flow_time() -> None:
    made = network(NetworkOptions(registers=RegistersConfig(num=3)))
    context, x = made.encode(torch.randn(2, 5)), torch.randn(2, 2, 4, 2)
    time = torch.tensor([[0.3, 0.8], [0.6, 0.1]])
    before = made.velocity(context, x, time).velocity
    x[:, 1] += 1
    after = made.velocity(context, x, time).velocity
    assert torch.equal(before[:, 0], after[:, 0])
    assert not torch.allclose(before[:, 1], after[:, 1], atol=1e-3)


def test_the_gate_adds_an_attention_of_its_own() -> None:
    gate = TokenGate("registers", num_heads=2)
    query, keys, values = (torch.randn(3, 2, 5, 4) for _ in range(3))
    assert torch.equal(gate(query, (keys, values), None), torch.zeros_like(query))
    with torch.no_grad():
        gate.gate.copy_(torch.tensor([0.5, -2.0]))
    expected = scaled_dot_product_attention(query, keys, values)
    expected = expected * torch.tensor([0.5, -2.0]).tanh()[:, None, None]
    assert torch.allclose(gate(query, (keys, values), None), expected, atol=1e-6)


def test_a_block_is_split_into_actions_and_registers() -> None:
    key = torch.arange(2 * 5).float().reshape(1, 1, 10, 1)  # two groups of 3 actions, 2 registers
    (own, _), registers = Extra(groups=2, registers=2).split(key, key)
    assert own.flatten().tolist() == [0, 1, 2, 5, 6, 7]
    assert registers is not None
    assert registers[0].flatten().tolist() == [3, 4, 8, 9]
    mask = Extra(groups=2, registers=2).register_mask(10, torch.device("cpu"))
    assert mask is not None
    assert mask[0, 0].int().tolist() == [[1, 1, 0, 0]] * 5 + [[0, 0, 1, 1]] * 5


# Hyper-connections


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("streams", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("depth", [1, 5])
def test_fresh_streams_are_the_single_one_exactly(streams: int, depth: int, dynamic: bool) -> None:
    sizes = replace(SIZES, depth=depth)
    config = HyperConnectionsConfig(streams=streams, dynamic=dynamic)
    torch.manual_seed(0)
    plain = Gemma(sizes)
    tower = Gemma(sizes, options=NetworkOptions(hyper_connections=config))
    tower.load_state_dict(plain.state_dict(), strict=False)
    x, positions = torch.randn(2, 6, 16), torch.arange(6).expand(2, -1)
    found, expected = tower(x, positions)[0], plain(x, positions)[0]
    assert torch.allclose(found, expected, atol=1e-6, rtol=0)
    # T-L3: at first the sum of the streams is invariant under their permutation, as all are equal
    connection = HyperConnection(config, 16, index=3)
    streams_in = expand(x, streams)
    y, rest, write = connection(streams_in)
    after = rest + write * y
    order = torch.randperm(streams)
    y, rest, write = connection(streams_in[order])
    assert torch.equal((rest + write * y).sum(0), after.sum(0))
    assert all(torch.equal(stream, after[0]) for stream in after)


def test_connections_read_mix_and_write_as_in_the_formula() -> None:
    config = HyperConnectionsConfig(streams=3)
    connection = HyperConnection(config, 4, index=0)
    with torch.no_grad():
        for value in connection.parameters():
            value.normal_()
    streams, y = torch.randn(3, 2, 5, 4), torch.randn(2, 5, 4)
    x, rest, write = connection(streams)
    h = streams[:, 1, 2]  # (n, D) of one token
    normed = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6)
    terms = connection.scale * torch.tanh(normed @ connection.weight.T)  # type: ignore[operator, union-attr]
    assert torch.allclose(x[1, 2], ((connection.read + terms[:, 0])[:, None] * h).sum(0), atol=1e-5)
    for i in range(3):
        mixed = ((connection.mix[i] + terms[:, 1 + i])[:, None] * h).sum(0)
        expected = mixed + (connection.write[i] + terms[i, 4]) * y[1, 2]
        assert torch.allclose((rest + write * y)[i, 1, 2], expected, atol=1e-5)


def test_the_mean_of_equal_streams_is_exact() -> None:
    x = torch.randn(2, 5, 4)
    for n in (2, 3, 7):
        assert torch.equal(collapse(expand(x, n)), x)
    different = torch.randn(3, 2, 5, 4)
    assert torch.allclose(collapse(different), different.mean(0), atol=1e-6)


# Norms after linear layers


def test_a_norm_follows_every_linear_layer_of_the_expert() -> None:
    made = network(NetworkOptions(linear_norms=LinearNormsConfig(mode="full")))
    names = {name for name, part in made.named_modules() if isinstance(part, LinearNorm)}
    linears = {
        name.rpartition(".")
        for name, part in made.expert.named_modules()
        if isinstance(part, nn.Linear)
    }
    prefix = "paligemma_with_expert.gemma_expert.model."
    assert names == {f"{prefix}{layer}.norms.{linear}" for layer, _, linear in linears}
    assert len(names) == 3 * 7
    x = 5 * torch.randn(2, 3, 16)
    attention: Any = made.expert.layers[0].self_attn
    attention.norms["q_proj"].reset_parameters()
    y = attention.norms["q_proj"](attention.q_proj(x))
    assert torch.allclose(y.square().mean(-1), torch.ones(2, 3), atol=1e-3)


def test_the_gate_goes_from_the_layers_output_to_its_norm() -> None:
    norm, full = (LinearNorm(LinearNormsConfig(mode=m), 4) for m in ("gated", "full"))
    y = 3 * torch.randn(2, 5, 4)
    assert torch.equal(norm(y), y)
    with torch.no_grad():
        norm.share.fill_(1.0)  # type: ignore[union-attr]
    assert torch.allclose(norm(y), full(y), atol=1e-6)


# State tokens


@register_state_encoder("test_ends")
class Ends(StateEncoder):
    """Two tokens, of the first and the last entry."""

    def __init__(self, sizes: Pi0Config) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(sizes.expert.width))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, state: Tensor) -> Tensor:
        return state[:, [0, -1], None] * self.weight


def test_parts_and_encoders_become_tokens_in_their_order() -> None:
    config = StateTokensConfig(parts=(3, 1), encoders=("test_ends",))
    made = network(NetworkOptions(state_tokens=config), trained=False)
    state = torch.randn(2, 5)
    module: Any = made.options["state_tokens"]
    tokens = module(state)
    assert tokens.shape == (2, 4, 16)
    weight = module.parts[0].weight
    assert torch.allclose(tokens[:, 0], state[:, :3] @ weight.T, atol=1e-6)
    assert torch.allclose(tokens[:, 1], state[:, 3:4] @ module.parts[1].weight.T, atol=1e-6)
    assert torch.allclose(tokens[:, 2:], repeat(state[:, [0, -1]], "b t -> b t d", d=16))
    assert float(weight.detach().std()) == pytest.approx(3**-0.5, rel=0.2)


def test_only_the_gates_let_the_actions_read_the_state_tokens() -> None:
    made = network(NetworkOptions(state_tokens=StateTokensConfig(parts=(2, 3))))
    x, state = torch.randn(2, 1, 4, 2), torch.randn(2, 5)
    context = made.encode(state)
    assert context.side is not None
    assert context.side["state_tokens"][0][0].shape == (2, 2, 2, 8)  # (B, kv heads, T, head dim)
    other = made.encode(torch.randn(2, 5))
    time = torch.full((2, 1), 0.6)
    exchanged = made.velocity(context._replace(side=other.side), x, time).velocity
    own = made.velocity(context, x, time).velocity
    assert not torch.allclose(exchanged, own, atol=1e-4)
    with torch.no_grad():
        for layer in made.expert.layers:
            layer.self_attn.gates["state_tokens"].gate.zero_()  # type: ignore[union-attr, index]
    closed = made.encode(state)
    assert torch.equal(
        made.velocity(closed._replace(side=other.side), x, time).velocity,
        made.velocity(closed, x, time).velocity,
    )


def test_a_packed_context_keeps_its_state_tokens() -> None:
    made = network(NetworkOptions(state_tokens=StateTokensConfig(parts=(2, 3))))
    context, x = made.encode(torch.randn(2, 5)), torch.randn(2, 1, 4, 2)
    again = unpack(sub_dict(pack(context), torch.arange(2)))
    time = torch.full((2, 1), 0.6)
    assert torch.equal(
        made.velocity(again, x, time).velocity, made.velocity(context, x, time).velocity
    )


WRONG: dict[str, Callable[[], object]] = {
    r"options\.state_tokens\.parts=\(4, 2\) have 6 entries, but the state has state_dim=5; lea": (
        lambda: network(NetworkOptions(state_tokens=StateTokensConfig(parts=(4, 2))))
    ),
    r"options\.state_tokens\.encoders names unknown \['smell'\]; registered are \['mlp',": (
        lambda: network(NetworkOptions(state_tokens=StateTokensConfig(encoders=("smell",))))
    ),
    r"options\.state_tokens\.encoders=\('mlp', 'mlp'\) names one twice; name each once": (
        lambda: network(NetworkOptions(state_tokens=StateTokensConfig(encoders=("mlp", "mlp"))))
    ),
    r"state encoder name='mlp' is taken; choose another name": (
        lambda: register_state_encoder("mlp")(Ends)
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_settings_that_do_not_fit_are_named(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WRONG[message]()


def test_options_do_not_change_the_random_numbers_of_other_weights() -> None:
    options = NetworkOptions(
        value_residual=ValueResidualConfig(mode="dynamic"),
        registers=RegistersConfig(num=2),
        hyper_connections=HyperConnectionsConfig(streams=2),
        linear_norms=LinearNormsConfig(mode="gated"),
        state_tokens=StateTokensConfig(parts=(5,), encoders=("mlp",)),
    )
    plain, made = network(NetworkOptions(), False), network(options, False)
    after = torch.rand(3)
    torch.manual_seed(0)
    Pi0(STATE_ONLY)
    assert torch.equal(torch.rand(3), after)
    for key, value in plain.state_dict().items():
        assert torch.equal(made.state_dict()[key], value), key
