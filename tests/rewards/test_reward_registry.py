"""Finding rewards by name, by module and by file, and what every mistake answers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from instructrec.errors import ConfigError
from instructrec.rewards import (
    RewardFunction,
    list_rewards,
    make_reward,
    make_rewards,
    register_reward,
    reward_info,
)
from instructrec.rewards.registry import spec_text

POLITE = """
from dataclasses import dataclass
from instructrec.rewards import register_reward
LIMIT = 3

@register_reward("file_politeness", range=(0, 1))
def politeness(completions, *, word: str = "please", **columns) -> list[float]:
    return [float(word in text) for text in completions]

@dataclass
class Bonus:
    size: float
    def __call__(self, completions, **columns):
        return [self.size for _ in completions]

def make_bonus(size):
    return Bonus(size)
"""


@pytest.fixture
def polite_file(tmp_path: Path) -> Path:
    path = tmp_path / "polite_rewards.py"
    path.write_text(POLITE.replace("file_politeness", registered_name(path)))
    return path


def registered_name(path: Path) -> str:
    """A name of its own for each test: two files must not register the same one."""
    return path.parent.name.lower()


def test_built_ins_are_known_by_name():
    assert {"exact_match", "bleu", "learned"} <= set(list_rewards())
    assert reward_info("bleu").range == (0.0, 1.0)
    assert reward_info("learned").range is None


def test_a_registered_function_stays_as_it_is_and_is_found_by_name():
    @register_reward("registry_length", range=(0, 10), requires=("limit",))
    def length(completions, **columns):
        return [float(len(text)) for text in completions]

    assert length(["abc"]) == [3.0]
    reward = make_reward("registry_length")
    assert isinstance(reward, RewardFunction)
    assert reward.__name__ == "registry_length"
    assert reward.required_columns == ("limit",)
    assert reward.info.range == (0.0, 10.0)
    assert reward(["p"], ["abc"], limit=[1]) == [3.0]


def test_a_second_reward_of_the_same_name_is_refused_unless_it_overrides():
    def first(completions, **columns):
        return [1.0] * len(completions)

    def second(completions, **columns):
        return [2.0] * len(completions)

    register_reward("registry_taken")(first)
    with pytest.raises(ConfigError, match=r"'registry_taken' exists already .*override=True"):
        register_reward("registry_taken")(second)
    with pytest.raises(ConfigError, match=r"'bleu' exists already"):
        register_reward("bleu")(second)
    register_reward("registry_taken", override=True)(second)
    assert make_reward("registry_taken")(["p"], ["c"]) == [2.0]


@pytest.mark.parametrize("name", ["Polite", "polite-ness", "", "a b", "höflich", "a.b", "a\n"])
def test_malformed_names_are_refused(name):
    with pytest.raises(ConfigError, match=r"lower-case letters, digits and underscores"):
        register_reward(name)


@pytest.mark.parametrize("name", ["total", "renormalise"])
def test_reserved_names_are_refused(name):
    with pytest.raises(ConfigError, match=r"reserved"):
        register_reward(name)


@pytest.mark.parametrize("limits", [(1, 0), (0,), "ab", 3, (0, float("nan"))])
def test_a_range_that_is_none_is_refused(limits):
    with pytest.raises(ConfigError, match=r"range = .*lowest, highest"):
        register_reward("registry_ranged", range=limits)


def test_other_arguments_of_the_decorator_are_checked():
    with pytest.raises(ConfigError, match=r"requires = 'answer'"):
        register_reward("registry_args", requires="answer")
    with pytest.raises(ConfigError, match=r"format = 'json'"):
        register_reward("registry_args", format="json")
    with pytest.raises(ConfigError, match=r"cannot be called"):
        register_reward("registry_args")(3)


def test_an_unknown_name_suggests_a_close_one_and_lists_all():
    with pytest.raises(
        ConfigError, match=r"unknown reward 'exact_mach'.*Did you mean 'exact_match'.*bleu"
    ):
        make_reward("exact_mach")


def test_a_reward_is_loaded_from_a_file(polite_file):
    reward = make_reward(f"{polite_file}:politeness", word="thanks")
    assert reward.__name__ == registered_name(polite_file)
    assert reward.info.range == (0.0, 1.0)
    assert reward(["p", "p"], ["thanks", "please"]) == [1.0, 0.0]


def test_relative_paths_start_at_the_working_folder(polite_file, monkeypatch):
    monkeypatch.chdir(polite_file.parent)
    assert make_reward("polite_rewards.py:politeness")(["p"], ["please"]) == [1.0]
    assert spec_text(make_reward("polite_rewards.py:politeness").info.target) == (
        f"{polite_file}:politeness"
    )


def test_a_file_that_registers_can_be_loaded_again_and_after_an_edit(polite_file):
    spec = f"{polite_file}:politeness"
    first, again = make_reward(spec), make_reward(spec)
    assert first.function is again.function
    polite_file.write_text(polite_file.read_text().replace("float(word in text)", "0.5"))
    assert make_reward(spec)(["p"], ["please"]) == [0.5]
    assert make_reward(registered_name(polite_file))(["p"], ["please"]) == [0.5]


def test_a_file_also_imported_under_its_own_name_does_not_clash(polite_file, monkeypatch):
    make_reward(f"{polite_file}:politeness")
    monkeypatch.syspath_prepend(polite_file.parent)
    import polite_rewards

    assert make_reward("polite_rewards:politeness").function is polite_rewards.politeness


def test_classes_and_factories_take_their_options(polite_file):
    assert make_reward(f"{polite_file}:Bonus", size=0.25)(["p"], ["c"]) == [0.25]
    assert make_reward(f"{polite_file}:make_bonus", size=0.5)(["p"], ["c"]) == [0.5]
    with pytest.raises(ConfigError, match=r"'bonus' needs the option 'size'"):
        make_reward(f"{polite_file}:Bonus")
    with pytest.raises(ConfigError, match=r"reads no completions.*'size'.*f\(completions"):
        make_reward(f"{polite_file}:make_bonus")


def test_a_file_beside_the_loaded_one_can_be_imported_by_it(tmp_path):
    (tmp_path / "sibling_words.py").write_text("WORD = 'hi'\n")
    (tmp_path / "main_reward.py").write_text(
        "from sibling_words import WORD\n"
        "def greets(completions, **columns):\n    return [float(WORD in c) for c in completions]\n"
    )
    before = list(sys.path)
    assert make_reward(f"{tmp_path}/main_reward.py:greets")(["p"], ["hi"]) == [1.0]
    assert sys.path == before


def test_a_missing_file_names_the_files_that_exist(polite_file):
    with pytest.raises(
        ConfigError, match=r"no file .*polite_reward\.py.*Did you mean 'polite_rewards.py'"
    ):
        make_reward(f"{polite_file.parent}/polite_reward.py:politeness")
    with pytest.raises(ConfigError, match=r"no file 'nowhere/at_all.py'"):
        make_reward("nowhere/at_all.py:f")


def test_a_missing_attribute_names_what_the_file_defines(polite_file):
    with pytest.raises(
        ConfigError,
        match=r"no 'politenes'. Did you mean 'politeness'\? It defines: Bonus, make_bonus, polite",
    ):
        make_reward(f"{polite_file}:politenes")


def test_an_attribute_that_is_no_function_is_refused(polite_file):
    with pytest.raises(ConfigError, match=r"LIMIT is 3 \(int\); expected a function or class"):
        make_reward(f"{polite_file}:LIMIT")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\nimport not_a_module_at_all\n", r"\(line 2\): ModuleNotFoundError"),
        ("def f(:\n", r"\(line 1\): SyntaxError"),
        ("\n\n1 / 0\n", r"\(line 3\): ZeroDivisionError"),
        ("raise SystemExit(2)\n", "SystemExit: 2"),
    ],
)
def test_a_file_that_does_not_import_names_line_and_cause(tmp_path, source, message):
    path = tmp_path / "broken.py"
    path.write_text(source)
    for _ in range(2):  # the second attempt must not find a half-made module
        with pytest.raises(
            ConfigError,
            match=f"broken.py does not import {message}" if "line" in message else message,
        ):
            make_reward(f"{path}:f")
    path.write_text("def f(completions, **columns):\n    return [1.0 for _ in completions]\n")
    assert make_reward(f"{path}:f")(["p"], ["c"]) == [1.0]


def test_a_file_without_attribute_says_how_to_name_one(polite_file):
    with pytest.raises(
        ConfigError, match=r"To use a function of a file, name both: .*polite_rewards.py:my_reward"
    ):
        make_reward(str(polite_file))


def test_modules_are_imported_by_name():
    assert make_reward("instructrec.rewards.exact:exact_match").__name__ == "exact_match"
    with pytest.raises(
        ConfigError,
        match=r"'no_such_package.mod' does not import.*no_such_package/mod\.py:my_reward",
    ):
        make_reward("no_such_package.mod:f")
    with pytest.raises(ConfigError, match=r"exact has no 'exact_mtch'. Did you mean 'exact_match'"):
        make_reward("instructrec.rewards.exact:exact_mtch")


@pytest.mark.parametrize("spec", [":f", "module:", "a:b c"])
def test_half_a_spec_is_refused(spec):
    with pytest.raises(ConfigError, match=r"expected 'module:attr' or 'file.py:attr'"):
        make_reward(spec)


@pytest.mark.parametrize("spec", [3, None, ["exact_match"]])
def test_other_types_are_refused(spec):
    with pytest.raises(ConfigError, match=r"expected a name, 'module:attr'"):
        make_reward(spec)


def test_unknown_options_suggest_close_ones():
    with pytest.raises(
        ConfigError,
        match=r"no option 'tokenise'. Did you mean 'tokenize'\? Options: tokenize, lowercase",
    ):
        make_reward("bleu", tokenise="13a")
    with pytest.raises(ConfigError, match=r"no option 'refrence_column'.*Did you mean 'reference'"):
        make_reward("bleu", refrence_column="answer")
    with pytest.raises(ConfigError, match=r"reference_column = 3; expected the name of a column"):
        make_reward("bleu", reference_column=3)
    with pytest.raises(ConfigError, match=r"'learned' needs the option 'path'"):
        make_reward("learned")


def test_a_function_that_cannot_be_a_reward_is_explained():
    def takes_texts(texts):
        return [1.0]

    def positional(completions, /):
        return [1.0]

    def makes_nothing():
        return 3

    with pytest.raises(ConfigError, match=r"'takes_texts' reads no completions.*'texts'"):
        make_reward(takes_texts)
    with pytest.raises(ConfigError, match=r"positional-only parameters"):
        make_reward(positional)
    with pytest.raises(ConfigError, match=r"gave int, which cannot be called"):
        make_reward(makes_nothing)


def test_a_name_can_be_derived_from_any_function():
    assert make_reward(lambda completions, **columns: [1.0]).__name__ == "lambda"
    assert make_rewards(lambda completions, **columns: [1.0]).names == ["lambda"]


def test_specs_lead_another_process_to_the_same_reward(polite_file, tmp_path):
    combined = make_rewards(
        {
            "exact_match": 1,
            "polite": {"use": f"{polite_file}:politeness", "options": {"word": "yes"}},
        }
    )
    script = tmp_path / "other_process.py"
    script.write_text(
        "import json, sys\n"
        "from instructrec.rewards import make_rewards\n"
        "rewards = make_rewards(json.loads(sys.argv[1]))\n"
        "print(rewards.score(['p'], ['yes'], {'reference': ['yes']}).total.tolist())\n"
    )
    import json

    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, script, json.dumps(combined.spec)], capture_output=True, text=True, env=env
    )
    assert run.stdout.strip() == "[2.0]", run.stderr


def test_a_function_inside_a_function_has_no_spec():
    def inner(completions, **columns):
        return [1.0]

    with pytest.raises(ConfigError, match=r"cannot be written into a config"):
        _ = make_rewards({"inner": inner}).spec


def test_two_files_that_register_one_name_clash(polite_file, tmp_path):
    make_reward(f"{polite_file}:politeness")
    (tmp_path / "copied.py").write_text(polite_file.read_text())
    with pytest.raises(
        ConfigError,
        match=r"copied.py does not import .*exists already \(.*polite_rewards.py:politeness",
    ):
        make_reward(f"{tmp_path}/copied.py:politeness")


def test_a_module_that_ends_the_program_does_not_import(tmp_path, monkeypatch):
    (tmp_path / "reward_that_leaves.py").write_text("import sys\nsys.exit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"'reward_that_leaves' does not import: SystemExit: 3"):
        make_reward("reward_that_leaves:mine")
