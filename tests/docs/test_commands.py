"""Commands that the pages and the headers of recipes show: they exist, with these options."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from instructrec.experiments import command_line
from instructrec.experiments.cli import COMMANDS, command_parser

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("docs/*.md"), ROOT / "README.md"])
RECIPES = sorted(ROOT.glob("experiments/recipes/*.yaml"))
READERS_OWN = ("base.yaml", "mine.yaml", "from_trl.yaml", "new_recipe")
"""Recipes that a reader has written."""


def typed(page: Path) -> list[str]:
    """Commands at a prompt, continuation lines joined."""
    blocks = re.findall(r"^```console\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ instructrec ")]


def in_a_header(recipe: Path) -> list[str]:
    """Commands of a recipe's header, remarks in brackets taken out."""
    comment = "".join(re.findall(r"^#.*\n", recipe.read_text(), re.MULTILINE))
    found = re.search(r"^# Command: (.*?)^# [A-Z]", comment, re.DOTALL | re.MULTILINE)
    assert found is not None
    text = re.sub(r"\s\([^)]*\)|\\$|^#", " ", found[1], flags=re.MULTILINE)
    return re.findall(r"instructrec .*?(?=instructrec |$)", " ".join(text.split()))


def understand(line: str) -> None:
    """Parses a command as it would be; nothing runs.

    Raises:
        ConfigError: The command, a recipe, a key or a value does not exist.
    """
    words = shlex.split(line, comments=True)
    name, rest = words[1], words[2 : words.index(">") if ">" in words else None]
    if COMMANDS[name].takes_recipe:
        rest = command_line.recipes_to_config(rest)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        command_line.parse(command_parser(name), rest)  # --print_config exits


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the recipes that the pages take for granted."""
    monkeypatch.chdir(tmp_path)
    for name in READERS_OWN:
        Path(name).write_text("{}\n")


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_at_a_prompt_is_understood(page: Path) -> None:
    for line in typed(page):
        understand(line)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_every_command_of_a_recipe_is_understood(recipe: Path) -> None:
    lines = in_a_header(recipe)
    assert lines
    for line in lines:
        understand(line)


def inside(page: Path) -> Iterator[list[str]]:
    """Words of the commands in running text, with placeholders as they are."""
    for text in re.findall(r"`instructrec ([^`|]+)`", page.read_text()):
        yield text.split()


def keys_of(parser: argparse.ArgumentParser) -> set[str]:
    """Every key that a command takes, those of its own commands included."""
    inner = [a.choices.values() for a in parser._actions if isinstance(a.choices, dict)]
    keys = [keys_of(each) for group in inner for each in group]
    return set(command_line.known_keys(parser)).union(*keys)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_in_a_sentence_has_its_options(page: Path) -> None:
    for name, *rest in inside(page):
        assert name in COMMANDS, name
        options = [word.removeprefix("--") for word in rest if word.startswith("--")]
        known = keys_of(command_parser(name)) if options else set()
        for option in options:
            assert any(f"{option}.".startswith(f"{key}.") for key in known), f"{name} --{option}"


def test_commands_are_found_on_pages_and_in_headers() -> None:
    assert sum(len(typed(page)) for page in PAGES) > 50
    assert sum(len(list(inside(page))) for page in PAGES) > 30
    assert sum(len(in_a_header(recipe)) for recipe in RECIPES) > 25
