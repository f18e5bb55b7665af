"""Supervised training that goes on from any of its checkpoints ends with the same bits."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from instructrec.errors import CheckpointError
from instructrec.metrics import is_wall_clock
from instructrec.policies.causal_lm import CausalLMPolicy, load_policy
from instructrec.policies.config import LoraSettings, PolicyConfig, Sampling
from instructrec.policies.labels import LabelPolicy
from instructrec.rl.config import DPOConfig, SFTConfig
from instructrec.rl.dpo import Pair, run_dpo
from instructrec.rl.fitting import FitResult, Surroundings
from instructrec.rl.global_generators import global_states
from instructrec.rl.labels import run_labels
from instructrec.rl.sft import Demonstration, run_sft
from instructrec.rl.supervised_config import SupervisedConfig

STEPS = 5
WORDS = "abcdefgh"
COMMON = {
    **{"max_steps": STEPS, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 2e-3},
    **{"lr_schedule": "linear", "warmup_steps": 2, "weight_decay": 0.1, "dropout": 0.2},
    **{"eval_every": 2, "best_by": "reward", "save_every": 1, "keep_checkpoints": 9},
}
KINDS = ("sft", "lora", "labels", "dpo")
CONFIGS: dict[str, SupervisedConfig] = {
    "sft": SFTConfig(**COMMON),
    "lora": SFTConfig(**COMMON),
    "labels": SFTConfig(**COMMON, head="labels"),
    "dpo": DPOConfig(**COMMON),
}


@pytest.fixture(autouse=True)
def generators_of_our_own():
    """Whatever runs before draws from the shared generators."""
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)


def make_policy(kind: str) -> CausalLMPolicy:
    lora = LoraSettings(r=2, dropout=0.3)
    config = PolicyConfig(
        model="tiny",
        dtype="float32",
        device="cpu",
        train="lora" if kind == "lora" else "full",
        lora=lora,
    )
    policy = load_policy(config, seed=0)
    return LabelPolicy(policy, ["even", "odd"]) if kind == "labels" else policy


def unclocked(row: dict[str, float]) -> dict[str, float]:
    """The metrics of a step without those that a clock decides."""
    return {key: value for key, value in row.items() if not is_wall_clock(key)}


def train(
    kind: str, policy: CausalLMPolicy, log: list[dict[str, float]], **around: object
) -> FitResult:
    """Trains; validations draw from the policy's generator and from all that libraries share."""

    def evaluate(step: int) -> dict[str, float]:
        texts = policy.respond(["name"] * 4, sampling=Sampling(max_new_tokens=3)).texts
        noise = random.random() + np.random.normal() + float(torch.rand(()))
        return {"eval/total/mean": noise + len("".join(texts))}

    told = {
        "seed": 0,
        "around": Surroundings(on_step=lambda row: log.append(unclocked(row)), **around),
        "evaluate": evaluate,
    }
    config = CONFIGS[kind]
    if kind == "dpo":
        pairs = [Pair(f"name {letter}", letter, "zz") for letter in WORDS]
        return run_dpo(policy, pairs, pairs[:3], config, **told)
    answers = ["even", "odd"] * 4 if kind == "labels" else list(WORDS)
    rows = [Demonstration(f"name {w}", a) for w, a in zip(WORDS, answers, strict=True)]
    learn = run_labels if kind == "labels" else run_sft
    return learn(policy, rows, rows[:3], config, **told)


def ending(policy: CausalLMPolicy, folder: Path) -> dict[str, object]:
    """What two runs have to end with: the weights kept, the last checkpoint, all generators."""
    last = json.loads((folder / f"update-{STEPS:06d}" / "MANIFEST.json").read_text())
    return {
        "weights": policy.weights_hash(),
        "checkpoint": {name: file["sha256"] for name, file in last["files"].items()},
        "sampler": policy.generator_state().tolist(),
        "shared": {name: state.tolist() for name, state in global_states().items()},
    }


@pytest.mark.parametrize("kind", KINDS)
def test_it_goes_on_from_every_step_as_if_nothing_had_happened(kind: str, tmp_path: Path) -> None:
    whole, log = make_policy(kind), []
    expected = train(kind, whole, log, checkpoint_dir=tmp_path / "whole")
    end = ending(whole, tmp_path / "whole")
    assert expected.stopped == "finished"
    for step in range(1, STEPS):
        policy, tail = make_policy(kind), []
        folder = tmp_path / f"from-{step}"
        from_step = tmp_path / "whole" / f"update-{step:06d}"
        found = train(kind, policy, tail, checkpoint_dir=folder, resume_from=from_step)
        assert found == expected
        assert tail == [row for row in log if row["sft/step"] > step]
        assert ending(policy, folder) == end


def test_a_run_that_is_asked_to_stop_leaves_a_checkpoint_and_goes_on(tmp_path: Path) -> None:
    whole, log = make_policy("sft"), []
    expected = train("sft", whole, log)
    for asked in (2, STEPS):  # in between, and when nothing is left but to measure the end
        reported: list[int] = []
        policy, head = make_policy("sft"), []
        stopped = train(
            "sft",
            policy,
            head,
            checkpoint_dir=tmp_path / str(asked),
            on_save=lambda head=head, reported=reported: reported.append(len(head)),
            should_stop=lambda head=head, asked=asked: head[-1]["sft/step"] == asked,
        )
        assert (stopped.stopped, stopped.steps) == ("interrupted", asked)
        assert reported[-1] == len(head)  # all of the step was told before it was saved
        policy, tail = make_policy("sft"), []
        from_step = tmp_path / str(asked) / f"update-{asked:06d}"
        assert train("sft", policy, tail, resume_from=from_step) == expected
        assert head + tail == log
        assert policy.weights_hash() == whole.weights_hash()


def test_a_signal_that_comes_with_the_last_step_is_heard(tmp_path: Path) -> None:
    asked = []

    def should_stop() -> bool:  # too late for the step itself
        asked.append(True)
        return len(asked) > STEPS

    policy = make_policy("sft")
    stopped = train("sft", policy, [], checkpoint_dir=tmp_path, should_stop=should_stop)
    assert (stopped.stopped, stopped.steps) == ("interrupted", STEPS)
    policy = make_policy("sft")
    done = train("sft", policy, [], resume_from=tmp_path / f"update-{STEPS:06d}")
    whole = make_policy("sft")
    assert done == train("sft", whole, []) and policy.weights_hash() == whole.weights_hash()


def test_patience_that_was_over_stays_over(tmp_path: Path) -> None:
    config = dataclasses.replace(
        CONFIGS["sft"], eval_every=1, early_stopping_patience=1, best_by="loss", learning_rate=1.0
    )
    rows = [Demonstration(f"name {w}", w) for w in WORDS]
    contrary = [Demonstration(d.prompt, "zz") for d in rows]
    results = []
    for folder in (None, tmp_path / "update-000001"):
        policy = make_policy("sft")
        around = Surroundings(on_step=print, checkpoint_dir=tmp_path, resume_from=folder)
        results.append(run_sft(policy, rows, contrary, config, seed=0, around=around))
    assert results[0] == results[1]
    assert (results[0].stopped, results[0].steps, results[0].best_step) == ("early_stopping", 1, 0)


def test_a_checkpoint_of_another_run_is_refused_unless_it_is_allowed(tmp_path: Path) -> None:
    rows = [Demonstration(f"name {w}", w) for w in WORDS]
    config = dataclasses.replace(CONFIGS["sft"], best_by="loss")

    def run(config: SFTConfig, seed: int = 0, **around: object) -> FitResult:
        told = Surroundings(on_step=print, checkpoint_dir=tmp_path, **around)
        return run_sft(make_policy("sft"), rows, rows, config, seed=seed, around=told)

    run(config)
    start = {"resume_from": tmp_path / "update-000002"}
    other = dataclasses.replace(config, learning_rate=1e-3)
    with pytest.raises(CheckpointError, match=r"other settings \(sft\.learning_rate\)"):
        run(other, **start)
    assert run(other, **start, allow_change=["sft.learning_rate"]).steps == STEPS
    with pytest.raises(CheckpointError, match=r"other settings \(seed\)"):
        run(config, seed=1, **start)
    with pytest.raises(CheckpointError, match="other weights than those that train"):
        policy = make_policy("lora")
        around = Surroundings(on_step=print, resume_from=tmp_path / "update-000001")
        run_sft(policy, rows, rows, config, seed=0, around=around)
    rarely = dataclasses.replace(config, save_every=3, keep_checkpoints=1)
    assert run(rarely, **start).steps == STEPS


def test_a_run_does_not_go_on_from_another_start(tmp_path: Path) -> None:
    """What does not train is in no checkpoint: it would be that of another model."""
    train("lora", make_policy("lora"), [], checkpoint_dir=tmp_path, start="a" * 64)
    on = {"resume_from": tmp_path / "update-000002"}
    with pytest.raises(CheckpointError, match=r"different weights .*--allow_change weights"):
        train("lora", make_policy("lora"), [], **on, start="b" * 64)
    for allowed in ({"start": "a" * 64}, {"start": "b" * 64, "allow_change": ["weights"]}):
        assert train("lora", make_policy("lora"), [], **on, **allowed).steps == STEPS
