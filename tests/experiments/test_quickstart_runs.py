"""The quickstart and its seeds on the tiny model: every part runs, and the folders read back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from instructrec.errors import DataError
from instructrec.experiments.config import EvaluateConfig, OutputConfig, TaskConfig
from instructrec.experiments.evaluate_policy import run_evaluation
from instructrec.experiments.evaluation import load_evaluation
from instructrec.experiments.quickstart import run_quickstart
from instructrec.experiments.quickstart_config import QuickstartConfig, QuickstartEval
from instructrec.experiments.runfolder import RunFolder, read_metrics
from instructrec.experiments.tracking import TrackingConfig
from instructrec.policies.config import PolicyConfig
from instructrec.rl.config import PPOConfig, SFTConfig

pytestmark = pytest.mark.slow

CONFIG = QuickstartConfig(
    policy=PolicyConfig(model="tiny", device="cpu", dtype="float32"),
    task=TaskConfig(options={"size": 60}),
    sft=SFTConfig(demonstrations=8, max_steps=2, batch_size=4, learning_rate=1e-3),
    best_sft=SFTConfig(
        demonstrations=8, max_steps=3, batch_size=4, eval_every=1, validation_demonstrations=4
    ),
    ppo=PPOConfig(
        num_updates=2,
        episodes_per_update=8,
        num_mini_batches=2,
        response_length=4,
        kl_coef=0.0,
        eval_every=1,
        prompt_filter="family",
    ),
    eval=QuickstartEval(limit=20, sampled_limit=5, samples=4, validation_limit=5),
    tracking=TrackingConfig(mode="disabled"),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Quickstarts of two seeds in one folder, and what the first one said."""
    base = tmp_path_factory.mktemp("quickstarts")
    said: list[str] = []
    for seed in (0, 1):
        config = replace(CONFIG, seed=seed, output=OutputConfig(dir=str(base)))
        run_quickstart(config, command=["quickstart", "--seed", str(seed)], say=said.append)
    return base, said


def test_every_stage_is_a_run_folder_that_reads_back(finished: tuple[Path, list[str]]) -> None:
    base, _ = finished
    top = RunFolder.open(base / "quickstart-1")
    assert top.record()["status"] == "finished" and top.record()["job_type"] == "compare"
    kinds = {"base": "eval", "sft": "sft", "sft-best": "sft", "ppo": "train"}
    for name, job_type in kinds.items():
        folder = RunFolder.open(top.path / name)
        assert folder.record()["job_type"] == job_type and folder.record()["status"] == "finished"
        rows = load_evaluation(folder.path / folder.summary()["eval_file"]).rows
        assert len(rows) == 20
    assert RunFolder.open(top.path / "ppo").info().parent == str(top.path / "sft")
    assert len(read_metrics(top.path / "ppo")) == 2


def test_all_policies_answer_the_same_held_out_instructions(
    finished: tuple[Path, list[str]],
) -> None:
    base, _ = finished
    seen = []
    for name in ("base", "sft", "sft-best", "ppo"):
        folder = RunFolder.open(base / "quickstart-1" / name)
        rows = load_evaluation(folder.path / folder.summary()["eval_file"]).rows
        seen.append([row["id"] for row in rows])
    assert seen[0] == seen[1] == seen[2] == seen[3]


def test_both_sft_stages_learn_from_the_same_demonstrations(
    finished: tuple[Path, list[str]],
) -> None:
    base, _ = finished
    shown = {
        (seed, name): tuple(RunFolder.open(base / seed / name).summary()["demonstrations"])
        for seed in ("quickstart-1", "quickstart-2")
        for name in ("sft", "sft-best")
    }
    assert shown["quickstart-1", "sft"] == shown["quickstart-1", "sft-best"]
    assert shown["quickstart-1", "sft"] != shown["quickstart-2", "sft"]


def test_it_ends_with_table_differences_samples_and_paths(
    finished: tuple[Path, list[str]],
) -> None:
    base, said = finished
    text = "\n".join(said)
    for part in ("about ", "zero-shot", "best SFT", "PPO - short SFT: ", "pass@k"):
        assert part in text
    told = [line for line in said if " left at this pace" in line]
    assert len(told) == 2 * 3  # of two quickstarts, behind all stages but the last
    folder = base / "quickstart-1"
    assert (folder / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert "PPO - best SFT: " in (folder / "report.md").read_text(encoding="utf-8")
    assert str(folder / "ppo" / "policy") in text


def test_seeds_are_put_together(
    finished: tuple[Path, list[str]], script_of: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    base, _ = finished
    script = script_of("quickstart_seeds")
    folders = [str(base / "quickstart-2"), str(base / "quickstart-1")]
    assert script.main([*folders, "--name", "tiny", "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "tiny.json").read_text(encoding="utf-8"))
    assert results["seeds"] == [0, 1] and results["instructions"] == 20
    ppo, sft = results["stages"]["ppo"], results["stages"]["sft"]
    difference = results["differences"]["ppo-sft"]
    assert difference["mean"] == pytest.approx(ppo["mean"] - sft["mean"])
    assert len(difference["each_seed"]) == len(ppo["seed_means"]) == 2
    text = (tmp_path / "tiny.md").read_text(encoding="utf-8")
    assert "| seed 0 | seed 1 |" in text and "$ instructrec quickstart --seed 1" in text
    best = results["best_of"]
    assert (best["instructions"], best["responses"]) == (5, 4)
    of_runs = [metrics["eval/best_of_4"] for metrics in sft["sampled"]]
    assert best["sft"]["seed_means"] == pytest.approx(of_runs)
    assert "| best of 4 of the short SFT |" in text and "| PPO - best of 4 of the short" in text


def test_one_seed_twice_is_refused(
    finished: tuple[Path, list[str]], script_of: Callable[[str], ModuleType]
) -> None:
    base, _ = finished
    script = script_of("quickstart_seeds")
    run = script.FinishedQuickstart(base / "quickstart-1")
    with pytest.raises(DataError, match="each seed once"):
        script.aggregate([run, run])
    assert script.main([str(base / "quickstart-1" / "ppo")]) == 3


def test_baselines_at_the_cost_of_ppo_stand_beside_it(
    finished: tuple[Path, list[str]], script_of: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    base, _ = finished
    folders = [str(base / "quickstart-1"), str(base / "quickstart-2")]
    said: list[str] = []
    add = script_of("quickstart_baselines")
    assert add.main(folders, say=said.append) == 0
    raft, ppo = (read_metrics(base / "quickstart-1" / name) for name in ("raft", "ppo"))
    assert raft[-1]["train/episodes"] == ppo[-1]["train/episodes"] == 16
    sft, long = (
        RunFolder.open(base / "quickstart-1" / name).summary() for name in ("sft", "sft-long")
    )
    assert long["updates"] > sft["updates"] and long["demonstrations"] == sft["demonstrations"]
    seeds = script_of("quickstart_seeds")
    again = EvaluateConfig(samples=2, temperature=1.0)  # must not get into the table
    run_evaluation(str(base / "quickstart-1" / "ppo"), again, say=said.append)
    assert seeds.main([*folders, "--name", "tiny", "--out", str(tmp_path)]) == 0
    text = (tmp_path / "tiny.md").read_text(encoding="utf-8")
    assert "| RAFT | " in text and "| PPO - SFT for as long | " in text
    said.clear()
    assert add.main([*folders, "--only", "raft"], say=said.append) == 0
    assert sum("is there already" in line for line in said) == 2
    assert add.main([str(base / "quickstart-1" / "ppo")]) == 3
