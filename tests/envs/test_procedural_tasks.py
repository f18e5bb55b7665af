"""Procedural families: splits share nothing, items never change, answers are right."""

import hashlib
import json
import pickle
import random
import re
from collections import Counter

import numpy as np
import pytest

from instructrec.envs.tasks import (
    arithmetic,
    category,
    compare_numbers,
    odd_one_out,
    parity,
    swap_words,
)
from instructrec.envs.tasks.base import iterate, make_task
from instructrec.envs.tasks.mixture import CLOSED_FAMILIES, FAMILIES
from instructrec.envs.tasks.partition import SPLITS, numbers_of, permute
from instructrec.envs.tasks.vocabulary import CATEGORIES, with_article, words_in, words_of
from instructrec.errors import ConfigError

ALL_NAMES = (*FAMILIES, "closed_answers")
NOUNS = frozenset(word for words in CATEGORIES.values() for word in words)


# Changing words, phrasings or their order changes results: raise procedural.VERSION with these.
GOLDEN = [
    "Is a kangaroo best called a tool, a vehicle or an animal?",
    "Which one is not a kind of tool: muffin, hoe or wrench?",
    "Swap the two words: sailor doctor",
    "Which number is the larger one: 35 or 38?",
    "Would you call 54 even or odd?",
    "Calculate 145 minus 91.",
]


# The committed results of the quickstart were measured on exactly these items.
DIGESTS = {
    ("closed_answers", "train"): "9ce4ff19d4eb523b",
    ("closed_answers", "validation"): "9f6a8d61290aa843",
    ("closed_answers", "test"): "a2bc8b17466a7b0f",
    ("arithmetic", "train"): "e4761661d16fb3a7",
    ("arithmetic", "validation"): "f410fc0573901cdd",
    ("arithmetic", "test"): "203b1c35a8eef6d4",
}


def contents(task):
    """Every noun and number that a task's prompts, answers and item keys mention."""
    found = set()
    for instruction in iterate(task):
        columns = instruction.columns
        text = f"{instruction.prompt} {columns['reference']} {columns['item']}".lower()
        found |= {token for token in re.findall(r"[a-z]+|\d+", text) if token in NOUNS}
        found |= set(re.findall(r"\d+", text))
    return found


@pytest.mark.parametrize("name", ALL_NAMES)
def test_no_word_or_number_of_one_split_occurs_in_another(name):
    seen = {split: contents(make_task(name, split=split, size=2000)) for split in SPLITS}
    assert all(len(found) >= 10 for found in seen.values())
    for one, other in [("train", "test"), ("train", "validation"), ("validation", "test")]:
        assert not seen[one] & seen[other]


def test_splits_are_disjoint_across_families_and_seeds():
    train = set().union(*(contents(make_task(name, seed=5, size=2000)) for name in FAMILIES))
    for name in FAMILIES:
        assert not train & contents(make_task(name, split="test", seed=9, size=500))


def test_vocabulary_is_large_unique_and_split_with_enough_words():
    assert len(CATEGORIES) >= 5
    assert len(NOUNS) == sum(len(words) for words in CATEGORIES.values())
    assert not NOUNS & CATEGORIES.keys()
    for name, words in CATEGORIES.items():
        assert len(words) >= 60
        assert all(word.isascii() and word.isalpha() and word.islower() for word in words)
        parts = [words_of(name, split) for split in SPLITS]
        assert [len(parts[1]) >= 6, len(parts[2]) >= 12] == [True, True]
        assert len(parts[0]) > 0.6 * len(words)
        assert sorted(word for part in parts for word in part) == sorted(words)
    assert {category for _, category in words_in("test")} == set(CATEGORIES)


def test_numbers_are_split_evenly_and_half_of_them_are_even():
    for low, high in [(100, 999), (300, 399)]:
        parts = {split: numbers_of(split, low, high) for split in SPLITS}
        assert sorted(n for part in parts.values() for n in part) == list(range(low, high + 1))
        assert [round(100 * len(parts[s]) / (high - low + 1)) for s in SPLITS] == [60, 16, 24]
        assert all(sum(n % 2 for n in part) * 2 == len(part) for part in parts.values())
    assert numbers_of("test", 320, 350) == tuple(
        n for n in numbers_of("test", 0, 999) if 320 <= n <= 350
    )


def test_phrasings_hold_no_noun_of_the_vocabulary():
    families = (category, odd_one_out, swap_words, compare_numbers, parity)
    texts = [text.lower() for family in families for text in family.PHRASINGS]
    assert {token for text in texts for token in re.findall(r"[a-z]+", text)} & NOUNS == set()


@pytest.mark.parametrize(
    "phrasings",
    [
        category.PHRASINGS,
        odd_one_out.PHRASINGS,
        swap_words.PHRASINGS,
        compare_numbers.PHRASINGS,
        parity.PHRASINGS,
        arithmetic.SUM_PHRASINGS,
        arithmetic.DIFFERENCE_PHRASINGS,
    ],
)
def test_every_family_has_eight_phrasings(phrasings):
    assert len(set(phrasings)) >= 8


@pytest.mark.parametrize("name", ALL_NAMES)
@pytest.mark.parametrize("split", SPLITS)
def test_the_first_prompts_are_short_and_all_different(name, split):
    task = make_task(name, split=split)
    prompts = [task[i].prompt for i in range(min(512, len(task)))]
    assert len(set(prompts)) == len(prompts) >= 144
    assert max(len(prompt.split()) for prompt in prompts) <= 14


@pytest.mark.parametrize("name", FAMILIES)
def test_a_task_of_default_size_repeats_no_prompt(name):
    task = make_task(name)
    assert len({i.prompt for i in iterate(task)}) == len(task) == min(4096, task.num_unique)


@pytest.mark.parametrize("name", ALL_NAMES)
def test_items_are_pure_functions_of_name_split_seed_and_index(name):
    small, large = make_task(name, seed=4, size=40), make_task(name, seed=4, size=400)
    backwards = [large[i] for i in reversed(range(40))][::-1]
    assert [small[i] for i in range(40)] == backwards
    assert [i.prompt for i in iterate(make_task(name, seed=5, size=40))] != [
        i.prompt for i in backwards
    ]
    assert len({i.id for i in iterate(large)}) == 400
    assert pickle.loads(pickle.dumps(small))[7] == small[7]
    assert small[np.int64(7)] == small[7]


def test_items_are_the_same_on_every_machine():
    assert [make_task(name, split="test", size=1)[0].prompt for name in FAMILIES] == GOLDEN


@pytest.mark.parametrize(("name", "split"), DIGESTS)
def test_every_item_of_the_first_families_is_the_one_that_was_measured(name, split):
    digest = hashlib.sha256()
    for item in iterate(make_task(name, split=split)):
        row = [item.id, item.prompt, dict(item.columns)]
        digest.update(json.dumps(row, sort_keys=True).encode())
    assert digest.hexdigest()[:16] == DIGESTS[name, split]


@pytest.mark.parametrize("name", ALL_NAMES)
def test_making_tasks_and_items_touches_no_global_generator(name):
    random.seed(1)
    np.random.seed(1)
    before = random.getstate(), np.random.get_state()[1].tobytes()
    list(iterate(make_task(name, size=30)))
    assert (random.getstate(), np.random.get_state()[1].tobytes()) == before


@pytest.mark.parametrize("size", [5, 37, 500])
def test_any_prefix_of_the_mixture_is_balanced(size):
    families = [i.columns["family"] for i in iterate(make_task("closed_answers", size=size))]
    counts = Counter(families)
    assert set(counts) == set(CLOSED_FAMILIES)
    assert max(counts.values()) - min(counts.values()) <= 1
    assert tuple(families[:5]) == CLOSED_FAMILIES


def test_the_mixture_takes_other_families_and_has_its_own_fingerprint():
    mixture = make_task("closed_answers", families=["parity", "arithmetic"], size=4)
    names = [i.columns["family"] for i in iterate(mixture)]
    assert names == ["parity", "arithmetic", "parity", "arithmetic"]
    assert mixture[2] == make_task("parity", size=2)[1]
    assert mixture.fingerprint != make_task("closed_answers", size=4).fingerprint


@pytest.mark.parametrize(
    ("families", "message"),
    [
        (["paritty"], "Did you mean 'parity'"),
        (["parity", "parity"], "once"),
        ([], "list of one or more"),
        ("parity", "list of one or more"),
    ],
)
def test_impossible_mixtures_are_refused(families, message):
    with pytest.raises(ConfigError, match=message):
        make_task("closed_answers", families=families)


@pytest.mark.parametrize("name", ALL_NAMES)
def test_fingerprint_tells_split_seed_and_size_apart(name):
    variants = [
        {},
        {"split": "test"},
        {"seed": 1},
        {"size": 7},
    ]
    prints = {make_task(name, **variant).fingerprint for variant in variants}
    assert len(prints) == 4
    assert make_task(name).fingerprint in prints


@pytest.mark.parametrize("name", FAMILIES)
def test_each_key_comes_once_per_round(name):
    task = make_task(name, split="test", size=3000)
    num_keys = len(task.keys())
    items = [i.columns["item"] for i in iterate(task)]
    first, second = Counter(items[:num_keys]), Counter(items[num_keys : 2 * num_keys])
    if name != "compare_numbers":  # clustered by the smaller number, not by the first
        assert set(first.values()) == {1}
        assert first == second


@pytest.mark.parametrize("split", SPLITS)
def test_category_answers_are_right_and_offered(split):
    for instruction in iterate(make_task("category", split=split)):
        word, answer = instruction.columns["item"], instruction.columns["reference"]
        assert word in CATEGORIES[answer]
        offered = [c for c in CATEGORIES if re.search(rf"\b{c}\b", instruction.prompt.lower())]
        assert len(offered) == 3 and answer in offered


def test_category_answers_are_balanced_over_kinds_and_places():
    places, kinds = Counter(), Counter()
    task = make_task("category", size=1620)
    for instruction in iterate(task):
        prompt, answer = instruction.prompt.lower(), instruction.columns["reference"]
        positions = sorted(
            (m.start(), c) for c in CATEGORIES for m in re.finditer(rf"\b{c}\b", prompt)
        )
        places[[c for _, c in positions].index(answer)] += 1
        kinds[answer] += 1
    assert set(kinds.values()) == {270}
    assert all(0.28 < count / len(task) < 0.39 for count in places.values())


def test_odd_words_are_the_only_ones_of_another_kind():
    for instruction in iterate(make_task("odd_one_out", size=600)):
        kind = next(c for c in CATEGORIES if re.search(rf"\b{c}\b", instruction.prompt))
        words = [w for w in re.findall(r"[a-z]+", instruction.prompt) if w in NOUNS]
        odd = [word for word in words if word not in CATEGORIES[kind]]
        assert len(words) == 3
        assert odd == [instruction.columns["reference"]]


def test_swapped_words_are_the_prompts_last_two_in_reverse():
    for instruction in iterate(make_task("swap_words", size=600)):
        first, second = instruction.prompt.split()[-2:]
        assert instruction.columns["reference"] == f"{second} {first}"
        assert first != second and {first, second} <= NOUNS


def test_compared_numbers_have_the_right_answer_in_either_place():
    first = 0
    for instruction in iterate(make_task("compare_numbers", size=600)):
        a, b = map(int, re.findall(r"\d+", instruction.prompt))
        assert a != b and "larger" in instruction.prompt
        assert instruction.columns["reference"] == str(max(a, b))
        assert instruction.columns["item"] == str(min(a, b))
        first += a > b
    assert 200 < first < 400


def test_parity_answers_are_right():
    for instruction in iterate(make_task("parity", size=600)):
        number = int(re.search(r"\d+", instruction.prompt)[0])
        assert 10 <= number <= 99
        assert instruction.columns["reference"] == ("odd" if number % 2 else "even")


def test_arithmetic_answers_are_right():
    seen = Counter()
    for instruction in iterate(make_task("arithmetic", size=600)):
        prompt = instruction.prompt
        a, b = map(int, re.findall(r"\d+", prompt))
        if re.search(r"\+|[Aa]dd|plus|sum", prompt):
            answer = a + b
        else:
            reverse = "from" in prompt  # "Subtract b from a."
            answer = b - a if reverse else a - b
        seen[answer == int(instruction.columns["reference"])] += 1
    assert seen == {True: 600}


@pytest.mark.parametrize(
    ("word", "expected"),
    [("whale", "a whale"), ("axe", "an axe"), ("university", "a university")],
)
def test_articles(word, expected):
    assert with_article(word) == expected


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 100, 1000])
def test_permute_is_a_bijection_that_its_key_chooses(size):
    images = [permute(i, size, "key") for i in range(size)]
    assert sorted(images) == list(range(size))
    if size >= 64:
        assert images != list(range(size))
        assert images != [permute(i, size, "other key") for i in range(size)]


@pytest.mark.parametrize("index", [-1, 10, 11])
def test_an_index_outside_the_task_raises_index_error(index):
    with pytest.raises(IndexError, match=r"items 0\.\.9"):
        make_task("parity", size=10)[index]


@pytest.mark.parametrize("size", [0, -3, 2.5, True, "many"])
def test_an_impossible_size_is_refused(size):
    with pytest.raises(ConfigError, match="size is the number of items"):
        make_task("parity", size=size)
