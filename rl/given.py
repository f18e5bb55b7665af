"""A rollout of answers that were drawn and scored elsewhere, for a loop of one's own."""

from __future__ import annotations

import math
from collections.abc import Sequence

from instructrec.errors import DataError
from instructrec.policies.tape import TokenStates
from instructrec.rl.rollout import Rollout
from instructrec.rl.sharing import own_rows


def rollout_of(
    prompt_ids: Sequence[Sequence[int]],
    response_ids: Sequence[Sequence[int]],
    rewards: Sequence[float],
    *,
    logprobs: Sequence[Sequence[float]] | None = None,
    num_generations: int = 1,
    states: Sequence[TokenStates] = (),
) -> Rollout:
    """Makes a rollout of B single answers, for ``PPOLearner.update``.

    Args:
        prompt_ids: Token ids of each prompt, unpadded.
        response_ids: Token ids of each response as sampled, with its end token where it has one.
        rewards: Reward of each response; NaN leaves the episode out of the update.
        logprobs: Log-prob of each sampled token at the temperature of sampling. None takes the
            trainer's own, so that a difference to the sampler goes unseen.
        num_generations: Answers to one prompt, side by side.
        states: What decoding kept inside of ``learner.reuse.keeping()``, as ``Responses.states``
            has it: the trainer then needs no pass of its own. Of several processes, each gives
            those of its own episodes.

    Raises:
        DataError: The lists do not belong together, a prompt or a response is empty, or a reward
            is infinite.
    """
    _check(prompt_ids, response_ids, rewards, logprobs, num_generations)
    size = len(prompt_ids)
    _check_states(prompt_ids, response_ids, states)
    scored = [not math.isnan(reward) for reward in rewards]
    return Rollout(
        instruction_ids=[str(i // num_generations) for i in range(size)],
        prompts=[None] * size,
        texts=[""] * size,
        prompt_ids=[list(map(int, ids)) for ids in prompt_ids],
        response_ids=[list(map(int, ids)) for ids in response_ids],
        action_mask=[[True] * len(ids) for ids in response_ids],
        sampler_logprobs=[] if logprobs is None else [list(map(float, row)) for row in logprobs],
        turn_rewards=[
            [(len(ids) - 1, float(reward))] if ok else []
            for ids, reward, ok in zip(response_ids, rewards, scored, strict=True)
        ],
        stop_reasons=[None] * size,
        scored=scored,
        groups=[i // num_generations for i in range(size)],
        unfinished=[False] * size,
        kept=list(scored),
        returns=[float(reward) for reward in rewards],
        states=list(states),
    )


def _check_states(
    prompt_ids: Sequence[Sequence[int]],
    response_ids: Sequence[Sequence[int]],
    states: Sequence[TokenStates],
) -> None:
    if not len(states):
        return
    rows = own_rows(len(prompt_ids))
    found = [len(kept.final_TH) for kept in states]
    expected = [len(prompt_ids[i]) + len(response_ids[i]) - 1 for i in rows]
    if found != expected:
        raise DataError(
            f"states of {found} tokens: expected those of {expected}, one less than prompt and "
            "response of each episode. Give Responses.states in the order of the episodes, or none."
        )


def _check(
    prompt_ids: Sequence[Sequence[int]],
    response_ids: Sequence[Sequence[int]],
    rewards: Sequence[float],
    logprobs: Sequence[Sequence[float]] | None,
    num_generations: int,
) -> None:
    size = len(prompt_ids)
    given = {"response_ids": response_ids, "rewards": rewards, "logprobs": logprobs}
    for name, values in given.items():
        if values is not None and len(values) != size:
            raise DataError(
                f"{len(values)} {name} for {size} prompt_ids: expected one for each prompt. Repeat "
                "a prompt for each of its responses."
            )
    if size % num_generations:
        raise DataError(
            f"{size} responses in groups of num_generations = {num_generations}: expected whole "
            "groups. Leave some out, or change num_generations."
        )
    for i, (prompt, response, reward) in enumerate(
        zip(prompt_ids, response_ids, rewards, strict=True)
    ):
        if not len(prompt) or not len(response):
            raise DataError(
                f"episode {i} has {len(prompt)} prompt and {len(response)} response tokens: "
                "expected one of each at least. Leave the episode out."
            )
        if math.isinf(reward):
            raise DataError(
                f"the reward of episode {i} is {reward}: expected a finite number, or NaN to leave "
                "the episode out. Mend the reward."
            )
        if logprobs is not None and len(logprobs[i]) != len(response):
            raise DataError(
                f"episode {i} has {len(logprobs[i])} logprobs for {len(response)} response tokens: "
                "expected one for each token, that of the end token included."
            )
