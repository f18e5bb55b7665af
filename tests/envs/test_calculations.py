"""Calculations: demonstrations that are right, words and numbers that splits do not share."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from instructrec.envs.tasks.base import iterate, make_task
from instructrec.envs.tasks.calculations import PHRASINGS
from instructrec.envs.tasks.partition import SPLITS, numbers_of
from instructrec.envs.tasks.vocabulary import CATEGORIES
from instructrec.envs.tool_use import ToolVectorEnv

# Changing phrasings or their order changes results: raise procedural.VERSION with these.
GOLDEN = ["Subtract 674 from 694.", "What is 794 - 420?"]


def test_the_first_items_never_change():
    task = make_task("calculations")
    assert [task[i].prompt for i in range(2)] == GOLDEN
    assert task[0].columns["demonstration"] == ["<tool>calculator(694 - 674)</tool>", "20"]


@pytest.mark.parametrize("split", SPLITS)
def test_the_demonstrations_get_full_marks(split):
    env = ToolVectorEnv(
        256,
        task=make_task("calculations", split=split),
        autoreset_mode="DISABLED",
        observe="last",
    )
    env.reset(options={"index": list(range(256))})
    calls, answers = zip(*(i.columns["demonstration"] for i in env.instructions), strict=True)
    results, rewards, terminated, truncated, _ = env.step(calls)
    assert not (rewards.any() or terminated.any() or truncated.any())
    assert results == tuple(f"Result: {answer}" for answer in answers)
    assert (env.step(answers)[1] == 1.0).all()
    assert len(set(answers)) > 200


def test_splits_share_no_number_and_prompts_are_short_and_differ():
    prompts = {}
    for split in SPLITS:
        prompts[split] = [item.prompt for item in iterate(make_task("calculations", split=split))]
        assert len(set(prompts[split])) == len(prompts[split])
        assert max(len(prompt.split()) for prompt in prompts[split]) <= 14
        numbers = {int(n) for prompt in prompts[split] for n in re.findall(r"\d+", prompt)}
        assert numbers <= set(numbers_of(split, 100, 999))


def test_families_are_balanced_and_of_eight_phrasings_without_nouns_of_other_tasks():
    items = [*iterate(make_task("calculations"))]
    counts = Counter(item.columns["family"] for item in items)
    assert counts.keys() == PHRASINGS.keys()
    assert all(900 < count < 1150 for count in counts.values())
    assert all(len(set(of_it)) == 8 for of_it in PHRASINGS.values())
    nouns = {word for words in CATEGORIES.values() for word in words}
    asked = {q for of_it in PHRASINGS.values() for q, _ in of_it}
    assert len(asked) == 32
    assert not nouns & {w for q in asked for w in re.findall(r"[a-z]+", q.lower())}
