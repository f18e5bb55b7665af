"""Other wordings: the answer stays right, and every change is a function of its place."""

import re
from collections import Counter

import gymnasium as gym
import pytest

from instructrec.envs.tasks.augmented import KINDS, AugmentedTask
from instructrec.envs.tasks.base import Instruction, iterate, labels_of, make_task
from instructrec.envs.tasks.mixture import FAMILIES
from instructrec.envs.tasks.skills.catalog import SKILLS
from instructrec.envs.tasks.vocabulary import CATEGORIES
from instructrec.envs.tasks.wordings import COMMON, CONFLICTS, DISTRACTORS, PARAPHRASES, VAGUE
from instructrec.errors import ConfigError

NOUNS = {word for words in CATEGORIES.values() for word in words}


class Conversations:
    """Three conversations with a system message."""

    name, split, columns, fingerprint = "talk", "train", ("reference",), "talk-1"

    def __len__(self):
        return 3

    def __getitem__(self, index):
        turns = (
            {"role": "system", "content": "Please be brief."},
            {"role": "user", "content": f"What is the number after {index}?"},
        )
        return Instruction(f"talk-{index}", turns, {"reference": str(index + 1)})


def always(kind, task, **options):
    return AugmentedTask(task, kinds={kind: 1.0}, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*FAMILIES, *SKILLS])
def test_what_an_instruction_is_about_survives_and_the_label_is_true(kind, name):
    plain = make_task(name, split="test", size=40)
    changed = 0
    for before, after in zip(iterate(plain), iterate(always(kind, plain)), strict=True):
        new = after.prompt != before.prompt
        changed += new
        assert after.columns == {**before.columns, "augmentation": kind if new else "none"}
        assert after.id == before.id
        for word in re.findall(r"\w+", before.prompt):
            if word in NOUNS or word.isdigit() or word in before.columns.get("keep", ()):
                assert re.search(rf"(?<!\w){re.escape(word)}(?!\w)", after.prompt), after.prompt
    assert changed == 40 or (kind in ("typos", "casing") and changed > 20)


@pytest.mark.parametrize("kind", ["typos", "casing"])
@pytest.mark.parametrize("name", ["category", "odd_one_out", "parity", "compare_numbers"])
def test_no_option_of_a_closed_question_is_told_apart_by_its_letters(kind, name):
    task = make_task(name, split="test", size=80)
    options = NOUNS | CATEGORIES.keys() | {"even", "odd"}
    for before, after in zip(iterate(task), iterate(always(kind, task)), strict=True):
        kept = [w for w in re.findall(r"\w+", before.prompt) if w in options or w.isdigit()]
        assert [w for w in re.findall(r"\w+", after.prompt) if w in options or w.isdigit()] == kept
    assert not COMMON & options


def test_chinese_gets_sentences_in_chinese_and_keeps_its_characters():
    task = make_task("date_reasoning", language="zh", size=30)
    for kind in ("paraphrase", "distractor", "conflict", "vague"):
        for before, after in zip(iterate(task), iterate(always(kind, task)), strict=True):
            assert before.prompt in after.prompt != before.prompt
            assert not re.search("[A-Za-z]", after.prompt)
    labels = {i.columns["augmentation"] for i in iterate(always("typos", task))}
    assert labels == {"none"}


def test_nothing_is_written_behind_a_list_without_an_end():
    task = make_task("swap_words", split="test", size=60)
    for kind in ("paraphrase", "distractor", "conflict", "vague"):
        for before, after in zip(iterate(task), iterate(always(kind, task)), strict=True):
            assert after.prompt.endswith(before.prompt)


def test_there_are_several_wordings_of_each_kind_and_language():
    for templates in (PARAPHRASES, CONFLICTS, VAGUE):
        for texts in templates.values():
            assert len(set(texts)) >= 8
            assert all(text.count("{text}") == 1 for text in texts)
    assert all(len(set(texts)) >= 8 for texts in DISTRACTORS.values())
    english = {w for text in DISTRACTORS["en"] for w in re.findall("[a-z]+", text.lower())}
    assert not english & NOUNS


def test_kinds_come_as_often_as_they_should_and_one_at_a_time():
    task = make_task("category", size=2000)
    mixed = AugmentedTask(task, kinds={"typos": 0.2, "vague": 0.3}, seed=5)
    counts = Counter(i.columns["augmentation"] for i in iterate(mixed))
    assert abs(counts["typos"] - 400) < 60 and abs(counts["vague"] - 600) < 70
    assert counts["none"] == 2000 - counts["typos"] - counts["vague"]


def test_a_wording_is_a_function_of_seed_epoch_and_index():
    task = make_task("category", size=50)
    kinds = {"paraphrase": 0.5, "casing": 0.5}
    once, again = (AugmentedTask(task, kinds=kinds, seed=3, epochs=4) for _ in range(2))
    assert [once[i] for i in range(200)] == [again[i] for i in reversed(range(200))][::-1]
    assert len(once) == 200 and len({item.id for item in iterate(once)}) == 200
    first, second = ([once[e * 50 + i].prompt for i in range(50)] for e in (0, 1))
    assert first != second
    assert [once[50 + i].columns["item"] for i in range(50)] == [
        task[i].columns["item"] for i in range(50)
    ]
    assert once[51].id == f"{task[1].id}@1"
    shorter = AugmentedTask(task, kinds=kinds, seed=3)
    assert [item.prompt for item in iterate(shorter)] == first
    other = AugmentedTask(task, kinds=kinds, seed=4)
    assert [item.prompt for item in iterate(other)] != first
    prints = {t.fingerprint for t in (once, shorter, other, task, always("vague", task))}
    assert len(prints) == 5


def test_the_order_of_kinds_is_part_of_the_fingerprint_as_it_is_of_the_data():
    task = make_task("parity", size=60)
    shares = {"typos": 0.5, "vague": 0.5}
    usual, other = (
        AugmentedTask(task, kinds=kinds) for kinds in (shares, dict(reversed(shares.items())))
    )
    assert [i.columns["augmentation"] for i in iterate(usual)] != [
        i.columns["augmentation"] for i in iterate(other)
    ]
    assert usual.fingerprint != other.fingerprint
    assert usual.fingerprint == AugmentedTask(task, kinds=shares).fingerprint


def test_the_last_message_of_a_conversation_is_reworded():
    item = always("paraphrase", Conversations())[1]
    assert item.prompt[0] == Conversations()[1].prompt[0]
    assert "What is the number after 1?" in item.prompt[1]["content"]
    assert len(item.prompt[1]["content"]) > len("What is the number after 1?")


def test_a_configuration_augments_the_training_split_alone():
    options = {"task": "parity", "options": {"size": 40}, "kinds": ["vague"], "probability": 1.0}
    train, test = (make_task("augmented", split=split, **options) for split in ("train", "test"))
    assert {i.columns["augmentation"] for i in iterate(train)} == {"vague"}
    assert [i.prompt for i in iterate(test)] == [
        i.prompt for i in iterate(make_task("parity", split="test", size=40))
    ]
    twice = make_task("augmented", task="parity", kinds={"typos": 0.1}, epochs=2)
    assert len(twice) == 2 * len(make_task("parity"))
    both = make_task("augmented", split="test", splits=["train", "test"], **options)
    assert {i.columns["augmentation"] for i in iterate(both)} == {"vague"}


def test_the_info_of_an_environment_says_what_was_done():
    options = {"task": "parity", "kinds": {"vague": 1.0}}
    env = gym.make("instructrec/Instruction-v0", task="augmented", task_options=options)
    _, info = env.reset(seed=1)
    assert info["augmentation"] == "vague"
    assert env.step("even")[-1]["augmentation"] == "vague"
    envs = gym.make_vec(
        "instructrec/Instruction-v0", num_envs=3, task="augmented", task_options=options
    )
    _, info = envs.reset(seed=1)
    assert list(info["augmentation"]) == ["vague"] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": {"typo": 0.1}}, "Did you mean 'typos'"),
        ({"kinds": {"typos": 2}}, "from 0 to 1"),
        ({"kinds": {"typos": 0.6, "vague": 0.6}}, "add up to 1.2"),
        ({"kinds": []}, "kinds is empty: expected one or more of typos"),
        ({"epochs": 0}, "epochs is an integer >= 1"),
        ({"splits": ["tests"]}, "unknown split 'tests'"),
        ({"task": "paritty"}, "Did you mean 'parity'"),
    ],
)
def test_impossible_augmentations_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        make_task("augmented", **options)


class Graded(Conversations):
    """Knows how hard a conversation is before it is made."""

    def labels(self, index):
        return {"level": index}


def test_labels_pass_through_in_every_epoch():
    task = always("typos", Graded(), epochs=2)
    assert [labels_of(task, index)["level"] for index in range(6)] == [0, 1, 2, 0, 1, 2]
    assert labels_of(always("typos", Conversations()), 1)["reference"] == "2"
