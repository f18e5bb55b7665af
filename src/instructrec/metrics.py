"""The metric keys: every number that a run logs, with its unit and its meaning.

Keys are an API: curves, reports and sweeps refer to them by name. A key is defined here and
nowhere else; ``python -m instructrec.metrics`` prints the page ``docs/metrics.md``. In a pattern,
``<reward>`` stands for the name of a reward (``total`` is the weighted sum, ``outer.inner`` a
reward inside another), ``<reason>`` for a way to fail, ``<metric>`` for a value of a corpus metric,
``<task>`` for a task of a mixture, ``<kind>`` for a way to reword instructions and ``<k>`` for a
whole number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from instructrec.errors import ConfigError, unknown_name
from instructrec.evaluation_metrics import EVALUATION_METRICS
from instructrec.metric_definition import Metric
from instructrec.reward_model_metrics import REWARD_MODEL_METRICS
from instructrec.supervised_metrics import SUPERVISED_METRICS

__all__ = ["AXES", "METRICS", "Metric", "axis_value", "lookup", "markdown_page"]

METRICS: tuple[Metric, ...] = (
    Metric(
        "train/update",
        "updates",
        "Updates finished; one update is one rollout and its epochs. The axis of every curve.",
    ),
    Metric("train/global_step", "steps", "Optimizer steps finished."),
    Metric("train/episodes", "episodes", "Episodes collected since the start of the run."),
    Metric("rollout/episodes", "episodes", "Episodes of this rollout."),
    Metric("rollout/tokens", "tokens", "Tokens that the policy produced in this rollout."),
    Metric("rollout/tokens_per_s", "tokens/s", "Tokens produced per second of the rollout."),
    Metric(
        "rollout/truncated_frac",
        "1",
        "Share of the episodes whose (last) response the token budget cut short.",
    ),
    Metric(
        "rollout/response_len",
        "tokens",
        "Mean length of a response, end token included; of several turns, all together.",
    ),
    Metric(
        "rollout/unfinished_frac",
        "1",
        "Share of the episodes stopped although they could have gone on: by the environment, or "
        "because the conversation no longer fits into the policy's window.",
    ),
    Metric(
        "rollout/reused",
        "1",
        "1 when log-probs and frozen layers' states came from decoding, 0 when the trainer made a "
        "pass of its own.",
    ),
    Metric("rollout/turns", "turns", "Mean number of responses in a scored episode."),
    Metric("rollout/num_calls", "calls", "Mean number of calls of tools in an episode."),
    Metric("rollout/num_errors", "calls", "Mean number of these that got an error."),
    Metric(
        "rollout/masked_frac",
        "1",
        "Share of the episodes left out of the training: they have no usable reward, or a response "
        "of theirs was cut by its length where on_length is mask.",
    ),
    Metric(
        "rollout/repetition",
        "1",
        "Share of a response's runs of four tokens that repeat an earlier one of it, mean.",
    ),
    Metric(
        "rollout/top_response_frac",
        "1",
        "Share of the (last) responses that are the most frequent one, over all instructions.",
    ),
    Metric(
        "rollout/zero_variance_frac",
        "1",
        "Share of the prompts whose responses all got the same reward (with num_generations of 2 "
        "or more): such prompts teach rloo and group nothing.",
    ),
    Metric(
        "rollout/passed_over_frac",
        "1",
        "Share of the instructions that the prompt filter passed over while it chose those of this "
        "rollout.",
    ),
    Metric(
        "rollout/task/<task>/episodes",
        "episodes",
        "Episodes of this rollout that belong to one task of a mixture.",
    ),
    Metric(
        "rollout/task/<task>/total",
        "score",
        "Mean return of those of them that are scored; absent where none is.",
    ),
    Metric(
        "rollout/level",
        "level",
        "Mean level of the instructions of this rollout, which the curriculum chose.",
    ),
    Metric(
        "reward/total/mean",
        "score",
        "Mean return of the scored episodes: the weighted sum of the rewards, or what the "
        "environment pays for it in all turns together.",
    ),
    Metric("reward/total/std", "score", "Standard deviation of the return over those."),
    Metric(
        "reward/normalised_total/mean",
        "score",
        "Mean return from normalised rewards, which training learns from; absent where nothing is "
        "normalised. reward/total/mean is then the raw weighted sum of the last responses.",
    ),
    Metric("reward/normalised_total/std", "score", "Standard deviation over those."),
    Metric(
        "reward/<reward>/mean",
        "score",
        "Mean raw score of the (last) response over the episodes that have one.",
    ),
    Metric("reward/<reward>/std", "score", "Standard deviation of the raw score over those."),
    Metric("reward/<reward>/na_frac", "1", "Share of the episodes to which it does not apply."),
    Metric("reward/<reward>/error_frac", "1", "Share of the episodes on which the reward failed."),
    Metric(
        "reward/<reward>/<reason>_frac",
        "1",
        "Share of the episodes on which it failed in this way: raised, timeout, nonfinite, "
        "out_of_range or worker_died; absent where there is none.",
    ),
    Metric(
        "reward/<reward>/cache_hit_frac",
        "1",
        "Share of the episodes whose score came from its cache; absent without one.",
    ),
    Metric(
        "reward/<reward>/truncated_frac",
        "1",
        "Share of the episodes whose (last) response the reward's model read only in part, because "
        "the text is longer than its max_length; absent for rewards without such a limit.",
    ),
    Metric(
        "reward/<reward>/ood_frac",
        "1",
        "Share of the episodes whose score is more than 3 standard deviations from the mean that "
        "the reward's model had on responses it knows; absent where that was not recorded.",
    ),
    Metric("reward/<reward>/seconds", "s", "Wall time of the reward in this update."),
    Metric("reward/<reward>/weight", "1", "Factor of the reward in the total of this update."),
    Metric(
        "ppo/kl_ref",
        "nats",
        "KL from the reference policy: log-ratio (k1) summed over a response, mean over episodes.",
    ),
    Metric("ppo/kl_coef", "score/nat", "Weight of the KL in this update."),
    Metric(
        "ppo/approx_kl",
        "nats/token",
        "KL between the rollout's policy and the one being trained (k3), mean over the update.",
    ),
    Metric("ppo/entropy", "nats/token", "Mean entropy of the policy on the rollout's tokens."),
    Metric("ppo/entropy_coef", "score/nat", "Weight of the entropy bonus in this update."),
    Metric(
        "ppo/skipped_frac",
        "1",
        "Share of the update's steps left out: by ppo.target_kl, by a drift above ppo.max_drift, "
        "because a loss or gradient was not finite, or because a minibatch had no token to learn "
        "from (masked, or nothing to imitate).",
    ),
    Metric("ppo/policy_loss", "score", "Clipped policy loss, mean over the update's minibatches."),
    Metric(
        "ppo/value_loss", "score²", "Value loss before vf_coef, mean over the update's minibatches."
    ),
    Metric("ppo/clip_frac", "1", "Share of the tokens whose probability ratio was clipped."),
    Metric("ppo/value_clip_frac", "1", "Share of the tokens whose value change was clipped."),
    Metric(
        "ppo/explained_variance",
        "1",
        "Share of the variance of the returns that the critic explains; at most 1, below 0 when "
        "it predicts worse than a constant.",
    ),
    Metric(
        "ppo/critic_used",
        "1",
        "1 when the critic's values were the baseline, 0 when the batch mean stood in.",
    ),
    Metric(
        "ppo/drift_mean",
        "nats/token",
        "Mean absolute difference of the log-probs of the sampler and of the trainer (of the first "
        "minibatch where decoding is reused).",
    ),
    Metric("ppo/drift_p99", "nats/token", "99th percentile of that absolute difference."),
    Metric("ppo/lr", "1", "Learning rate of the policy at the end of the update."),
    Metric("ppo/grad_norm", "1", "L2 norm of the gradient before clipping, mean over the steps."),
    Metric(
        "raft/kept_frac",
        "1",
        "Share of the episodes that algorithm raft imitates: the best to their prompt.",
    ),
    Metric(
        "faults/reward",
        "faults",
        "Scores that rewards failed to give in this update, of all rewards together; what and why "
        "is in faults.jsonl.",
    ),
    Metric(
        "faults/numerics",
        "steps",
        "Optimizer steps left out because loss or gradient was not finite.",
    ),
    Metric(
        "monitors/ringing",
        "monitors",
        "Monitors that see trouble in this update; slow_reward, which goes by a clock, is not "
        "counted.",
    ),
    Metric("faults/memory", "faults", "Times that work was halved because the memory was full."),
    Metric(
        "raft/loss",
        "nats/token",
        "Negative log-likelihood of the kept responses, mean over the update's minibatches.",
    ),
    *SUPERVISED_METRICS,
    Metric("time/rollout_s", "s", "Wall time of producing the responses of this update."),
    Metric("time/score_s", "s", "Wall time for which decoding waited for their scores."),
    Metric("time/advantage_s", "s", "Wall time of log-probs, values, KL and advantages."),
    Metric(
        "time/update_s",
        "s",
        "Wall time of the optimizer steps; where given examples are learned, of the one step, its "
        "data included, validation and checkpoints not.",
    ),
    Metric("time/total_s", "s", "Wall time of the whole update."),
    Metric(
        "speed/episodes_per_s",
        "episodes/s",
        "Episodes per second of rollout, scoring, advantages and optimizer steps together.",
    ),
    Metric(
        "speed/tokens_per_s",
        "tokens/s",
        "Tokens of prompts and responses, without padding, per such second; where given examples "
        "are learned, tokens of the step's texts per second of the step.",
    ),
    Metric(
        "speed/update_flops_per_s",
        "FLOP/s",
        "FLOPs that the optimizer steps needed in matrix products, per second of them.",
    ),
    Metric(
        "speed/update_limit_frac",
        "1",
        "That rate as a share of the one that this machine reached, when the run began, on "
        "matrices of the model's shapes.",
    ),
    Metric(
        "speed/limit_frac",
        "1",
        "Least time that the update (or step) needs at the machine's measured rates of multiplying "
        "and copying, as a share of the time that it took.",
    ),
    *EVALUATION_METRICS,
    *REWARD_MODEL_METRICS,
)
"""Every key and pattern."""


def is_wall_clock(key: str) -> bool:
    """Says whether a clock decides a metric, so that it differs between two equal runs."""
    by_name = key.startswith(("time/", "speed/")) or key.endswith("/seconds")
    return by_name or "_per_s" in key


AXES = ("train/update", "sft/step", "rm/step")
"""What curves are drawn over: updates, or steps of training on given examples."""


def axis_value(row: Mapping[str, Any]) -> float | None:
    """Returns where a row of metrics stands on its axis; None where it does not say."""
    return next((float(row[key]) for key in AXES if row.get(key) is not None), None)


def lookup(key: str) -> Metric:
    """Returns the definition of a key.

    Args:
        key: A key as logged, such as ``"reward/exact_match/mean"``.

    Raises:
        ConfigError: No definition matches; the message names the closest key.
    """
    for metric in METRICS:
        if metric.key == key:
            return metric
    for metric in METRICS:
        if metric.matches(key):
            return metric
    raise ConfigError(unknown_name("metric", key, [metric.key for metric in METRICS]))


def markdown_table() -> str:
    """Returns the table of all keys as Markdown."""
    lines = ["| key | unit | meaning |", "| --- | --- | --- |"]
    lines += [f"| `{metric.key}` | {metric.unit} | {metric.meaning} |" for metric in METRICS]
    return "\n".join(lines) + "\n"


def markdown_page() -> str:
    """Returns the text of ``docs/metrics.md``."""
    return (
        "# Metrics\n\n"
        "Every number that a run logs. `metrics.jsonl` in the run folder holds one line per\n"
        "update with these keys; W&B shows the same numbers under the same names, with\n"
        "`train/update` as the axis (`sft/step` or `rm/step` where given examples are learned).\n"
        "In a name, `<reward>` stands for the name of a reward, or `total` for their\n"
        "weighted sum (one inside another is called `outer.inner`), `<reason>` for a way to\n"
        "fail, `<metric>` for a value of a corpus metric, `<task>` for a task of a mixture,\n"
        "`<kind>` for a way to reword. At the end of a run, `final/<key>` in the summary of the\n"
        "W&B run holds the numbers of `summary.json`.\n\n"
        "This page is generated: `python -m instructrec.metrics > docs/metrics.md`.\n\n"
        + markdown_table()
    )


if __name__ == "__main__":
    print(markdown_page(), end="")
