"""Time to a given score: what counts as arriving, and what the peer is told."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from benchmarks import learning
from benchmarks.answers import Answers
from benchmarks.learning import Arrival
from instructrec.rewards.exact import exact_match


def points(*scores: float) -> list[dict[str, float]]:
    return [
        {"update": 2.0 * (i + 1), "seconds": 10.0 * (i + 1), "exact_match": score}
        for i, score in enumerate(scores)
    ]


def test_the_first_point_at_the_target_is_the_arrival() -> None:
    assert learning.arrival(points(0.5, 0.78, 0.6, 0.9), 0.78) == Arrival(20.0, True, 0.9)
    assert learning.arrival(points(0.5, 0.7), 0.78) == Arrival(20.0, False, 0.7)
    with pytest.raises(ValueError, match="nothing was measured"):
        learning.arrival([], 0.78)


def test_a_side_that_did_not_arrive_gives_a_bound() -> None:
    fast, slow = Arrival(10.0, True, 0.8), Arrival(40.0, True, 0.8)
    never = Arrival(2700.0, False, 0.6)
    assert learning.ratio(fast, slow) == (4.0, "")
    assert learning.ratio(fast, never) == (270.0, ">=")
    assert learning.ratio(never, slow)[1] == "<=" and learning.ratio(never, never)[1] == "?"
    text = learning.table({0: {"ours": points(0.8), "trl112": points(0.1, 0.2)}}, 0.78)
    assert "| 0 | 10 s | not in 20 s | 0.200 | >= 2.00 |" in text
    sides = [{"ours": points(0.8), "trl112": points(*before, 0.8)} for before in ((), (0.1,))]
    assert "): 1.50\n" in learning.table(dict(enumerate(sides)), 0.78)  # of 1 and 2


def test_our_seconds_add_up_to_the_evaluations(tmp_path: Path) -> None:
    rows = [
        {"train/update": 1, "time/total_s": 4.0},
        {"train/update": 2, "time/total_s": 5.0, "eval/exact_match/mean": 0.5},
        {"train/update": 3, "time/total_s": 6.0},
        {"train/update": 4, "time/total_s": 7.0, "eval/exact_match/mean": 0.8},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [(p["update"], p["seconds"]) for p in learning.our_points(tmp_path)] == [
        (2.0, 9.0),
        (4.0, 22.0),
    ]


def test_the_peer_gets_our_prompts_and_scores_answers_as_our_reward_does(tmp_path: Path) -> None:
    given = argparse.Namespace(
        start="tiny", episodes=8, most_updates=2, limit=6, dtype="float32", threads=1
    )
    for key, value in {"every": 2, "target": 0.5, "cap_min": 1.0}.items():
        setattr(given, key, value)
    made = learning.job(given, 0, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(made["model"])
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    assert len(made["train"]) == 16 and len(made["validation"]) == 6 and pad != eos

    rows = made["train"][:3]
    width = max(len(row["ids"]) for row in rows)
    prompts = torch.tensor([[pad] * (width - len(row["ids"])) + row["ids"] for row in rows])
    texts = [f" {rows[0]['reference']} ", rows[1]["reference"] + ".", rows[2]["reference"]]
    ids = [[*tokenizer(text, add_special_tokens=False)["input_ids"], eos] for text in texts]
    ids[2] += tokenizer(" and more", add_special_tokens=False)["input_ids"]
    most = max(map(len, ids))
    responses = torch.tensor([row + [pad] * (most - len(row)) for row in ids])
    expected = exact_match(texts, [row["reference"] for row in rows])
    assert Answers(tokenizer, made["train"]).scores(prompts, responses).tolist() == expected
    assert expected == [1.0, 0.0, 1.0]
