"""`instructrec train-reward` from a file of preferences to a folder that rewards load."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path

import pytest
import torch

from instructrec.envs.tasks.base import make_task
from instructrec.errors import CheckpointError, ConfigError, DataError, RunInterrupted
from instructrec.experiments import reward_run
from instructrec.experiments.cli import main
from instructrec.experiments.jsonl import read_json, read_rows
from instructrec.experiments.learn_preferences import learn_preferences
from instructrec.experiments.preference_data import (
    PairItem,
    PreferenceTask,
    canonical,
    open_splits,
    read_pairs,
    refuse_leakage,
)
from instructrec.experiments.reward_model_config import (
    RewardModelConfig,
    RewardOutputConfig,
    refuse_changed,
)
from instructrec.experiments.reward_run import run_reward_training
from instructrec.experiments.runfolder import RunFolder, read_metrics
from instructrec.experiments.setup_run import run_info
from instructrec.experiments.tracking import TrackingConfig
from instructrec.metrics import is_wall_clock, lookup
from instructrec.policies.causal_lm import load_policy
from instructrec.policies.config import PolicyConfig
from instructrec.rewards import make_reward
from instructrec.rl.reward_config import FitConfig, PreferenceConfig

TINY = PolicyConfig(model="tiny", dtype="float32", device="cpu")
FIT = FitConfig(max_steps=6, batch_size=8, learning_rate=3e-3, eval_every=3)


def write_pairs(path: Path, number: int = 40, *, chat: bool = False) -> Path:
    rows = []
    for i in range(number):
        prompt = f"name {i}"
        row = {"prompt": prompt, "chosen": f"yes {i}", "rejected": f"no {i}", "margin": i % 3}
        if chat:
            row["prompt"] = [{"role": "user", "content": prompt}]
            for side in ("chosen", "rejected"):
                row[side] = [{"role": "assistant", "content": row[side]}]
        rows.append(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config_of(tmp_path: Path, file: Path | None = None, **changes) -> RewardModelConfig:
    task = PreferenceTask(
        str(file or write_pairs(tmp_path / "pairs.jsonl")),
        {"validation_fraction": 0.3, "test_fraction": 0.3},
    )
    given = {
        "task": task,
        "policy": TINY,
        "fit": FIT,
        "tracking": TrackingConfig(mode="disabled"),
        "output": RewardOutputConfig(dir=str(tmp_path / "runs")),
    }
    return RewardModelConfig(**given | changes)


def unclocked(folder: RunFolder) -> list[dict[str, float]]:
    """The metrics of a run without those that a clock decides."""
    rows = read_metrics(folder.path)
    return [{k: v for k, v in row.items() if not is_wall_clock(k)} for row in rows]


@pytest.mark.parametrize("chat", [False, True])
def test_a_run_leaves_a_model_its_numbers_and_its_card(tmp_path, chat):
    file = write_pairs(tmp_path / "pairs.jsonl", chat=chat)
    said = []
    outcome = run_reward_training(config_of(tmp_path, file), say=said.append)
    folder = RunFolder.open(outcome.folder.path)
    assert folder.info().job_type == "reward-model" and folder.record()["status"] == "finished"
    summary = folder.summary()
    for key in [k for row in read_metrics(folder.path) for k in row] + list(summary):
        if "/" in key:
            lookup(key)
    assert [row["rm/step"] for row in read_metrics(folder.path)] == [0, 1, 2, 3, 4, 5, 6]
    assert 0 < summary["speed/limit_frac"] < 1 < summary["speed/tokens_per_s"]
    assert said[-2].startswith("speed: ") and "at most; optimizer steps at" in said[-2]
    rows = read_rows(folder.path / summary["scores_file"])
    right = [row["chosen_score"] > row["rejected_score"] for row in rows]
    assert summary["eval/pair_accuracy/mean"] == pytest.approx(sum(right) / len(right))
    model = folder.path / "reward_model"
    card = (model / "README.md").read_text()
    assert "Calibration" in card and "use: learned" in card and "accuracy" in said[1]
    report = read_json(model / "reward_report.json")
    assert_measured_on_the_test_split(config_of(tmp_path, file), rows, summary, report, card)
    assert report["by_margin"] and report["length"]["longer_wins"]["mean"] >= 0
    assert not folder.checkpoints.exists()
    # The reward gives the scores of the file, by the run folder as well as by the model's.
    for path in (folder.path, model):
        reward = make_reward("learned", path=str(path), device="cpu")
        given = reward([row["prompt"] for row in rows], [row["chosen"] for row in rows])
        assert given == pytest.approx([row["chosen_score"] for row in rows], abs=1e-5)
    normal = make_reward("learned", path=str(folder.path), device="cpu", normalise=True)
    both = normal(
        [row["prompt"] for row in rows] * 2,
        [row["chosen"] for row in rows] + [row["rejected"] for row in rows],
    )
    assert sum(both) / len(both) == pytest.approx(0.0, abs=1e-5)


def assert_measured_on_the_test_split(config, rows, summary, report, card) -> None:
    """Weights were chosen by the best of three validations, and by none of the measured pairs."""
    task = make_task(config.task.name, split="test", **config.task.options)
    assert [row["id"] for row in rows] == [task[i].id for i in range(len(task))] and rows
    assert "-test-scores-" in summary["scores_file"]
    for numbers in (summary, report):
        assert numbers["measured_on"] == "test"
        assert numbers["measured_pairs_chose_the_weights"] is False
    assert "| measured on | the test split, which neither trained" in card
    assert "flatter" not in card


@pytest.mark.parametrize(
    ("eval_every", "told"), [(1, "chose the weights as well"), (0, "chose nothing")]
)
def test_without_a_test_split_the_report_says_what_the_validation_pairs_were_used_for(
    tmp_path, eval_every, told
):
    config = config_of(tmp_path, fit=FitConfig(max_steps=1, batch_size=4, eval_every=eval_every))
    options = config.task.options | {"test_fraction": 0.0}
    task = dataclasses.replace(config.task, options=options)
    outcome = run_reward_training(dataclasses.replace(config, task=task), say=str)
    assert outcome.summary["measured_on"] == "validation"
    assert outcome.summary["measured_pairs_chose_the_weights"] is bool(eval_every)
    card = (outcome.folder.path / "reward_model" / "README.md").read_text()
    assert f"| measured on | the validation split, which {told}" in card
    assert ("flatters these numbers" in card) is bool(eval_every)


@pytest.mark.slow
def test_an_interrupted_run_resumes_to_the_same_numbers(tmp_path, monkeypatch):
    whole = run_reward_training(config_of(tmp_path, name="whole"), say=str)
    config = config_of(tmp_path, name="broken")
    calls = iter(range(100))

    def interrupted(config, base, items, around):
        around = dataclasses.replace(around, should_stop=lambda: next(calls) == 3)
        return learn_preferences(config, base, items, around)

    with monkeypatch.context() as patched:
        patched.setattr(reward_run, "_learner", lambda config: interrupted)
        with pytest.raises(RunInterrupted, match="step 4 of 6"):
            run_reward_training(config, say=str)
    assert RunFolder.open(config.folder).record()["status"] == "interrupted"
    other = dataclasses.replace(config, seed=1)
    with pytest.raises((ConfigError, CheckpointError)):
        run_reward_training(other, resume=True, say=str)
    resumed = run_reward_training(config, resume=True, say=str)
    same = [k for k in whole.summary if k.startswith("eval/") or k in ("loss", "best_update")]
    assert {k: resumed.summary[k] for k in same} == {k: whole.summary[k] for k in same}
    assert unclocked(resumed.folder) == unclocked(whole.folder)
    again = run_reward_training(config, resume=True, say=str)
    assert again.summary == resumed.summary


def test_a_run_that_goes_on_has_to_begin_with_the_same_model(tmp_path, monkeypatch):
    base = tmp_path / "base"
    load_policy(TINY).save(base)
    config = config_of(tmp_path, policy=dataclasses.replace(TINY, model=str(base), train="lora"))

    def interrupted(config, base, items, around):
        around = dataclasses.replace(around, should_stop=lambda: True)
        return learn_preferences(config, base, items, around)

    with monkeypatch.context() as patched:
        patched.setattr(reward_run, "_learner", lambda config: interrupted)
        with pytest.raises(RunInterrupted, match="step 1 of 6"):
            run_reward_training(config, say=str)
    other = load_policy(TINY)
    with torch.no_grad():
        other.model.get_input_embeddings().weight.add_(0.1)
    other.save(base)
    with pytest.raises(CheckpointError, match="starts from different weights"):
        run_reward_training(config, resume=True, say=str)
    allowed = run_reward_training(config, resume=True, allow_change=["weights"], say=str)
    assert allowed.summary["updates"] == 6


@pytest.mark.slow
@pytest.mark.parametrize("save_every", [0, 4])
def test_a_signal_while_pairs_are_scored_ends_the_run_at_once(tmp_path, monkeypatch, save_every):
    config = config_of(tmp_path, name="stopped")
    config = dataclasses.replace(
        config, fit=dataclasses.replace(config.fit, save_every=save_every, save_minutes=0)
    )

    def stopped(config, base, items, around):
        learned = learn_preferences(config, base, items, around)
        signal.raise_signal(signal.SIGTERM)
        return learned

    with monkeypatch.context() as patched:
        patched.setattr(reward_run, "_learner", lambda config: stopped)
        with pytest.raises(RunInterrupted if save_every else KeyboardInterrupt, match=r"."):
            run_reward_training(config, say=str)
    assert RunFolder.open(config.folder).record()["status"] == "interrupted"
    said: list[str] = []
    run_reward_training(config, resume=True, say=said.append)
    assert f"resuming after step {save_every}" in said


def item(prompt, name="a") -> PairItem:
    return PairItem(name, prompt, "yes", "no", None)


def test_instructions_on_both_sides_are_refused_whatever_their_form(tmp_path):
    same = [{"role": "user", "content": "What  is RED?"}]
    with pytest.raises(DataError, match=r"1 of 2 held-out.*'b'"):
        refuse_leakage([item("what is red?")], [item(same, "b"), item("else", "c")])
    refuse_leakage([item("one")], [item("two")])
    with pytest.raises(DataError, match="also validated on"):
        refuse_leakage([item("one")], [item("ONE")], "validated on")
    assert canonical(same) == canonical("what is red?")
    config = config_of(tmp_path)
    leaking = dataclasses.replace(config.task, validation=config.task.name)
    measured = dataclasses.replace(config.task, test=config.task.name)
    for task in (leaking, measured):
        with pytest.raises(DataError, match="also learned from"):
            run_reward_training(dataclasses.replace(config, task=task), say=str)
    assert not config.folder.exists()


def test_a_file_of_its_own_is_held_out_as_a_whole(tmp_path):
    write_pairs(tmp_path / "a.jsonl", 6)
    other = tmp_path / "b.jsonl"
    other.write_text(json.dumps({"prompt": "new", "chosen": "y", "rejected": "n"}) + "\n")
    named = PreferenceTask(str(tmp_path / "a.jsonl"), validation=str(other))
    splits = open_splits(named)
    train, held_out = splits["train"], splits["validation"]
    assert (len(train), len(held_out), len(splits)) == (6, 1, 2)
    assert read_pairs(train, 2)[1].margin == 1.0 and read_pairs(held_out, None)[0].margin is None
    test = open_splits(dataclasses.replace(named, test=str(other)))["test"]
    assert test.split == "all" and len(test) == 1


def test_a_test_split_that_the_data_lack_is_none_and_one_that_is_unknown_is_named(tmp_path):
    pairs = PreferenceTask(
        str(write_pairs(tmp_path / "a.jsonl", 20)),
        {"validation_fraction": 0.5, "test_fraction": 0.0},
    )
    assert "test" not in open_splits(pairs)
    assert "test" not in open_splits(dataclasses.replace(pairs, test_split=None))
    with pytest.raises(ConfigError, match=r"'tset'.*'test'.*task\.test_split: null"):
        open_splits(dataclasses.replace(pairs, test_split="tset"))
    with pytest.raises(ConfigError, match=r"task\.test_split is None"):
        PreferenceTask("a.jsonl", test="b.jsonl", test_split=None)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "q", "reference": "y"}, "no text in the column 'rejected'"),
        ({"prompt": "q", "chosen": "y", "rejected": "y"}, "prefers a response to itself"),
        ({"prompt": "q", "chosen": "y", "rejected": "n", "margin": "big"}, "margin 'big'"),
        ({"prompt": "q", "chosen": "y", "rejected": "n", "margin": "nan"}, "margin 'nan'"),
    ],
)
def test_rows_that_are_no_pairs_are_named(tmp_path, row, message):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    task = open_splits(PreferenceTask(str(file), validation=str(file)))["train"]
    with pytest.raises(DataError, match=message):
        read_pairs(task, None)


def test_margins_that_the_data_lacks_are_missed_before_training(tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"q {i}", "chosen": "y", "rejected": "n"} for i in range(30)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config_of(tmp_path, file, preference=PreferenceConfig(margins=True))
    with pytest.raises(DataError, match=r"preference\.margins is set"):
        run_reward_training(config, say=str)


def test_settings_of_the_other_algorithm_and_changed_ones_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"preference\.\* given"):
        RewardModelConfig(algorithm="alignment", preference=PreferenceConfig(margins=True))
    with pytest.raises(ConfigError, match=r"task\.name is not set"):
        run_reward_training(RewardModelConfig(), say=str)
    config = config_of(tmp_path)
    RunFolder.create(
        config.folder, run_info(config.resolved(), "tiny"), config.resolved().to_dict()
    )
    refuse_changed(config, config.folder)
    slower = dataclasses.replace(config, fit=dataclasses.replace(FIT, learning_rate=1e-5))
    with pytest.raises(ConfigError, match=r"fit\.learning_rate: 0\.003 -> 1e-05"):
        refuse_changed(slower, config.folder)


@pytest.mark.slow
def test_the_command_reports_what_it_cannot_do(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path / "pairs.jsonl")
    train = ["train-reward", "--task.name", "pairs.jsonl", "--policy.model", "tiny"]
    train += ["--fit.max_steps", "2", "--tracking.mode", "disabled", "--policy.device", "cpu"]
    train += ["--task.options.validation_fraction", "0.4"]
    assert main(train) == 0
    assert main(train) != 0 and "--overwrite" in capsys.readouterr().err
    assert main(["report", "runs/reward-model-pairs-s0"]) == 0
    assert "accuracy" in capsys.readouterr().out
    page = Path("runs/reward-model-pairs-s0/report/report.html").read_text()
    assert "What it has learned" in page and "Scores of held-out rows" in page
    assert main(["runs", "list"]) == 0 and "reward-model-pairs-s0" in capsys.readouterr().out
