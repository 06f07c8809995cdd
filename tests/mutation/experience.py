"""Mutants of the bookkeeping: environments, rollouts, memories, demonstrations, evaluation."""

from __future__ import annotations

from tests.mutation.mutant import Change, Mutants

SUCCESS = ("tests/envs/test_success.py",)
CHUNK_ENV = ("tests/envs/test_waiting.py", "tests/envs/test_chunk_env.py")
TRANSITIONS = ("tests/rl/experience/test_rows.py", "tests/rl/actor_critic/test_td.py")
DEMONSTRATIONS = (
    "tests/rl/experience/test_rows.py",
    "tests/rl/experience/test_demonstrations.py",
)
ROLLOUTS = ("tests/rl/experience/test_rows.py", "tests/rl/algorithms/test_algorithms.py")
EVALUATE = ("tests/rl/evaluation/test_evaluate.py",)

EXPERIENCE = [
    Mutants(
        "envs/chunk_env.py",
        CHUNK_ENV,
        [
            Change(
                "steps after the time limit",
                "active = active & ~(terminated | truncated)",
                "active = active & ~terminated",
            ),
            Change(
                "rewards of finished episodes",
                "torch.where(active, reward, torch.zeros_like(reward))",
                "1 * reward",
            ),
            Change("time of finished episodes", "self._steps += active", "self._steps += 1"),
            Change(
                "time of a new episode", "self._steps[env_idx] = 0", "self._steps[env_idx] *= 1"
            ),
            Change(
                "waiting environments begin anew",
                "begins.to(self.home) & self._playing()",
                "begins.to(self.home)",
            ),
            Change(
                "earlier observations change",
                "self._preprocessed = self._preprocessed.clone()",
                "self._preprocessed = self._preprocessed.copy()",
            ),
            Change(
                "truncation forgotten",
                "flag | (now[key] & active)",
                "now[key] & active",
            ),
            Change(
                "success of finished episodes",
                'self._success.add(info["success"], active)',
                'self._success.add(info["success"], executed)',
                (*SUCCESS, *CHUNK_ENV),
            ),
            Change(
                "success of the episode before",
                "self._success.start(env_idx)",
                "self._success.start(env_idx[:0])",
                (*SUCCESS, *CHUNK_ENV),
            ),
            Change(
                "unit of the time",
                "self._steps[:, None].float() / self.env.spec.max_episode_steps",
                "self._steps[:, None].float()",
            ),
            Change("number of played episodes", "self._played += done", "self._played += 0 * done"),
            Change("live after the end", "live.append(active)", "live.append(executed)"),
            Change(
                "a reset elsewhere",
                "if self.env.num_calls != self._num_calls:",
                "if self.env.num_calls < self._num_calls:",
                (*CHUNK_ENV, *EVALUATE),
            ),
        ],
    ),
    Mutants(
        "envs/success.py",
        SUCCESS,
        [
            Change("only the last step", "self.once | (solved & active)", "solved & active"),
            Change(
                "successes after the end", "self.once | (solved & active)", "self.once | solved"
            ),
            Change("the end after the end", "torch.where(active, solved, self.at_end)", "solved"),
            Change(
                "rules confused",
                'self.once if rule == "once" else',
                'self.once if rule != "once" else',
            ),
            Change(
                "once before the start",
                "self.once.index_fill(0, env_idx, False)",
                "self.once.clone()",
            ),
            Change("flags of any number", "and item in (0, 1):", "and item == item:"),
            Change(
                "mask of reports", "flags[row] = parse_success(", "flags[0 * row] = parse_success("
            ),
            Change(
                "start before the final info",
                '"final_info" not in row[0]',
                '"final_info" in row[0]',
            ),
        ],
    ),
    Mutants(
        "envs/seeding.py",
        ("tests/envs/test_seeding.py", *EVALUATE),
        [
            Change(
                "starts depend on the number of environments",
                "self.seed_of(env + episode * len(self.episodes))",
                "self.seed_of(env * 1000 + episode)",
            ),
            Change(
                "one noise for all episodes",
                "self.split, index, 1)",
                "self.split, 0 * index, 1)",
            ),
            Change(
                "one start for all episodes",
                "self.split, index, 0)",
                "self.split, 0 * index, 0)",
            ),
            Change(
                "place in the list", "(self.episodes - 1) * num_envs", "self.episodes * num_envs"
            ),
            Change(
                "length of the list",
                "(num_episodes - env + num_envs - 1)",
                "(num_episodes + num_envs - 1)",
            ),
            Change(
                "every environment its own start",
                "(self.before + env) // self.group_size",
                "self.before + env",
            ),
            Change("splits share their starts", "SPLITS.index(split)", "0 * SPLITS.index(split)"),
            Change(
                "one start for ever",
                "self.episodes[env_idx.cpu()] += 1",
                "self.episodes[env_idx.cpu()] += 0",
            ),
            Change("range of a seed", ">> 1", ">> 0"),
            Change("streams share their starts", "stream, episode]", "0 * stream, episode]"),
        ],
    ),
    Mutants(
        "rl/experience/transitions.py",
        TRANSITIONS,
        [
            Change(
                "broken decisions kept",
                '~ends["invalid"].squeeze(-1)',
                '~(ends["invalid"] & False).squeeze(-1)',
            ),
            Change(
                "time of the next observation",
                '"elapsed": ends["elapsed"]}',
                '"elapsed": rollout["elapsed"]}',
            ),
            Change("end of the rollout", "last[:, -1] = True", "last[:, -1] |= False"),
            Change("rows of a pass", "ENCODED_ROWS = 64", "ENCODED_ROWS = 32"),
            Change("previous encoding", ".roll(-1)", ".roll(1)"),
            Change(
                "ends of the rollout changed",
                '["next", "done"].squeeze(-1).clone()',
                '["next", "done"].squeeze(-1)',
            ),
            Change(
                "actions as they are",
                "normalized = policy.preprocessor.normalize_action(action, state)",
                "normalized = action",
                (*TRANSITIONS, "tests/rl/algorithms/test_dsrl.py"),
            ),
            Change(
                "origin of relative actions",
                "normalize_action(action, state)",
                "normalize_action(action, 0 * state)",
            ),
        ],
    ),
    Mutants(
        "rl/experience/demonstrations.py",
        DEMONSTRATIONS,
        [
            Change(
                "step of the reward",
                "(torch.arange(num) == last).float()",
                "(torch.arange(num) + 1 == last).float()",
            ),
            Change("rewards after the end", "reward[ahead] * live", "reward[ahead]"),
            Change(
                "recorded ends",
                "ended & self.terminated[last]",
                "ended & ~self.terminated[last]",
                ("tests/rl/experience/test_demonstrated_rewards.py",),
            ),
            Change(
                "time limits of successes", '"truncated": ended & ~solved', '"truncated": ended'
            ),
            Change("duration past the end", "left.clamp(max=num_steps)", "left.clamp(min=1)"),
            Change("end at the last step", "(left <= num_steps)", "(left < num_steps)"),
            Change(
                "next observations of demonstrations", "{key: value[following]", "{key: value[:]"
            ),
            Change(
                "next observation one step early",
                "+ num_steps, self._last()",
                "+ num_steps - 1, self._last()",
            ),
            Change(
                "last observation of the next episode",
                "torch.minimum(torch.arange(len(self.action)) + num_steps, self._last())",
                "(torch.arange(len(self.action)) + num_steps).clamp(max=len(self.action) - 1)",
            ),
            Change("first episodes", "self.chosen(~torch.isin", "self.chosen(torch.isin"),
            Change(
                "live after the end",
                "live = step < left[:, None]",
                "live = step <= left[:, None]",
            ),
        ],
    ),
    Mutants(
        "rl/experience/collect.py",
        (*DEMONSTRATIONS, "tests/rl/experience/test_demonstrated_rewards.py"),
        [
            Change(
                "success after the end",
                'success.add(result.info["success"], active)',
                'success.add(result.info["success"], active | True)',
            ),
            Change("failures kept", "if played.solved[i] else", "if played.solved[i] | True else"),
            Change(
                "actions of the expert beyond the bounds",
                "torch.maximum(torch.minimum(expert.act(), env.high), env.low)",
                "expert.act()",
            ),
            Change("broken simulators kept", '["success"] & ~broken &', '["success"] &'),
            Change(
                "steps after the end", "self.steps[self.live[:, env], env]", "self.steps[:, env]"
            ),
        ],
    ),
    Mutants(
        "rl/experience/replay.py",
        ("tests/rl/experience/test_replay.py",),
        [
            Change("full memory refused", "if num > self.capacity:", "if num >= self.capacity:"),
            Change(
                "place of the next row",
                'self._buffer.writer.load_state_dict(state["writer"])',
                'dict(state["writer"])',
            ),
            Change("old rows kept", "self._buffer.empty()", "len(self._buffer)"),
        ],
    ),
    Mutants(
        "rl/experience/rollouts.py",
        (*ROLLOUTS, "tests/rl/algorithms/test_grpo.py"),
        [
            Change(
                "broken episodes count",
                'ranks.joined(outcome["done"] & ~outcome["invalid"])',
                'ranks.joined(outcome["done"])',
            ),
            Change("a restart repeats its starts", "iteration * 1_000_000", "iteration * 0"),
            Change(
                "episodes cut short",
                "-(-self.env.spec.max_episode_steps // horizon)",
                "self.env.spec.max_episode_steps // horizon",
            ),
            Change(
                "every rollout the same starts",
                "self.restart(self._iteration + 1)",
                "self.restart(self._iteration)",
            ),
            Change(
                "trained on the test's starts",
                '"train", group_size, starts',
                '"test", group_size, starts',
            ),
            Change(
                "groups of different starts",
                '"train", group_size, starts, before',
                '"train", 1, starts, before',
            ),
            Change(
                "explores as deployed",
                "exploration_type=ExplorationType.RANDOM",
                "exploration_type=ExplorationType.DETERMINISTIC",
            ),
        ],
    ),
    Mutants(
        "rl/evaluation/evaluate.py",
        EVALUATE,
        [
            Change(
                "length of the episode before", "length[i], total[i] = 0, 0.0", "total[i] = 0.0"
            ),
            Change("return of the episode before", "length[i], total[i] = 0, 0.0", "length[i] = 0"),
            Change(
                "episodes in the order of their ends",
                "rows.sort(key=lambda row: row.index)",
                "rows.sort(key=lambda row: row.length)",
            ),
            Change(
                "noise of evaluation",
                "torch.manual_seed(seed)",
                "torch.manual_seed(torch.seed() % 2**31)",
            ),
            Change(
                "quick episodes count more",
                "seeds.num_episodes.to(env.spec.device),",
                "None,",
            ),
            Change("noise of the environments", '.set("noise", noise.draw())', ".copy()"),
            Change(
                "evaluation explores",
                "if stochastic else ExplorationType.DETERMINISTIC",
                "if not stochastic else ExplorationType.DETERMINISTIC",
            ),
        ],
    ),
    Mutants(
        "rl/evaluation/outcome.py",
        EVALUATE,
        [
            Change("broken episodes count", "if not row.invalid]", "if row]"),
            Change("rules confused", 'if rule == "once" else', 'if rule != "once" else'),
        ],
    ),
    Mutants(
        "rl/evaluation/episode_noise.py",
        EVALUATE,
        [
            Change(
                "noise of the episode before", "(index != self._index)", "(index < self._index)"
            ),
            Change(
                "noise of the environment",
                "self._seeds.noise_seed_of(int(index[env]))",
                "self._seeds.noise_seed_of(env)",
            ),
        ],
    ),
    Mutants(
        "rl/evaluation/chosen_episodes.py",
        EVALUATE,
        [
            Change(
                "other rows of the batch",
                "self._of_env[index % num_envs].append(index)",
                "self._of_env[len(self.chosen) % num_envs].append(index)",
            ),
            Change("starts of other places", "self._whole.seed_of(index)", "index"),
        ],
    ),
    Mutants(
        "rl/evaluation/played_once.py",
        EVALUATE,
        [
            Change(
                "episodes that are missing",
                "sorted(wanted | played.keys())",
                "sorted(wanted & played.keys())",
            ),
            Change("other tasks", "row.task_id != seed %", "row.task_id == -seed %"),
            Change("starts that repeat", "if num > 1]", "if num > 2]"),
        ],
    ),
    Mutants(
        "experiments/evaluation/plan.py",
        ("tests/experiments/evaluation/test_plan.py",),
        [
            Change("rounds that are left over", "turn if turn < dealt else env", "turn"),
            Change("episodes of other shares", "num_shards) == own", "num_shards) >= own"),
        ],
    ),
    Mutants(
        "experiments/evaluation/rows_file.py",
        ("tests/experiments/evaluation/test_rows_file.py",),
        [
            Change("an end that was cut stays", "os.truncate(file, len(whole))", "pass"),
            Change("values of another type", "if type(value) not in kinds:", "if value is kinds:"),
        ],
    ),
    Mutants(
        "rl/evaluation/paired.py",
        ("tests/rl/evaluation/test_paired.py",),
        [
            Change("other starts compared", "if a.keys() != b.keys():", "if len(a) != len(b):"),
            Change("other definitions compared", "if rules[0] != rules[1]:", "if not rules:"),
            Change("wins and losses confused", "wins=sum(y and not x", "wins=sum(x and not y"),
            Change(
                "broken simulators count",
                'None if row["invalid"] else bool',
                "bool",
            ),
            Change(
                "starts without a seed", 'if any(row["seed"] is None for', "if all(row is None for"
            ),
        ],
    ),
    Mutants(
        "rl/evaluation/statistics.py",
        ("tests/rl/evaluation/test_statistics.py",),
        [
            Change("evidence for the first", "(1 if b else -1)", "(1 if a else -1)"),
            Change("interval of Wilson", 'method="wilson"', 'method="exact"'),
            Change("trimmed share", "ravel(), 0.25", "ravel(), 0.1"),
            Change("tasks mixed", "scores, dtype=float)[:, task]", "scores, dtype=float)[task]"),
            Change(
                "episodes are not resampled",
                "generator.binomial(episodes[tasks], rates[tasks]) / episodes[tasks]",
                "rates[tasks]",
            ),
            Change(
                "tasks are not resampled",
                "generator.integers(len(rates), size=",
                "np.arange(len(rates)) + np.zeros(dtype=int, shape=",
            ),
            Change("correlation of the pairs", "- 2 * phi * first", "+ 2 * phi * first"),
            Change("pairs that agree", "discordant = sum(a != b", "discordant = sum(a == b"),
        ],
    ),
]
