"""Judging responses: what is shown, what is kept, what comes of it, and simulated mentors."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from instructrec.envs.tasks.base import make_task
from instructrec.errors import CheckpointError, ConfigError, DataError
from instructrec.experiments.cli import main
from instructrec.experiments.demonstrations import examples
from instructrec.experiments.jsonl import read_rows
from instructrec.experiments.label_book import Book, Sitting
from instructrec.experiments.label_commands import LabelConfig, label
from instructrec.experiments.label_items import Candidate, Item, gather, read_items
from instructrec.experiments.label_results import (
    agreement,
    cohens_kappa,
    preferences,
    summary,
    to_text,
)
from instructrec.experiments.playing import SINGLE_ANSWERS
from instructrec.experiments.preference_data import read_pairs
from instructrec.experiments.supervised_run import pairs

ITEMS = [
    Item(f"q{i}", f"question {i}", (Candidate("a", f"a{i}"), Candidate("b", f"b{i}")), f"b{i}")
    for i in range(20)
]


def silent(text: str) -> None:
    pass


def judged(path: Path, winners: Sequence[str | None]) -> Book:
    """A book in which each item was won by the source given; None is a tie."""
    book = Book(path)
    sitting = Sitting(ITEMS, book)
    for winner in winners:
        sources = [side.source for side in sitting.sides]
        sitting.tie() if winner is None else sitting.prefer(sources.index(winner))
    return book


def test_judgments_survive_and_can_be_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "judgments-me.jsonl"
    with Book(path) as book:
        sitting = Sitting(ITEMS, book)
        first = sitting.item
        sitting.prefer(0)
        sitting.correct("  better  ")
        sitting.skip()
        assert sitting.done == 2 and sitting.undo() and sitting.correction == "better"
        assert sitting.done == 1
    with Book(path) as book:  # another process
        sitting = Sitting(ITEMS, book)
        assert sitting.done == 1 and sitting.item != first
        assert sitting.undo() and sitting.item == first and not sitting.undo()


def test_which_response_comes_first_is_drawn_and_stays(tmp_path: Path) -> None:
    def order(name: str, seed: int = 0) -> list[str]:
        with Book(tmp_path / name) as book:
            sitting, found = Sitting(ITEMS, book, seed), []
            while sitting.item is not None:
                found.append(sitting.sides[0].source)
                sitting.skip()
        (tmp_path / name).unlink()
        return found

    mine = order("judgments-me.jsonl")
    assert mine == order("judgments-me.jsonl") and 4 < mine.count("a") < 16
    assert mine != order("judgments-you.jsonl") and mine != order("judgments-me.jsonl", seed=1)


def test_preferences_are_unblinded_and_a_better_answer_beats_both(tmp_path: Path) -> None:
    book = Book(tmp_path / "judgments-me.jsonl")
    sitting = Sitting(ITEMS, book)
    sides = [side.source for side in sitting.sides]
    sitting.prefer(1)
    sitting.correct("best")
    sitting.tie()
    rows = preferences(ITEMS, {"me": book.judgments})
    assert [(r["instruction_id"], r["chosen_by"], r["rejected_by"]) for r in rows] == [
        ("q0", sides[1], sides[0]),
        ("q1", "mentor", "a"),
        ("q1", "mentor", "b"),
    ]
    assert rows[0]["chosen"] == f"{sides[1]}0" and rows[1]["chosen"] == "best"


def test_the_agreement_of_two_mentors_is_cohens(tmp_path: Path) -> None:
    # 20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no: the textbook's example, κ = 0.4.
    pairs = [("y", "y")] * 20 + [("y", "n")] * 5 + [("n", "y")] * 10 + [("n", "n")] * 15
    assert cohens_kappa(pairs) == pytest.approx(0.4)
    assert cohens_kappa([("a", "b"), ("b", "a")]) == pytest.approx(-1.0)
    assert cohens_kappa([("a", "a")]) is None and cohens_kappa([]) is None
    # Weighted by hand: observed 1/3; expected (1 + 4 + 1 + 1 + 1 + 4) / 9 over 1, 2, 3 each.
    ordered = [(1, 1), (2, 2), (3, 2)]
    expected = sum((a - b) ** 2 for a in (1, 2, 3) for b in (1, 2, 2)) / 9
    kappa = cohens_kappa(ordered, weights="quadratic", categories=(1, 2, 3))
    assert kappa == pytest.approx(1 - (1 / 3) / expected)
    me = judged(tmp_path / "judgments-me.jsonl", ["a", "b", None, "a"])
    you = judged(tmp_path / "judgments-you.jsonl", ["a", "b", "a"])
    row = agreement({"me": me.judgments, "you": you.judgments})[0]
    assert (row["items"], row["agree"]) == (3, pytest.approx(2 / 3))
    assert row["kappa"] == pytest.approx(1 - (1 / 3) / (1 - (1 * 2 + 1 * 1) / 9))


def test_the_summary_counts_wins_and_the_side(tmp_path: Path) -> None:
    book = judged(tmp_path / "judgments-me.jsonl", ["b"] * 12 + [None])
    found = summary(ITEMS, {"me": book.judgments})
    assert found["wins"] == {"a": 0, "b": 12} and found["kinds"] == {"prefer": 12, "tie": 1}
    assert 0 < found["first_side"][0] < 1 and found["wins_interval"]["b"][0] > 0.7


def test_mentors_who_judge_the_same_items_are_not_taken_for_more_items(tmp_path: Path) -> None:
    names = ("ann", "ben", "cho")
    books = {name: judged(tmp_path / name, ["a"] * 12 + ["b"] * 8).judgments for name in names}
    alone, together = summary(ITEMS, {"ann": books["ann"]}), summary(ITEMS, books)
    low, high = alone["wins_interval"]["a"]
    assert (low, high) == pytest.approx((0.387, 0.781), abs=1e-3)  # Wilson's, 12 of 20
    ends = together["wins_interval"]["a"]
    assert ends == pytest.approx([low, high], abs=0.05)  # 36 of 60 tries would be 0.47 to 0.71
    one = {name: {"q0": book["q0"]} for name, book in books.items()}
    found = summary(ITEMS, one)
    assert found["wins_interval"]["a"] == [None, None]
    assert re.search(r"better: a +3 of 3 \(interval unknown\)", to_text(found))


@pytest.fixture
def two(tmp_path: Path, write_evaluation: Callable[..., Path]) -> list[str]:
    """Two policies: the first is right 30 times of 40, the second 10 times."""
    good = write_evaluation(tmp_path / "good.jsonl", 30)
    bad = write_evaluation(tmp_path / "bad.jsonl", 10, response="never")
    return [str(good), str(bad)]


def test_a_reward_takes_the_mentors_place(tmp_path: Path, two: list[str]) -> None:
    out = tmp_path / "labels"
    config = LabelConfig(out=str(out), from_reward="exact_match")
    found = label(two, config, say=silent)
    # 10 responses are alike; of the others 20 are right against wrong, and 10 wrong twice.
    assert found["items"] == 30 and found["kinds"] == {"prefer": 20, "tie": 10}
    assert found["wins"] == {"bad": 0, "good": 20}
    rows = read_rows(out / "preferences.jsonl")
    assert {row["chosen"] for row in rows} == {"yes"} and len(rows) == 20
    assert label([], config, say=silent) == found  # nothing is asked twice


def test_a_noisy_mentor_errs_as_often_as_said(tmp_path: Path, two: list[str]) -> None:
    config = LabelConfig(out=str(tmp_path / "labels"), from_reward="exact_match", noise=0.25)
    wins = label(two, config, say=silent)["wins"]
    assert wins["good"] + wins["bad"] == 20 and 1 <= wins["bad"] <= 10
    turned = LabelConfig(out=str(tmp_path / "turned"), from_reward="exact_match", noise=1.0)
    assert label(two, turned, say=silent)["wins"] == {"bad": 20, "good": 0}


def test_one_mentor_is_at_it_once_and_others_meanwhile(tmp_path: Path, two: list[str]) -> None:
    said: list[str] = []

    def first(sitting: Sitting, config: LabelConfig, notes: Sequence[str]) -> None:
        sitting.prefer(0)
        with pytest.raises(CheckpointError, match="another process is at work"):
            label([], LabelConfig(out=out, annotator="ann"), show=first, say=silent)
        with open(tmp_path / "out" / "judgments-ann.jsonl", "a") as file:
            file.write('{"half a line')  # which is being written
        found = label([], LabelConfig(out=out, annotator="ben"), show=second, say=silent)
        assert found["annotators"] == {"ann": 1, "ben": 2}
        kept = (tmp_path / "out" / "judgments-ann.jsonl").read_text()
        assert kept.endswith('{"half a line')  # others only read it

    def second(sitting: Sitting, config: LabelConfig, notes: Sequence[str]) -> None:
        sitting.tie()
        sitting.tie()

    out = str(tmp_path / "out")
    label(two, LabelConfig(out=out, annotator="ann", limit=5), show=first, say=said.append)
    assert "judged by ann    1 of 5" in said[0] and "judged by ben    2 of 5" in said[0]
    assert said[-1].endswith("ann has 4 of 5 left: the same command goes on")


def test_preferences_can_be_trained_on_and_judged_again(tmp_path: Path, two: list[str]) -> None:
    out = tmp_path / "labels"
    label(two, LabelConfig(out=str(out), from_reward="exact_match"), say=silent)
    file = str(out / "preferences.jsonl")
    task = make_task(file, split="all")
    assert len(task) == 20 and task[0].columns["reference"] == "yes"
    items, _ = gather([file], pairs=True, seed=0, limit=None)
    assert {item.sources for item in items} == {("chosen", "rejected")} and len(items) == 20


def test_what_several_mentors_said_and_wrote_can_be_learned_from(
    tmp_path: Path, two: list[str]
) -> None:
    out = tmp_path / "labels"

    def judge(sitting: Sitting, config: LabelConfig, notes: Sequence[str]) -> None:
        while sitting.item is not None:
            sitting.correct(f"better, says {config.who}")
            sitting.prefer(0)

    for who in ("ann", "ben"):
        label(two, LabelConfig(out=str(out), annotator=who, limit=8), show=judge, say=silent)
    task = make_task(str(out / "preferences.jsonl"), split="all")
    assert len(read_pairs(task, None)) == len(pairs(task, list(range(len(task))))) == 2 * 8 * 3
    task = make_task(str(out / "demonstrations.jsonl"), split="all")
    shown = examples(task, range(len(task)), SINGLE_ANSWERS)
    assert [answer for _, answer in shown] == ["better, says ann", "better, says ben"] * 8


def test_scores_are_from_one_to_five(tmp_path: Path, two: list[str]) -> None:
    config = LabelConfig(out=str(tmp_path / "labels"), mode="score", from_reward="exact_match")
    found = label(two[:1], config, say=silent)
    rows = read_rows(tmp_path / "labels" / "scores.jsonl")
    assert found["mean_score"] == pytest.approx(4.0) and {row["score"] for row in rows} == {1, 5}


def test_scores_of_two_policies_are_preferences_with_a_margin(
    tmp_path: Path, two: list[str]
) -> None:
    out = tmp_path / "labels"
    config = LabelConfig(out=str(out), mode="score", from_reward="exact_match")
    found = label(two, config, say=silent)
    assert found["items"] == 80 and found["mean_scores"] == {"bad": 2.0, "good": 4.0}
    asked = [item.instruction_id for item in read_items(out / "items.jsonl")]
    assert sum(one == other for one, other in itertools.pairwise(asked)) < 10  # not side by side
    task = make_task(str(out / "preferences.jsonl"), split="all")
    kept = read_pairs(task, None)
    assert {(pair.chosen, pair.margin) for pair in kept} == {("yes", 4.0)} and len(kept) == 20
    few = LabelConfig(out=str(tmp_path / "few"), mode="score", from_reward="f1", limit=3)
    label(two, few, say=silent)
    asked = [item.instruction_id for item in read_items(tmp_path / "few" / "items.jsonl")]
    assert len(asked) == 6 and len(set(asked)) == 3


def test_a_folder_is_of_the_same_responses(tmp_path: Path, two: list[str]) -> None:
    config = LabelConfig(out=str(tmp_path / "labels"), from_reward="exact_match")
    label(two, config, say=silent)
    with pytest.raises(ConfigError, match="of other responses"):
        label(two[::-1], config, say=silent)
    with pytest.raises(ConfigError, match="mode 'prefer', not 'score'"):
        label(two[:1], LabelConfig(out=config.out, mode="score", from_reward="f1"), say=silent)
    with pytest.raises(ConfigError, match="holds no judgments"):
        label([], LabelConfig(out=str(tmp_path / "new"), from_reward="f1"), say=silent)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="holds something else"):
        label(two, LabelConfig(out=str(tmp_path / "mine"), from_reward="f1"), say=silent)


def test_what_cannot_be_judged_is_said(tmp_path: Path, two: list[str]) -> None:
    with pytest.raises(DataError, match="leave nothing to judge"):
        gather(two[:1], pairs=True, seed=0, limit=None)  # one response to each
    with pytest.raises(DataError, match="3 policies given"):
        gather([*two, two[0]], pairs=True, seed=0, limit=None)
    rows = [json.loads(line) for line in Path(two[1]).read_text().splitlines()]
    rows[0]["prompt"] = "something else"
    Path(two[1]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="different prompts"):
        gather(two, pairs=True, seed=0, limit=None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"noise": 2.0}, "noise"),
        ({"noise": 0.1}, "from_reward"),
        ({"annotator": "../me"}, "annotator"),
        ({"limit": 0}, "limit"),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        LabelConfig(**options)


def test_a_pipe_is_no_person(
    tmp_path: Path, two: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["label", *two, "--out", str(tmp_path / "labels")]) == 2
    assert "--from_reward" in capsys.readouterr().err
