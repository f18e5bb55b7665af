"""What a policy and a critic make of one response, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from instructrec.errors import PolicyError
from instructrec.policies.causal_lm import CausalLMPolicy
from instructrec.policies.critic import Critic
from instructrec.policies.logits import float32_logits
from instructrec.policies.trunk import Trunk
from instructrec.rl.advantages import gae
from instructrec.rl.kl import k1, token_rewards


@dataclass(frozen=True)
class Reading:
    """One response as a policy sees it; T tokens, the end token included."""

    logprobs: list[float]
    """Log-prob of each token (nats)."""
    entropy: list[float]
    """Entropy of the distribution that each token came from (nats)."""
    top: list[list[tuple[int, float]]]
    """The likeliest tokens in the place of each, with their probabilities, the likeliest first."""
    values: list[float] | None = None
    """Value before each token, where there is a critic."""


@torch.no_grad()
def read_response(
    policy: CausalLMPolicy,
    prompt_ids: Sequence[int],
    response_ids: Sequence[int],
    *,
    temperature: float = 1.0,
    alternatives: int = 5,
    critic: Critic | None = None,
) -> Reading:
    """Passes over a prompt and a response once.

    Args:
        policy: Who reads; it need not be who wrote.
        prompt_ids: Ids of the prompt, one or more.
        response_ids: Ids of the response.
        temperature: Of the sampling.
        alternatives: Tokens of ``top``.
        critic: Its values are taken from the policy's states.

    Raises:
        PolicyError: The response is empty, or longer than the window allows.
    """
    total = len(prompt_ids) + len(response_ids)
    if not len(response_ids) or not len(prompt_ids) or total > policy.max_length:
        raise PolicyError(
            f"{len(prompt_ids)} prompt tokens and {len(response_ids)} response tokens: expected "
            f"one of each at least, and {policy.max_length} together at most."
        )
    ids_1L = torch.tensor([[*prompt_ids, *response_ids]], device=policy.device)
    position_T = torch.arange(len(prompt_ids) - 1, total - 1, device=policy.device)
    policy.model.eval()
    trunk = Trunk(policy.model)
    with policy.autocast():
        states_TH = trunk.full(ids_1L)[0][0, position_T]
        logprobs_T, entropy_T = trunk.token_logprobs(
            states_TH, ids_1L[0, position_T + 1], temperature
        )
        logits_TV = float32_logits(trunk.lm_head, states_TH) / temperature
        likely = logits_TV.softmax(-1).topk(min(alternatives, logits_TV.shape[-1]), dim=-1)
        row_T = torch.zeros_like(position_T)
        values = None if critic is None else critic(states_TH, ids_1L, row_T, position_T).tolist()
    return Reading(
        logprobs=logprobs_T.tolist(),
        entropy=entropy_T.tolist(),
        top=[
            list(zip(ids, shares, strict=True))
            for ids, shares in zip(likely.indices.tolist(), likely.values.tolist(), strict=True)
        ],
        values=values,
    )


def advantages_of(
    logprobs: Sequence[float],
    reference: Sequence[float] | None,
    values: Sequence[float] | None,
    reward: float,
    *,
    kl_coef: float,
    gamma: float,
    lam: float,
) -> list[float]:
    """The advantage of each token of one response, before any whitening.

    Args:
        logprobs: Under the policy.
        reference: Under the reference, if its KL stands in the reward.
        values: Of a critic; None takes 0, which leaves the return to go.
        reward: Of the whole response.
        kl_coef: Weight of the KL in the reward.
        gamma: Discount per token.
        lam: Lambda.
    """
    ours_1T = torch.tensor([list(logprobs)])
    mask_1T = torch.ones_like(ours_1T, dtype=torch.bool)
    scores_1T = torch.zeros_like(ours_1T)
    scores_1T[0, -1] = reward
    kl_1T = None if reference is None else k1(ours_1T, torch.tensor([list(reference)]))
    rewards_1T = token_rewards(scores_1T, kl_1T, mask_1T, kl_coef)
    values_1T = torch.zeros_like(ours_1T) if values is None else torch.tensor([list(values)])
    found: list[float] = gae(rewards_1T, values_1T, mask_1T, gamma, lam)[0][0].tolist()
    return found
