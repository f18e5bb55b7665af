"""Solved examples in front of any task's instructions."""

from __future__ import annotations

import pytest

from instructrec.envs.tasks.base import iterate, make_task
from instructrec.envs.tasks.few_shot import FewShotTask
from instructrec.errors import ConfigError, DataError

OPTIONS = {"task": "closed_answers", "options": {"size": 60}, "shots": 2}


@pytest.mark.parametrize("split", ["train", "test"])
def test_examples_are_training_items_of_the_same_family_and_never_the_item_itself(
    split: str,
) -> None:
    task, plain = (
        make_task("few_shot", split=split, **OPTIONS),
        make_task("closed_answers", split=split, size=60),
    )
    train = {item.prompt: item for item in iterate(make_task("closed_answers", size=60))}
    assert len(task) == len(plain)
    for shown, item in zip(iterate(task), iterate(plain), strict=True):
        *examples, last = str(shown.prompt).split("\n\n")
        assert last == item.prompt and len(examples) == 2
        assert (shown.id, shown.columns) == (item.id, item.columns)
        for example in examples:
            asked, _, answer = example.rpartition("\n" if "\n" in example else ": ")
            source = train.get(asked) or train[f"{asked}:"]
            assert source.columns["family"] == item.columns["family"]
            assert source.columns["item"] != item.columns["item"] and source.prompt != item.prompt
            assert source.columns["reference"] == answer


def test_the_same_seed_gives_the_same_examples_and_another_one_others() -> None:
    first, again = (make_task("few_shot", split="test", **OPTIONS) for _ in range(2))
    other = make_task("few_shot", split="test", seed=1, **OPTIONS)
    assert first[3] == again[3] != other[3]
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert first.fingerprint != make_task("closed_answers", split="test", size=60).fingerprint


def test_examples_can_be_turns_of_a_conversation() -> None:
    task = make_task("few_shot", split="test", style="turns", **OPTIONS)
    roles = [message["role"] for message in task[0].prompt]
    assert roles == ["user", "assistant", "user", "assistant", "user"]


def test_what_cannot_be_shown_is_refused() -> None:
    with pytest.raises(ConfigError, match="1 or more, not 0"):
        make_task("few_shot", task="parity", shots=0)
    with pytest.raises(ConfigError, match="expected one of text, turns"):
        make_task("few_shot", task="parity", style="story")
    plain = make_task("parity", split="train", size=4)
    with pytest.raises(DataError, match="few_shot asks for 4 examples"):
        FewShotTask(plain, plain, shots=4)[0]
