"""What an evaluation says beside the rewards: levels, refusals, bounds."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from instructrec.envs.tasks.base import make_task
from instructrec.errors import DataError
from instructrec.experiments.bounds import measure_bounds, models_asked
from instructrec.experiments.compare import CompareConfig, compare
from instructrec.experiments.config import EvaluateConfig, OutputConfig
from instructrec.experiments.evaluate_policy import run_evaluation
from instructrec.experiments.evaluation import evaluate
from instructrec.experiments.evaluation_report import report
from instructrec.experiments.groups import by_level
from instructrec.experiments.playing import SINGLE_ANSWERS, Episodes
from instructrec.experiments.report import report as report_on
from instructrec.policies.base import Responses
from instructrec.policies.config import Sampling
from instructrec.policies.scripted import ConstantPolicy, OraclePolicy, RandomPolicy
from instructrec.rewards import make_rewards

GREEDY = Sampling(max_new_tokens=8, temperature=0.0)


def test_levels_of_difficulty_have_rows_of_their_own() -> None:
    task = make_task("skills", families=["counting"], levels=[2, 1], size=20, split="test")
    found = evaluate(OraclePolicy(), task, make_rewards("exact_match"), sampling=GREEDY)
    assert {row["level"] for row in found.rows} == {1, 2}
    levels = by_level(found)
    assert list(levels) == ["1", "2"] and sum(level.n for level in levels.values()) == len(task)
    assert re.search(r"^  level 2 +1\.000 ", report("oracle", found), flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("text", "share"), [("I'm sorry, but I cannot help with that.", 1.0), ("seven", 0.0)]
)
def test_refusals_are_counted(text: str, share: float) -> None:
    task = make_task("parity", size=8, split="test")
    found = evaluate(ConstantPolicy(text), task, make_rewards("exact_match"), sampling=GREEDY)
    assert found.metrics()["eval/refusal_frac"] == share


def test_a_reward_without_any_score_has_no_row() -> None:
    class Silent:
        name = "silent"

        def respond(self, prompts: list[str], columns: object, sampling: object) -> Responses:
            return Responses(["x"] * len(prompts))

    task = make_task("parity", size=8, split="test")
    rewards = make_rewards({"exact_match": 1.0, "never": f"{__file__}:never"})
    text = report("x", evaluate(Silent(), task, rewards, sampling=GREEDY))
    assert "exact_match" in text and "nan" not in text
    assert re.search(r"without any score +never", text)


def never(completions: list[str], **columns: object) -> list[None]:
    """Applies to nothing."""
    return [None] * len(completions)


def test_bounds_stand_beside_a_policy_in_every_table(tmp_path: Path) -> None:
    said: list[str] = []
    config = EvaluateConfig(task="parity", limit=20, output=OutputConfig(dir=str(tmp_path)))
    first = run_evaluation("oracle", replace(config, name="first"), say=said.append)
    assert "bound oracle" not in said[0] and first.path is not None
    run_evaluation(str(first.path), replace(config, name="again"), say=said.append)
    assert re.search(r"^bound oracle +1\.000 ", said[1], flags=re.MULTILINE)
    assert re.search(r"^bound empty +0\.000 ", said[1], flags=re.MULTILINE)
    found = report_on(str(tmp_path / "again"), say=said.append)
    assert found["bounds"]["totals"]["oracle"]["mean"] == 1.0
    assert "| bound random | 0." in (tmp_path / "again" / "report" / "report.md").read_text()
    assert "bound random" in (tmp_path / "again" / "report" / "report.html").read_text()
    without = replace(config, name="without", bounds=False)
    run_evaluation(str(first.path), without, say=said.append)
    assert "bound oracle" not in said[-1]


def test_rewards_that_ask_a_model_have_no_bounds() -> None:
    spec = {"both": {"use": "gate", "options": {"parts": {"learned": 1.0, "exact_match": 1.0}}}}
    assert models_asked(spec) == ["learned"]
    assert models_asked({"style": {"use": "llm_judge"}, "learned_by_heart": 1.0}) == ["llm_judge"]
    assert models_asked({"exact_match": 1.0}) == []


def test_chance_is_the_same_whatever_the_batches_and_breaks(tmp_path: Path) -> None:
    def rows(batch_size: int, out: Path | None = None) -> list[dict[str, Any]]:
        return evaluate(
            RandomPolicy(1),
            make_task("parity", size=30, split="test"),
            make_rewards("exact_match"),
            sampling=Sampling(temperature=1.0),
            samples=3,
            batch_size=batch_size,
            episodes=Episodes("refine", 2),
            out=out,
        ).rows

    whole = rows(90)
    assert rows(7) == whole and {row["num_turns"] for row in whole} == {1, 2}
    file = tmp_path / "chance.jsonl"
    assert rows(90, file) == whole
    kept = file.read_text().splitlines(keepends=True)[:31]  # between samples of an instruction
    file.write_text("".join(kept))
    assert rows(90, file) == whole


def test_what_the_oracle_cannot_answer_is_left_out_with_a_note(tmp_path: Path) -> None:
    data = tmp_path / "open.jsonl"
    data.write_text("".join(f'{{"prompt": "say {i}"}}\n' for i in range(60)))
    task = make_task(str(data), split="test")
    found = measure_bounds(task, make_rewards("repetition"), episodes=SINGLE_ANSWERS)
    assert list(found.totals) == ["random", "empty"] and "no bound 'oracle'" in found.notes[0]


def test_a_comparison_takes_scripted_policies_by_name(tmp_path: Path) -> None:
    config = EvaluateConfig(
        task="closed_answers",
        options={"size": 40, "families": ["parity"]},
        name="chance",
        output=OutputConfig(dir=str(tmp_path)),
    )
    run_evaluation("random", config, say=[].append)
    named = ["oracle", f"chance={tmp_path / 'chance'}", "empty"]
    results = compare(named, CompareConfig(out=str(tmp_path / "o")), say=[].append)
    assert list(results["policies"]) == ["oracle", "chance", "empty"]
    assert results["parts"]["total"]["policies"]["oracle"]["mean"] == 1.0
    assert results["parts"]["total"]["pairs"][0]["decided"] == "yes"
    assert not any("has 1 run" in note for note in results["warnings"])
    with pytest.raises(DataError, match="only scripted policies"):
        compare(["oracle", "empty"], CompareConfig(out=str(tmp_path / "p")), say=[].append)
