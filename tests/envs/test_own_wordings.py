"""Kinds of rewording of one's own: seeded, labelled, in the fingerprint, named when they fail."""

from __future__ import annotations

import copy
import functools
import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from instructrec.envs.tasks.augmented import AugmentedTask
from instructrec.envs.tasks.base import Instruction, iterate, make_task
from instructrec.errors import ConfigError, DataError

KINDS_FILE = """
import functools

def numbered(text, rng):
    return f"{rng.integers(10**9)}. {text}"

def shout(text, rng, mark="!"):
    return text + mark

louder = functools.partial(shout, mark="!!!")
"""


def upper(text: str, rng: np.random.Generator) -> str:
    """Needs no chance."""
    return text.upper()


def numbered(text: str, rng: np.random.Generator) -> str:
    """Shows what the generator draws."""
    return f"{rng.integers(10**9)}. {text}"


def typos(text: str, rng: np.random.Generator) -> str:
    """Has the name of a built-in kind."""
    return text


def raises(text: str, rng: np.random.Generator) -> str:
    """Is broken."""
    raise KeyError("umbrella")


def says_nothing(text: str, rng: np.random.Generator) -> Any:
    """Forgets to return the text."""


def says_blank(text: str, rng: np.random.Generator) -> str:
    """Leaves nothing of the instruction."""
    return " "


async def later(text: str, rng: np.random.Generator) -> str:
    """Would have to be awaited."""
    return text


def Loud(text: str, rng: np.random.Generator) -> str:
    """Has a name that is no part of a metric's."""
    return text


class Talk:
    """One conversation."""

    name, split, columns, fingerprint = "talk", "train", ("reference",), "talk-1"

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Instruction:
        before = {"role": "system", "content": "Be brief."}
        return Instruction("t", (before, {"role": "user", "content": "hello"}), {"reference": "a"})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with kinds of one's own."""
    path = tmp_path / "kinds.py"
    path.write_text(KINDS_FILE)
    return path


def test_a_function_is_a_kind_labelled_by_its_name() -> None:
    task = make_task("parity", size=200)
    mixed = AugmentedTask(task, kinds={upper: 0.5, "vague": 0.3})
    labels = set()
    for before, after in zip(iterate(task), iterate(mixed), strict=True):
        label = after.columns["augmentation"]
        labels.add(label)
        assert (after.prompt == before.prompt.upper()) == (label == "upper")
        assert after.columns == {**before.columns, "augmentation": label}
    assert labels == {"upper", "vague", "none"}
    assert dict(mixed.kinds) == {"upper": 0.5, "vague": 0.3}


def test_a_file_is_named_in_the_options_of_the_task(file: Path) -> None:
    options = {"task": "parity", "options": {"size": 60}, "probability": 1.0}
    kinds = ["vague", f"{file}:numbered", f"{file}:louder"]
    train = make_task("augmented", kinds=kinds, **options)
    found = {item.columns["augmentation"]: item.prompt for item in iterate(train)}
    assert found.keys() == {"vague", "numbered", "louder"} and found["louder"].endswith("!!!")
    plain = make_task("augmented", split="test", kinds=kinds, **options)
    assert {item.columns["augmentation"] for item in iterate(plain)} == {"none"}
    alone = make_task("augmented", kinds={f"{file}:numbered": 1}, **options)
    assert alone[3].columns["augmentation"] == "numbered"


def test_the_info_of_an_environment_says_what_was_done(file: Path) -> None:
    options = {"task": "parity", "kinds": {f"{file}:louder": 1.0}}
    env = gym.make("instructrec/Instruction-v0", task="augmented", task_options=options)
    prompt, info = env.reset(seed=1)
    assert info["augmentation"] == "louder" and prompt.endswith("!!!")


def test_what_it_draws_is_a_function_of_seed_epoch_and_index() -> None:
    task = make_task("parity", size=30)
    once, again = (AugmentedTask(task, kinds={numbered: 1}, seed=3, epochs=2) for _ in range(2))
    np.random.default_rng().random()  # no generator that others share is asked
    assert [once[i] for i in range(60)] == [again[i] for i in reversed(range(60))][::-1]
    assert len({item.prompt.partition(".")[0] for item in iterate(once)}) == 60
    other = AugmentedTask(task, kinds={numbered: 1}, seed=4)
    assert all(other[i].prompt != once[i].prompt for i in range(30))


def test_the_last_message_of_a_conversation_is_given_to_it() -> None:
    prompt = AugmentedTask(Talk(), kinds={upper: 1})[0].prompt
    assert [message["content"] for message in prompt] == ["Be brief.", "HELLO"]


def test_the_fingerprint_covers_the_file_and_not_its_place(file: Path, tmp_path: Path) -> None:
    def fingerprint(spec: str) -> str:
        return make_task("augmented", task="parity", kinds={spec: 0.5}).fingerprint

    first = fingerprint(f"{file}:numbered")
    moved = tmp_path / "elsewhere" / "other.py"
    moved.parent.mkdir()
    moved.write_text(KINDS_FILE)
    assert fingerprint(f"{moved}:numbered") == first
    assert fingerprint(f"{file}:shout") != first
    file.write_text(KINDS_FILE.replace("10**9", "10**6"))
    assert fingerprint(f"{file}:numbered") != first
    louder = fingerprint(f"{moved}:louder")
    moved.write_text(KINDS_FILE.replace("!!!", "!!"))
    assert fingerprint(f"{moved}:louder") != louder


def test_built_in_kinds_keep_the_fingerprint_that_they_had() -> None:
    task = AugmentedTask(make_task("parity", size=10), kinds={"typos": 0.5}, seed=3)
    assert task.fingerprint.startswith("5056ff4a2279")


def test_a_task_with_a_kind_of_a_file_goes_to_another_process(file: Path) -> None:
    from instructrec.rewards.loading import load_object

    task = make_task("parity", size=5)
    for kind in (upper, f"{file}:louder", load_object(f"{file}:numbered")):
        made = AugmentedTask(task, kinds={kind: 1})
        sent = pickle.dumps(made)
        assert b"_instructrec_file_" not in sent
        again = pickle.loads(sent)
        assert again[2] == made[2] and again.fingerprint == made.fingerprint
        assert copy.deepcopy(made) is made


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (raises, "'raises' failed on instruction 't': KeyError: 'umbrella'"),
        (says_nothing, r"'says_nothing' made 'None' \(NoneType\) of instruction 't'"),
        (says_blank, r"'says_blank' made ' ' \(str\) of instruction 't'"),
    ],
)
def test_a_kind_that_fails_is_named_with_the_instruction(kind: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        AugmentedTask(Talk(), kinds={kind: 1})[0]


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ({typos: 0.1}, "is called 'typos', which means something else"),
        ({upper: 0.1, f"{__name__}:upper": 0.1}, "two kinds are called 'upper'"),
        ({upper: 2}, r"kinds\.upper = 2: expected a number"),
        ({lambda text, rng: text: 0.1}, "expected a function with a name"),
        ({functools.partial(upper): 0.1}, "expected a function with a name"),
        ([Loud], "a name of lower-case letters"),
        ([Talk], "expected a function with a name"),
        ([{"typos": 0.1}], "expected a function with a name"),
        ([later], "'later': expected an ordinary function"),
        ([len], "'len': expected an ordinary function that is called with a text and a numpy"),
        ([f"{__name__}:uper"], "Did you mean 'upper'"),
        (["nowhere.py:upper"], "no file 'nowhere.py'"),
        (["uper"], "Your own is given as 'module:function' or 'file.py:function'"),
        ("file.py:upper", r"kinds = 'file.py:upper': expected a list"),
        (upper, "expected a list"),
    ],
)
def test_what_is_no_kind_is_refused(kinds: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_task("augmented", task="parity", kinds=kinds)
