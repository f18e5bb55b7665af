"""The metric keys of evaluations; `instructrec.metrics` holds all keys."""

from __future__ import annotations

from instructrec.metric_definition import Metric

EVALUATION_METRICS: tuple[Metric, ...] = (
    Metric(
        "eval/<reward>/mean",
        "score",
        "Mean score on held-out instructions, over scored (last) responses.",
    ),
    Metric("eval/<reward>/ci_low", "score", "Lower end of its 95 % interval, clustered by item."),
    Metric("eval/<reward>/ci_high", "score", "Upper end of its 95 % interval, clustered by item."),
    Metric("eval/<reward>/na_frac", "1", "Share of the responses to which it does not apply."),
    Metric("eval/<reward>/error_frac", "1", "Share of the responses on which the reward failed."),
    Metric(
        "eval/task/<task>/mean",
        "score",
        "Mean total on the instructions of one task of a mixture, over scored responses.",
    ),
    Metric("eval/task/<task>/ci_low", "score", "Lower end of its 95 % interval."),
    Metric("eval/task/<task>/ci_high", "score", "Upper end of its 95 % interval."),
    Metric(
        "eval/robust/<kind>/mean",
        "score",
        "Mean total on the same instructions in other words, of those scored in both wordings.",
    ),
    Metric(
        "eval/robust/<kind>/difference",
        "score",
        "That mean less the mean in the plain words: below 0 where the rewording costs something.",
    ),
    Metric("eval/robust/<kind>/ci_low", "score", "Lower end of the difference's 95 % interval."),
    Metric("eval/robust/<kind>/ci_high", "score", "Upper end of that interval."),
    Metric(
        "eval/robust/<kind>/changed_frac",
        "1",
        "Share of the instructions that the rewording changed; the others count as they are.",
    ),
    Metric(
        "eval/corpus/<metric>/score",
        "1",
        "Corpus metric of all (last) responses that have a reference, together; 0 to 1.",
    ),
    Metric(
        "eval/corpus/<metric>/ci_low",
        "1",
        "Lower end of its 95 % interval: the metric of items that are drawn again.",
    ),
    Metric("eval/corpus/<metric>/ci_high", "1", "Upper end of that interval."),
    Metric(
        "eval/response_len",
        "tokens",
        "Mean length of a response, end token included; of several turns, all together.",
    ),
    Metric(
        "eval/truncated_frac", "1", "Share of the (last) responses that the token budget cut short."
    ),
    Metric(
        "eval/refusal_frac",
        "1",
        "Share of the (last) responses that decline to answer, by the words of their beginning: "
        "English expressions, as the reward `refusal` reads them.",
    ),
    Metric("eval/turns", "turns", "Mean number of responses in an episode of several turns."),
    Metric("eval/num_calls", "calls", "Mean number of calls of tools in an episode."),
    Metric("eval/num_errors", "calls", "Mean number of these that got an error."),
    Metric(
        "eval/first_turn",
        "score",
        "Mean total of the first responses of the scored episodes of several turns; "
        "eval/total/mean less this is what trying again adds.",
    ),
    Metric(
        "eval/unfinished_frac",
        "1",
        "Share of the episodes of several turns that outgrew a budget of the environment or the "
        "policy's window.",
    ),
    Metric(
        "eval/pass_at_<k>",
        "1",
        "Chance that at least one of k sampled responses gets full marks (unbiased estimate).",
    ),
    Metric(
        "eval/best_of_<k>",
        "score",
        "Best total among k sampled responses, mean over the instructions. It needs the reward at "
        "test time: an upper bound for reranking, not what the policy gets.",
    ),
    Metric(
        "eval/entropy",
        "nats/token",
        "Mean of -log p over the sampled tokens: an estimate of the entropy. Absent under greedy "
        "decoding.",
    ),
)
"""Every key and pattern of an evaluation of a policy."""
