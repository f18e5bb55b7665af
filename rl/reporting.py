"""The metrics of one update, by the keys of ``instructrec.metrics``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from instructrec import processes
from instructrec.policies.base import StopReason
from instructrec.rl.experience import Experience
from instructrec.rl.kl import k1
from instructrec.rl.rollout import Rollout

_MINIBATCHES = "minibatches"


class LossStats:
    """Running sums of the loss's statistics over the micro-batches of an update."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._unread: list[Mapping[str, Tensor | float]] = []

    def add(self, stats: Mapping[str, Tensor | float]) -> None:
        """Adds one micro-batch, or the sums of a minibatch; a GPU is not waited for."""
        self._unread.append(stats)

    def add_minibatch(self, minibatch: LossStats) -> None:
        """Adds a minibatch with a finite loss, stepped with or not."""
        self.add({**minibatch.sums, _MINIBATCHES: 1.0})

    @property
    def sums(self) -> dict[str, float]:
        """The sums so far; what a GPU has still to compute of them is waited for, once."""
        unread, self._unread = self._unread, []
        tensors = [v.float() for stats in unread for v in stats.values() if isinstance(v, Tensor)]
        read = iter(torch.stack(tensors).tolist() if tensors else ())
        for stats in unread:
            for name, value in stats.items():
                number = next(read) if isinstance(value, Tensor) else value
                self._sums[name] = self._sums.get(name, 0.0) + number
        return self._sums

    def over_processes(self) -> LossStats:
        """The same sums over all processes."""
        total = LossStats()
        for sums in processes.gather(self.sums):
            total.add(sums)
        return total

    def approx_kl(self) -> float:
        """Mean k3 between the rollout's policy and the present one (nats per token)."""
        return self.sums.get("approx_kl", 0.0) / max(self.sums.get("tokens", 0.0), 1.0)

    def mean(self, name: str) -> float:
        """Mean of a loss over the minibatches, each a share of the rollout; 0 without any."""
        return self.sums.get(name, 0.0) / max(self.sums.get(_MINIBATCHES, 0.0), 1.0)

    def metrics(self) -> dict[str, float]:
        """Means over tokens; losses are means over the minibatches."""
        tokens = max(self.sums.get("tokens", 0.0), 1.0)
        return {
            "ppo/policy_loss": self.mean("policy_loss"),
            "ppo/value_loss": self.mean("value_loss"),
            "ppo/clip_frac": self.sums.get("clipped", 0.0) / tokens,
            "ppo/value_clip_frac": self.sums.get("value_clipped", 0.0) / tokens,
            "ppo/approx_kl": self.approx_kl(),
        }


def rollout_metrics(rollout: Rollout, seconds: float) -> dict[str, float]:
    """Lengths, speed and counts of a rollout that took the given seconds to decode."""
    lengths = [sum(mask) for mask in rollout.action_mask]
    cut = [reason is StopReason.LENGTH for reason in rollout.stop_reasons]
    turns = [len(paid) for paid in rollout.turn_rewards if paid]
    counted = rollout.counts[0] if rollout.counts else {}
    return {
        "rollout/episodes": float(len(rollout)),
        "rollout/tokens": float(sum(lengths)),
        "rollout/tokens_per_s": sum(lengths) / max(seconds, 1e-9),
        "rollout/truncated_frac": float(np.mean(cut)),
        "rollout/masked_frac": float(1 - np.mean(rollout.kept)),
        "rollout/response_len": float(np.mean(lengths)),
        "rollout/unfinished_frac": float(np.mean(rollout.unfinished)),
        "rollout/turns": float(np.mean(turns)),
        "rollout/repetition": float(np.mean(repetitions(rollout))),
        "rollout/top_response_frac": top_response(rollout)[1] / len(rollout),
    } | {f"rollout/{name}": float(np.mean([c[name] for c in rollout.counts])) for name in counted}


_RUN = 4
"""Tokens in a run of which is asked whether it came before."""


def repetitions(rollout: Rollout) -> list[float]:
    """Of each episode, the share of the policy's runs of four tokens that repeat an earlier one.

    0 for fewer than four tokens. Source: seq-rep-4 of Welleck et al. 2019, section 6,
    https://arxiv.org/abs/1908.04319.
    """
    found = []
    for ids, mask in zip(rollout.response_ids, rollout.action_mask, strict=True):
        runs = list(zip(*(ids[i:] for i in range(_RUN)), strict=False))
        if not all(mask):  # an environment wrote in between
            masks = zip(*(mask[i:] for i in range(_RUN)), strict=False)
            runs = [run for run, written in zip(runs, masks, strict=True) if all(written)]
        found.append(1 - len(set(runs)) / len(runs) if runs else 0.0)
    return found


def top_response(rollout: Rollout) -> tuple[str, int]:
    """The most frequent (last) response, without white space around it, and how often it came."""
    return Counter(text.strip() for text in rollout.texts).most_common(1)[0]


def reward_metrics(rollout: Rollout, weights: Mapping[str, float]) -> dict[str, float]:
    """Mean and spread of the totals and of each part, and the shares that were not scored.

    The total is the episode's return, summed over its turns; parts are those of its last answer.
    Where rewards are normalised, the total is the raw sum and the return stands apart.

    Args:
        rollout: The rollout.
        weights: Factor of each part in the total; the parts of a part have none.
    """
    assert rollout.rewards is not None
    scored = np.asarray(rollout.scored)
    totals = {"total": rollout.totals}
    if rollout.rewards.normalised is not None:
        totals["normalised_total"] = np.asarray(rollout.returns)
    metrics: dict[str, float] = {}
    for name, values in totals.items():
        metrics[f"reward/{name}/mean"] = float(values[scored].mean())
        metrics[f"reward/{name}/std"] = float(values[scored].std())
    for name, scores in rollout.rewards.parts.items():
        statuses = rollout.rewards.status[name]
        finite = scores[np.isfinite(scores)]
        prefix = f"reward/{name}"
        if finite.size:
            metrics[f"{prefix}/mean"] = float(finite.mean())
            metrics[f"{prefix}/std"] = float(finite.std())
        metrics[f"{prefix}/na_frac"] = float(np.mean([s == "not_applicable" for s in statuses]))
        metrics[f"{prefix}/error_frac"] = float(np.mean([s.failed for s in statuses]))
        for reason, count in Counter(s for s in statuses if s.failed).items():
            metrics[f"{prefix}/{reason}_frac"] = count / len(statuses)
        metrics[f"{prefix}/seconds"] = rollout.rewards.seconds[name]
        for flag, marked in rollout.rewards.flags.get(name, {}).items():
            metrics[f"{prefix}/{flag}_frac"] = float(np.mean(marked))
        if name in weights:
            metrics[f"{prefix}/weight"] = weights[name]
    return metrics


def task_metrics(rollout: Rollout) -> dict[str, float]:
    """Episodes and mean return of each task of a mixture; empty where there is no mixture."""
    totals, scored = rollout.totals, np.asarray(rollout.scored)
    metrics: dict[str, float] = {}
    for task in dict.fromkeys(task for task in rollout.tasks if task is not None):
        mine = np.array([name == task for name in rollout.tasks])
        metrics[f"rollout/task/{task}/episodes"] = float(mine.sum())
        if (mine & scored).any():
            metrics[f"rollout/task/{task}/total"] = float(totals[mine & scored].mean())
    return metrics


def episode_numbers(experience: Experience) -> list[dict[str, float | None]]:
    """What the update made of each episode, for the sample log.

    Returns:
        For each of the B episodes ``advantage``, the mean over its action tokens as the loss sees
        it, and ``kl_ref``, the KL to the reference (k1) in nats, summed over them. None for an
        episode that is not trained on; a number that the update does not have is absent.
    """
    mask_BT = experience.action_mask_BT
    tokens_B = mask_BT.sum(1)
    numbers: dict[str, list[float]] = {}
    if experience.advantages_BT is not None:
        sum_B = torch.where(mask_BT, experience.advantages_BT, 0.0).sum(1)
        numbers["advantage"] = (sum_B / tokens_B.clamp(min=1)).tolist()
    if experience.ref_logprobs_BT is not None:
        kl_BT = k1(experience.old_logprobs_BT, experience.ref_logprobs_BT)
        numbers["kl_ref"] = torch.where(mask_BT, kl_BT, 0.0).sum(1).tolist()
    return [
        {name: values[i] if trained else None for name, values in numbers.items()}
        for i, trained in enumerate((tokens_B > 0).tolist())
    ]


def kl_metrics(experience: Experience, kl_coef: float) -> dict[str, float]:
    """KL to the reference in nats per sequence (k1); absent when no reference is used."""
    if experience.ref_logprobs_BT is None:
        return {"ppo/kl_coef": kl_coef}
    kl_BT = k1(experience.old_logprobs_BT, experience.ref_logprobs_BT)
    masked_BT = torch.where(experience.action_mask_BT, kl_BT, 0.0)
    episodes = experience.action_mask_BT.any(1).sum().clamp(min=1)
    return {"ppo/kl_coef": kl_coef, "ppo/kl_ref": float(masked_BT.sum() / episodes)}


def mean_or_zero(values: Sequence[float]) -> float:
    """Mean of the values, 0 for none."""
    return float(np.mean(values)) if values else 0.0
