"""Pairs of scored responses, a mentor who errs, and the command that samples them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from instructrec.envs.tasks.base import make_task
from instructrec.errors import CheckpointError, ConfigError, DataError, PolicyError
from instructrec.experiments.jsonl import read_rows
from instructrec.experiments.locks import held
from instructrec.experiments.pairs_command import PairsConfig, run_pairs
from instructrec.experiments.preference_pairs import (
    Candidate,
    Mentor,
    Pair,
    make_pairs,
    pairs_of_rows,
)
from instructrec.policies.base import Responses, StopReason

SCORED = [Candidate("a", 0.5, 0), Candidate("b", 1.0, 1), Candidate("c", 0.0, 2)]


def shapes(pairs):
    return [(p.chosen.text, p.rejected.text, p.margin) for p in pairs]


def test_best_and_worst_make_one_pair():
    assert shapes(make_pairs("q", "?", SCORED)) == [("b", "c", 1.0)]


def test_all_pairs_above_a_margin():
    pairs = make_pairs("q", "?", SCORED, select="all")
    assert shapes(pairs) == [("b", "a", 0.5), ("b", "c", 1.0), ("a", "c", 0.5)]
    assert [p.id for p in pairs] == ["q#1-0", "q#1-2", "q#0-2"]
    assert shapes(make_pairs("q", "?", SCORED, select="all", min_margin=0.6)) == [("b", "c", 1.0)]


@pytest.mark.parametrize("select", ["best_vs_worst", "all"])
def test_equal_scores_and_equal_texts_make_no_pair(select):
    same_score = [Candidate("a", 1.0, 0), Candidate("b", 1.0, 1)]
    same_text = [Candidate("a", 1.0, 0), Candidate("a", 0.0, 1)]
    assert make_pairs("q", "?", same_score, select=select) == []
    assert make_pairs("q", "?", same_text, select=select) == []
    assert make_pairs("q", "?", [], select=select) == []


def test_responses_without_a_score_are_left_out():
    rows = [
        {"id": "q", "prompt": "?", "sample": i, "response": text, "total": total}
        for i, (text, total) in enumerate([("a", None), ("b", 1.0), ("c", 0.25)])
    ]
    pairs = pairs_of_rows(rows, select="all", min_margin=0.0)
    assert shapes(pairs) == [("b", "c", 0.75)]


def many(margin: float, number: int = 4000) -> list[Pair]:
    return [
        Pair(f"q{i}#0-1", f"q{i}", "?", Candidate("a", margin, 0), Candidate("b", 0.0, 1))
        for i in range(number)
    ]


def test_a_mentor_turns_the_stated_share_round_whatever_the_order():
    pairs = many(1.0, 200)
    judged = Mentor(flip_rate=0.15, seed=3).judge(pairs)
    assert sum(p.flipped for p in judged) == 30
    backwards = Mentor(flip_rate=0.15, seed=3).judge(pairs[::-1])
    assert backwards[::-1] == judged
    assert Mentor(flip_rate=0.15, seed=4).judge(pairs) != judged
    wrong = next(p for p in judged if p.flipped)
    assert (wrong.chosen.text, wrong.rejected.text, wrong.margin) == ("b", "a", 1.0)
    assert Mentor().judge(pairs) == pairs


@pytest.mark.parametrize("margin", [0.5, 2.0])
def test_a_bradley_terry_mentor_errs_by_the_margin(margin):
    judged = Mentor(temperature=0.5).judge(many(margin))
    expected = 1 - 1 / (1 + math.exp(-margin / 0.5))
    share = sum(p.flipped for p in judged) / len(judged)
    assert share == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 4000))


@pytest.mark.parametrize(
    "settings", [{"flip_rate": 0.6}, {"temperature": 0.0}, {"flip_rate": 0.1, "temperature": 1.0}]
)
def test_impossible_noise_is_refused(settings):
    with pytest.raises(ConfigError, match=r"expected|one of them"):
        Mentor(**settings)


@dataclass
class Counting:
    """Says its number of answers so far; stops before the call ``fail_at``."""

    fail_at: int | None = None
    name: str = "counting"
    calls: int = 0
    said: list[str] = field(default_factory=list)

    def respond(self, prompts, columns=None, sampling=None):
        if self.fail_at == self.calls:
            raise KeyboardInterrupt
        self.calls += 1
        texts = [f"{prompt} {'x' * (i % 3)}" for i, prompt in enumerate(prompts)]
        self.said += texts
        return Responses(texts=texts, stop_reasons=[StopReason.EOS] * len(texts))


def config(tmp_path, **changes) -> PairsConfig:
    given = {
        "out": str(tmp_path / "pairs.jsonl"),
        "task": "category",
        "rewards": {"length": 1.0},
        "limit": 12,
        "n": 3,
        "batch_size": 9,
    }
    return PairsConfig(**given | changes)


@pytest.fixture
def lengths(tmp_path):
    """A reward for the number of x's, of a file of its own."""
    file = tmp_path / "lengths.py"
    file.write_text(
        "def count(completions, **columns):\n"
        "    return [float(text.count('x')) for text in completions]\n"
    )
    return {"count": f"{file}:count"}


def test_the_command_writes_pairs_that_are_read_as_preferences(tmp_path, lengths):
    said = []
    pairs = run_pairs(
        "counting",
        config(tmp_path, rewards=lengths),
        say=said.append,
        load=lambda *_: Counting(),
    )
    assert len(pairs) == 12 and "12 in" in said[0]
    rows = read_rows(tmp_path / "pairs.jsonl")
    assert [row["margin"] for row in rows] == [2.0] * 12
    assert all(row["chosen"].count("x") == 2 for row in rows)
    task = make_task(str(tmp_path / "pairs.jsonl"), split="all")
    item = task[0]
    assert item.columns["reference"] == rows[0]["chosen"]
    assert item.columns["rejected"] == rows[0]["rejected"]
    assert item.columns["margin"] == 2.0


def test_an_interrupted_command_goes_on_with_its_samples(tmp_path, lengths):
    wanted = config(tmp_path, rewards=lengths)
    with pytest.raises(KeyboardInterrupt):
        run_pairs("c", wanted, say=print, load=lambda *_: Counting(fail_at=2))
    kept = read_rows(wanted.samples_file)
    assert len(kept) == 18 and not (tmp_path / "pairs.jsonl").exists()
    second = Counting()
    run_pairs("c", wanted, say=print, load=lambda *_: second)
    assert second.calls == 2 and len(read_rows(wanted.samples_file)) == 36


def test_samples_are_paired_again_by_another_reward_without_naming_what_they_were(
    tmp_path, lengths
):
    first = run_pairs("c", config(tmp_path, rewards=lengths), say=print, load=lambda *_: Counting())
    samples = str(config(tmp_path).samples_file)
    (tmp_path / "few.py").write_text(
        "def few(completions, **columns):\n    return [-float(t.count('x')) for t in completions]\n"
    )
    few = {"few": f"{tmp_path / 'few.py'}:few"}
    again = PairsConfig(out=str(tmp_path / "again.jsonl"), rewards=few)
    second = run_pairs(samples, again, say=print)
    assert len(second) == len(first) == 12
    for one, other in zip(first, second, strict=True):
        assert (one.prompt, one.chosen.text, one.rejected.text) == (
            other.prompt,
            other.rejected.text,
            other.chosen.text,
        )
    for changes, message in (
        ({"temperature": 0.7}, r"temperature = 0\.7: .*were drawn with 1\.0"),
        ({"top_p": 0.9}, r"top_p = 0\.9: "),
        ({"max_new_tokens": 9}, "max_new_tokens = 9: "),
    ):
        with pytest.raises(ConfigError, match=message):
            run_pairs(samples, replace(again, **changes), say=print)
    for overwrite in (False, True):  # which would delete what is read
        with pytest.raises(ConfigError, match="take the place of"):
            run_pairs(samples, config(tmp_path, rewards=few), overwrite=overwrite, say=print)
    assert len(read_rows(Path(samples))) == 36
    single = tmp_path / "single.jsonl"
    single.write_text(json.dumps({"id": "a", "prompt": "q", "response": "x"}) + "\n")
    with pytest.raises(DataError, match="has 1 responses to an instruction"):
        run_pairs(str(single), again, say=print)


def test_pairs_made_otherwise_are_not_overwritten_unless_asked(tmp_path, lengths):
    run_pairs("c", config(tmp_path, rewards=lengths), say=print, load=lambda *_: Counting())
    before = (tmp_path / "pairs.jsonl").read_text()
    other = config(tmp_path, rewards=lengths, flip_rate=0.25)
    with pytest.raises(ConfigError, match="--overwrite"):
        run_pairs("c", other, say=print, load=lambda *_: Counting())
    assert (tmp_path / "pairs.jsonl").read_text() == before
    run_pairs("c", other, overwrite=True, say=print, load=lambda *_: Counting())
    flipped = [json.loads(line)["flipped"] for line in (tmp_path / "pairs.jsonl").open()]
    assert sum(flipped) == 3


def test_what_was_there_stays_until_the_new_samples_can_be_made(tmp_path, lengths):
    run_pairs("c", config(tmp_path, rewards=lengths), say=print, load=lambda *_: Counting())
    before = {file: file.read_bytes() for file in tmp_path.glob("pairs.*")}
    assert len(before) == 4

    def broken(*_):
        raise PolicyError("there is no such model")

    with pytest.raises(PolicyError, match="no such model"):
        wanted = config(tmp_path, rewards=lengths)
        run_pairs("c", wanted, overwrite=True, say=print, load=broken)
    with pytest.raises(DataError, match="cannot be read"):
        run_pairs(str(tmp_path / "gone.jsonl"), config(tmp_path), overwrite=True, say=print)
    with pytest.raises(ConfigError, match="the pairs would take the place of"):
        pairs = str(tmp_path / "pairs.jsonl")
        run_pairs(pairs, config(tmp_path), overwrite=True, say=print)
    assert {file: file.read_bytes() for file in tmp_path.glob("pairs.*")} == before


def test_a_file_of_something_else_is_refused_before_anything_is_sampled(tmp_path, lengths):
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "my own data"}\n')
    with pytest.raises(ConfigError, match="holds other rows"):
        run_pairs("c", config(tmp_path, rewards=lengths), say=print, load=lambda *_: Counting())
    assert not config(tmp_path).samples_file.exists()


def test_one_process_at_a_time_makes_pairs(tmp_path, lengths):
    wanted = config(tmp_path, rewards=lengths)
    with held(tmp_path / "pairs.jsonl", "pairs"), pytest.raises(CheckpointError, match="in use"):
        run_pairs("c", wanted, say=print, load=lambda *_: Counting())


def test_without_a_difference_there_is_nothing_to_prefer(tmp_path):
    file = tmp_path / "same.py"
    file.write_text("def same(completions, **columns):\n    return [1.0] * len(completions)\n")
    with pytest.raises(DataError, match="nothing to prefer"):
        run_pairs(
            "c",
            config(tmp_path, rewards={"same": f"{file}:same"}),
            say=print,
            load=lambda *_: Counting(),
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 1}, "2 responses"),
        ({"temperature": 0.0}, "greedy"),
        ({"out": "x.csv"}, ".jsonl"),
        ({"limit": 0}, "limit = 0"),
        ({"max_new_tokens": 0}, "max_new_tokens = 0"),
    ],
)
def test_useless_settings_are_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        config(tmp_path, **changes)
