"""The report on the training of a reward model: its words, its tables and its page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from instructrec.errors import CheckpointError, ConfigError
from instructrec.experiments.jsonl import write_json
from instructrec.experiments.report import ReportConfig, report
from instructrec.experiments.reward_report import measured_on, verdict
from instructrec.experiments.runfolder import RunFolder

ACCURACY = {"mean": 0.75, "low": 0.55, "high": 0.9, "n": 8}
FOUND = {
    "accuracy": ACCURACY,
    "loss": 0.5,
    "calibration": [{"low": 0.5, "high": 0.6, "n": 8, "predicted": 0.58, "accuracy": 0.75}],
    "calibration_error": 0.17,
    "by_margin": [],
    "length": {
        "longer_wins": {"mean": 0.5, "low": 0.2, "high": 0.8, "n": 8},
        "model_prefers_longer": {"mean": 0.6, "low": 0.3, "high": 0.9, "n": 8},
        "accuracy_when_longer_wins": 0.8,
        "accuracy_when_shorter_wins": None,
        "correlation": 0.1,
        "rank_correlation": None,
    },
    "score_mean": 0.1,
    "score_std": 1.2,
    "cut_texts": 1,
    "texts": 40,
    "train_rows": 12,
    "measured_on": "test",
    "measured_pairs_chose_the_weights": False,
}
"""What a training found on eight pairs."""
EVIL = "</td></table><script>window.hit = 1</script><img src=x onerror='window.hit = 2'>"
Write = Callable[..., Path]


@pytest.fixture
def write_reward_run(write_run: Write) -> Write:
    """Writes a training of four steps; ``found`` None leaves it without an end."""

    def write(path: Path, found: dict[str, Any] | None, *, rejected: str = "no") -> Path:
        about = {"job_type": "reward-model", "algorithm": "reward_model", "task": "pairs.jsonl"}
        write_run(path, right=None, **about)
        for name in ("samples.jsonl", "warnings.jsonl"):
            (path / name).unlink()
        (path / "config.yaml").write_text(
            f"name: {path.name}\nfit: {{max_steps: 6, batch_size: 8, eval_every: 3}}\n"
        )
        rows = [
            {"rm/step": i, "rm/loss": 0.75 - 0.125 * i, "rm/accuracy": 0.5} for i in range(1, 5)
        ]
        rows.append({"rm/step": 3, "rm/val_loss": 0.6, "rm/val_accuracy": 0.7})
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if found is not None:
            _finish(path, found, rejected)
        return path

    return write


def _finish(path: Path, found: dict[str, Any], rejected: str) -> None:
    pairs = [
        {"id": str(i), "prompt": f"q{i}", "chosen": f"yes {i}", "rejected": rejected}
        | {"margin": None, "chosen_score": i / 4, "rejected_score": 0.6}
        for i in range(8)
    ]
    scores = path / "eval" / "pairs-test-scores-3.jsonl"
    scores.parent.mkdir()
    scores.write_text("".join(json.dumps(row) + "\n" for row in pairs))
    (path / "reward_model").mkdir()
    write_json(path / "reward_model" / "reward_report.json", found)
    summary = {"scores_file": f"eval/{scores.name}", "best_update": 3, "stopped": "finished"}
    RunFolder(path).finish("finished", summary)


def test_a_model_below_the_rule_of_length_is_told_so() -> None:
    shorter = {**FOUND["length"], "longer_wins": {"mean": 0.2, "low": 0.1, "high": 0.3, "n": 8}}
    told = verdict({**FOUND, "length": shorter})
    assert told.endswith("Always preferring the shorter one is right in 0.800 of the same pairs.")
    assert "Always" not in verdict(FOUND)


def test_a_reward_model_is_reported_with_what_it_learned_and_its_worst_pairs(
    tmp_path: Path, write_reward_run: Write
) -> None:
    run = write_reward_run(tmp_path / "rm", FOUND)
    said: list[str] = []
    results = report(str(run), say=said.append)
    assert results["verdicts"] == [
        "better than chance: accuracy 0.750 where 0.5 is chance, 95 % interval 0.550 to 0.900, on "
        "the test split, which neither trained the weights nor chose them."
    ]
    assert "rm: reward_model from tiny on pairs.jsonl, finished after 4 of 6 steps" in said[0]
    assert results["course"]["rm/loss"] == {"first": 0.625, "last": 0.25}
    assert results["course"]["rm/val_accuracy"] == {"first": 0.7, "last": 0.7}
    assert results["settings"]["fit.batch_size"] == 8 and not results["scores"]
    assert json.loads((run / "report" / "report.json").read_text()) == results
    markdown = (run / "report" / "report.md").read_text()
    for text in (said[0], markdown):
        assert "0.750 (0.550 to 0.900) of 8 pairs" in text and "1 of 40" in text
        assert "12 pairs" in text and "0.500, preferring the shorter one" in text
        assert "the model of number 3" in markdown and "instructrec train letters" in text
    page = (run / "report" / "report.html").read_text()
    for part in ("What it has learned", "Calibration: how sure", "Learning curves", "Accuracy"):
        assert part in page
    assert "<tr><th>loss</th><td>0.500 nats (0.693 knows nothing)</td></tr>" in page
    assert "8 of 8 rows, what it got most wrong first" in page
    assert page.index("yes 0") < page.index("yes 1") < page.index("yes 7")


def test_an_alignment_is_reported_with_tables_of_its_own(
    tmp_path: Path, write_reward_run: Write
) -> None:
    found = {
        **{"pairs": 8, "accuracy": ACCURACY, "recall_at_1": ACCURACY | {"mean": 0.25}},
        **{"calibration": [[0.5, 0.2, 0.1], [0.5, 0.8, 0.9]], "calibration_error": 0.1},
        **{"match_score": 0.7, "mismatch_score": 0.3, "score_std": 0.1},
        **{"slope": 8.0, "intercept": -2.0, "cut_texts": 0, "texts": 40},
        **{"measured_on": "validation", "measured_pairs_chose_the_weights": True},
    }
    run = write_reward_run(tmp_path / "a", found)
    scores = run / "eval" / "pairs-test-scores-3.jsonl"
    rows = [
        {"id": str(i), "prompt": "q", "output": f"out {i}", "cosine": 0.1, "score": 1 - i / 8}
        for i in range(8)
    ]
    scores.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report(str(run), say=lambda text: None)
    markdown = (run / "report" / "report.md").read_text()
    assert "own output the best of all | 0.250 (0.550 to 0.900)" in markdown
    assert "σ(8 · cosine -2)" in markdown and "| 0.500 | 0.800 | 0.900 |" in markdown
    assert "flatters these numbers" in markdown
    page = (run / "report" / "report.html").read_text()
    assert "flatters these numbers" in page and page.index("out 7") < page.index("out 0")
    beaten = [row | {"above_others": 0.25 if i == 3 else 1.0} for i, row in enumerate(rows)]
    scores.write_text("".join(json.dumps(row) + "\n" for row in beaten))
    report(str(run), say=lambda text: None)
    page = (run / "report" / "report.html").read_text()
    assert page.index("<td>0.250</td>") < page.index("out 3") < page.index("out 7")


def test_settings_without_effect_are_left_out(tmp_path: Path, write_reward_run: Write) -> None:
    run = write_reward_run(tmp_path / "rm", FOUND)
    for validates, margins in ((3, True), (0, False)):
        fit = f"fit: {{eval_every: {validates}, best_by: loss}}\n"
        preference = f"preference: {{margins: {str(margins).lower()}, margin_scale: 2.0}}\n"
        (run / "config.yaml").write_text(fit + preference)
        settings = report(str(run), say=lambda text: None)["settings"]
        assert ("fit.best_by" in settings) is margins
        assert ("preference.margin_scale" in settings) is margins


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "the test split, which neither trained"),
        ({"measured_on": "validation"}, "the validation split, which chose nothing"),
        (
            {"measured_on": "validation", "measured_pairs_chose_the_weights": True},
            "chose the weights as well: optimistic",
        ),
        ({"measured_on": None, "measured_pairs_chose_the_weights": None}, "the validation split"),
        ({"measured_on": "validation", "recall_at_1": 1}, "a half (the other one calibrated"),
    ],
)
def test_the_rows_that_measured_are_named_with_what_else_they_did(
    changes: dict[str, Any], told: str
) -> None:
    assert told in measured_on(FOUND | changes)


def test_what_chance_could_do_is_called_undecided() -> None:
    for low, high, told in ((0.4, 0.9, "undecided"), (0.1, 0.4, "worse"), (0.51, 0.6, "better")):
        interval = ACCURACY | {"low": low, "high": high}
        assert verdict(FOUND | {"accuracy": interval}).startswith(told)


def test_a_training_without_an_end_is_reported_as_far_as_it_went(
    tmp_path: Path, write_reward_run: Write
) -> None:
    run = write_reward_run(tmp_path / "rm", None)
    results = report(str(run), say=lambda text: None)
    assert results["done"] == 4 and not results["learned"]
    assert results["verdicts"][0].startswith("not finished")


def test_what_a_reward_model_cannot_be_held_against_is_refused(
    tmp_path: Path, write_reward_run: Write
) -> None:
    run = write_reward_run(tmp_path / "rm", FOUND)
    with pytest.raises(ConfigError, match="leave --before out"):
        report(str(run), ReportConfig(before="runs/x"), say=lambda text: None)
    write_json(run / "summary.json", {"scores_file": "../secret.jsonl"})
    with pytest.raises(CheckpointError, match=r"scores_file = '\.\./secret\.jsonl'"):
        report(str(run), say=lambda text: None)


@pytest.mark.slow
def test_its_page_opens_without_complaint_on_a_phone_and_hostile_text_stays_text(
    tmp_path: Path, write_reward_run: Write, browser: Any
) -> None:
    run = write_reward_run(tmp_path / "r<b>", FOUND, rejected=EVIL)
    report(str(run), say=lambda text: None)
    browser.open(run / "report" / "report.html", 390, False)
    assert browser.run("window.hit") is None
    assert browser.run("document.querySelectorAll('img, td a, td script').length") == 0
    assert browser.run("document.documentElement.scrollWidth") <= 390
    assert "</td></table><script>" in browser.run("document.body.innerText")
    assert browser.complaints == []
