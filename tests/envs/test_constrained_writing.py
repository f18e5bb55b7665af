"""Writing under constraints: references follow them all, splits share no noun."""

from __future__ import annotations

import pytest

from instructrec.envs.tasks import constrained_writing
from instructrec.envs.tasks.base import iterate, make_task
from instructrec.envs.tasks.constrained_writing import FORMATS, MOST_WORDS, OPENINGS
from instructrec.envs.tasks.partition import SPLITS
from instructrec.rewards import make_rewards


def items(split, size=500):
    return list(iterate(make_task("constrained_writing", split=split, size=size)))


def scores(instructions, responses, **options):
    columns = {"constraints": [item.columns["constraints"] for item in instructions]}
    rewards = make_rewards({"it": {"use": "constraints", "options": options}})
    prompts = [item.prompt for item in instructions]
    return rewards.score(prompts, responses, columns).parts["it"].tolist()


@pytest.mark.parametrize("split", SPLITS)
def test_the_reference_follows_every_constraint(split):
    found = items(split)
    assert set(scores(found, [item.columns["reference"] for item in found])) == {1.0}
    assert {item.columns["family"] for item in found} == set(FORMATS)


def test_each_constraint_can_be_broken_by_itself():
    found = items("train", 40)
    for only, broken in {
        "keywords": lambda item: "Nothing of the kind is said here, and *that* is it.",
        "length_constraints": lambda item: "*" + "word " * 30 + "*",
        "detectable_format": lambda item: "Six plain words are no format.",
    }.items():
        assert max(scores(found, [broken(item) for item in found], only=only)) < 1


def test_prompts_say_what_is_checked_and_never_come_twice():
    found = items("train", 2000)
    assert len({item.prompt for item in found}) == len(found)
    for item in found:
        keyword = item.columns["constraints"][0]["kwargs"]["keywords"][0]
        most = item.columns["constraints"][2]["kwargs"]["num_words"]
        assert f"Use the word {keyword}." in item.prompt
        assert f"Write {constrained_writing.FEWEST_WORDS} to {most} words." in item.prompt
    assert len(OPENINGS) >= 8 and len(MOST_WORDS) == 4


def test_topics_and_keywords_of_a_split_occur_in_no_other():
    words = {
        split: {
            word
            for item in items(split, 1500)
            for word in (
                item.columns["item"],
                *item.columns["constraints"][0]["kwargs"]["keywords"],
            )
        }
        for split in SPLITS
    }
    assert not words["train"] & words["test"] and not words["validation"] & words["test"]
    assert not words["train"] & words["validation"]
