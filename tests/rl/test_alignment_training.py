"""The sigmoid alignment loss by hand, and that a dual encoder learns a toy."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from instructrec.errors import ConfigError, DataError
from instructrec.policies.config import PolicyConfig
from instructrec.policies.scorer import load_scorer
from instructrec.rewards.alignment import MARKERS
from instructrec.rl.alignment import (
    DualEncoder,
    best_is_own,
    embed_matches,
    encode_matches,
    train_alignment,
)
from instructrec.rl.alignment_loss import same_rows, sigmoid_alignment_loss
from instructrec.rl.fitting import Surroundings
from instructrec.rl.reward_config import AlignmentConfig, FitConfig

TINY = PolicyConfig(model="tiny", dtype="float32", device="cpu")
NOTHING_SAME = torch.eye(2, dtype=torch.bool)
TOY = [(f"say {letter}", letter * 3) for letter in "abcdefgh"]


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_the_loss_by_hand():
    cosine = torch.tensor([[0.5, -0.25], [0.0, 1.0]])
    # logits 2·c - 1: pairs 0 and 1, mismatches -1.5 and -1; -log σ(x) = softplus(-x)
    expected = (softplus(-0.0) + softplus(-1.0) + softplus(-1.5) + softplus(-1.0)) / 2
    assert float(sigmoid_alignment_loss(cosine, NOTHING_SAME, 2.0, -1.0)) == pytest.approx(expected)


def test_it_is_the_slow_loop_and_the_same_in_any_order():
    generator = torch.Generator().manual_seed(0)
    cosine = torch.rand(5, 5, generator=generator) * 2 - 1
    same = same_rows(torch.tensor([0, 1, 0, 2, 3]), torch.tensor([4, 5, 6, 5, 7]))
    total = 0.0
    for i in range(5):
        for j in range(5):
            if i == j:
                total += softplus(-(3.0 * float(cosine[i, j]) + 0.5))
            elif not same[i, j]:
                total += softplus(3.0 * float(cosine[i, j]) + 0.5)
    loss = float(sigmoid_alignment_loss(cosine, same, 3.0, 0.5))
    assert loss == pytest.approx(total / 5, rel=1e-5)
    order = torch.tensor([3, 1, 4, 0, 2])
    mixed = sigmoid_alignment_loss(cosine[order][:, order], same[order][:, order], 3.0, 0.5)
    assert float(mixed) == pytest.approx(loss, rel=1e-5)


def test_copies_of_an_instruction_or_an_output_are_no_mismatch():
    same = same_rows(torch.tensor([0, 0, 1]), torch.tensor([2, 3, 3]))
    assert same.tolist() == [[True, True, False], [True, True, True], [False, True, True]]
    cosine = torch.tensor([[0.1, 9.0, 0.0], [9.0, 0.1, 9.0], [0.0, 9.0, 0.1]])
    without = torch.tensor([[0.1, 0.0, 0.0], [0.0, 0.1, 0.0], [0.0, 0.0, 0.1]])
    losses = [float(sigmoid_alignment_loss(c, same, 1.0, 0.0)) for c in (cosine, without)]
    assert losses[0] == pytest.approx(losses[1])
    assert best_is_own(cosine, same).tolist() == [True, True, True]
    assert best_is_own(cosine, torch.eye(3, dtype=torch.bool)).tolist() == [False, False, False]


def test_the_gradient_pulls_pairs_together_and_pushes_mismatches_apart():
    cosine = torch.zeros(2, 2, requires_grad=True)
    sigmoid_alignment_loss(cosine, NOTHING_SAME, 4.0, 0.0).backward()
    assert cosine.grad.tolist() == [[-1.0, 1.0], [1.0, -1.0]]


def fit(steps: int, **changes):
    settings = FitConfig(
        max_steps=steps, batch_size=8, learning_rate=3e-3, warmup_steps=0, lr_schedule="constant"
    )
    settings = dataclasses.replace(settings, **changes)
    scorer = load_scorer(TINY, head="none", seed=0, markers=MARKERS)
    matches, _ = encode_matches(scorer, TOY, settings.max_length)
    dual = DualEncoder(scorer, AlignmentConfig(), 8)
    log = []
    result = train_alignment(
        dual,
        matches,
        matches,
        settings,
        AlignmentConfig(),
        seed=0,
        around=Surroundings(on_step=log.append),
    )
    return scorer, matches, result, log


@pytest.mark.slow
def test_a_toy_is_learned():
    scorer, matches, result, log = fit(60, eval_every=30)
    instructions, outputs = embed_matches(scorer, matches, 3)
    assert np.linalg.norm(instructions, axis=1) == pytest.approx(np.ones(8))
    best = (instructions @ outputs.T).argmax(1)
    assert best.tolist() == list(range(8))
    steps = [row for row in log if "rm/loss" in row]
    assert steps[-1]["rm/loss"] < 0.5 * steps[0]["rm/loss"]
    assert steps[-1]["rm/accuracy"] == 1.0 and result.best_step > 0


def test_the_first_loss_is_that_of_the_embeddings():
    _, matches, _, log = fit(1, eval_every=1)
    fresh = load_scorer(TINY, head="none", seed=0, markers=MARKERS)
    instructions, outputs = embed_matches(fresh, matches, 8)
    cosine = torch.tensor(instructions @ outputs.T)
    own = torch.eye(8, dtype=torch.bool)
    bias = -math.log(7) - 10.0 * float(cosine[~own].mean())
    expected = sigmoid_alignment_loss(cosine, own, 10.0, bias)
    assert log[0]["rm/val_loss"] == pytest.approx(float(expected), rel=1e-5)
    trained = next(row for row in log if "rm/loss" in row)
    assert trained["rm/loss"] == pytest.approx(float(expected), rel=1e-4)


def test_a_bias_that_is_given_is_where_it_starts_and_else_mismatches_have_the_odds_of_a_batch():
    scorer = load_scorer(TINY, head="none", seed=0, markers=MARKERS)
    cosine = torch.tensor([[1.0, 0.9, 0.8], [0.7, 1.0, 0.6], [0.9, 0.8, 1.0]])
    same = torch.eye(3, dtype=torch.bool)
    same[0, 1] = same[1, 0] = True  # no mismatch: not counted
    dual = DualEncoder(scorer, AlignmentConfig(scale=20.0), 32)
    dual.start_at_odds_of(cosine, same)
    mean = float(cosine[~same].mean())
    odds = math.exp(20.0 * mean + float(dual.bias))
    assert odds == pytest.approx(1 / 31, rel=1e-4)
    assert float(DualEncoder(scorer, AlignmentConfig(bias=-2.0), 32).bias) == -2.0


def test_new_markers_start_as_the_tokens_that_spell_them_whatever_the_seed():
    base = PolicyConfig("tiny@1", device="cpu", dtype="float32")
    first, second = (load_scorer(base, head="none", seed=s, markers=MARKERS) for s in (0, 1))
    tokenizer = first.tokenizer
    for marker, word in zip(MARKERS, ("instruction", "output"), strict=True):
        spelled = tokenizer(word, add_special_tokens=False)["input_ids"]
        place = tokenizer.convert_tokens_to_ids(marker)
        weight, other = (s.model.get_input_embeddings().weight for s in (first, second))
        assert torch.allclose(weight[place], weight[spelled].mean(0))
        assert torch.equal(weight[place], other[place])


def test_markers_are_single_tokens_behind_the_text_and_tell_the_sides_apart():
    scorer = load_scorer(TINY, head="none", seed=0, markers=MARKERS)
    (match,), limit = encode_matches(scorer, [("same", "same")], None)
    assert limit == 512 and match.cut == 0
    ids = [scorer.tokenizer.convert_tokens_to_ids(marker) for marker in MARKERS]
    assert [match.instruction["input_ids"][-1], match.output["input_ids"][-1]] == ids
    assert match.instruction["input_ids"][:-1] == match.output["input_ids"][:-1]
    instructions, outputs = embed_matches(scorer, [match], 2)
    assert float((instructions @ outputs.T)[0, 0]) < 0.999
    (cut,), _ = encode_matches(scorer, [("a long text", "b")], 5)
    assert cut.cut == 1 and len(cut.instruction["input_ids"]) == 5
    assert cut.instruction["input_ids"][-1] == ids[0]


def test_too_little_data_and_wrong_numbers_are_refused():
    scorer = load_scorer(TINY, head="none", seed=0, markers=MARKERS)
    matches, _ = encode_matches(scorer, TOY[:1], None)
    with pytest.raises(DataError, match="two pairs"):
        train_alignment(
            DualEncoder(scorer, AlignmentConfig(), 8),
            matches,
            [],
            FitConfig(),
            AlignmentConfig(),
            seed=0,
            around=Surroundings(on_step=print),
        )
    with pytest.raises(ConfigError, match=r"alignment\.scale"):
        AlignmentConfig(scale=0.0)
