"""Rollouts: what an update learns from, and how it is collected.

Token in, token out: the ids that were sampled are trained on as sampled, never re-encoded from
text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from itertools import accumulate
from typing import Any

import numpy as np

from instructrec import processes
from instructrec.envs.vector import InstructionVectorEnv
from instructrec.errors import ConfigError, DataError, RewardError
from instructrec.faults import Fault, note
from instructrec.policies.base import StopReason, TokenPolicy
from instructrec.policies.config import Sampling
from instructrec.policies.tape import TokenStates
from instructrec.rewards.base import RewardBatch
from instructrec.rewards.combine import CombinedReward
from instructrec.rl.config import PPOConfig
from instructrec.rl.turns import play


@dataclass
class Rollout:
    """B episodes; all lists are aligned by episode."""

    instruction_ids: list[str]
    """Which instruction each episode answered."""
    prompts: list[Any]
    """The instructions as the policy was given them (text or messages)."""
    texts: list[str]
    """The decoded response (of the last turn)."""
    prompt_ids: list[list[int]]
    """Token ids before the first action."""
    response_ids: list[list[int]]
    """Token ids after the prompt, those of the environment included."""
    action_mask: list[list[bool]]
    """True where the policy produced the token of response_ids."""
    sampler_logprobs: list[list[float]]
    """Log-probs under the distribution that sampled; 0.0 where the environment wrote. Empty where
    nobody knows them."""
    turn_rewards: list[list[tuple[int, float]]]
    """For each turn: index into response_ids of its last action token, and its reward."""
    stop_reasons: list[StopReason | None]
    """Why the last response ended."""
    scored: list[bool]
    """False where the reward failed or did not apply."""
    groups: list[int]
    """Episodes of one number answered the same instruction side by side."""
    unfinished: list[bool]
    """True where the environment cut an episode that could have gone on."""
    kept: list[bool]
    """False for an episode that is not trained on: not scored, or left out for its length."""
    references: list[Any] = field(default_factory=list)
    """The instructions' reference column (None where there is none)."""
    tasks: list[str | None] = field(default_factory=list)
    """The task of a mixture that each instruction belongs to (None where there is no mixture)."""
    rewards: RewardBatch | None = None
    """Totals, parts and status of each episode's last answer."""
    returns: list[float] = field(default_factory=list)
    """What the environment paid in all turns together, without penalties; NaN if not scored."""
    scoring_s: float = 0.0
    """Seconds in which decoding waited for the rewards, in the slowest process."""
    counts: list[dict[str, float]] = field(default_factory=list)
    """What the environment counted in each episode, see `InstructionVectorEnv.counted`."""
    states: list[TokenStates] = field(default_factory=list)
    """Hidden states that decoding kept of this process's episodes; empty when it kept none."""

    @property
    def totals(self) -> np.ndarray:
        """What each episode got, for people to read: (B,) float64, NaN if not scored.

        That is the return or, where training normalises rewards, the raw sum of the last answer.
        """
        assert self.rewards is not None
        is_raw = self.rewards.normalised is None
        totals = np.asarray(self.returns) if is_raw else self.rewards.total
        return np.where(self.scored, totals, np.nan)

    def __len__(self) -> int:
        return len(self.texts)

    def rows(self, update: int, limit: int | None = None) -> list[dict[str, Any]]:
        """One plain dict per episode for the sample log.

        ``response``, ``parts`` and ``stop_reason`` are those of the last answer, ``total`` is that
        of ``totals``, ``response_len`` counts the tokens of all its answers. ``task`` is there in
        a mixture alone.
        """
        assert self.rewards is not None
        parts, totals = self.rewards.parts, self.totals.tolist()
        tasks = self.tasks or [None] * len(self)
        return [
            {
                "update": update,
                "id": self.instruction_ids[i],
                "prompt": self.prompts[i],
                "response": self.texts[i],
                "reference": self.references[i],
                "parts": {k: float(v[i]) if np.isfinite(v[i]) else None for k, v in parts.items()},
                "total": totals[i] if self.scored[i] else None,
                "stop_reason": str(self.stop_reasons[i]),
                "response_len": sum(self.action_mask[i]),
                **({} if tasks[i] is None else {"task": tasks[i]}),
            }
            for i in range(min(len(self), limit or len(self)))
        ]

    def faults(self) -> list[Fault]:
        """One fault for each way in which each reward failed."""
        found = []
        for name, statuses in _rewards_of(self).status.items():
            for kind in sorted({status for status in statuses if status.failed}):
                rows = [i for i, status in enumerate(statuses) if status is kind]
                message = _rewards_of(self).messages[name][rows[0]]
                ids = tuple(self.instruction_ids[i] for i in rows[:_SAMPLES])
                found.append(Fault("reward", kind.value, name, message, len(rows), ids))
        return found


_SAMPLES = 5
"""Instructions that a fault names."""


def collect(
    policy: TokenPolicy,
    env: InstructionVectorEnv,
    indices: Sequence[int],
    config: PPOConfig,
) -> Rollout:
    """Plays one episode for each instruction index of this process.

    While the environment does not end an episode, its observation is the next message of the
    user: it is appended as tokens behind the response as sampled, and the policy answers again.
    Only the episodes that go on are decoded and scored. One whose conversation no longer fits into
    the policy's window ends there, ``unfinished``.

    Args:
        policy: Who answers; its responses must carry token ids and log-probs.
        env: Vector environment with ``num_envs == len(indices)`` and autoreset DISABLED.
        indices: Instructions of ``env.task``; ``config.num_generations`` equal ones in a row.
        config: How responses are drawn, which rewards are believed, and what a cut response is.

    Returns:
        The episodes of all processes in their order; what is believed of rewards is decided on
        them together.

    Raises:
        PolicyError: A prompt does not fit into the window, or the chat template forbids turns.
        ConfigError: Rewards are normalised behind the whole rollout, and the environment pays
            something else than the reward.
        RewardError: Too many rewards failed, one is out of all bounds, or no response is left.
    """
    env.reward.defers = _normalises_later(env, config.rollout_chunks)
    own = processes.together(lambda: _play(policy, env, indices, config))
    states, own.states = own.states, []  # large, and of use to this process alone
    rollout = _joined(processes.gather(own))
    rollout.states = states
    if env.reward.defers:
        _pay_normalised(rollout, env.reward, config)
    _agree_on_failures(env.reward)
    if processes.is_main():
        for fault in rollout.faults():
            note(fault)
    _check(rollout, config)
    _check_failing(env.reward.failing_batches, config)
    return rollout


def _play(
    policy: TokenPolicy, env: InstructionVectorEnv, indices: Sequence[int], config: PPOConfig
) -> Rollout:
    """Plays the episodes of this process."""
    env.reset(options={"index": list(indices)})
    instructions = env.instructions
    sampling = Sampling(
        max_new_tokens=config.response_length,
        temperature=config.temperature,
        stop_strings=config.stop_strings,
    )
    episodes, rewards, waited_s = play(policy, env, sampling, config.rollout_chunks)
    scored = [bool(ok) for ok in rewards.valid]
    cut = [StopReason.LENGTH in e.stop_reasons for e in episodes]
    masks_cut = config.on_length == "mask"
    penalty = config.missing_eos_penalty or 0.0
    return Rollout(
        instruction_ids=[item.id for item in instructions],
        prompts=[item.prompt for item in instructions],
        texts=[e.last.text for e in episodes],
        prompt_ids=[e.prompt_ids for e in episodes],
        response_ids=[e.ids for e in episodes],
        action_mask=[e.mask for e in episodes],
        sampler_logprobs=[e.logprobs for e in episodes],
        turn_rewards=[
            e.paid(penalty) if ok else [] for e, ok in zip(episodes, scored, strict=True)
        ],
        stop_reasons=[e.last.stop_reason for e in episodes],
        scored=scored,
        groups=[i // config.num_generations for i in range(len(indices))],
        unfinished=[e.unfinished for e in episodes],
        kept=[ok and not (masks_cut and is_cut) for ok, is_cut in zip(scored, cut, strict=True)],
        references=[item.columns.get("reference") for item in instructions],
        tasks=[item.columns.get("task") for item in instructions],
        rewards=rewards,
        returns=[sum(e.rewards) for e in episodes],
        counts=[e.counts for e in episodes],
        states=[e.states for e in episodes if e.states is not None],
        scoring_s=waited_s,
    )


@contextmanager
def rewarded_by(env: InstructionVectorEnv, rewards: CombinedReward) -> Iterator[None]:
    """Scores the episodes of an environment with other rewards for a while."""
    own, env.reward = env.reward, rewards
    try:
        yield
    finally:
        env.reward = own


def _joined(parts: Sequence[Rollout]) -> Rollout:
    """The rollouts of several processes as one; groups are numbered through."""
    first = parts[0]
    if len(parts) == 1:
        return first
    lists = {
        f.name: [item for part in parts for item in getattr(part, f.name)]
        for f in fields(Rollout)
        if isinstance(getattr(first, f.name), list)
    }
    starts = accumulate((max(part.groups) + 1 for part in parts[:-1]), initial=0)
    lists["groups"] = [
        start + group for start, part in zip(starts, parts, strict=True) for group in part.groups
    ]
    return Rollout(
        **lists,
        rewards=RewardBatch.joined([_rewards_of(part) for part in parts]),
        scoring_s=max(part.scoring_s for part in parts),
    )


def _rewards_of(rollout: Rollout) -> RewardBatch:
    assert rollout.rewards is not None, "a rollout that was played has rewards"
    return rollout.rewards


def _normalises_later(env: InstructionVectorEnv, chunks: int) -> bool:
    """Whether rewards are to be normalised when those of all processes and chunks are there."""
    reward, count = env.reward, processes.world_size()
    concerned = reward.compares if count * chunks > 1 else []
    if reward.update is None or not concerned:
        return False
    if type(env).judge is not InstructionVectorEnv.judge:
        name = concerned[0]
        apart = f"ppo.rollout_chunks = {chunks}" if chunks > 1 else f"{count} processes"
        raise ConfigError(
            f"rewards.{name}.normalise = {reward.parts[name].spec.normalise!r} with {apart} and "
            f"{type(env).__name__}, which pays by a rule of its own before all scores are known: "
            "expected normalise none or clip. Normalise otherwise, or play in one chunk and one "
            "process."
        )
    return True


def _pay_normalised(rollout: Rollout, reward: CombinedReward, config: PPOConfig) -> None:
    """Normalises the rewards of all processes together, and pays each episode by the result."""
    rewards = _rewards_of(rollout)
    rewards.normalised = reward.normalised(rewards, rollout.prompts)
    rollout.returns = rewards.normalised.tolist()
    penalty = config.missing_eos_penalty or 0.0
    for i, total in enumerate(rollout.returns):
        is_cut = rollout.stop_reasons[i] is StopReason.LENGTH
        rollout.turn_rewards[i] = [
            (end, total - penalty * is_cut) for end, _ in rollout.turn_rewards[i]
        ]


def _agree_on_failures(reward: CombinedReward) -> None:
    """A batch in which a reward failed in one process counts in all."""
    counts = processes.gather(reward.failing_batches)
    for name, part in reward.parts.items():
        part.failing_batches = max(of_process[name] for of_process in counts)


def _check_failing(failing_batches: Mapping[str, int], config: PPOConfig) -> None:
    """Refuses to go on with a reward that failed on some sample of too many batches in a row."""
    for name, batches in failing_batches.items():
        if config.max_error_batches and batches >= config.max_error_batches:
            raise RewardError(
                f"reward {name!r} failed on responses of {batches} batches in a row; "
                f"ppo.max_error_batches = {config.max_error_batches}. The share of failures is in "
                f"reward/{name}/error_frac. Mend the reward, or raise the limit (0: none)."
            )


def _check(rollout: Rollout, config: PPOConfig) -> None:
    """Refuses a rollout whose rewards cannot be trusted, or of which nothing is left."""
    rewards = _rewards_of(rollout)
    size, max_error_frac, max_reward = len(rewards), config.max_error_frac, config.max_reward
    failed = [i for i in range(size) if rewards.sample_status(i) == "failed"]
    if len(failed) > max_error_frac * size:
        reason = next(
            (
                f"{name}: {statuses[i]} ({rewards.messages[name][i]})"
                for i in failed
                for name, statuses in rewards.status.items()
                if statuses[i].failed and rewards.counts(name)
            ),
            "unknown",
        )
        raise RewardError(
            f"{len(failed)} of {size} rewards of this rollout failed, more than the share "
            f"ppo.max_error_frac = {max_error_frac} that is tolerated. First: {reason}. Mend the "
            "reward function, or raise the limit if these failures are expected."
        )
    if not any(rollout.scored):
        raise RewardError(
            f"none of the {size} responses of this rollout got a reward (failed or not "
            "applicable), so there is nothing to learn from. Check the rewards' conditions."
        )
    earned = [abs(reward) for turns in rollout.turn_rewards for _, reward in turns]
    # Raw ones as well: a huge one looks harmless once normalised, and spoils the scale for good.
    largest = max(*earned, *np.abs(rewards.total[np.isfinite(rewards.total)]).tolist())
    if not largest <= max_reward:
        raise RewardError(
            f"a reward of {largest:g} is beyond ppo.max_reward = {max_reward:g}; a single such "
            "number can destroy the policy. Rescale the reward, or raise the limit."
        )
    if not any(rollout.kept):
        raise RewardError(
            f"all {size} responses of this rollout were cut at ppo.response_length = "
            f"{config.response_length}, and ppo.on_length = 'mask' leaves them out: nothing is "
            "left to learn from. Allow longer responses, or take on_length = 'penalty'."
        )


def instruction_order(num_instructions: int, seed: int, start: int, stop: int) -> list[int]:
    """Instruction indices of episodes ``start`` to ``stop``: a pure function of its arguments.

    Every epoch is a fresh permutation of all instructions, drawn from (seed, epoch), so a resumed
    or extended run continues the very same order without any saved iterator.

    Raises:
        DataError: There are no instructions.
    """
    if num_instructions < 1:
        raise DataError("the training split is empty: expected at least one instruction.")
    order: list[int] = []
    for epoch in range(start // num_instructions, max(stop - 1, 0) // num_instructions + 1):
        permutation = np.random.default_rng([seed, epoch]).permutation(num_instructions)
        first = max(start - epoch * num_instructions, 0)
        last = min(stop - epoch * num_instructions, num_instructions)
        order.extend(int(i) for i in permutation[first:last])
    return order
