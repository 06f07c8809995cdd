"""The policies of an evaluation: from a folder or behind a server, with the settings of a cell."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from pitune import envs, policies, rl
from pitune.experiments.evaluation.config import EvaluateConfig
from pitune.experiments.evaluation.variations import Cell, text_of, with_cell
from pitune.experiments.find_checkpoint import environment_note
from pitune.experiments.runs.progress import screen
from pitune.policies.actor import ActingModule
from pitune.policies.flow.delay import DelayConfig
from pitune.policies.flow.real_time import RealTimeConfig
from pitune.policies.policy_config import SamplerConfig
from pitune.policies.real_time.delayed_actor import DelayedActor
from pitune.policies.serving.client import RemoteConfig
from pitune.policies.serving.remote_policy import RemoteActor, RemotePolicy


@dataclass(frozen=True)
class Player:
    """A policy that is evaluated.

    Example:
        >>> Player("checkpoint", Path("runs/pick/pretrained"), None).name
        'checkpoint'
    """

    name: str
    """`checkpoint` or `compare`, the option that it comes from."""
    path: Path
    """Its folder, or the address of its server."""
    policy: policies.FlowPolicy | RemotePolicy | None

    def actor(self, config: EvaluateConfig, cell: Cell, seed: int = 0) -> ActingModule:
        """Return an actor with the settings of a cell.

        Args:
            config: Settings of the evaluation.
            cell: Values in place of its deployed settings.
            seed: Of delays that are drawn.

        Raises:
            ValueError: the policy cannot act with these settings.
        """
        if isinstance(self.policy, RemotePolicy):
            return RemoteActor(self.policy)
        if self.policy is None:
            raise ValueError(f"{self.name}={self.path} is not connected; use `fitted` first")
        return make_actor(config, self.policy, cell, seed)

    def description(self, config: EvaluateConfig, cell: Cell, seconds: float) -> str:
        """Return the mode, the sampler and the delay in words, for a report.

        Args:
            config: Settings of the evaluation.
            cell: Values in place of its deployed settings.
            seconds: Time of the evaluation, of which a server has its share.
        """
        if isinstance(self.policy, RemotePolicy):
            waited = self.policy.waiting_seconds
            share = waited / max(seconds, 1e-9)
            uri = self.policy.config.uri
            return f"{uri}, waited {waited:.1f} s ({share:.0%} of the time) for it"
        actor = self.actor(config, cell)
        sampler = actor.policy.sampler
        delay = actor.config if isinstance(actor, DelayedActor) else DelayConfig()
        mode = "exploring" if config.stochastic else f"deployed (ODE, {sampler.solver})"
        return f"{mode}, {sampler.flow_steps} flow steps{_delay_note(delay)}"


def server_of(checkpoint: Path) -> str | None:
    """Return the address of a policy server that was given as a checkpoint, or None for a folder.

    A `Path` keeps one of two slashes.

    Example:
        >>> server_of(Path("ws://localhost:8000")), server_of(Path("runs/pick"))
        ('ws://localhost:8000', None)
    """
    scheme, _, rest = str(checkpoint).partition(":/")
    return f"{scheme}://{rest.lstrip('/')}" if scheme in ("ws", "wss") else None


def check_servers(config: EvaluateConfig) -> None:
    """Reject settings that need the policy itself, where it is behind a server.

    Raises:
        ValueError: there are such settings.
    """
    uris = [server_of(path) for path in (config.checkpoint, config.compare) if path is not None]
    uri = next((uri for uri in uris if uri is not None), None)
    if uri is None:
        return
    if config.stochastic or config.delay != DelayConfig():
        raise ValueError(
            f"stochastic and delay need the policy itself, not a server ({uri}); leave them"
        )
    if config.compile:
        raise ValueError(
            f"compile=True needs the policy itself, not a server ({uri}), which has "
            "settings of its own; leave it, or pass the folder of the checkpoint"
        )
    if config.vary:
        raise ValueError(
            f"vary needs the policy itself, not a server ({uri}), which decides its own settings; "
            "leave it, or pass the folder of the checkpoint"
        )
    if config.folder is not None:
        raise ValueError(
            f"folder={config.folder} needs the policy itself: a server ({uri}) draws its own noise "
            "and may change its policy, so its episodes cannot be continued. Pass --out alone"
        )


def load_players(config: EvaluateConfig, grid: Sequence[Cell]) -> dict[str, Player]:
    """Return the policies of an evaluation by the option that names them, servers without theirs.

    Raises:
        ValueError: a policy cannot act with the settings of a cell.
    """
    given = {"checkpoint": config.checkpoint, "compare": config.compare}
    players = {}
    for name, path in given.items():
        if path is None:
            continue
        if server_of(path) is not None:
            players[name] = Player(name, path, None)
            continue
        policy = policies.load(path, config.load).to(config.device)
        if config.compile:
            policy.compile_functions()
        note = environment_note(policy, config.env)
        if note is not None:
            screen.note(note)
        players[name] = Player(name, path, policy)
        for cell in grid:
            players[name].actor(config, cell)
    return players


def fitted(config: EvaluateConfig, player: Player, spec: envs.EnvSpec, stack: ExitStack) -> Player:
    """Return a policy that fits the environment, after the connection to its server if it has one.

    Args:
        config: Settings of the evaluation.
        player: The policy.
        spec: The environment.
        stack: Closes the connection in the end.

    Raises:
        ValueError: it does not fit, has no prompt for exchanged instructions, or the server fails.
    """
    if isinstance(player.policy, policies.FlowPolicy):
        rl.check_fit(player.policy, spec)
    else:
        uri = server_of(player.path) or str(player.path)
        remote = RemoteConfig(uri=uri, **vars(config.remote))
        policy = RemotePolicy(remote, spec.state_dim, spec.action_dim, list(spec.cameras))
        stack.callback(policy.close)
        player = replace(player, policy=policy)
    if config.shuffle_instructions:
        check_words(player)
    return player


def check_words(player: Player) -> None:
    """Reject exchanged instructions for a policy that reads none.

    Raises:
        ValueError: the policy has no prompt.
    """
    policy = player.policy
    if isinstance(policy, RemotePolicy):
        reads = bool(policy.metadata.get("prompt", True))  # servers of other packages do not say
    else:
        reads = policy is not None and policy.preprocessor.config.prompt is not None
    if not reads:
        raise ValueError(
            f"shuffle_instructions=True has no effect on {player.path}, whose policy has no "
            "prompt; leave it"
        )


def make_actor(
    config: EvaluateConfig, policy: policies.FlowPolicy, cell: Cell, seed: int = 0
) -> ActingModule:
    """Return the actor of a policy: deployed, exploring, or under a delay.

    Raises:
        ValueError: the policy cannot meet the delay or a setting of the cell, or would explore
            under a delay, or `real_time` has no effect.
    """
    # settings of the cell, on top of the checkpoint's own
    own = policy.sampler.real_time
    base = config.real_time if own is None or config.real_time != RealTimeConfig() else own
    sampler, delay, real_time = with_cell(policy.sampler, config.delay, base, cell)
    varied = any(name.startswith("real_time.") for name in cell)
    _check_real_time(config.real_time, real_time if varied else None, delay, own)
    if varied or (own is None and delay != DelayConfig() and delay.seam == "real_time"):
        sampler = replace(sampler, real_time=real_time)
    try:
        return _with_settings(config, policy, sampler, delay, seed)
    except ValueError as error:
        if not cell:
            raise
        raise ValueError(f"vary: the cell {text_of(cell)} cannot be played: {error}") from error


def _with_settings(
    config: EvaluateConfig,
    policy: policies.FlowPolicy,
    sampler: SamplerConfig,
    delay: DelayConfig,
    seed: int,
) -> ActingModule:
    """Return the actor of a policy with other settings."""
    # a policy that was fine-tuned under a delay acts under the evaluation's
    sampler = replace(sampler, delay=DelayConfig())
    if sampler != policy.sampler:
        policy = policy.replace(sampler=sampler)
    if delay != DelayConfig():
        if config.stochastic:
            raise ValueError("stochastic=True explores without a delay; leave delay at its default")
        return DelayedActor(policy, delay, seed)
    if config.stochastic and policy.noise_source is None:
        return policies.LikelihoodActor(policy, config.likelihood)
    return policies.Actor(policy)


def _check_real_time(
    given: RealTimeConfig,
    varied: RealTimeConfig | None,
    delay: DelayConfig,
    own: RealTimeConfig | None,
) -> None:
    """Reject settings of real-time chunking that would not be used.

    Args:
        given: `config.real_time`.
        varied: Settings of the cell, if it has any.
        delay: Delay of the cell.
        own: Settings of the checkpoint.

    Raises:
        ValueError: the seam is another one, or the checkpoint has other settings.
    """
    if given == RealTimeConfig() and varied is None:
        return
    if delay.seam != "real_time":
        raise ValueError(
            f"real_time is set, but delay.seam={delay.seam!r} does not use it; set "
            "--delay.seam real_time"
        )
    if given != RealTimeConfig() and own not in (None, given):
        raise ValueError(
            f"real_time is set, but the checkpoint has settings of its own, {own}; leave it at its "
            "default"
        )


def _delay_note(delay: DelayConfig) -> str:
    """Return the delay and its seam for the report, nothing without a delay."""
    if delay == DelayConfig():
        return ""
    steps = f"{delay.steps}" if delay.max_steps is None else f"{delay.steps} to {delay.max_steps}"
    return f", delay of {steps} steps ({delay.seam})"
