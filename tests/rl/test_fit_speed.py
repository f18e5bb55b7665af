"""The speed of steps on given examples: FLOPs by hand, what is timed, and that nothing changes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from instructrec.metrics import lookup
from instructrec.policies.causal_lm import CausalLMPolicy, load_policy
from instructrec.policies.config import LoraSettings, PolicyConfig
from instructrec.policies.flops import reader_cost
from instructrec.policies.labels import LabelPolicy
from instructrec.policies.scorer import load_scorer
from instructrec.rewards.alignment import MARKERS
from instructrec.rl.alignment import DualEncoder, encode_matches, train_alignment
from instructrec.rl.config import DPOConfig, SFTConfig
from instructrec.rl.dpo import Pair, run_dpo
from instructrec.rl.fit_speed import lengths_of_texts
from instructrec.rl.fitting import Surroundings
from instructrec.rl.labels import run_labels
from instructrec.rl.reward_config import AlignmentConfig, FitConfig, PreferenceConfig
from instructrec.rl.reward_modeling import Preference, encode_preferences, train_reward_model
from instructrec.rl.sft import Demonstration, run_sft
from instructrec.rl.speed import Lengths

TINY = PolicyConfig(model="tiny", dtype="float32", device="cpu", lora=LoraSettings(r=2))
LAYER = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128
"""Weights of the matrices of one of the two layers; the output layer has 259 x 64."""
DEMONSTRATIONS = [Demonstration("ab", "c"), Demonstration("abcd", "efg")]
LONG = [Demonstration("a" * i, "b" * i) for i in range(1, 9)]
AROUND = ("checkpoint_dir", "on_save", "resume_from")
Log = list[dict[str, float]]


def policy(train: str = "full") -> CausalLMPolicy:
    return load_policy(dataclasses.replace(TINY, train=train, num_layers=1), seed=0)


def sft(
    rows: Sequence[Demonstration] = DEMONSTRATIONS,
    train: str = "full",
    evaluate: Callable[[int], dict[str, float]] | None = None,
    **settings: Any,
) -> Log:
    """The steps of a short run."""
    around = {key: settings.pop(key) for key in AROUND if key in settings}
    log: Log = []
    config = SFTConfig(**{"max_steps": 1, "batch_size": 2} | settings)
    told = Surroundings(on_step=log.append, **around)
    run_sft(policy(train), rows, rows, config, seed=0, around=told, evaluate=evaluate)
    return [row for row in log if "sft/loss" in row]


def flops(row: dict[str, float]) -> float:
    return row["speed/update_flops_per_s"] * row["time/update_s"]


def tokens(row: dict[str, float]) -> int:
    return round(row["speed/tokens_per_s"] * row["time/update_s"])


def forward(tokens: int, pairs: int, outputs: int, layers: int = 2) -> int:
    """A matrix takes two FLOPs a weight; attention two products of 4 heads of 16 a pair."""
    attention = 2 * 2 * (4 * 16) * pairs
    return layers * (2 * tokens * LAYER + attention) + 2 * outputs * 259 * 64


def test_the_work_of_a_step_is_what_can_be_counted_by_hand() -> None:
    """Prompts of 3 and 5 tokens with the start of the answer, answers of 2 and 4 with their end."""
    (row,) = sft(micro_batch_size=1)  # 5 and 9 tokens, 15 and 45 pairs
    assert forward(14, 60, 6) == 2 * 14 * 73_728 + 30_720 + 2 * 6 * 16_576
    assert flops(row) == pytest.approx(3 * forward(14, 60, 6)) and tokens(row) == 14
    (row,) = sft()  # the two tokens that both begin with once
    assert flops(row) == pytest.approx(3 * forward(12, 57, 6)) and tokens(row) == 14
    assert all(lookup(key) for key in row)
    assert 0 < row["speed/update_limit_frac"] < row["speed/limit_frac"] < 1


def test_layers_that_are_frozen_have_no_backward_pass() -> None:
    (row,) = sft(train="last_layers", micro_batch_size=1)
    upper = 2 * forward(14, 60, 0, layers=1)  # of the inputs and of the weights
    inputs_of_head = forward(0, 0, 6)
    assert flops(row) == pytest.approx(forward(14, 60, 6) + upper + inputs_of_head)


@pytest.mark.parametrize(("train", "passes"), [("full", 3), ("head", 1)])
def test_a_head_of_labels_alone_needs_no_backward_pass_at_all(train: str, passes: int) -> None:
    log: Log = []
    config = SFTConfig(max_steps=1, batch_size=2, micro_batch_size=1, head="labels")
    rows = [Demonstration("ab", "x"), Demonstration("abcd", "y")]
    around = Surroundings(on_step=log.append)
    run_labels(LabelPolicy(policy(train), ["x", "y"]), rows, [], config, seed=0, around=around)
    assert flops(log[0]) == pytest.approx(passes * forward(8, 6 + 15, 0)) and tokens(log[0]) == 8


def test_both_responses_of_a_pair_count_and_the_reference_ran_before() -> None:
    log: Log = []
    config = DPOConfig(max_steps=1, batch_size=1)
    pair, around = Pair("ab", "c", "defg"), Surroundings(on_step=log.append)
    run_dpo(policy(), [pair], [], config, seed=0, around=around)
    # 5 and 8 tokens, of which the first two are the same; the third predicts two different ones.
    assert flops(log[0]) == pytest.approx(3 * forward(2 + 3 + 6, 3 + 12 + 33, 7))
    assert tokens(log[0]) == 13


def test_what_texts_begin_with_counts_once_up_to_the_first_prediction() -> None:
    texts = [[1, 2, 3, 4], [1, 2, 3, 5, 6]]
    assert lengths_of_texts(texts) == Lengths((4, 5), (0, 0), shared=3)
    assert lengths_of_texts(texts, [2, 2]) == Lengths((2, 2), (2, 3), shared=1)
    assert lengths_of_texts(texts, [0, 2]) == Lengths((0, 2), (4, 3), shared=0)
    assert lengths_of_texts([[1, 2]]) == Lengths((2,), (0,))


def test_neither_validations_nor_checkpoints_are_in_the_time(tmp_path: Path) -> None:
    pause = 0.2

    def evaluate(step: int) -> dict[str, float]:
        time.sleep(pause)
        return {"eval/total/mean": float(step)}

    every = {"eval_every": 1, "best_by": "reward", "save_every": 1, "checkpoint_dir": tmp_path}
    rows = sft(max_steps=4, evaluate=evaluate, on_save=lambda: time.sleep(pause), **every)
    assert min(row["time/update_s"] for row in rows[1:]) < pause


def test_a_run_that_goes_on_counts_the_examples_that_are_left(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"max_steps": 6, "save_every": 1, "keep_checkpoints": 9}
    whole = sft(LONG, checkpoint_dir=tmp_path, **settings)
    assert len({tokens(row) for row in whole}) > 1
    rest = sft(LONG, resume_from=tmp_path / "update-000002", **settings)
    assert [tokens(row) for row in rest] == [tokens(row) for row in whole[2:]]
    assert [flops(row) for row in rest] == pytest.approx([flops(row) for row in whole[2:]])


def learn(kind: str, around: Surroundings) -> dict[str, torch.Tensor]:
    """Three steps of a kind of training; returns the weights."""
    config, fit = {"max_steps": 3, "batch_size": 4}, FitConfig(max_steps=3, batch_size=4)
    told: dict[str, Any] = {"seed": 0, "around": around}
    if kind in ("full", "lora"):
        trained = policy(kind)
        run_sft(trained, LONG, [], SFTConfig(**config, dropout=0.1), **told)
        return trained.model.state_dict()
    if kind == "dpo":
        trained = policy()
        pairs = [Pair(d.prompt, d.response, "zz") for d in LONG]
        run_dpo(trained, pairs, [], DPOConfig(**config), **told)
        return trained.model.state_dict()
    if kind == "labels":
        labels = LabelPolicy(policy(), ["x", "y"])
        rows = [Demonstration(d.prompt, "xy"[i % 2]) for i, d in enumerate(LONG)]
        run_labels(labels, rows, [], SFTConfig(**config, head="labels"), **told)
        return labels.model.state_dict()
    if kind == "reward":
        scorer = load_scorer(TINY, head="score", seed=0)
        preferences = [Preference(d.prompt, d.response, "zz") for d in LONG]
        encoded = encode_preferences(scorer, preferences, None)
        train_reward_model(scorer, encoded, [], fit, PreferenceConfig(), **told)
        return scorer.model.state_dict()
    scorer = load_scorer(TINY, head="none", seed=0, markers=MARKERS)
    matches, _ = encode_matches(scorer, [(d.prompt, d.response) for d in LONG], None)
    dual = DualEncoder(scorer, AlignmentConfig(), 4)
    train_alignment(dual, matches, [], fit, AlignmentConfig(), **told)
    return dual.state_dict()


@pytest.mark.parametrize("kind", ["full", "lora", "dpo", "labels", "reward", "alignment"])
def test_telling_the_speed_changes_no_bit_of_what_is_learned(kind: str) -> None:
    silent: Log = []
    told: Log = []
    expected = learn(kind, Surroundings(on_step=silent.append, tells_speed=False))
    found = learn(kind, Surroundings(on_step=told.append))
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert not any(key.startswith(("speed/", "time/")) for row in silent for key in row)
    assert len(told) == 3
    for row, plain in zip(told, silent, strict=True):
        assert plain.items() <= row.items()
        assert 0 < row["speed/limit_frac"] < 1 and row["speed/tokens_per_s"] > 0


def test_a_reward_model_reads_both_texts_of_a_pair() -> None:
    scorer = load_scorer(TINY, head="score", seed=0)
    encoded = encode_preferences(scorer, [Preference("ab", "c", "defg")], None)
    chosen, rejected = (len(side["input_ids"]) for side in (encoded[0].chosen, encoded[0].rejected))
    log: Log = []
    config, around = FitConfig(max_steps=1, batch_size=1), Surroundings(on_step=log.append)
    train_reward_model(scorer, encoded, [], config, PreferenceConfig(), seed=0, around=around)
    shared = 3  # "ab" and the start of the answer
    pairs = [n * (n + 1) // 2 for n in (shared, chosen, rejected)]
    own = chosen + rejected - 2 * shared
    assert tokens(log[0]) == chosen + rejected
    expected = forward(shared + own, sum(pairs) - 2 * pairs[0], 0)
    assert flops(log[0]) == pytest.approx(3 * expected)


def test_a_model_without_a_writer_is_counted_like_its_layers() -> None:
    whole = reader_cost(load_scorer(TINY, head="score", seed=0).model)
    assert whole is not None and whole.head.weights == 0 and whole.lower.num == 0
    assert (whole.upper.num, whole.upper.trained) == (2, 2 * LAYER)
    lora = load_scorer(dataclasses.replace(TINY, train="lora", num_layers=1), head="score", seed=0)
    adapted = reader_cost(lora.model)
    assert adapted is not None and (adapted.lower.num, adapted.lower.weights) == (1, LAYER)
    assert adapted.upper.weights == LAYER + adapted.upper.trained
