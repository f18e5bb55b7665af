"""The table of other wordings: the same instructions, paired differences, rows that go on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from instructrec.envs.tasks.augmented import KINDS, AugmentedTask
from instructrec.envs.tasks.base import make_task
from instructrec.errors import ConfigError, DataError
from instructrec.experiments import robustness
from instructrec.experiments.cli import main
from instructrec.experiments.config import EvaluateConfig, OutputConfig
from instructrec.experiments.evaluate_policy import run_evaluation
from instructrec.experiments.evaluation import Evaluation, evaluate
from instructrec.experiments.jsonl import read_json, read_rows
from instructrec.metrics import lookup
from instructrec.policies.base import Responses
from instructrec.policies.config import Sampling
from instructrec.rewards import make_rewards

GREEDY = Sampling(max_new_tokens=4, temperature=0.0)


class EasilyDistracted:
    """Knows every answer, unless the instruction is longer than one sentence."""

    name = "easily distracted"

    def __init__(self):
        self.asked = 0

    def respond(self, prompts, columns=None, sampling=None):
        self.asked += len(prompts)
        pairs = zip(prompts, columns["reference"], strict=True)
        return Responses(
            [answer if p.count(".") + p.count("?") == 1 else "?" for p, answer in pairs]
        )


def measured(out: Path, policy: EasilyDistracted, kinds=KINDS, size=40):
    """The table of a policy on instructions of a single sentence."""
    task, reward = make_task("parity", split="test", size=size), make_rewards("exact_match")

    def measure(task, file):
        return evaluate(policy, task, reward, sampling=GREEDY, out=file)

    file = out / "parity-test-greedy-0.jsonl"
    plain = measure(task, file)
    return plain, robustness.measure_robustness(task, plain, measure, file, kinds=kinds)


def test_what_a_wording_costs_is_the_paired_difference(tmp_path: Path) -> None:
    plain, found = measured(tmp_path, EasilyDistracted())
    assert plain.interval().mean == 1.0
    by_kind = {each.kind: each for each in found}
    assert tuple(by_kind) == KINDS
    assert by_kind["typos"].difference.mean == by_kind["casing"].difference.mean == 0.0
    rows = read_rows(tmp_path / "parity-test-greedy_distractor-0.jsonl")
    expected = sum(row["total"] for row in rows) / len(rows)
    distracted = by_kind["distractor"].difference
    assert (distracted.mean_a, distracted.mean_b) == (expected, 1.0)
    assert distracted.mean == distracted.high == pytest.approx(-1.0)
    assert distracted.p < 0.01 and distracted.n == 40
    assert {row["augmentation"] for row in rows} == {"distractor"}
    assert by_kind["distractor"].changed == 1.0
    numbers = read_json(tmp_path / "parity-test-greedy_robustness-0.json")
    assert numbers == robustness.metrics(found)
    assert all(lookup(key) for key in numbers)
    text = robustness.report(found)
    assert "distractor" in text and "-1.000" in text
    assert "the same everywhere" in text and "no difference seen" in text
    assert "+0.000 to +0.000" not in text


def test_a_measurement_goes_on_where_it_stopped(tmp_path: Path) -> None:
    first, again = EasilyDistracted(), EasilyDistracted()
    _, found = measured(tmp_path, first, kinds=("typos", "vague"))
    assert first.asked == 3 * 40
    assert measured(tmp_path, again, kinds=("typos", "vague"))[1] == found
    assert again.asked == 0


def test_rows_are_paired_by_instruction_and_unscored_ones_left_out() -> None:
    def rows(totals, label):
        return Evaluation(
            [
                {
                    **{"id": str(i), "sample": 0, "total": total, "parts": {}},
                    **{"item": str(i), "family": "f", "augmentation": label},
                }
                for i, total in enumerate(totals)
            ]
        )

    found = robustness.compare(
        "vague", rows([1, None, 0, 0], "vague"), rows([1, 1, None, 1], "none")
    )
    assert found.difference.n == 2
    assert found.difference.mean == -0.5
    with pytest.raises(DataError, match="nothing to compare"):
        robustness.compare("vague", rows([None], "vague"), rows([1], "none"))


def test_the_command_shows_the_table_and_keeps_the_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["evaluate", "oracle", "--robustness", "--limit", "10", "--task", "category"]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert all(kind in shown for kind in (*KINDS, "less plain"))
    (summary,) = tmp_path.glob("runs/*/summary.json")
    numbers = json.loads(summary.read_text())
    assert numbers["eval/robust/typos/difference"] == 0.0
    assert main([*arguments, "--overwrite"]) == 0


def test_the_tiny_model_is_measured_in_its_own_words(tmp_path: Path) -> None:
    config = EvaluateConfig(
        name="tiny",
        task="parity",
        limit=6,
        max_new_tokens=3,
        device="cpu",
        dtype="float32",
        output=OutputConfig(dir=str(tmp_path)),
    )
    said: list[str] = []
    run_evaluation("tiny", config, robust=True, say=said.append)
    assert all(kind in said[-1] for kind in KINDS)
    assert len(list((tmp_path / "tiny" / "eval").glob("*.jsonl"))) == 1 + len(KINDS)


def test_recorded_responses_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="answer anew"):
        run_evaluation(str(tmp_path / "rows.jsonl"), EvaluateConfig(), robust=True)


def test_tasks_of_a_mixture_have_metrics_of_their_own(tmp_path: Path) -> None:
    task = make_task("mixture", tasks={"parity": 1, "category": 1}, split="test")
    reworded = AugmentedTask(task, kinds={"vague": 1.0})
    policy, reward = EasilyDistracted(), make_rewards("exact_match")
    plain = evaluate(policy, task, reward, sampling=GREEDY, limit=30)
    metrics = plain.metrics()
    assert metrics["eval/task/parity/mean"] == metrics["eval/task/category/mean"] == 1.0
    assert all(lookup(key) for key in metrics)
    rows = evaluate(policy, reworded, reward, sampling=GREEDY, limit=30).rows
    assert {row["task"] for row in rows} == {"parity", "category"}
    alone = evaluate(policy, make_task("parity"), reward, sampling=GREEDY, limit=5).metrics()
    assert not any(key.startswith("eval/task/") for key in alone)
