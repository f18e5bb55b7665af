"""Policies that were measured by different rewards: what of it can be compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from instructrec.errors import ConfigError, DataError
from instructrec.experiments.compare import CompareConfig, compare
from instructrec.experiments.evaluation import Evaluation
from instructrec.experiments.jsonl import write_json
from instructrec.experiments.shared_scores import shared_scores

ONE = {"match": 1.0, "short": {"use": "length", "weight": 0.0}}
REWEIGHTED = {"match": 0.0, "short": {"use": "length", "weight": 1.0}, "judge": 1.0}
OTHER_OPTIONS = {"match": 1.0, "short": {"use": "length", "weight": 0.0, "options": {"soft": 2}}}


def rows(rewards: dict[str, Any], match: float) -> list[dict[str, Any]]:
    return [
        {
            "id": f"q{i}",
            "sample": 0,
            "prompt": f"question {i}",
            "response": "answer",
            "reference": "r",
            "parts": dict.fromkeys(rewards, match * (i % 4 != 0)),
            "total": 0.0,
            "stop_reason": "eos",
            "response_len": 3,
        }
        for i in range(40)
    ]


def measured(path: Path, rewards: dict[str, Any], match: float) -> str:
    """A file of responses that were scored by these rewards."""
    found = rows(rewards, match)
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    header = {"task": "letters", "split": "test", "reward": rewards, "sampling": {}}
    write_json(path.with_suffix(".json"), header | {"rows": len(found), "samples": 1})
    return str(path)


def shared(*rewards: dict[str, Any]) -> list[str]:
    return shared_scores([Evaluation(rows(each, 1.0), {"reward": each}) for each in rewards])


def test_what_is_shared() -> None:
    assert shared(ONE, ONE) == ["total", "match", "short"]
    assert shared(ONE, REWEIGHTED) == ["match", "short"]
    assert shared(ONE, OTHER_OPTIONS) == ["match"]
    assert shared(ONE, {"judge": 1.0}) == []


def test_how_a_reward_is_weighed_or_run_makes_no_other_score() -> None:
    named = {"f1": {"use": "f1", "weight": {1: 0.0, 20: 1.0}, "normalise": "running"}}
    assert shared({"f1": 1.0}, named) == ["f1"]
    assert shared({"f1": 1.0}, {"f1": {"use": "bleu", "weight": 1.0}}) == []
    assert shared({"f1": 1.0}, {"f1": {"weight": 1.0, "format": "chat"}}) == []


def test_where_the_total_steers_the_episode_nothing_is_shared() -> None:
    tries = {"episodes": {"env": "refine", "max_turns": 3}}
    one, same, other = (
        Evaluation(rows({"match": 1.0}, 1.0), {"reward": {"match": weight}} | tries)
        for weight in (1.0, 1.0, 2.0)
    )
    assert shared_scores([one, same]) == ["total", "match"]
    assert shared_scores([one, other]) == []


def test_parts_of_a_reward_go_with_it() -> None:
    part = {"gold": 1.0, "gold.form": 1.0}
    headers: list[dict[str, Any]] = [{"reward": {"gold": {"use": use}}} for use in "aab"]
    one, same, other = (Evaluation(rows(part, 1.0), header) for header in headers)
    assert shared_scores([one, same]) == ["total", "gold", "gold.form"]
    assert shared_scores([one, other]) == []


def test_policies_of_other_rewards_are_compared_by_what_they_share(tmp_path: Path) -> None:
    good = measured(tmp_path / "good.jsonl", ONE, 1.0)
    bad = measured(tmp_path / "bad.jsonl", REWEIGHTED, 0.0)
    out = str(tmp_path / "out")
    with pytest.raises(DataError, match=r"another weight.*They share match, short: say which"):
        compare([good, bad], CompareConfig(out=out), say=print)
    results = compare([good, bad], CompareConfig(metric="match", out=out), say=print)
    assert list(results["parts"]) == ["match", "short"]
    assert results["parts"]["match"]["pairs"][0]["mean"] == pytest.approx(0.75)
    assert any("totals are left out" in note for note in results["warnings"])
    assert "<h2>Means" in (tmp_path / "out/compare.html").read_text()


def test_a_score_of_other_settings_is_no_metric(tmp_path: Path) -> None:
    one = measured(tmp_path / "one.jsonl", ONE, 1.0)
    other = measured(tmp_path / "other.jsonl", OTHER_OPTIONS, 1.0)
    with pytest.raises(ConfigError, match="unknown metric 'short'"):
        compare([one, other], CompareConfig(metric="short", out=str(tmp_path / "out")), say=print)
    lone = measured(tmp_path / "lone.jsonl", {"judge": 1.0}, 1.0)
    with pytest.raises(DataError, match=r"total would mean different things\. Measure"):
        compare([one, lone], CompareConfig(out=str(tmp_path / "out")), say=print)


def test_learning_curves_are_of_the_metric(tmp_path: Path) -> None:
    runs = []
    for name, weight in (("a", 1.0), ("b", 2.0)):
        folder = tmp_path / f"{name}-s0"
        (folder / "eval").mkdir(parents=True)
        measured(folder / "eval/test.jsonl", {"match": weight}, 1.0)
        info = {"job_type": "train", "algorithm": "ppo", "variant": name, "seed": 0}
        write_json(folder / "run.json", {"format_version": 1, "status": "finished"} | info)
        write_json(folder / "summary.json", {"eval_file": "eval/test.jsonl"})
        (folder / "config.yaml").write_text("seed: 0\n")
        rows = [{"train/update": u, "reward/match/mean": 0.1 * u} for u in (1, 2, 3)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        runs.append(str(folder))
    compare(runs, CompareConfig(metric="match", out=str(tmp_path / "out")), say=print)
    page = (tmp_path / "out/compare.html").read_text()
    assert "<h3>Training reward, match</h3>" in page and "<h3>Training reward</h3>" not in page
