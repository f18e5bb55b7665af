"""The page for users of TRL's PPOTrainer: every field, its defaults, and what is named instead."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from instructrec.experiments.api import train_config
from instructrec.experiments.config import TrainConfig
from instructrec.metrics import METRICS
from instructrec.rl.config import PPOConfig
from instructrec.rl.trl_names import OURS, REFUSED

KEY = re.compile(r"`((?:ppo|policy|task|eval|output|tracking)\.\w+)")


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    return (root / "docs" / "migrating_from_trl.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def trl(root: Path) -> dict[str, Any]:
    """Fields of TRL 1.12.0 with their defaults as its source writes them, and PPOTrainer's."""
    file = root / "tests" / "golden" / "trl_1_12_settings.json"
    return json.loads(file.read_text(encoding="utf-8"))


def rows(page: str, heading: str) -> dict[str, list[str]]:
    """The tables of a section: a name in the first cell -> the other cells."""
    section = page.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    found: dict[str, list[str]] = {}
    for line in section.splitlines():
        first, *others = [cell.strip() for cell in line[1:-1].split("|")]
        for name in re.findall(r"`([\w/]+)`", first) if line.startswith("| `") else ():
            assert name not in found, f"{name} has two rows"
            found[name] = others
    return found


def default_of(key: str) -> object:
    value: Any = TrainConfig()
    for part in key.split("."):
        value = getattr(value, part)
    return value


def test_every_argument_and_field_of_trl_has_a_row(page: str, trl: dict[str, Any]) -> None:
    assert list(rows(page, "Arguments of PPOTrainer")) == trl["PPOTrainer"]
    assert list(rows(page, "Fields of its own")) == list(trl["PPOConfig"])
    inherited = rows(page, "Fields of transformers' TrainingArguments")
    assert inherited.keys() == trl["inherited"].keys()
    for name, cells in {**rows(page, "Fields of its own"), **inherited}.items():
        default = (trl["PPOConfig"] | trl["inherited"])[name]
        assert len(cells) == 1 or cells[0] == f"`{default}`", name


def test_a_row_says_what_the_command_line_says(page: str, trl: dict[str, Any]) -> None:
    ours = {field.name for field in fields(PPOConfig)}
    own = rows(page, "Fields of its own")
    for name, cells in {**own, **rows(page, "Fields of transformers' TrainingArguments")}.items():
        said = " ".join(cells).replace("`", "")
        if name in ours:
            assert f"ppo.{name}" in said
        elif name in OURS:
            assert re.split(r" \(|,", OURS[name])[0] in said, name
        else:
            assert REFUSED[name] in said and (name not in own or cells[1] == "-"), name


def test_our_keys_exist_and_have_the_defaults_of_the_page(page: str) -> None:
    keys = set(KEY.findall(page))
    assert len(keys) > 40
    for key in keys:
        default_of(key)
    shown = 0
    for name, (_, here, default, _) in rows(page, "Fields of its own").items():
        if default:
            (key,) = KEY.findall(here)
            assert default == f"`{default_of(key)}`", name
            shown += 1
    assert shown > 20


def test_the_metrics_that_it_names_exist(page: str) -> None:
    named = set(re.findall(r"`((?:ppo|reward|rollout|train|time)/[\w/]+)`", page))
    assert len(named) > 10 and named <= {metric.key for metric in METRICS}


def test_its_recipe_is_a_run(page: str, tmp_path: Path, trl: dict[str, Any]) -> None:
    (recipe,) = re.findall(r"^```yaml\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
    file = tmp_path / "from_trl.yaml"
    file.write_text(recipe, encoding="utf-8")
    config = train_config(file)
    assert config.resolved_name == "from-trl" and config.reward_value()
    theirs = trl["PPOConfig"] | trl["inherited"]
    same = ("learning_rate", "num_mini_batches", "num_ppo_epochs", "response_length", "temperature")
    same += ("cliprange", "cliprange_value", "vf_coef", "kl_coef", "gamma", "adam_beta2")
    for name in same:
        assert getattr(config.ppo, name) == float(theirs[name]), name
    assert config.ppo.num_updates == -(-10_000 // config.ppo.episodes_per_update)
