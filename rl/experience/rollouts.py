"""Rollouts (E, T) of an actor in an environment, by TorchRL's in-process collector.

Letters: E envs, T chunk decisions.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.collectors import Collector
from torchrl.envs import ExplorationType

from pitune.envs import CheckedEnv, ChunkEnv, DelayedChunkEnv, EnvSpec, EpisodeSeeds, Starts
from pitune.policies import FlowPolicy
from pitune.policies.actor import ActingPolicy
from pitune.policies.preprocessing.images import nearest
from pitune.policies.preprocessing.model_input import with_words
from pitune.policies.under_delay import remainder_steps
from pitune.rl import ranks
from pitune.rl.algorithm import Algorithm
from pitune.rl.experience.sub_dict import sub_dict
from pitune.rl.experience.task_success import task_success

logger = logging.getLogger(__name__)


def check_fit(policy: FlowPolicy, spec: EnvSpec) -> None:
    """Reject a policy that does not fit an environment.

    Raises:
        ValueError: their state or action dims differ, or the environment lacks cameras or the
            instructions of the policy.
    """
    # widths of state and action
    pairs = (
        ("state", policy.preprocessor.state_dim, spec.state_dim),
        ("action", policy.preprocessor.action_dim, spec.action_dim),
    )
    for name, wanted, given in pairs:
        if wanted != given:
            raise ValueError(
                f"the checkpoint's {name} has {wanted} dimensions, {spec.id} has {given}; it was "
                "trained for another robot or task, pass its environment with --env.id"
            )

    # cameras
    cameras = [key.removeprefix("image/") for key in policy.obs_keys if key.startswith("image/")]
    missing = sorted(set(cameras) - set(spec.cameras))
    if missing:
        raise ValueError(
            f"the checkpoint needs cameras {missing}, {spec.id} was made with "
            f"{list(spec.cameras)}{nearest(missing, spec.cameras)}; {_camera_advice(spec.id)}"
        )

    # instructions
    prompt = policy.preprocessor.config.prompt
    if prompt is not None:
        with_words(spec.tasks, prompt.default)
    elif len(spec.tasks) > 1:
        _warn_of_tasks(spec.id, len(spec.tasks))


def _camera_advice(env_id: str) -> str:
    """Return the way to get further cameras in an environment."""
    prefix = env_id.partition("/")[0]
    if prefix == "gym":
        return "let the environment return them as image/<camera> in a Dict observation"
    return "pass --env.cameras"


@cache
def _warn_of_tasks(env_id: str, num_tasks: int) -> None:
    """Warn of a policy without words, once for each environment."""
    logger.warning(
        "%s has %d tasks, but the policy reads no instruction, so it and its critics cannot "
        "distinguish tasks whose observations are alike; use a policy with words "
        "(pitune pretrain --words)",
        env_id,
        num_tasks,
    )


def check_needs(algorithm: Algorithm[Any], spec: EnvSpec) -> None:
    """Reject an environment that does not meet an algorithm's `Needs`.

    Raises:
        ValueError: a need is not met.
    """
    name, needs = type(algorithm).__name__, algorithm.needs
    if needs.success_signal and not spec.success_signal:
        raise ValueError(
            f"{name} needs a success signal, {spec.id} has none; report info['success'], one "
            "boolean at each step, or use an algorithm that learns from the reward (ppo, fpo)"
        )
    check_rewards(algorithm, spec)
    check_rate(algorithm, spec)
    if spec.num_envs % needs.num_shares:
        raise ValueError(
            f"{name} splits the environments into {needs.num_shares} equal shares; "
            f"num_envs={spec.num_envs} must be a multiple of that"
        )
    if needs.group_size > 1 and not spec.deterministic_reset:
        raise ValueError(
            f"{name} needs groups of {needs.group_size} equal starts, but a seed does not fix the "
            f"start of {spec.id}"
        )


def check_rewards(algorithm: Algorithm[Any], spec: EnvSpec) -> None:
    """Reject demonstrations whose rewards are not those of the environment, where they are mixed.

    Raises:
        ValueError: the rewards differ.
    """
    recorded = algorithm.demonstrated_reward
    if recorded is not None and spec.reward and recorded != spec.reward:
        raise ValueError(
            f"{type(algorithm).__name__} learns from the rewards of demonstrations beside those of "
            f"{spec.id}, but they differ: {recorded!r} in the file, {spec.reward!r} here. Collect "
            "the demonstrations again in this environment (pitune pretrain with the same --env "
            "options), or set offline_share to 0"
        )


def chunk_env_for(
    policy: ActingPolicy,
    env: CheckedEnv,
    seeds: EpisodeSeeds,
    num_episodes: int | Tensor | None,
    tasks: Sequence[str] | None = None,
    record_success: bool | None = None,
) -> ChunkEnv:
    """Return the environment whose steps are the policy's decisions, late if its sampler sets so.

    Args:
        policy: Gives the horizon, the delay and the preprocessing.
        env: The checked simulator.
        seeds: See `ChunkEnv`, as the others.
        num_episodes: Episodes of every environment.
        tasks: Instructions, the environment's own by default.
        record_success: Whether to write the flags of success.
    """
    sampler = policy.sampler
    preprocess = policy.observation_preprocessor(env.spec.tasks if tasks is None else tasks)
    args = (env, sampler.execution_horizon, seeds, num_episodes, preprocess, record_success)
    steps = remainder_steps(sampler, policy.chunk_shape[0])
    if not steps:
        return ChunkEnv(*args)
    return DelayedChunkEnv(*args, remainder_steps=steps, draw_delay=sampler.delay.draw)


def check_rate(algorithm: Algorithm[Any], spec: EnvSpec) -> None:
    """Reject a dataset whose frame rate is not the control rate of the environment.

    Raises:
        ValueError: the rates differ.
    """
    fps = algorithm.demonstrated_fps
    if fps is not None and abs(fps - spec.control_hz) > 1e-3 * spec.control_hz:
        raise ValueError(
            f"the dataset has {fps:g} frames per second, {spec.id} has control_hz="
            f"{spec.control_hz:g}, so a cloned action would take another time; record the dataset "
            "at this rate, or accept the difference with data.any_rate"
        )


class Rollouts:
    """Collects rollouts with an algorithm's actor.

    The environment may be used for other things in between, such as an evaluation. That ends the
    running episodes, so the next rollout begins new ones.

    Args:
        env: The checked simulator.
        algorithm: Its actor acts in exploration mode. Its needs are checked.
        num_chunks: T, decisions per environment and rollout. For an algorithm that needs whole
            episodes it is rounded down to a multiple of the longest episode.
        seed: Seed of the run.

    Raises:
        ValueError: the policy or the environment does not fit, or `num_chunks` is shorter than a
            whole episode.

    Example:
        >>> env = envs.make(envs.EnvConfig(id="mock/Reach"))  # doctest: +SKIP
        >>> rollouts = Rollouts(env, algorithm, num_chunks=16, seed=0)  # doctest: +SKIP
        >>> rollouts.collect().batch_size  # doctest: +SKIP
        torch.Size([100, 16])
    """

    def __init__(
        self, env: CheckedEnv, algorithm: Algorithm[Any], num_chunks: int, seed: int
    ) -> None:
        check_fit(algorithm.actor.policy, env.spec)
        check_needs(algorithm, env.spec)
        self.env, self.algorithm, self.num_chunks, self.seed = env, algorithm, num_chunks, seed
        self._num_episodes: int | None = None
        if algorithm.needs.whole_episodes:
            self._num_episodes, self.num_chunks = self._whole_episodes(num_chunks)
        self.notes = algorithm.plan_rollouts(env.spec.num_envs * self.num_chunks)
        """Notes on the rollouts for the user."""
        self.num_env_steps = 0
        """Simulator steps so far."""
        self.simulator_seconds = 0.0
        """Time of the last rollout inside the simulator [s]."""
        self._iteration, self._begun = 0, False
        self.restart(0)

    def _whole_episodes(self, num_chunks: int) -> tuple[int, int]:
        """Return the number of episodes that always fit into `num_chunks`, and their chunks.

        Counting the episodes that happen to fit would favor short episodes, and successes are
        short.
        """
        horizon = self.algorithm.actor.policy.sampler.execution_horizon
        longest = -(-self.env.spec.max_episode_steps // horizon)
        if num_chunks < longest:
            raise ValueError(
                f"num_chunks={num_chunks} does not hold an episode of {self.env.spec.id}: "
                f"{self.env.spec.max_episode_steps} steps in chunks of {horizon} are {longest} "
                f"decisions, and {type(self.algorithm).__name__} needs whole episodes"
            )
        num_episodes = num_chunks // longest
        return num_episodes, num_episodes * longest

    def restart(self, iteration: int) -> None:
        """Begin new episodes, whose seeds are a function of the run's seed and the iteration.

        It is called after saving and after loading a checkpoint. Both runs then continue with the
        same episodes in every simulator, without saving the simulator's state.
        """
        # environment with new episodes
        spec = self.env.spec
        group_size = self.algorithm.needs.group_size
        starts = Starts.of(spec)
        before, total_envs = ranks.rank() * spec.num_envs, ranks.world() * spec.num_envs
        seeds = EpisodeSeeds(
            spec.num_envs, self.seed, "train", group_size, starts, before, total_envs
        )
        seeds.episodes += iteration * 1_000_000  # unique episode numbers in a run
        policy = self.algorithm.actor.policy
        self._chunk_env = chunk_env_for(policy, self.env, seeds, self._num_episodes)
        self._iteration, self._begun = iteration, False

        # collector
        self._collector: Iterator[TensorDictBase] = iter(())
        if self.algorithm.needs.rollouts:
            self._collector = iter(
                Collector(
                    self._chunk_env,
                    self.algorithm.actor,
                    frames_per_batch=spec.num_envs * self.num_chunks,
                    total_frames=-1,
                    exploration_type=ExplorationType.RANDOM,
                    use_buffers=False,
                    track_traj_ids=False,
                    auto_register_policy_transforms=False,
                )
            )

    def collect(self) -> TensorDictBase:
        """Return the next rollout (E, T), or an empty one if the algorithm needs no rollouts."""
        if not self.algorithm.needs.rollouts:
            return TensorDict(batch_size=(self.env.spec.num_envs, 0))
        if self._begun and (self._num_episodes is not None or self._chunk_env.stale):
            self.restart(self._iteration + 1)
        elif self._chunk_env.stale:  # used by another owner before the first rollout
            self.restart(self._iteration)
        self._begun = True
        steps, seconds = self._chunk_env.num_env_steps, self._chunk_env.simulator_seconds
        rollout: TensorDictBase = next(self._collector)
        self.num_env_steps += self._chunk_env.num_env_steps - steps
        self.simulator_seconds = self._chunk_env.simulator_seconds - seconds
        return rollout


def rollout_metrics(rollout: TensorDictBase) -> dict[str, float]:
    """Return metrics of the episodes that ended in a rollout (E, T), on all ranks.

    There is no success rate without such an episode, or if the environment reports no success.
    """
    if rollout.batch_size.numel() == 0:  # TensorDict.numel() is never below 1
        return {}
    outcome = sub_dict(rollout, "next")
    counted = ranks.joined(outcome["done"] & ~outcome["invalid"]).squeeze(-1)  # (R * E, T)
    num, invalid = int(counted.sum()), ranks.total(outcome["invalid"].sum())
    metrics = {"train/episodes": float(num), "train/invalid": float(invalid)}
    if num and "success" in outcome.keys():
        success = ranks.joined(outcome["success"]).squeeze(-1)[counted].tolist()
        metrics["train/success_rate"] = float(sum(success)) / num
        task_id = ranks.joined(rollout["task_id"])[counted].tolist()
        metrics |= task_success("train", task_id, success)
    reward, duration = (ranks.total(outcome[key].sum()) for key in ("reward", "duration"))
    metrics["train/reward_per_step"] = float(reward / duration)
    return metrics
