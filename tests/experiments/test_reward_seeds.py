"""Several seeds of a reward model: one run each, their accuracy together, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from instructrec.experiments.cli import main
from instructrec.experiments.jsonl import Row, read_json, write_json
from instructrec.experiments.reward_seeds import outcome_of, report
from instructrec.experiments.runfolder import RunFolder
from instructrec.experiments.seeds import SeedRun
from instructrec.experiments.stats import Interval, SeedInterval, mean_interval, seeds_interval

PAIRS = 6


def preferences(right: str) -> list[Row]:
    """Held-out pairs, two about each instruction; + is right, - wrong, 0 a tie."""
    return [
        {
            **{"id": f"p{i}", "prompt": f"Say  {i // 2}", "chosen": f"yes {i}"},
            **{"rejected": f"no {i}", "chosen_score": {"+": 0.3, "-": 0.1, "0": 0.2}[sign]},
            "rejected_score": 0.2,
        }
        for i, sign in enumerate(right)
    ]


def write_run(folder: Path, seed: int, rows: list[Row], data: str = "a", **learned: Any) -> SeedRun:
    """What a finished reward model leaves behind, as far as its seeds are told from it."""
    (folder / "eval").mkdir(parents=True)
    (folder / "eval" / "scores.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    write_json(folder / "run.json", {"format_version": 1, "data": {"train": data}})
    (folder / "reward_model").mkdir()
    interval = {"mean": 0.5, "low": 0.25, "high": 0.75}
    report = {"accuracy": interval, "measured_on": "test", **learned}
    write_json(folder / "reward_model" / "reward_report.json", report)
    return SeedRun(seed, RunFolder(folder), {"scores_file": "eval/scores.jsonl"})


def test_from_three_seeds_on_the_interval_is_of_other_seeds_on_other_pairs(tmp_path: Path) -> None:
    rights = ["+++-0+", "++--++", "-++-++"]
    runs = [write_run(tmp_path / f"s{i}", i, preferences(right)) for i, right in enumerate(rights)]
    outcome = outcome_of(runs)
    values = {"+": 1.0, "-": 0.0, "0": 0.5}
    matrix = [[values[sign] for sign in right] for right in rights]
    expected = seeds_interval(matrix, [0, 0, 1, 1, 2, 2])
    found = outcome.scores["accuracy"]
    assert (
        found == expected
        and isinstance(found, SeedInterval)
        and list(outcome.scores) == ["accuracy"]
    )
    assert found.seed_means == (4.5 / 6, 4 / 6, 4 / 6) and found.n_clusters == 3
    told = report(outcome)
    assert "95 % intervals for other pairs; of all: other seeds on other pairs" in told
    assert f"all   {found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]" in told
    assert f"1     0.500 [0.250, 0.750]  {tmp_path / 's1'}" in told
    assert "measured on the test split, which neither trained the weights" in told


def test_fewer_seeds_tell_of_other_pairs_alone(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"s{i}", i, preferences("++-+-+")) for i in range(2)]
    outcome = outcome_of(runs)
    found = outcome.scores["accuracy"]
    assert found == mean_interval([1, 1, 0, 1, 0, 1], [0, 0, 1, 1, 2, 2])
    assert isinstance(found, Interval)
    assert "for other pairs (other seeds: from 3 on)" in report(outcome)
    alone = report(outcome_of(runs[:1]))
    assert "95 % intervals for other pairs\n" in alone and "all " not in alone


def test_seeds_of_other_pairs_or_other_data_have_no_mean(tmp_path: Path) -> None:
    rows = preferences("++-+-+")
    first = write_run(tmp_path / "s0", 0, rows)
    moved = write_run(tmp_path / "s1", 1, [*rows[:-1], rows[-1] | {"chosen": "maybe"}])
    learned = write_run(tmp_path / "s2", 2, rows, data="b")
    for other, word in ((moved, "measured"), (learned, "trained")):
        outcome = outcome_of([first, other])
        assert not outcome.scores
        assert f"{other.folder.path} was {word} on others" in outcome.note
        told = report(outcome)
        assert outcome.note in told and "\nall " not in told
        assert "95 % intervals for other pairs\n" in told  # of each run


def test_alignment_models_have_recall_beside_accuracy(tmp_path: Path) -> None:
    above = [[1.0, 0.5, 0.75, None], [0.5, 0.25, 1.0, None], [1.0, 1.0, 0.5, None]]
    interval = {"mean": 0.4, "low": 0.3, "high": 0.6}
    runs = [
        write_run(
            tmp_path / f"s{seed}",
            seed,
            [
                {"id": i, "prompt": f"q{i}", "output": f"a{i}"}
                | {"above_others": share, "is_best": share == 1.0}
                for i, share in enumerate(of_run)
            ],
            recall_at_1=interval,
        )
        for seed, of_run in enumerate(above)
    ]
    outcome = outcome_of(runs)
    assert outcome.scores["accuracy"] == seeds_interval([row[:3] for row in above])
    assert outcome.scores["recall_at_1"].mean == pytest.approx(4 / 12)
    head, first = report(outcome).splitlines()[3:5]
    assert head.split()[:5] == ["seed", "accuracy", "recall", "at", "1"]
    assert first.startswith("0     0.500 [0.250, 0.750]  0.400 [0.300, 0.600]")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--keep_going"], "--keep_going is about several seeds"),
        (["--seeds", "1", "1"], "different seeds"),
        (["--seeds", "1", "2", "--seed", "3"], "Add 3 to it, or leave --seed out"),
        (["--seeds", "1", "--resume", "--allow_change", "data"], "--allow_change is about one run"),
        (["--seeds", "1", "2", "--resume", "--overwrite"], "exclude each other"),
        (["--seeds", "1", "2", "--name", "mine"], "Give variant instead"),
    ],
)
def test_the_command_refuses_what_contradicts_several_seeds(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train-reward", "--task.name", "pairs.jsonl", *flags]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_seeds_are_trained_resumed_and_told_together_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"n {i}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(40)]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = ["train-reward", "--task.name", "pairs.jsonl", "--policy.model", "tiny"]
    train += ["--policy.device", "cpu", "--fit.max_steps", "2", "--tracking.mode", "disabled"]
    train += ["--task.options.test_fraction", "0.3"]
    assert main([*train, "--seed", "2", "--variant", "alone"]) == 0
    assert main([*train, "--seeds", "1", "2"]) == 0
    told = capsys.readouterr().out
    assert "seed 2, number 2 of 2" in told and "runs/reward-model-pairs-s2\n" in told
    places = [Path("runs", name) for name in ("alone-s2", "reward-model-pairs-s2")]
    alone, ours = (p / "reward_model" / "model.safetensors" for p in places)
    assert alone.read_bytes() == ours.read_bytes()
    record = read_json(places[1] / "run.json")["command"]
    assert record == ["instructrec", *train, "--seed", "2"]
    assert main([*train, "--seeds", "1", "2"]) != 0
    assert "reward-model-pairs-s2 exists already" in capsys.readouterr().err
    more = [*train, "--seeds", "0", "1", "2", "--resume"]
    assert main([*more, "--fit.learning_rate", "0.1"]) == 2
    assert "started with other settings" in capsys.readouterr().err
    assert not Path("runs/reward-model-pairs-s0").exists()
    assert main(more) == 0
    told = capsys.readouterr().out
    assert told.count("is finished already") == 2 and "number 1 of 3" in told
    assert "other seeds on other pairs" in told and "\nall " in told
