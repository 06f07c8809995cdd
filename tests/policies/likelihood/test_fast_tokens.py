"""Acting by FAST tokens: decoding with a cache, exact probabilities, and failures."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from fast_policies import REACH, fast_policy, fitted
from tensordict import TensorDict

from pitune import envs, policies, rl
from pitune.experiments.recipes import preset
from pitune.policies import (
    DelayConfig,
    FastDecodingConfig,
    FastLikelihoodConfig,
    FlowPolicy,
    FlowSDEConfig,
    LikelihoodActor,
    ModelInput,
)
from pitune.policies.by_tokens import fast_vocabulary, language_tower
from pitune.policies.fast.decoding import decode, score
from pitune.policies.fast.tokenizer import FastTokenizer
from pitune.policies.fast.vocabulary import PADDING
from pitune.policies.flow.guidance import GuidanceConfig
from pitune.policies.network.options.add import network_with_options
from pitune.policies.network.options.config import NetworkOptions
from pitune.policies.network.options.language_head import text_of
from pitune.policies.network.options.tokens.conditioning import ConditioningConfig
from pitune.rl.experience.keys import KEYS
from pitune.rl.experience.sub_dict import sub_dict

pytest.importorskip("tokenizers")


def observations(policy: FlowPolicy, num: int = 6) -> TensorDict:
    states = torch.rand(num, 4, generator=torch.Generator().manual_seed(3))
    td = TensorDict({"state": states, "task_id": torch.zeros(num, dtype=torch.int64)}, [num])
    return policy.observation_preprocessor(("reach the green goal",))(td)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> FlowPolicy:
    return fast_policy(tmp_path_factory.mktemp("fast"))


def unconstrained(policy: FlowPolicy, on_failure: str = "flow") -> FlowPolicy:
    decoding = FastDecodingConfig(constrained=False, on_failure=on_failure)  # type: ignore[arg-type]
    return policy.replace(sampler=replace(policy.sampler, fast=decoding))


@torch.no_grad()
def test_the_probabilities_of_all_possible_decisions_add_up_to_one(policy: FlowPolicy) -> None:
    # chunks of one step and one dimension have as many decisions as there are coefficients
    fast = FastTokenizer.fit(torch.linspace(-1, 1, 40)[:, None, None], vocab_size=64, skip_tokens=0)
    small = policies.small_policy(
        torch.rand(50, 4),
        2 * torch.rand(50, 1) - 1,
        action_horizon=1,
        sampler=policies.SamplerConfig(flow_steps=1, execution_horizon=1),
        tokenizer=policy.info.tokenizer,  # type: ignore[arg-type]
        vlm=policies.SmallVLMConfig(max_tokens=40, discrete_state=True, fast_tokens=64),
        options=policy.network.config.options,
    )
    small = small.replace(info=replace(small.info, fast=fast))
    text = text_of(small.encode(ModelInput.of(observations(small, 2))))
    vocabulary, tower = fast_vocabulary(small), language_tower(small)
    total = torch.zeros(2)
    for choice in range(fast.vocab_size):
        choices = torch.tensor([[choice, PADDING]]).expand(2, -1)
        total += score(tower, text, vocabulary, choices, 1.0)[0].sum(1).exp()
    assert torch.allclose(total, torch.ones(2), atol=1e-5)


@torch.no_grad()
def test_decoding_with_the_cache_gives_the_probabilities_of_one_pass(policy: FlowPolicy) -> None:
    text = text_of(policy.encode(ModelInput.of(observations(policy))))
    vocabulary, tower = fast_vocabulary(policy), language_tower(policy)
    for temperature in (0.5, 1.0, 2.0):
        torch.manual_seed(0)
        choices, acted = decode(tower, text, vocabulary, temperature)
        again, entropy = score(tower, text, vocabulary, choices, temperature)
        assert float((acted - again).abs().max()) < 1e-5
        assert (acted[choices == PADDING] == 0).all()
        assert (entropy >= 0).all()
        assert (acted[:, 0] < 0).all()
        # the control: at another temperature the probabilities differ
        other, _ = score(tower, text, vocabulary, choices, 3.0)
        assert float((acted - other).abs().max()) > 1e-2


@torch.no_grad()
def test_sampled_tokens_have_the_frequencies_of_their_probabilities(policy: FlowPolicy) -> None:
    td = observations(policy, 1).expand(4000).contiguous()
    text = text_of(policy.encode(ModelInput.of(td)))
    vocabulary, tower = fast_vocabulary(policy), language_tower(policy)
    torch.manual_seed(0)
    choices, log_prob = decode(tower, text, vocabulary, 1.0)
    first = choices[:, 0]
    for choice in first.unique()[:20].tolist():
        rows = first == choice
        expected = float(log_prob[rows, 0][0].exp())
        error = math.sqrt(expected * (1 - expected) / 4000)
        assert abs(float(rows.float().mean()) - expected) < 4.5 * error


@torch.no_grad()
def test_the_most_likely_tokens_are_those_of_an_exhaustive_search(policy: FlowPolicy) -> None:
    text = text_of(policy.encode(ModelInput.of(observations(policy))))
    vocabulary, tower = fast_vocabulary(policy), language_tower(policy)
    choices, _ = decode(tower, text, vocabulary, 0.0)
    num = (choices != PADDING).sum(1)
    for row, step in product(range(len(choices)), range(int(num.min()))):
        one = text._replace(
            cache=[(k[row : row + 1], v[row : row + 1]) for k, v in text.cache],
            valid=text.valid[row : row + 1],
            last=text.last[row : row + 1],
        )
        tried = []
        for choice in range(len(vocabulary.rows)):
            prefix = [*choices[row, :step].tolist(), choice]
            tried.append(score(tower, one, vocabulary, torch.tensor([prefix]), 1.0)[0][0, -1])
        assert int(torch.stack(tried).argmax()) == int(choices[row, step])
        if step > 1:
            break


@torch.no_grad()
def test_constrained_decisions_are_always_chunks(policy: FlowPolicy) -> None:
    text = text_of(policy.encode(ModelInput.of(observations(policy, 200))))
    vocabulary, tower = fast_vocabulary(policy), language_tower(policy)
    choices, _ = decode(tower, text, vocabulary, 3.0)
    assert not vocabulary.chunks(choices)[1].any()
    # the control: without the constraint most random tokens are none
    free = fast_vocabulary(unconstrained(policy))
    choices, _ = decode(tower, text, free, 3.0)
    assert free.chunks(choices)[1].float().mean() > 0.5


def test_the_rows_of_a_batch_are_independent(policy: FlowPolicy) -> None:
    inputs = ModelInput.of(observations(policy))
    with torch.no_grad():
        together = policy.decide(inputs).chunk
        for row in range(6):
            one = ModelInput.of(sub_dict(observations(policy), slice(row, row + 1)))
            assert torch.allclose(policy.decide(one).chunk[0], together[row], atol=1e-6)


def test_a_decision_that_is_no_chunk_is_marked_and_the_flow_acts(policy: FlowPolicy) -> None:
    free = unconstrained(policy)
    inputs = ModelInput.of(observations(free))
    noise = torch.randn(6, 4, 2, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        with pytest.warns(UserWarning, match=r"\d of 6 decisions have FAST tokens"):
            decision = free.decide(inputs, noise)
        flow = free.solve(free.encode(inputs), noise)
    failed = decision.marks["fast_failed"]
    assert failed.any()
    assert torch.equal(decision.chunk[failed], flow[failed])
    assert decision.chunk[failed].any()  # and not a chunk of zeros
    with torch.no_grad():  # the control: constrained decisions are not the flow's
        decision = policy.decide(inputs, noise)
    assert not decision.marks["fast_failed"].any()
    assert not torch.isclose(decision.chunk, flow).all()


def test_a_decision_that_is_no_chunk_can_be_an_error(policy: FlowPolicy) -> None:
    strict = unconstrained(policy, "error")
    with torch.no_grad(), pytest.raises(RuntimeError, match="executes nothing for them; train the"):
        strict.decide(ModelInput.of(observations(strict)))


@pytest.mark.filterwarnings("ignore:.*FAST tokens that are no chunk")
def test_a_failed_decision_has_no_ratio_and_no_gradient(policy: FlowPolicy) -> None:
    free = unconstrained(policy)
    actor = LikelihoodActor(free, FastLikelihoodConfig())
    torch.manual_seed(0)
    td = actor(observations(free))
    failed = td["fast_failed"]
    assert failed.any()
    assert not td["action_log_prob"][failed].any()
    log_prob = actor.get_dist(td).log_prob(td["chain"])
    assert not log_prob[failed].any()
    assert (log_prob[~failed][:, 0] < 0).all()
    free.zero_grad()
    log_prob[failed].sum().backward(retain_graph=True)
    grads = [p.grad for p in free.network.parameters() if p.grad is not None]
    assert not any(grad.any() for grad in grads)


@pytest.mark.parametrize(
    ("ratio", "reduction"), [("step", "sum"), ("joint", "sum"), ("joint", "mean")]
)
def test_the_ratio_is_one_before_a_step_and_changes_after_it(
    policy: FlowPolicy, ratio: str, reduction: str, tmp_path: Path
) -> None:
    own = fast_policy(tmp_path)
    config = FastLikelihoodConfig(ratio=ratio, reduction=reduction)  # type: ignore[arg-type]
    actor = LikelihoodActor(own, config)
    torch.manual_seed(0)
    td = actor(observations(own))
    tokens = td["fast_tokens"]
    assert set(actor.out_keys) <= KEYS.keys()
    assert td["action"].shape == (6, 4, 2)
    assert td["chain"].shape == (6, 2, 4, 2)
    assert td["action_log_prob"].shape == ((6, tokens.shape[1]) if ratio == "step" else (6,))
    scored = actor.get_dist(td).log_prob(td["chain"])
    assert float((scored.detach() - td["action_log_prob"]).abs().max()) < 1e-5
    optimizer = torch.optim.SGD(own.parameters(), lr=1e-3)
    (-scored.sum()).backward()
    optimizer.step()
    after = actor.get_dist(td).log_prob(td["chain"])
    assert float((after - scored).detach().sum()) > 1e-3
    vocabulary = fast_vocabulary(own)
    chunk, _ = vocabulary.chunks(tokens)
    expected = own.preprocessor.unnormalize_action(chunk)
    assert torch.allclose(td["action"], expected, atol=1e-5)


def test_the_entropy_has_a_finite_gradient_where_choices_are_forbidden(policy: FlowPolicy) -> None:
    actor = LikelihoodActor(policy, FastLikelihoodConfig())
    td = actor(observations(policy))
    dist = actor.get_dist(td)
    dist.log_prob(td["chain"])
    policy.zero_grad()
    entropy = dist.entropy()
    assert entropy.shape == (6,)
    entropy.mean().backward()
    weight = language_tower(policy).embed_tokens.weight
    assert weight.grad is not None
    assert weight.grad.isfinite().all()
    assert weight.grad.any()


def test_the_likelihood_and_the_decoder_belong_together(policy: FlowPolicy) -> None:
    with pytest.raises(ValueError, match=r"'flow_sde' explores with the policy's flow, but the"):
        LikelihoodActor(policy, FlowSDEConfig())
    flow = policy.replace(sampler=replace(policy.sampler, decoder="flow"))
    with pytest.raises(ValueError, match=r"'fast' explores with the policy's fast, but the policy"):
        LikelihoodActor(flow, FastLikelihoodConfig())
    actor = LikelihoodActor(policy, FastLikelihoodConfig())
    with pytest.raises(ValueError, match="scores the tokens that were chosen when acting"):
        actor.get_dist(observations(policy)).log_prob(torch.zeros(6, 2, 4, 2))


def test_a_policy_that_cannot_act_by_tokens_is_refused_by_name(policy: FlowPolicy) -> None:
    states, actions = torch.rand(50, 4), torch.rand(50, 2)
    sampler = policies.SamplerConfig()
    plain = policies.small_policy(states, actions, action_horizon=4, sampler=sampler)
    with pytest.raises(ValueError, match=r"decoder='fast' acts by the tokens of a language head"):
        plain.replace(sampler=replace(sampler, decoder="fast"))
    without = policy.replace(info=replace(policy.info, fast=None))
    with pytest.raises(ValueError, match="has no FAST tokenizer, so it has no FAST tokens; clone"):
        LikelihoodActor(without, FastLikelihoodConfig())
    delayed = replace(policy.sampler, delay=DelayConfig(steps=1), execution_horizon=2)
    with pytest.raises(ValueError, match="begins each chunk afresh; leave out real_time"):
        policy.replace(sampler=delayed)
    advantage = NetworkOptions(conditioning=ConditioningConfig(advantage=True, instruction=True))
    conditioned = network_with_options(policy.network, advantage, None)
    with pytest.raises(ValueError, match=r"cannot be combined with conditions of \['advantage'\]"):
        policy.replace(network=conditioned)
    guided = replace(policy.sampler, guidance=GuidanceConfig(scale=1.0))
    with pytest.raises(ValueError, match=r"that guidance\.scale=1\.0 could change; set it to 0"):
        policy.replace(sampler=guided)
    with pytest.raises(ValueError, match="reads no starting noise, so it cannot be steered"):
        policy.with_noise_source(policies.SteeringConfig())
    with pytest.raises(ValueError, match=r"action_horizon=4 is not the 5 of the FAST tokenizer's"):
        fast_vocabulary(policy.replace(info=replace(policy.info, fast=fitted(5, 2))))


@pytest.mark.parametrize("word", ["fpo", "epo", "wsrl", "dsrl"])
def test_algorithms_that_train_a_flow_refuse_a_policy_that_acts_by_tokens(
    policy: FlowPolicy, word: str
) -> None:
    with pytest.raises(ValueError, match=rf"{word} trains a flow, but this policy acts with"):
        rl.make(rl.preset(word), policy)


@pytest.mark.parametrize("name", ["kl_coefficient", "bc_coefficient"])
def test_regularizers_of_flows_are_refused(policy: FlowPolicy, name: str) -> None:
    config = replace(preset("ppo:fast"), **{name: 0.1})
    with pytest.raises(ValueError, match="compare flows, and the likelihood 'fast' has none"):
        rl.make(config, policy)


@pytest.mark.parametrize("word", ["ppo:fast", "grpo:fast", "filtered_bc:fast"])
def test_an_algorithm_runs_on_tokens_and_changes_the_language_model(
    word: str, tmp_path: Path
) -> None:
    policy = fast_policy(tmp_path)
    before = {n: p.detach().clone() for n, p in policy.network.named_parameters()}
    changes: dict[str, dict[str, Any]] = {
        "ppo:fast": {"critic_warmup": 0, "entropy_coefficient": 0.01},
        "grpo:fast": {"group_size": 2, "min_kept": 0.0},
    }
    config = replace(preset(word), **changes.get(word, {}))
    if isinstance(config, rl.FilteredBCConfig):
        with pytest.raises(ValueError, match=r"fast_weight=0 does not train the tokens that this"):
            rl.make(config, policy)
        weights = rl.LanguageLossConfig(fast_weight=1.0)
        config = replace(config, cloning=replace(config.cloning, language=weights))
    env = envs.make(REACH)
    torch.manual_seed(0)
    algorithm = rl.make(config, policy)
    rollouts = rl.Rollouts(env, algorithm, 4, 0)
    metrics: dict[str, float] = {}
    for _ in range(2):
        rollout = rollouts.collect()
        if word == "ppo:fast":
            rollout["next", "reward_steps"] = torch.rand_like(rollout["next", "reward_steps"])
        metrics |= algorithm.update(rollout)
    changed = {n for n, p in policy.network.named_parameters() if not torch.equal(p, before[n])}
    in_vlm = {name for name in changed if "language_model" in name}
    if word == "ppo:fast":
        assert metrics["ratio_deviation"] < 1e-4
        assert metrics["entropy"] > 0
        assert in_vlm
        assert not {name for name in changed if "gemma_expert" in name}


def test_a_checkpoint_holds_the_tokenizer_and_the_decoder(
    policy: FlowPolicy, tmp_path: Path
) -> None:
    policies.save(policy, tmp_path / "saved")
    again = policies.load(tmp_path / "saved")
    assert again.sampler == policy.sampler
    assert again.info.fast is not None
    inputs = ModelInput.of(observations(policy))
    with torch.no_grad():
        assert torch.equal(again.decide(inputs).chunk, policy.decide(inputs).chunk)
    flow = policies.load(tmp_path / "saved", policies.LoadConfig(decoder="flow"))
    assert flow.sampler.decoder == "flow"
    with pytest.raises(ValueError, match="the checkpoint has its own, with which its language"):
        policies.load(
            tmp_path / "saved", policies.LoadConfig(fast_tokenizer=tmp_path / "saved" / "fast")
        )


def test_loading_adds_a_tokenizer_to_a_checkpoint_that_has_none(
    policy: FlowPolicy, tmp_path: Path
) -> None:
    sampler = replace(policy.sampler, decoder="flow")
    bare = policy.replace(info=replace(policy.info, fast=None), sampler=sampler)
    policies.save(bare, tmp_path / "bare")
    fitted(4, 2).save(tmp_path / "fast")
    config = policies.LoadConfig(fast_tokenizer=tmp_path / "fast", decoder="fast")
    loaded = policies.load(tmp_path / "bare", config)
    assert loaded.sampler.decoder == "fast"
    with pytest.raises(ValueError, match="has no FAST tokenizer"):
        policies.load(tmp_path / "bare", policies.LoadConfig(decoder="fast"))
