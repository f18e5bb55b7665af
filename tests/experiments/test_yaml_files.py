"""Settings in YAML hold values only, and no more of them than settings need."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from instructrec.errors import CheckpointError, ConfigError, DataError
from instructrec.experiments.cli import main
from instructrec.experiments.command_line import find_recipe
from instructrec.experiments.jsonl import read_json, read_rows
from instructrec.experiments.yaml_files import TooMuchYaml, parse_yaml, read_config

LETTERS = "abcdefgh"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in pairwise(LETTERS)
)
HOSTILE = {
    "tag": ("name: !!python/object/apply:os.system ['touch pwned']", "constructor for the tag"),
    "bomb": (BOMB, "with its aliases written out"),
    "deep": ("name: " + "[" * 50_000, "nested more than 100 deep"),
    "itself": ("name: &a [*a]", "contains itself"),
    "long": (f"name: {'x' * 2**21}", "longer than"),
    "no such number": ("name: !!int x", "invalid literal for int"),
    "no such truth": ("name: !!bool x", "a value that there is not"),
    "no such time": ("name: !!timestamp x", "a value that there is not"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_settings_are_refused_at_once(kind: str) -> None:
    text, reason = HOSTILE[kind]
    with pytest.raises(yaml.YAMLError, match=reason):
        parse_yaml(text)


def test_a_day_that_no_calendar_has_is_an_error_of_yaml() -> None:
    with pytest.raises(yaml.YAMLError, match="day is out of range"):
        parse_yaml("name: 2026-02-30")


def test_aliases_are_counted_as_often_as_they_are_named() -> None:
    kept = "base: &base {a: 1, b: [2, 3]}\nfirst: *base\nsecond: {<<: *base, a: 4}\n"
    assert parse_yaml(kept)["second"] == {"a": 4, "b": [2, 3]}
    many = f"base: &base {list(range(999))}\n" + "".join(f"k{i}: *base\n" for i in range(100))
    with pytest.raises(TooMuchYaml):
        parse_yaml(many)
    assert len(parse_yaml(many.rpartition("k98")[0])) == 99


@pytest.mark.parametrize("given", ["{}", "--config={}"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_recipes_end_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, given: str, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    text, reason = HOSTILE[kind]
    Path("recipe.yaml").write_text(text)
    assert main(["train", given.format("recipe.yaml"), "--print_config"]) == 2
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1 and len(error) < 500
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_hostile_settings_of_a_run_folder_are_refused(tmp_path: Path) -> None:
    for text, reason in HOSTILE.values():
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(CheckpointError, match=reason):
            read_config(tmp_path)
        with pytest.raises(ConfigError, match=reason):
            find_recipe(str(tmp_path / "config.yaml"))


def test_json_without_end_of_nesting_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "deep.json"
    file.write_text('{"a": ' + "[" * 200_000 + "]" * 200_000 + "}\n")
    with pytest.raises(CheckpointError, match=r"deep\.json"):
        read_json(file)
    with pytest.raises(DataError, match=r"deep\.json, line 1"):
        read_rows(file)
