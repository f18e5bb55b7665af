"""A setting with a few possible values holds one of them, also where Python sets it."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from instructrec.choices import check_choices
from instructrec.errors import ConfigError

PACKAGES = ("rewards", "envs", "policies", "rl", "experiments")
REQUIRED = {
    "ExportConfig": {"out": "out"},
    "PairsConfig": {"out": "pairs.jsonl"},
    "ScoreConfig": {"data": "data.jsonl"},
}
"""What else a class needs."""
STANDS_IN = {"SupervisedConfig": "SFTConfig"}
"""For a class that is only inherited from."""
Size = Literal["small", "large"]


@dataclass
class Settings:
    size: Size = "small"
    other: Literal[8, 16] | None = None
    several: tuple[Size, ...] = ()
    free: str | None = None


def choices_of(root: Path) -> Iterator[tuple[str, str, str]]:
    """Module, class and field of every setting of a choice, by the text of its type."""
    for package in PACKAGES:
        for path in sorted((root / package).glob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not isinstance(node, ast.ClassDef) or not node.name.endswith("Config"):
                    continue
                for field in node.body:
                    if isinstance(field, ast.AnnAssign) and "Literal[" in ast.unparse(
                        field.annotation
                    ):
                        yield f"instructrec.{package}.{path.stem}", node.name, field.target.id  # type: ignore[union-attr]


def test_every_setting_of_a_choice_refuses_another_value(root: Path) -> None:
    found = list(choices_of(root))
    assert len(found) > 20
    for module, kind, field in found:
        made = getattr(importlib.import_module(module), STANDS_IN.get(kind, kind))
        wrong = "bogus" if field != "report_to" else ("bogus",)
        with pytest.raises(ConfigError, match=rf"unknown [a-z.]*\b{field} 'bogus'"):
            made(**REQUIRED.get(kind, {}), **{field: wrong})


def test_the_section_the_value_and_those_that_there_are_are_named() -> None:
    with pytest.raises(ConfigError, match=r"unknown toy\.size 'smal'\. Did you mean 'small'\?"):
        check_choices(Settings(size="smal"), "toy")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"unknown other '9'\..*Known: 16, 8, None"):
        check_choices(Settings(other=9))  # type: ignore[arg-type]


def test_each_of_several_values_is_looked_at() -> None:
    check_choices(Settings(several=("small", "large"), other=8, free="anything"))
    with pytest.raises(ConfigError, match="unknown several 'huge'"):
        check_choices(Settings(several=("small", "huge")))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="several = 'small': expected a list of small, large"):
        check_choices(Settings(several="small"))  # type: ignore[arg-type]
