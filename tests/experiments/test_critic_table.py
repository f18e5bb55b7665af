"""Training the arms on the tiny model and putting them into a table."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml

from instructrec.errors import DataError
from instructrec.experiments.cli import main
from instructrec.experiments.runfolder import RunFolder, read_metrics

pytestmark = pytest.mark.slow

Script = Callable[[str], ModuleType]
TINY = {
    "--policy.train": "full",
    "--policy.device": "cpu",
    "--policy.dtype": "float32",
    "--task.options.size": "64",
    "--ppo.num_updates": "3",
    "--ppo.episodes_per_update": "8",
    "--ppo.num_mini_batches": "2",
    "--ppo.response_length": "4",
    "--ppo.eval_every": "0",
    "--ppo.save_every": "0",
    "--eval.limit": "12",
    "--tracking.mode": "disabled",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, script_of: Script) -> list[Path]:
    """Run folders of three arms, two environments and two seeds."""
    base = tmp_path_factory.mktemp("critic")
    letters = base / "letters.py"
    letters.write_text(
        "def score(completions, **columns):\n    return [len(set(c)) / 9 for c in completions]\n"
    )
    settings = TINY | {"--rewards.letters": f"{letters}:score"}
    words = [word for pair in settings.items() for word in pair]
    launcher = script_of("critic_runs")
    folder = base / "runs"
    command = ["tiny", "--seeds", "0", "1", "--dir", str(folder), *words]
    started: list[list[str]] = []

    def run(arguments: list[str]) -> int:
        started.append(arguments)
        return main(arguments)

    assert launcher.main(command, run=run, say=lambda text: None) == 0
    assert len(started) == 12
    said: list[str] = []
    assert launcher.main(command, run=run, say=said.append) == 0
    assert len(started) == 12 and all("is there already" in line for line in said)
    return sorted(folder.iterdir())


def test_every_arm_is_trained_from_its_start_for_as_many_episodes(trained: list[Path]) -> None:
    assert [path.name for path in trained] == [
        f"{env}-{arm}-s{seed}"
        for env in ("instruction", "refine")
        for arm in ("batch-mean", "gae", "rloo")
        for seed in (0, 1)
    ]
    for path in trained:
        config = RunFolder.open(path).config()
        assert config["policy"]["model"] == "tiny" and config["task"]["env"] in path.name
        assert config["ppo"]["num_generations"] == (4 if "rloo" in path.name else 1)
        assert read_metrics(path)[-1]["train/episodes"] == 24
        assert not (path / "checkpoints").exists() and not (path / "policy").exists()


def test_the_table_holds_what_the_run_folders_say(
    trained: list[Path], script_of: Script, tmp_path: Path
) -> None:
    table = script_of("critic_table")
    assert table.main([*map(str, trained), "--name", "tiny", "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "tiny.json").read_text(encoding="utf-8"))
    assert results["runs"] == 12 and list(results["envs"]) == ["instruction", "refine"]
    for env, found in results["envs"].items():
        assert found["instructions"] == 12 and list(found["arms"]) == ["gae", "batch_mean", "rloo"]
        means = {}
        for arm, numbers in found["arms"].items():
            assert numbers["seeds"] == [0, 1]
            for i, seed in enumerate((0, 1)):
                path = next(
                    p for p in trained if p.name == f"{env}-{arm}-s{seed}".replace("_", "-")
                )
                summary = RunFolder.open(path).summary()
                assert numbers["score"]["seed_means"][i] == pytest.approx(
                    summary["eval/total/mean"]
                )
                assert numbers["train_s"][i] == summary["train_s"]
                updates = read_metrics(path)
                values = [row["ppo/explained_variance"] for row in updates]
                for part in ("first", "last"):
                    assert numbers["explained_variance"][part][i] == pytest.approx(np.mean(values))
                if arm == "gae":
                    used = np.mean([row["ppo/critic_used"] for row in updates])
                    assert numbers["critic_used"][i] == pytest.approx(used)
            assert numbers["explained_variance"]["update_20"] == [None, None]
            assert (numbers["turns"] == [3.0, 3.0]) is (env == "refine")
            means[arm] = numbers["score"]["mean"]
        for arm in ("batch_mean", "rloo"):
            difference = found["differences"][f"gae-{arm}"]
            assert difference["mean"] == pytest.approx(means["gae"] - means[arm])
            assert difference["low"] <= difference["mean"] <= difference["high"]
    text = (tmp_path / "tiny.md").read_text(encoding="utf-8")
    assert "| critic (gae) - batch mean | " in text and "up to 3 answers each" in text


def test_five_seeds_are_resampled_with_the_items(script_of: Script) -> None:
    table = script_of("critic_table")
    rng = np.random.default_rng(0)
    seeds = rng.normal(0.5, 0.2, size=(5, 1)) + np.zeros((5, 40))  # seeds differ, items do not
    clusters = [str(i) for i in range(40)]
    five, four = (table._interval(seeds[:n], clusters) for n in (5, 4))
    assert five["n_seeds"] == 5 and five["high"] - five["low"] > 0.1
    assert four["high"] - four["low"] < 1e-9 and len(four["seed_means"]) == 4


def test_seeds_that_one_arm_lacks_are_left_out_of_the_difference(
    trained: list[Path], script_of: Script
) -> None:
    table = script_of("critic_table")
    few = [path for path in trained if path.name != "refine-rloo-s1"]
    found = table.table([table.FinishedRun(path) for path in few])["envs"]["refine"]
    assert found["arms"]["rloo"]["seeds"] == found["differences"]["gae-rloo"]["seeds"] == [0]
    assert found["differences"]["gae-batch_mean"]["seeds"] == [0, 1]


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("learning_rate", 0.5, "ppo.learning_rate"),
        ("num_generations", 2, "ppo.num_generations"),
        (None, "other/policy", "the start of seed 1"),
    ],
)
def test_runs_that_differ_in_more_than_the_baseline_are_refused(
    trained: list[Path],
    script_of: Script,
    tmp_path: Path,
    key: str | None,
    value: object,
    named: str,
) -> None:
    table = script_of("critic_table")
    odd = tmp_path / "odd"
    shutil.copytree(next(p for p in trained if p.name == "refine-gae-s1"), odd)
    config = yaml.safe_load((odd / "config.yaml").read_text())
    if key is None:
        config["policy"]["model"] = value
    else:
        config["ppo"][key] = value
    (odd / "config.yaml").write_text(yaml.safe_dump(config))
    others = [path for path in trained if path.name != "refine-gae-s1"]
    with pytest.raises(DataError, match=f"differ in .*{named}"):
        table.table([table.FinishedRun(path) for path in [*others, odd]])


def test_what_cannot_be_compared_is_refused(
    trained: list[Path], script_of: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = script_of("critic_table")
    assert table.main([str(trained[0]), str(trained[0])]) == DataError.exit_code
    assert "is there twice" in capsys.readouterr().err
    unfinished = tmp_path / "unfinished"
    shutil.copytree(trained[0], unfinished)
    RunFolder(unfinished).finish("interrupted")
    assert table.main([str(unfinished)]) == DataError.exit_code
    assert "interrupted ppo run" in capsys.readouterr().err


def test_a_run_that_fails_ends_the_launch(script_of: Script, tmp_path: Path) -> None:
    launcher = script_of("critic_runs")
    started: list[list[str]] = []

    def fail(arguments: list[str]) -> int:
        started.append(arguments)
        return 4

    command = ["start-{seed}/sft", "--seeds", "7", "--dir", str(tmp_path), "--ppo.num_updates", "2"]
    assert launcher.main(command, run=fail, say=lambda text: None) == 4
    assert len(started) == 1 and started[0][:2] == ["train", "short_answers"]
    assert "start-7/sft" in started[0] and started[0][-2:] == ["--ppo.num_updates", "2"]
