"""Rollouts (E, T) of an actor in an environment, by TorchRL's in-process collector.

Letters: E envs, T chunk decisions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.collectors import Collector
from torchrl.envs import ExplorationType

from pitune.envs import (
    CheckedEnv,
    ChunkEnv,
    DelayedChunkEnv,
    EpisodeSeeds,
    MemoryChunkEnv,
    Starts,
)
from pitune.policies import FlowPolicy, LikelihoodActor
from pitune.policies.actor import ActingPolicy
from pitune.policies.finetuning.shard import gather
from pitune.policies.host_prefixes import HostPrefixes, with_host_prefix
from pitune.policies.under_delay import remainder_steps
from pitune.rl import ranks
from pitune.rl.algorithm import Algorithm
from pitune.rl.experience.fit import check_fit, check_needs
from pitune.rl.experience.repeated import PlayedActions, RepeatingActor
from pitune.rl.experience.sub_dict import sub_dict
from pitune.rl.experience.task_success import task_success


def chunk_env_for(
    policy: ActingPolicy,
    env: CheckedEnv,
    seeds: EpisodeSeeds,
    num_episodes: int | Tensor | None,
    tasks: Sequence[str] | None = None,
    record_success: bool | None = None,
    device: torch.device | None = None,
) -> ChunkEnv:
    """Return the environment whose steps are the policy's decisions, late if its sampler sets so.

    Args:
        policy: Gives the horizon, the delay and the preprocessing.
        env: The checked simulator.
        seeds: See `ChunkEnv`, as the others.
        num_episodes: Episodes of every environment.
        tasks: Instructions, the environment's own by default.
        record_success: Whether to write the flags of success.
        device: Of actions and outcomes, that of the simulator by default.
    """
    sampler = policy.sampler
    preprocess = policy.observation_preprocessor(env.spec.tasks if tasks is None else tasks)
    args = (env, sampler.execution_horizon, seeds, num_episodes, preprocess, record_success)
    steps = remainder_steps(sampler, policy.chunk_shape[0])
    last = bool(getattr(policy, "reads_last_action", False))  # not of a policy behind a server
    if isinstance(policy, FlowPolicy) and policy.has_memory:  # and no delay, see `check_parts`
        return MemoryChunkEnv(*args, last, device, memory_shape=policy.memory_shape)
    if not steps:
        return ChunkEnv(*args, last, device)
    draw = sampler.delay.draw
    return DelayedChunkEnv(*args, last, device, remainder_steps=steps, draw_delay=draw)


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
        self.seconds_elsewhere: float | None = None
        """Time of the last rollout in another process [s], if that collected it."""
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

        It is called after an evaluation and after loading its checkpoint. Both runs then continue
        with the same episodes in every simulator, without saving the simulator's state.
        """
        self._begin(iteration, self.algorithm.actor)

    def _begin(self, iteration: int, actor: TensorDictModuleBase) -> None:
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
        self._chunk_env = chunk_env_for(
            policy, self.env, seeds, self._num_episodes, device=policy.device
        )
        self._iteration, self._begun, self._played = iteration, False, PlayedActions()

        # collector
        self._collector: Iterator[TensorDictBase] = iter(())
        if self.algorithm.needs.rollouts:
            self._collector = iter(
                Collector(
                    self._chunk_env,
                    actor,
                    frames_per_batch=spec.num_envs * self.num_chunks,
                    total_frames=-1,
                    exploration_type=ExplorationType.RANDOM,
                    use_buffers=False,
                    track_traj_ids=False,
                    auto_register_policy_transforms=False,
                )
            )

    def state(self) -> dict[str, Any] | None:
        """Return the state from which `repeat` goes on in the midst of the episodes.

        None if that is not possible, because there are too many actions, or because the actor reads
        entries that the environment does not give.
        """
        given = {str(key) for key in self._chunk_env.observation_spec.keys()}
        read = {key if isinstance(key, str) else key[0] for key in self.algorithm.actor.in_keys}
        if not self._played.complete or not read <= given:
            return None
        return {"iteration": self._iteration, "begun": self._begun, **self._played.state()}

    def repeat(self, state: dict[str, Any]) -> bool:
        """Play the episodes of `state` again, and return whether they went as before.

        It takes the simulator's time of the rollouts since the episodes began, and no random
        number. If they went differently, call `restart`.
        """
        played, same = PlayedActions.of_state(state), True
        actor = RepeatingActor(self.algorithm.actor, played.actions, played.written)
        with torch.random.fork_rng(devices=ranks.devices()):
            self._begin(state["iteration"], actor)
            for number in range(len(played.actions)):
                rollout = next(self._collector)
                same = number + 1 < len(played.actions) or played.equals_last(rollout)
        self._begun, self._played = state["begun"], played
        return same

    def collect(self) -> TensorDictBase:
        """Return the next rollout (E, T), or an empty one if the algorithm needs no rollouts."""
        if not self.algorithm.needs.rollouts:
            return TensorDict(batch_size=(self.env.spec.num_envs, 0))
        if self._begun and (self._num_episodes is not None or self._chunk_env.stale):
            self.restart(self._iteration + 1)
        elif self._chunk_env.stale:  # used by another owner before the first rollout
            self.restart(self._iteration)
        self._begun = True
        gather(self.algorithm.actor.policy)
        steps, seconds = self._chunk_env.num_env_steps, self._chunk_env.simulator_seconds
        rollout = self._next()
        self.num_env_steps += self._chunk_env.num_env_steps - steps
        self.simulator_seconds = self._chunk_env.simulator_seconds - seconds
        if self._num_episodes is None:  # otherwise the next rollout has new episodes anyway
            self._played.add(rollout)
        return rollout

    def _next(self) -> TensorDictBase:
        """Return the collector's next rollout (E, T), with encoded observations of the host."""
        actor = self.algorithm.actor
        if not isinstance(actor, LikelihoodActor) or not actor.prefixes_on_host:
            rollout: TensorDictBase = next(self._collector)
            return rollout
        actor.host_prefixes = HostPrefixes(self.num_chunks)
        try:
            rollout = next(self._collector)
            return with_host_prefix(rollout, actor.host_prefixes.rollout())
        finally:
            actor.host_prefixes = None


def rollout_metrics(rollout: TensorDictBase) -> dict[str, float]:
    """Return metrics of the episodes that ended in a rollout (E, T), on all ranks.

    There is no success rate without such an episode, or if the environment reports no success.
    """
    if rollout.batch_size.numel() == 0:  # TensorDict.numel() is never below 1
        return {}
    outcome = sub_dict(rollout, "next")
    counted = ranks.joined(outcome["done"] & ~outcome["invalid"]).squeeze(-1)  # (ranks * E, T)
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
