"""The page about rewards says what is so: its code runs and prints what its comments show."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from instructrec.rewards import list_rewards, make_rewards
from instructrec.rewards.options import read_parameters
from instructrec.rewards.registry import _BUILTINS, reward_info

PAGE = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def test_its_python_runs_and_prints_what_it_says(capsys):
    namespace: dict[str, object] = {}
    code = "\n".join(blocks("python"))
    exec(compile(code, "docs/rewards.md", "exec"), namespace)
    shown = re.findall(r"^print\(.*?\)  # (.*)$", code, flags=re.MULTILINE)
    assert len(shown) == 4
    assert capsys.readouterr().out.splitlines() == shown
    assert namespace["keeps_short"](["a b"], words=1) == [0.5]


def test_its_config_makes_rewards():
    config, _ = blocks("yaml")
    rewards = make_rewards(yaml.safe_load(config)["rewards"])
    assert rewards.weights == {"exact_match": 1.0, "format": 1.0, "loose": 0.5, "overlap": 0.0}


@pytest.mark.parametrize("name", sorted(_BUILTINS))
def test_its_table_names_every_option_of_the_built_ins(name):
    from instructrec.rewards.loading import load_object

    assert name in list_rewards()
    (row,) = re.findall(rf"^\| `{name}` \|.*$", PAGE, flags=re.MULTILINE)
    names = read_parameters(load_object(reward_info(name).target), name).names
    columns = {"constraints", "instruction_id_list", "kwargs", "reference"}
    for option in set(names) - {"prompts", "completions", "completion_ids", "log_metric"} - columns:
        assert f"`{option}`" in row
