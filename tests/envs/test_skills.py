"""Skills: levels, languages, splits that share no prompt, and a reward that suits each answer."""

import json
import pickle
import re
from collections import Counter

import gymnasium as gym
import pytest
import yaml

from instructrec.envs.tasks.base import default_rewards, iterate, list_tasks, make_task
from instructrec.envs.tasks.partition import SPLITS
from instructrec.envs.tasks.skills.base import COLUMNS, Choices
from instructrec.envs.tasks.skills.catalog import SKILLS
from instructrec.envs.tasks.skills.names import CITIES, PEOPLE, cities_of, people_of
from instructrec.envs.tasks.vocabulary import CATEGORIES
from instructrec.errors import ConfigError
from instructrec.rewards import make_rewards

CELLS = [
    (family, level, language)
    for family, languages in SKILLS.items()
    for level in (1, 2, 3)
    for language in languages
]
NOUNS = {word for words in CATEGORIES.values() for word in words}


def cell(family, level, language, **options):
    return make_task(family, level=level, language=language, **options)


def score(task, items, responses):
    """Totals and parts of responses to items of a task, by its own rewards."""
    columns = {name: [item.columns[name] for item in items] for name in task.columns}
    return make_rewards(default_rewards(task)).score([i.prompt for i in items], responses, columns)


def test_the_families_are_known_by_name_and_two_are_written_in_chinese():
    assert {*SKILLS, "skills"} <= set(list_tasks())
    assert len(SKILLS) == 10
    assert [family for family, languages in SKILLS.items() if "zh" in languages] == [
        "date_reasoning",
        "unit_conversion",
    ]
    for family, level, language in CELLS:
        task = cell(family, level, language)
        assert type(task).languages == SKILLS[family]
        assert task.columns == COLUMNS
        item = task[0].columns
        assert (item["family"], item["level"], item["language"]) == (family, level, language)


@pytest.mark.parametrize(("family", "level", "language"), CELLS)
def test_splits_share_no_prompt_and_a_task_repeats_none(family, level, language):
    seen = {}
    for split in SPLITS:
        task = cell(family, level, language, split=split)
        seen[split] = {item.prompt for item in iterate(task)}
        assert len(seen[split]) == len(task) >= 279
    other_seed = {i.prompt for i in iterate(cell(family, level, language, seed=3))}
    assert not (seen["train"] | other_seed) & (seen["test"] | seen["validation"])
    assert not seen["test"] & seen["validation"]


@pytest.mark.parametrize(("family", "level", "language"), CELLS)
def test_what_a_split_is_about_belongs_to_it_alone(family, level, language):
    """Names, nouns and cities of one split occur in no other; so do the numbers that are keys."""
    known = NOUNS | set(PEOPLE) | set(CITIES)
    found, items = {}, {}
    for split in SPLITS:
        task = cell(family, level, language, split=split, size=600)
        words = {w for i in iterate(task) for w in re.findall(r"\w+", i.prompt)}
        found[split] = words & known - {"space", "line"}
        items[split] = {item.columns["item"] for item in iterate(task)}
    for one, other in [("train", "test"), ("train", "validation"), ("validation", "test")]:
        assert not found[one] & found[other]
        assert not items[one] & items[other]


class Phrased(Choices):
    """Chooses the same content always, and the text to put it into by a number."""

    def __init__(self, phrasing):
        super().__init__(0)
        self.phrasing = phrasing

    def one(self, options):
        is_text = all(isinstance(option, str) and "{" in option for option in options)
        return options[self.phrasing % len(options)] if is_text else super().one(options)


@pytest.mark.parametrize(("family", "level", "language"), CELLS)
def test_every_family_has_at_least_eight_phrasings(family, level, language):
    """The same question about the same thing is asked in eight ways, which all mean the same."""
    task = cell(family, level, language)
    made = [task.make(task.keys()[0], Phrased(number)) for number in range(8)]
    assert len({m.prompt for m in made}) == 8
    assert len({m.answer for m in made}) == 1


@pytest.mark.parametrize(("family", "level", "language"), CELLS)
def test_all_keys_have_the_same_number_of_variants(family, level, language):
    task = cell(family, level, language, split="validation")
    ways = set()
    for number, key in enumerate(task.keys()):
        choices = Choices(7919 * number)
        task.make(key, choices)
        ways.add(choices.ways)
    assert len(ways) == 1


@pytest.mark.parametrize(("family", "level", "language"), CELLS)
def test_the_answer_gets_full_marks_from_one_part_and_another_answer_does_not(
    family, level, language
):
    task = cell(family, level, language, split="test", size=60)
    items = list(iterate(task))
    batch = score(task, items, [item.columns["reference"] for item in items])
    assert batch.total.tolist() == [1.0] * 60
    judged = [
        name for item in items for name in ("exact", "overlap", "schema") if item.columns[name]
    ]
    assert len(judged) == 60
    wrong = score(task, items, ["nothing of the kind"] * 60)
    assert wrong.total.tolist() == [0.0] * 60


def test_json_answers_may_be_written_and_ordered_in_another_way():
    task = cell("entity_extraction", 3, "en", size=5)
    items = list(iterate(task))
    spaced, missing = [], []
    for item in items:
        value = json.loads(item.columns["reference"])
        turned = {"places": value["places"], "people": value["people"][::-1]}
        spaced.append(json.dumps(turned, indent=2))
        missing.append(json.dumps({**value, "people": value["people"][1:]}))
    assert score(task, items, spaced).total.tolist() == [1.0] * 5
    assert score(task, items, missing).total.tolist() == [0.0] * 5


def test_half_of_the_names_get_part_of_the_score():
    task = cell("entity_extraction", 2, "en", size=40)
    items = [i for i in iterate(task) if "people" in i.prompt]
    halves = [", ".join(i.columns["reference"].split(", ")[:2]) for i in items]
    assert score(task, items, halves).total.tolist() == pytest.approx([2 / 3] * len(items))


@pytest.mark.parametrize(("family", "level", "language"), CELLS)
def test_items_are_pure_functions_of_seed_and_index(family, level, language):
    small = cell(family, level, language, seed=4, size=30)
    large = cell(family, level, language, seed=4, size=200)
    assert [small[i] for i in range(30)] == [large[i] for i in reversed(range(30))][::-1]
    assert cell(family, level, language, seed=5, size=30)[3] != small[3]
    assert pickle.loads(pickle.dumps(small))[7] == small[7]


def test_levels_languages_sizes_and_seeds_have_fingerprints_of_their_own():
    tasks = [
        *(make_task("unit_conversion", level=level) for level in (1, 2, 3)),
        make_task("unit_conversion", language="zh"),
        make_task("unit_conversion", size=9),
        make_task("unit_conversion", seed=9),
        make_task("skills"),
        make_task("skills", levels=[2]),
        make_task("skills", languages=["en", "zh"]),
    ]
    assert len({task.fingerprint for task in tasks}) == len(tasks)


def test_the_mixture_has_equal_shares_of_what_was_asked_for():
    task = make_task("skills", levels=[1, 3], languages=["en", "zh"], split="test", size=240)
    counts = Counter(
        (i.columns["family"], i.columns["level"], i.columns["language"]) for i in iterate(task)
    )
    assert len(counts) == 2 * (10 + 2)
    assert set(counts.values()) == {10}
    assert len({i.id for i in iterate(task)}) == 240
    chosen = make_task("skills", families=["counting", "ordering"], size=4)
    assert [i.columns["family"] for i in iterate(chosen)] == ["counting", "ordering"] * 2
    assert chosen[2] == make_task("counting", size=2)[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"families": ["countin"]}, "Did you mean 'counting'"),
        ({"families": []}, "list of one or more"),
        ({"levels": [4]}, "level is 4; expected one of 1, 2, 3"),
        ({"levels": [1, 1]}, "each once"),
        ({"languages": "zh"}, "list of one or more"),
        ({"languages": ["fr"]}, "unknown language 'fr'"),
        ({"families": ["counting"], "languages": ["zh"]}, "'counting' is written in en, not in zh"),
    ],
)
def test_impossible_mixtures_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        make_task("skills", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"level": 0}, "level is 0"), ({"level": True}, "level"), ({"language": "zh"}, "language")],
)
def test_impossible_levels_and_languages_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        make_task("ordering", **options)


def test_an_environment_judges_by_the_tasks_own_rewards():
    envs = gym.make_vec("instructrec/Skills-v0", num_envs=10)
    envs.reset(seed=1, options={"index": list(range(10))})
    right = [instruction.columns["reference"] for instruction in envs.unwrapped.instructions]
    assert envs.step(right)[1].tolist() == [1.0] * 10
    plain = gym.make("instructrec/Skills-v0", reward="exact_match")
    assert plain.unwrapped.reward.names == ["exact_match"]
    assert gym.make("instructrec/Parity-v0").unwrapped.reward.names == ["exact_match"]


def test_names_are_single_words_that_mean_nothing_else():
    assert not set(PEOPLE) & set(CITIES)
    assert all(re.fullmatch("[A-Z][a-z]+", name) for name in PEOPLE + CITIES)
    assert not {name.lower() for name in PEOPLE + CITIES} & NOUNS
    for names in (people_of, cities_of):
        assert min(len(names(split)) for split in SPLITS) >= 7
    assert "Ada" not in people_of("train", "Ada")


def test_the_examples_of_the_page_run_and_name_the_rewards_of_the_skills(root):
    text = (root / "docs" / "tasks.md").read_text(encoding="utf-8")
    namespace = {}
    exec(re.search(r"```python\n(.*?)```", text, flags=re.DOTALL)[1], namespace)
    assert namespace["one"].name == "unit_conversion_zh3"
    blocks = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    rewards, _, augmented, mixture = (yaml.safe_load(block) for block in blocks)
    assert rewards["rewards"] == default_rewards(namespace["task"])
    assert len(make_task(augmented["task"]["name"], **augmented["task"]["options"])) == 3 * 4096
    del mixture["task"]["options"]["tasks"]["quiz"]  # its file is the reader's
    assert len(make_task(mixture["task"]["name"], **mixture["task"]["options"])) == 4096 + 486
    assert all(f"| `{family}` |" in text for family in SKILLS)
