"""Monitors of the health of a run: numbers that say that an update did harm, or taught nothing.

Each is a function from what is seen of an update to a sentence, or to nothing.
"""

from __future__ import annotations

from instructrec.rl.monitor_memory import WINDOW, Seen, Watch


def _large_step(seen: Seen) -> str | None:
    kl = seen.metrics["ppo/approx_kl"]
    if kl <= seen.threshold:
        return None
    return (
        f"one update moved the policy by {kl:.2f} nats per token (ppo/approx_kl), so most of the "
        "rollout no longer says anything about it. Lower ppo.learning_rate or "
        "ppo.num_ppo_epochs, or set ppo.target_kl."
    )


def _far_from_reference(seen: Seen) -> str | None:
    if "ppo/kl_ref" not in seen.metrics:
        return None
    kl = seen.metrics["ppo/kl_ref"] / max(seen.metrics["rollout/response_len"], 1.0)
    if abs(kl) <= seen.threshold:
        return None
    if kl < 0:
        return (
            f"the KL to the reference is {kl:.2f} nats per token, below 0 by more than noise: the "
            "responses were not drawn from the policy that is trained. Look at ppo/drift_mean."
        )
    return (
        f"the policy is {kl:.2f} nats per token away from the reference: expect text that only "
        "the reward likes. Raise ppo.kl_coef, or set ppo.kl_target."
    )


def _entropy_collapse(seen: Seen) -> str | None:
    first, now = seen.memory.first_entropy or 0.0, seen.metrics["ppo/entropy"]
    if not now < seen.threshold * first:
        return None
    return (
        f"the entropy fell from {first:.3f} to {now:.3f} nats per token: the policy hardly "
        "tries anything new. Set ppo.entropy_coef (with ppo.entropy_target), lower "
        "ppo.learning_rate, or stop here if the reward is high enough."
    )


_SURE = 0.1
"""Entropy, in nats per token, below which a policy knows what to write, however it has risen."""


def _entropy_explosion(seen: Seen) -> str | None:
    first, now = seen.memory.first_entropy or 0.0, seen.metrics["ppo/entropy"]
    if first <= 0 or now <= max(seen.threshold * first, _SURE):
        return None
    return (
        f"the entropy rose from {first:.3f} to {now:.3f} nats per token: the policy is falling "
        "apart. Lower ppo.learning_rate or ppo.entropy_coef, or raise ppo.kl_coef."
    )


def _cut_responses(seen: Seen) -> str | None:
    share = seen.metrics["rollout/truncated_frac"]
    if share <= seen.threshold:
        return None
    return (
        f"{share:.0%} of the responses were cut at ppo.response_length = "
        f"{seen.config.response_length}, so the reward judges unfinished text. Raise it, set "
        "ppo.stop_strings, or let ppo.on_length = 'penalty' teach the policy to end."
    )


def _left_out(seen: Seen) -> str | None:
    share = seen.metrics["rollout/masked_frac"]
    if share <= seen.threshold:
        return None
    return (
        f"{share:.0%} of the episodes were left out of the training (no usable reward, or cut "
        "under ppo.on_length = 'mask'). See reward/<name>/error_frac and na_frac."
    )


def _drift(seen: Seen) -> str | None:
    drift = seen.metrics["ppo/drift_mean"]
    if drift <= seen.threshold:
        return None
    return (
        f"sampler and trainer disagree by {drift:.3f} nats per token (ppo/drift_mean); lower "
        "precision alone explains up to 0.02. Try policy.dtype = 'float32' to see whether it is "
        "the precision."
    )


def _idle_critic(seen: Seen) -> str | None:
    idle = seen.memory.updates_without_critic
    if idle < max(seen.threshold, 1):
        return None
    return (
        f"the critic has been no nearer to the returns than their mean for {idle} updates in a row "
        "(ppo/critic_used); the mean return of the batch stands in for it, which costs "
        "little: leave it so, or give the critic more to learn with: ppo.critic_warmup_updates, "
        "ppo.critic_detach = false, another ppo.critic_learning_rate."
    )


def _no_spread(seen: Seen) -> str | None:
    flat, reward = seen.memory.updates_without_spread, seen.metrics["reward/total/mean"]
    if flat < max(seen.threshold, 1):
        return None
    return (
        f"all rewards of a rollout were equal for {flat} updates in a row ({reward:g}): there is "
        "nothing to learn from. `instructrec probe` shows what the policy gets before training; a "
        "supervised warm start or an easier reward helps a policy that never succeeds."
    )


def _no_variance(seen: Seen) -> str | None:
    share = seen.metrics.get("rollout/zero_variance_frac", 0.0)
    if share <= seen.threshold:
        return None
    return (
        f"on {share:.0%} of the prompts all responses got the same return, and those teach "
        "nothing. Raise ppo.num_generations, or take prompts that the policy sometimes solves."
    )


def _nothing_kept(seen: Seen) -> str | None:
    if seen.metrics.get("raft/kept_frac", 1.0) > seen.threshold:
        return None
    return (
        "no response of the rollout was better than the others to its prompt, so there was nothing "
        "to imitate and the update took no step. Raise ppo.num_generations or ppo.temperature, "
        "take prompts that the policy sometimes solves, or start from a supervised warm start."
    )


def _slow_reward(seen: Seen) -> str | None:
    share, chunks = seen.memory.scoring_share(), seen.config.rollout_chunks
    if share is None or share <= seen.threshold:
        return None
    seconds = {
        name: value
        for key, value in seen.metrics.items()
        if key.startswith("reward/") and key.endswith("/seconds")
        if "." not in (name := key.split("/")[1])  # a part of a reward, which has no settings
    }
    name = max(seconds, key=lambda name: seconds[name], default="NAME")
    longest = f", and of all rewards {name!r} takes the longest" if seconds else ""
    overlap = (
        "Set ppo.rollout_chunks = 4, which scores one part of a rollout while the next is decoded"
        if chunks == 1
        else f"ppo.rollout_chunks = {chunks} hides no more of it"
    )
    return (
        f"updates waited for their scores in {share:.0%} of their time (time/score_s, median of "
        f"{WINDOW} updates){longest}. {overlap}; score with several processes "
        f"(rewards.{name}.isolation = 'worker', workers), keep scores that come again (cache), "
        "let a judge answer more requests at once (max_concurrency), or take a quicker one."
    )


HEALTH: dict[str, Watch] = {
    "large_step": _large_step,
    "far_from_reference": _far_from_reference,
    "entropy_collapse": _entropy_collapse,
    "entropy_explosion": _entropy_explosion,
    "cut_responses": _cut_responses,
    "left_out": _left_out,
    "drift": _drift,
    "idle_critic": _idle_critic,
    "no_spread": _no_spread,
    "no_variance": _no_variance,
    "nothing_kept": _nothing_kept,
    "slow_reward": _slow_reward,
}
"""Monitors of the health of a run, by name."""
