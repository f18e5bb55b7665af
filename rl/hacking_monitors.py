"""Monitors of reward hacking: the reward rises, and what it was meant to stand for does not.

Each is a function from what is seen of an update to a sentence, or to nothing.
"""

from __future__ import annotations

from instructrec.rl.monitor_memory import WINDOW, Seen, Watch


def _kl_budget(seen: Seen) -> str | None:
    kl = seen.metrics.get("ppo/kl_ref")
    if kl is None or kl <= seen.threshold:
        return None
    return (
        f"the policy is {kl:.1f} nats per response away from the reference, beyond the budget of "
        f"{seen.threshold:g}: from some distance on, a reward that was learned or can be gamed "
        "rises alone. Read samples.jsonl, and raise ppo.kl_coef or set ppo.kl_target."
    )


def _length_growth(seen: Seen) -> str | None:
    first, now = seen.memory.first_length, seen.metrics["rollout/response_len"]
    if not first or now <= seen.threshold * first:
        return None
    return (
        f"the mean response grew from {first:.1f} to {now:.1f} tokens: read samples.jsonl of the "
        "run. Unless the task asks for that, the reward pays for length by itself: add a length "
        "reward to balance it, or raise ppo.kl_coef."
    )


def _length_collapse(seen: Seen) -> str | None:
    first, now = seen.memory.first_length, seen.metrics["rollout/response_len"]
    if not first or now >= seen.threshold * first:
        return None
    return (
        f"the mean response shrank from {first:.1f} to {now:.1f} tokens: read samples.jsonl of the "
        "run. Unless the task asks for that, the reward pays for brevity by itself: add a length "
        "reward to balance it, or raise ppo.kl_coef."
    )


def _repetition(seen: Seen) -> str | None:
    share = seen.metrics.get("rollout/repetition", 0.0)
    if share <= seen.threshold:
        return None
    return (
        f"{share:.0%} of the runs of four tokens in a response repeat an earlier one "
        "(rollout/repetition): the policy says the same again and again. Add a reward against it "
        "(repetition), raise ppo.kl_coef, or lower ppo.learning_rate."
    )


def _identical_answers(seen: Seen) -> str | None:
    share = seen.metrics.get("rollout/top_response_frac", 0.0)
    if share <= seen.threshold:
        return None
    return (
        f"{share:.0%} of the responses are one and the same text, whatever was asked "
        "(rollout/top_response_frac): unless it is the right answer to as many instructions, the "
        "reward pays for a text and not for an answer. Look at the reward, and set "
        "ppo.entropy_coef or raise ppo.kl_coef."
    )


def _proxy_gold_gap(seen: Seen) -> str | None:
    best, now = seen.memory.best, seen.memory.recent()
    if best is None or now is None:
        return None
    rise, fall, spread = now[0] - best[0], best[1] - now[1], max(best[2], now[2])
    if rise <= 0 or fall <= seen.threshold * spread:
        return None
    gold = seen.config.monitors.gold
    return (
        f"the reward that is trained on rose from {best[0]:.3f} to {now[0]:.3f} while {gold!r} "
        f"fell from {best[1]:.3f} to {now[1]:.3f} (means of {WINDOW} updates, the former when "
        f"{gold!r} was best): the policy exploits the reward. Keep an earlier update, mend the "
        "reward, or raise ppo.kl_coef."
    )


def _reward_ood(seen: Seen) -> str | None:
    shares = {
        key.split("/")[1]: value
        for key, value in seen.metrics.items()
        if key.startswith("reward/") and key.endswith("/ood_frac")
    }
    name = max(shares, key=lambda name: shares[name], default="")
    if not name or shares[name] <= seen.threshold:
        return None
    return (
        f"{shares[name]:.0%} of the responses got a score from reward {name!r} that its model "
        f"hardly ever gave on the responses it knows (reward/{name}/ood_frac): what it says of "
        "them is a guess. Raise ppo.kl_coef, or train the reward model on responses of this policy."
    )


HACKING: dict[str, Watch] = {
    "kl_budget": _kl_budget,
    "length_growth": _length_growth,
    "length_collapse": _length_collapse,
    "repetition": _repetition,
    "identical_answers": _identical_answers,
    "proxy_gold_gap": _proxy_gold_gap,
    "reward_ood": _reward_ood,
}
"""Monitors of reward hacking, by name."""
