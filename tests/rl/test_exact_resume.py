"""Resumed equals uninterrupted, bit for bit, from every update: with everything stateful on."""

from __future__ import annotations

import dataclasses
import json
import random

import numpy as np
import pytest
import torch

from instructrec.envs.refine import RefineVectorEnv
from instructrec.errors import CheckpointError
from instructrec.policies.config import LoraSettings
from instructrec.rewards.combine import make_rewards
from instructrec.rl.checkpoint import checkpoint_path, read_checkpoint
from instructrec.rl.checkpoint_keeping import list_checkpoints
from instructrec.rl.global_generators import global_states, set_global_states
from instructrec.rl.monitor_config import MonitorRule, MonitorsConfig
from instructrec.rl.ppo import train_ppo

UPDATES = 3


def noisy_letters(completions, **columns):
    """Draws from every generator that libraries share."""
    noise = random.gauss(0, 1) + np.random.normal() + float(torch.randn(()))
    return [len(set(text)) / 9 + noise / 100 for text in completions]


@pytest.fixture(scope="module")
def levelled(toy, tmp_path_factory):
    """Instructions in three levels."""
    path = tmp_path_factory.mktemp("levels") / "task.jsonl"
    rows = [{"prompt": f"write {i}", "reference": "a", "level": i % 3} for i in range(96)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return type(toy)(str(path))


def settings(toy):
    return dataclasses.replace(
        toy.fast,
        **{"num_updates": UPDATES, "episodes_per_update": 8, "micro_batch_size": 4},
        **{"num_ppo_epochs": 1, "kl_coef": 0.05, "kl_target": 0.001, "kl_horizon": 50},
        **{"curriculum": "level", "curriculum_pass": 0.3, "curriculum_window": 4},
        **{"curriculum_raise": 0.5, "save_every": 1, "keep_checkpoints": 9},
        monitors=MonitorsConfig(large_step=MonitorRule(0.0, "lower_lr", patience=2)),
    )


def train(toy, how, turns, folder, **options):
    """Trains; returns the digest of each checkpoint, and the metrics."""
    lora = {"train": "lora", "lora": LoraSettings(r=4, dropout=0.1)}
    policy = toy.policy(**(lora if how == "lora" else {}))
    config = options.pop("config", settings(toy))
    normalise = "running" if turns == 1 else "none"  # answers of an episode add up
    reward = make_rewards({"letters": {"use": noisy_letters, "normalise": normalise}})
    common = {"task": toy.task, "split": "all", "reward": reward, "autoreset_mode": "DISABLED"}
    if turns == 1:
        env = toy.env(config, reward)
    else:
        env = RefineVectorEnv(config.episodes_per_update, max_turns=turns, **common)
    log = []
    result = train_ppo(
        policy,
        env,
        config,
        seed=3,
        on_update=lambda metrics, rows: log.append((metrics, rows)),
        checkpoint_dir=folder,
        **options,
    )
    manifests = {
        path.name: json.loads((path / "MANIFEST.json").read_text())["files"]
        for path in list_checkpoints(folder)
    }
    return manifests, log, result


@pytest.mark.parametrize(
    ("how", "turns"),
    [
        ("full", 1),
        pytest.param("full", 2, marks=pytest.mark.slow),
        pytest.param("lora", 1, marks=pytest.mark.slow),
        pytest.param("lora", 2, marks=pytest.mark.slow),
    ],
)
def test_a_run_resumed_from_any_update_ends_as_the_whole_one(levelled, tmp_path, how, turns):
    whole, log, _ = train(levelled, how, turns, tmp_path / "whole")
    assert list(whole) == [f"update-{k:06d}" for k in range(1, UPDATES + 1)]
    state = read_checkpoint(tmp_path / "whole" / "update-000003").state
    assert state["coefficients"]["rate"] == 0.5  # from the second update on
    assert state["coefficients"]["kl"] != 0.05 and state["prompt_filter"]["position"] > 0
    assert bool(state["rewards"]) == (turns == 1)
    for k in range(1, UPDATES):
        random.seed(k), np.random.seed(k), torch.manual_seed(k)  # a process of its own
        start = checkpoint_path(tmp_path / "whole", k)
        rest, tail, result = train(levelled, how, turns, tmp_path / str(k), resume_from=start)
        assert rest == {name: files for name, files in whole.items() if name > start.name}
        assert levelled.without_times(tail) == levelled.without_times(log[k:])
        assert [rows for _, rows in tail] == [rows for _, rows in log[k:]]
        assert result.updates == UPDATES


@pytest.fixture(scope="module")
def finished(levelled, tmp_path_factory):
    """The checkpoints of a finished run."""
    folder = tmp_path_factory.mktemp("finished")
    train(levelled, "full", 1, folder)
    return folder


def test_a_finished_run_that_is_resumed_does_no_update_and_draws_on_as_it_had(levelled, finished):
    last = checkpoint_path(finished, UPDATES)
    _, log, result = train(levelled, "full", 1, finished, resume_from=last)
    assert (log, result.updates, result.stopped) == ([], UPDATES, "finished")
    saved = read_checkpoint(last).tensors  # the end is measured with the draws that come next
    for name in ("python", "numpy", "torch"):
        assert torch.equal(global_states()[name], saved[f"generator.global_{name}"])
    config = dataclasses.replace(settings(levelled), num_updates=UPDATES + 1)
    _, log, result = train(levelled, "full", 1, finished, resume_from=last, config=config)
    assert ([metrics["train/update"] for metrics, _ in log], result.updates) == ([4], 4)


def test_a_run_that_had_stopped_early_stays_stopped(levelled, tmp_path):
    config = dataclasses.replace(
        settings(levelled), num_updates=9, eval_every=1, early_stopping_patience=1
    )
    scores = {"eval/total/mean": 0.0}
    same = {"config": config, "evaluate": lambda: dict(scores)}
    _, log, first = train(levelled, "full", 1, tmp_path, **same)
    assert (len(log), first.stopped) == (2, "early_stopping")
    last = checkpoint_path(tmp_path, 2)
    _, log, again = train(levelled, "full", 1, tmp_path, resume_from=last, **same)
    assert (log, again) == ([], first)


@pytest.mark.parametrize(
    ("changed", "message", "key"),
    [
        ({"data": "0" * 64}, r"had 000000000000: .*--allow_change data", "data"),
        ({"versions": {"torch": "1.0"}}, r"torch 1\.0 -> .*--allow_change versions", "versions"),
    ],
)
def test_what_differs_is_named_and_may_be_allowed(
    levelled, finished, tmp_path, changed, message, key
):
    from instructrec.rl.resuming import check_compatible

    state = read_checkpoint(checkpoint_path(finished, 1)).state
    task, config = levelled.env(settings(levelled)).task, settings(levelled)
    check_compatible(state, config, task)
    with pytest.raises(CheckpointError, match=message):
        check_compatible(state | changed, config, task)
    check_compatible(state | changed, config, task, [key])


@pytest.mark.parametrize("how", ["last_layers", "lora"])
def test_a_run_does_not_go_on_from_another_start(toy, tmp_path, how):
    """The frozen weights and the reference of the KL would be another model's."""
    config = dataclasses.replace(toy.fast, num_updates=2, kl_coef=0.1)
    changes = {"train": how, "num_layers": 1}
    stop = {"should_stop": lambda: True, "checkpoint_dir": tmp_path}
    _, result, _ = toy.train(config, policy=toy.policy(**changes), **stop)
    assert result.stopped == "interrupted"
    on = {"resume_from": checkpoint_path(tmp_path, 1)}
    with pytest.raises(CheckpointError, match=r"different weights .*--allow_change weights"):
        toy.train(config, policy=toy.policy(seed=1, **changes), **on)
    toy.train(config, policy=toy.policy(seed=1, **changes), **on, allow_change=["weights"])
    toy.train(config, policy=toy.policy(**changes), **on)


def test_a_setting_may_be_allowed_to_change_by_name(levelled, finished, tmp_path):
    config = dataclasses.replace(settings(levelled), learning_rate=1e-5)
    start = checkpoint_path(finished, 2)
    with pytest.raises(CheckpointError, match=r"--allow_change ppo\.learning_rate"):
        train(levelled, "full", 1, tmp_path, resume_from=start, config=config)
    allowed = {"resume_from": start, "config": config, "allow_change": ["ppo.learning_rate"]}
    _, ((metrics, _),), _ = train(levelled, "full", 1, tmp_path, **allowed)
    assert 0 < metrics["ppo/lr"] <= 1e-5 < settings(levelled).learning_rate


def test_a_checkpoint_under_another_number_is_refused(levelled, finished, tmp_path):
    wrong = checkpoint_path(tmp_path, 7)
    wrong.symlink_to(checkpoint_path(finished, 2))
    with pytest.raises(CheckpointError, match="holds the state after update 2"):
        train(levelled, "full", 1, tmp_path / "new", resume_from=wrong)


def test_the_generators_of_libraries_go_on_where_they_were():
    random.gauss(0, 1), np.random.normal()  # each has a second number in store now
    saved = global_states()

    def draw():
        numbers = [random.gauss(0, 1), random.random(), np.random.normal(), np.random.rand()]
        return [*numbers, float(torch.rand(()))]

    expected = draw()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    assert draw() != expected
    set_global_states(saved)
    assert draw() == expected
