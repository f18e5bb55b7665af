"""What the header of every shipped recipe tells whoever is about to run it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import instructrec.experiments

HOME = Path(instructrec.experiments.__file__).parent
RECIPES = sorted((HOME / "recipes").glob("*.yaml"))
PARTS = ["Question", "Command", "Cost", "On a GPU", "Result", "Look at"]
INTERVAL = r"\[[-+]?[\d.]+, [-+]?[\d.]+\]"
NONE_YET = "not measured"
PROGRAM = r"instructrec (train|sft|dpo|train-reward|pipeline) "


def header(recipe: Path) -> dict[str, str]:
    """Label -> text of the comment that a recipe begins with, lines joined."""
    parts: dict[str, str] = {}
    for line in recipe.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if found := re.match(r"# (\w[\w ]*): +(\S.*)", line):
            parts[found[1]] = found[2]
        else:
            parts[list(parts)[-1]] += " " + line.removeprefix("#").strip()
    return parts


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_header_says_what_is_asked_typed_paid_expected_and_looked_at(recipe: Path) -> None:
    parts = header(recipe)
    assert list(parts) == PARTS
    assert "?" in parts["Question"]
    assert re.search(rf"{PROGRAM}{recipe.stem}\b", parts["Command"])
    assert "CPU core" in parts["Cost"] or NONE_YET in parts["Cost"]
    assert parts["On a GPU"] == "not run." or re.search(r"\d", parts["On a GPU"])
    assert re.search(INTERVAL, parts["Result"]) or parts["Result"].startswith(NONE_YET)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_figures_of_a_header_stand_in_the_results(recipe: Path) -> None:
    result = header(recipe)["Result"]
    place = HOME / "results"
    named = [place / name for name in re.findall(r"results/(\w+\.md)", result)]
    known = "".join(file.read_text(encoding="utf-8") for file in {*named, place / "LOG.md"})
    assert not [figure for figure in re.findall(r"\d\.\d{3}", result) if figure not in known]


def test_the_figures_of_the_overview_stand_in_the_file_that_its_item_names() -> None:
    place = HOME / "results"
    text = (place / "overview.md").read_text(encoding="utf-8")
    for item in re.split(r"\n(?=[-|#\n])", text):  # a row, or a point of a list
        named = {place / name for name in re.findall(r"\]\((\w+\.md)\)", item)}
        known = "".join(file.read_text(encoding="utf-8") for file in named)
        assert not [fig for fig in re.findall(r"\d\.\d{3}", item) if fig not in known], item
