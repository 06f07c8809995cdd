"""Mutants of the bookkeeping: environments, rollouts, memories, demonstrations, evaluation."""

from __future__ import annotations

from tests.mutation.mutant import Change, Mutants

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
                "mask.flatten() & self._playing()",
                "mask.flatten()",
            ),
            Change(
                "earlier observations change",
                "self._preprocessed = self._preprocessed.clone()",
                "self._preprocessed = self._preprocessed.copy()",
            ),
            Change(
                "truncation forgotten",
                'ended["truncated"] | (truncated & active)',
                "truncated & active",
            ),
            Change("success of finished episodes", "(info[key] & active)", "info[key]"),
            Change(
                "unit of the time",
                "self._steps[:, None].float() / self.env.spec.max_episode_steps",
                "self._steps[:, None].float()",
            ),
            Change("number of played episodes", "self._played += done", "self._played += 0 * done"),
            Change("live after the end", "live.append(active)", "live.append(executed)"),
            Change(
                "a reset elsewhere",
                "if self.env.num_resets != self._num_resets:",
                "if self.env.num_resets < self._num_resets:",
                (*CHUNK_ENV, *EVALUATE),
            ),
        ],
    ),
    Mutants(
        "envs/seeding.py",
        ("tests/envs/test_seeding.py",),
        [
            Change("every environment its own start", "env // self.group_size", "env"),
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
            Change("step of the reward", "(step == left[:, None] - 1)", "(step == left[:, None])"),
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
            Change(
                "success after the end",
                '(result.info["success"] & active)',
                'result.info["success"]',
            ),
            Change("first episodes", "kept = ~torch.isin", "kept = torch.isin"),
            Change(
                "live after the end",
                '"live": step < left[:, None]',
                '"live": step <= left[:, None]',
            ),
            Change("failures kept", "if solved[i]]", "if solved[i] | True]"),
            Change(
                "actions of the expert beyond the bounds",
                "torch.maximum(torch.minimum(expert.act(), env.high), env.low)",
                "expert.act()",
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
                'counted = outcome["done"] & ~outcome["invalid"]',
                'counted = outcome["done"]',
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
                '"train", self.algorithm.needs.group_size',
                '"test", self.algorithm.needs.group_size',
            ),
            Change(
                "groups of different starts",
                '"train", self.algorithm.needs.group_size)',
                '"train")',
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
            Change("broken episodes count", 'if not episode["invalid"]]', "if episode]"),
            Change(
                "noise of evaluation",
                "torch.manual_seed(seed)",
                "torch.manual_seed(torch.seed() % 2**31)",
            ),
            Change(
                "quick episodes count more", "if done and len(episodes[i]) < quota:", "if done:"
            ),
            Change(
                "evaluation explores",
                "if stochastic else ExplorationType.DETERMINISTIC",
                "if not stochastic else ExplorationType.DETERMINISTIC",
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
            Change("pairs that agree", "discordant = sum(a != b", "discordant = sum(a == b"),
        ],
    ),
]
