"""Metrics of the library evaluate: the shipped ones, files, and names on a hub that is away."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from sacrebleu.metrics import BLEU, CHRF

from instructrec.errors import ConfigError, DataError
from instructrec.rewards import Status, make_reward, make_rewards
from instructrec.rewards.hf_metric import SHIPPED, corpus_metrics

pytest.importorskip("evaluate")

PREDICTIONS = ["the cat sat on the mat", "a dog ran", "it is Paris", "das ist gut so", ""]
REFERENCES = [
    ["the cat sat on a mat", "the cat is on the mat"],
    ["a dog ran"],
    ["Paris", "It is Paris."],
    ["das ist sehr gut"],
    ["nothing"],
]
METRIC = """
import datasets
import evaluate

class Lengths(evaluate.Metric):
    def _info(self):
        text = datasets.Value("string")
        features = datasets.Features({"predictions": text, "references": text})
        return evaluate.MetricInfo("d", "c", features)

    def _compute(self, predictions, references, factor=1):
        if "bad" in predictions[0]:
            raise ValueError("no such thing")
        return {"chars": factor * len(predictions[0]), "more": 1.0, "name": "text"}
"""
HOSTILE = ["", "\x00", "\ud800", "\u202ex", "🙂" * 100, "a " * 5000]


@pytest.mark.slow
def test_corpus_metrics_are_those_of_the_reference_libraries():
    columns = [
        [r[0] for r in REFERENCES],
        [r[1] if len(r) > 1 else None for r in REFERENCES],
    ]
    values = corpus_metrics(PREDICTIONS, REFERENCES, SHIPPED)
    assert values["bleu"] == pytest.approx(BLEU().corpus_score(PREDICTIONS, columns).score / 100)
    assert values["chrf"] == pytest.approx(CHRF().corpus_score(PREDICTIONS, columns).score / 100)
    assert values["exact_match"] == 0.2
    # rouge1 by hand: 5 of 6 words, all, 2·1·(1/3)/(4/3) against 1 (It is Paris.), 3 of 4, none.
    assert values["rouge1"] == pytest.approx((5 / 6 + 1 + 1 + 3 / 4 + 0) / 5)
    assert set(values) == {"bleu", "chrf", "exact_match", "rouge1", "rouge2", "rougeL", "rougeLsum"}
    assert all(0 <= value <= 1 for value in values.values())


@pytest.mark.slow
def test_the_order_of_the_corpus_does_not_matter_and_texts_without_reference_are_left_out():
    values = corpus_metrics(PREDICTIONS, REFERENCES, SHIPPED)
    assert corpus_metrics(PREDICTIONS[::-1], REFERENCES[::-1], SHIPPED) == pytest.approx(values)
    more = corpus_metrics([*PREDICTIONS, "x"], [*REFERENCES, None], SHIPPED)
    assert more == pytest.approx(values)
    single = corpus_metrics(["a b c d e"], ["a b c d e"])
    assert single == pytest.approx({"bleu": 1, "chrf": 1})
    hostile = corpus_metrics(HOSTILE, ["x"] * len(HOSTILE), SHIPPED)
    assert all(0 <= value <= 1 for value in hostile.values())


def test_what_cannot_be_computed_is_refused():
    with pytest.raises(ConfigError, match=r"unknown corpus metric 'blue'. Did you mean 'bleu'"):
        corpus_metrics(["a"], ["a"], ["blue"])
    with pytest.raises(DataError, match=r"1 predictions and 2 references"):
        corpus_metrics(["a"], ["a", "b"])
    with pytest.raises(DataError, match=r"no prediction has a reference"):
        corpus_metrics(["a"], [None])
    with pytest.raises(DataError, match=r"the reference of sample 0 is 3"):
        corpus_metrics(["a"], [3])


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_metric_scores_by_name_and_loads_by_path(root: Path, name):
    key = "rougeL" if name == "rouge" else name
    path = str(root / "src" / "instructrec" / "corpus_metrics" / f"{name}.py")
    by_name = make_reward("hf_metric", path=name, key=key)
    by_path = make_reward("hf_metric", path=path, key=key)
    prompts = ["p"] * len(PREDICTIONS)
    batch = by_name(prompts, PREDICTIONS, reference=REFERENCES)
    assert by_path(prompts, PREDICTIONS, reference=REFERENCES) == batch
    singles = [
        by_name(["p"], [p], reference=[r])[0] for p, r in zip(PREDICTIONS, REFERENCES, strict=True)
    ]
    assert batch == singles
    assert by_name(prompts, PREDICTIONS[::-1], reference=REFERENCES[::-1]) == batch[::-1]
    for p, r, score in zip(PREDICTIONS, REFERENCES, batch, strict=True):
        assert score == pytest.approx(corpus_metrics([p], [r], [name])[key])
    assert by_name(["p"], ["x"], reference=[None]) == [None]
    scored = by_name(["p"] * len(HOSTILE), HOSTILE, reference=["x"] * len(HOSTILE))
    assert all(0 <= score <= 1 for score in scored)
    assert pickle.loads(pickle.dumps(by_name))(prompts, PREDICTIONS, reference=REFERENCES) == batch


@pytest.mark.slow
def test_a_metric_of_one_s_own_with_settings_key_and_failures(tmp_path):
    (tmp_path / "lengths").mkdir()
    (tmp_path / "lengths" / "lengths.py").write_text(METRIC)
    options = {"path": str(tmp_path / "lengths"), "key": "chars", "settings": {"factor": 10}}
    rewards = make_rewards({"hf_metric": {"options": {**options, "scale": 0.1}}})
    batch = rewards.score(["p"] * 3, ["abc", "bad", "ab"], {"reference": ["r", "r", ["r"]]})
    assert batch.parts["hf_metric"][[0, 2]] == pytest.approx([3, 2])
    assert batch.status["hf_metric"][1] == Status.RAISED
    assert batch.messages["hf_metric"][1] == "ValueError: no such thing"
    with pytest.raises(ConfigError, match=r"key = None.*gives the numbers chars, more"):
        make_reward("hf_metric", path=options["path"])(["p"], ["a"], reference=["r"])
    with pytest.raises(DataError, match=r"a sample has 2 references, but .* takes one"):
        make_reward("hf_metric", **options)(["p"], ["a"], reference=[["r", "s"]])


@pytest.mark.slow
def test_threads_may_share_one():
    reward = make_reward("hf_metric", path="chrf")
    expected = reward(["p"] * 5, PREDICTIONS, reference=REFERENCES)
    results: list[list] = []

    def work() -> None:
        results.append(reward(["p"] * 5, PREDICTIONS, reference=REFERENCES))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 8


@pytest.mark.slow
def test_a_name_on_the_hub_fails_offline_and_the_error_names_the_shipped_ones(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    reward = make_reward("hf_metric", path="sacrebleu", trust_remote_code=True)
    with pytest.raises(ConfigError, match=r"'sacrebleu' cannot be loaded.*bleu, chrf, exact_match"):
        reward(["p"], ["a"], reference=["a"])


def test_code_of_the_hub_needs_trust_and_files_must_exist(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sacrebleu").mkdir()
    (tmp_path / "sacrebleu" / "sacrebleu.py").write_text("raise SystemExit('ran')")
    for path in ("sacrebleu", "someone/metric"):
        with pytest.raises(ConfigError, match=r"a name on the hub.*trust_remote_code: true"):
            make_reward("hf_metric", path=path)
    with pytest.raises(ConfigError, match=r"Did you mean 'bleu'"):
        make_reward("hf_metric", path="blue")
    for path in ("./nothing", "nothing.py", str(tmp_path), ""):
        with pytest.raises(ConfigError, match=r"no metric .*expected a file, or a folder"):
            make_reward("hf_metric", path=path)


def test_making_one_imports_nothing_heavy():
    code = (
        "import sys\nfrom instructrec.rewards import make_reward\n"
        "make_reward('hf_metric', path='bleu')\n"
        "print([m for m in ('evaluate', 'torch', 'datasets') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
