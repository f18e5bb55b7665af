"""Corpus metrics of an evaluation: sacrebleu's own numbers, intervals over items, references."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF
from scipy import stats

from instructrec.envs.tasks.base import Instruction
from instructrec.errors import ConfigError, DataError
from instructrec.experiments.cli import main
from instructrec.experiments.config import EvalConfig, EvaluateConfig, OutputConfig
from instructrec.experiments.corpus import CorpusMetrics
from instructrec.experiments.evaluate_policy import run_evaluation
from instructrec.experiments.evaluation import evaluate
from instructrec.experiments.runfolder import RunFolder
from instructrec.experiments.stats import mean_interval, sums_interval
from instructrec.metrics import lookup
from instructrec.policies.base import Responses
from instructrec.policies.config import Sampling
from instructrec.rewards import make_rewards

pytest.importorskip("evaluate")

GREEDY = Sampling(max_new_tokens=8, temperature=0.0)
RESPONSES = [
    "the cat sat on the mat today",
    "a dog ran over the hill",
    "it is in Paris now",
    "das ist gut so",
    "we went home at ten",
    "",
]
REFERENCES = [
    ["the cat sat on a mat today", "today the cat is on the mat"],
    ["a dog ran over the hill"],
    "it is in Paris",
    None,
    ["they went home at ten", "we went home at nine", "home we went"],
    ["nothing was said"],
]
SCORED = [0, 1, 2, 4, 5]


@dataclass
class Sentences:
    """Six instructions, two to an item."""

    name: str = "sentences"
    split: str = "test"
    fingerprint: str = "f"
    columns: tuple[str, ...] = ("reference", "item", "other", "empty")

    def __len__(self):
        return len(RESPONSES)

    def __getitem__(self, i):
        columns = {"reference": REFERENCES[i], "item": f"item {i // 2}"}
        return Instruction(f"s-{i}", str(i), columns | {"other": RESPONSES[i], "empty": None})


class Says:
    """Says what was written down for the number in the prompt."""

    name = "says"
    asked = 0

    def respond(self, prompts, columns=None, sampling=None):
        self.asked += len(prompts)
        return Responses([RESPONSES[int(str(prompt))] for prompt in prompts])


def measure(*names, policy=None, references="reference", **options):
    corpus = CorpusMetrics(names, references)
    rewards = make_rewards("exact_match")
    policy = policy or Says()
    return evaluate(policy, Sentences(), rewards, sampling=GREEDY, corpus=corpus, **options)


def columns_of(rows):
    """References as sacrebleu takes them: one list for each place."""
    listed = [[r] if isinstance(r, str) else r for r in (REFERENCES[i] for i in rows)]
    return [[r[place] if place < len(r) else None for r in listed] for place in range(3)]


def of_sacrebleu(metric, rows):
    texts = [RESPONSES[i] for i in rows]
    return metric.corpus_score(texts, columns_of(rows)).score / 100


def test_values_are_those_of_sacrebleu_over_the_rows_with_references():
    evaluation = measure("bleu", "chrf")
    assert list(evaluation.corpus) == ["bleu", "chrf"]
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        value = evaluation.corpus[name]
        assert value.mean == pytest.approx(of_sacrebleu(metric, SCORED))
        assert 0.1 < value.low < value.mean < value.high < 1
        assert (value.n, value.n_clusters) == (5, 3)


def test_the_interval_is_that_of_items_drawn_again_and_given_to_sacrebleu():
    items = [[0, 1], [2], [4, 5]]

    def drawn_again(drawn):
        return of_sacrebleu(BLEU(), [i for item in drawn for i in items[int(item)]])

    value = measure("bleu").corpus["bleu"]
    expected = stats.bootstrap(
        (np.arange(3),),
        drawn_again,
        vectorized=False,
        n_resamples=1999,
        method=value.method,
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert (value.low, value.high) == pytest.approx((expected.low, expected.high))


def test_metrics_that_are_means_have_the_interval_of_a_mean():
    evaluation = measure("exact_match", "rouge")
    hits = [0.0, 1.0, 0.0, 0.0, 0.0]
    assert evaluation.corpus["exact_match"] == mean_interval(hits, list("aabcc"))
    assert set(evaluation.corpus) == {"exact_match", "rouge1", "rouge2", "rougeL", "rougeLsum"}
    # Of single words, by hand: 6 of 7 and all; 4 of 5 and 4 (2·0.8·1/1.8); 4 of 5; none.
    assert evaluation.corpus["rouge1"].mean == pytest.approx((6 / 7 + 1 + 8 / 9 + 0.8 + 0) / 5)


def test_they_are_logged_beside_the_means_under_keys_of_their_own():
    metrics = measure("bleu", "rouge").metrics()
    keys = [key for key in metrics if key.startswith("eval/corpus/")]
    assert len(keys) == 15  # five values with both ends
    assert {lookup(key).key.rpartition("/")[0] for key in keys} == {"eval/corpus/<metric>"}
    assert metrics["eval/exact_match/mean"] == pytest.approx(1 / 5)
    assert not any("corpus" in key for key in measure().metrics())


def test_another_column_may_hold_the_answers():
    evaluation = measure("bleu", "exact_match", references="other")
    assert {name: v.mean for name, v in evaluation.corpus.items()} == {"bleu": 1, "exact_match": 1}
    assert evaluation.corpus["bleu"].low < 1  # three items that are right are no certainty


def test_what_cannot_be_measured_is_refused_before_anything_is_asked():
    policy = Says()
    with pytest.raises(ConfigError, match=r"corpus metric 'sacrebleu'.*bleu, chrf, exact_match"):
        measure("sacrebleu", policy=policy)
    with pytest.raises(DataError, match=r"need the column 'others'.*Did you mean 'other'"):
        measure("bleu", policy=policy, references="others")
    with pytest.raises(DataError, match=r"none of 6 instructions has an expected answer"):
        measure("bleu", policy=policy, references="empty")
    assert policy.asked == 0
    for config in (EvalConfig, EvaluateConfig):
        with pytest.raises(ConfigError, match=r"unknown corpus metric 'bert_score'"):
            config(corpus_metrics=("bert_score",))


def test_kept_rows_are_measured_without_asking_again(tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    before = measure(out=file)
    policy = Says()
    again = measure("chrf", out=file, policy=policy)
    assert policy.asked == 0 and again.rows == before.rows
    assert again.corpus == measure("chrf").corpus


def test_a_score_that_is_a_mean_of_counts_has_the_interval_of_the_mean():
    rng = np.random.default_rng(0)
    values, labels = rng.random(60), rng.integers(0, 20, 60).tolist()
    rows = np.stack([values, np.ones(60)], 1)
    interval = sums_interval(rows, lambda sums: sums[0] / sums[1], labels)
    expected = mean_interval(values, labels, resamples=1999)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))
    assert (interval.mean, interval.method) == (pytest.approx(values.mean()), "bca")
    single = sums_interval(rows, lambda sums: sums[0], ["one"] * 60)
    assert np.isnan([single.low, single.high]).all() and single.method == "none"
    same = sums_interval(rows, lambda sums: 0.5, labels)
    assert (same.low, same.high, same.method) == (0.5, 0.5, "constant")
    for wrong in (values, rows[:0]):
        with pytest.raises(DataError, match="one row for each response"):
            sums_interval(wrong, lambda sums: 0.5)


def test_the_command_reports_them_and_takes_those_of_the_run(tmp_path: Path):
    said: list[str] = []
    output = OutputConfig(dir=str(tmp_path))
    config = EvaluateConfig(limit=10, corpus_metrics=("chrf", "exact_match"), output=output)
    evaluation = run_evaluation("empty", config, say=said.append)
    assert "corpus chrf         0.000" in said[0]
    (folder,) = tmp_path.iterdir()
    assert RunFolder.open(folder).summary()["eval/corpus/exact_match/score"] == 0.0
    assert RunFolder.open(folder).config()["eval"]["corpus_metrics"] == ["chrf", "exact_match"]
    other = EvaluateConfig(limit=10, corpus_references="answer", name="other", output=output)
    assert run_evaluation("empty", other, say=said.append).corpus == {}  # none was asked for
    wrong = EvaluateConfig(corpus_metrics=("chrf",), corpus_references="answer", output=output)
    with pytest.raises(DataError, match="need the column 'answer'"):
        run_evaluation("oracle", wrong, say=said.append)
    assert len([*tmp_path.iterdir()]) == 2  # nothing was begun
    assert evaluation.corpus["chrf"].n == 10


@pytest.mark.slow
def test_a_training_measures_them_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = ["--eval.corpus_metrics", "[chrf]"]
    assert main(["train", "tiny_smoke", *wanted, "--eval.corpus_references", "refrence"]) == 3
    assert not Path("runs").exists()
    assert main(["train", "tiny_smoke", *wanted]) == 0
    folder = RunFolder.open("runs/tiny-smoke-s0")
    value = folder.summary()["eval/corpus/chrf/score"]
    assert f"held-out corpus/chrf: {value:.3f}" in capsys.readouterr().out
    assert main(["evaluate", "runs/tiny-smoke-s0"]) == 0
    assert "corpus chrf" in capsys.readouterr().out
