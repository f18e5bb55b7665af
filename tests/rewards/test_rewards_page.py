"""The page about rewards says what is so: its code runs and prints what its comments show."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from instructrec.rewards import list_rewards, make_rewards
from instructrec.rewards.options import read_parameters
from instructrec.rewards.reference import markdown_page
from instructrec.rewards.registry import _QUALITIES, builtin_rewards, reward_info
from instructrec.rewards.scaling import SCALINGS

PAGE = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def test_its_python_runs_and_prints_what_it_says(capsys):
    namespace: dict[str, object] = {}
    code = "\n".join(blocks("python"))
    exec(compile(code, "docs/rewards.md", "exec"), namespace)
    shown = re.findall(r"^print\(.*?\)  # (.*)$", code, flags=re.MULTILINE)
    assert len(shown) == 8
    assert capsys.readouterr().out.splitlines() == shown
    assert namespace["keeps_short"](["a b"], words=1) == [0.5]


def test_its_configs_make_rewards(tmp_path):
    configs = [yaml.safe_load(config)["rewards"] for config in blocks("yaml")]
    weighed, nested, isolated, asked = configs
    rewards = make_rewards(weighed)
    assert rewards.weights == {"exact_match": 1.0, "format": 1.0, "loose": 0.5, "overlap": 0.0}
    batch = make_rewards(nested).score(["p"], ["a b"], {"reference": ["a b"]})
    assert batch.total.tolist() == [0.5]  # the gate is closed, the mean is 1
    isolated["judged"]["cache"] = str(tmp_path / "scores.sqlite")
    spec = make_rewards(isolated).parts["judged"].spec
    assert (spec.isolation, spec.workers, spec.environment) == ("worker", 4, ("MY_API_KEY",))
    assert make_rewards(asked).weights == {"judge": 1.0}


def test_its_commands_exist():
    commands = re.findall(r"^\$ instructrec (\w+) (\w+)", PAGE, flags=re.MULTILINE)
    known = {"check", "show", "score"}
    assert {action for command, action in commands if command == "rewards"} == known


def test_its_tables_name_every_way_to_combine_and_to_normalise():
    for name in (*SCALINGS, *(n for n in builtin_rewards() if "combinators" in _place(n))):
        assert re.search(rf"^\| `{name}` \|", PAGE, flags=re.MULTILINE), name


def _place(name):
    return str(reward_info(name).target)


@pytest.mark.parametrize("name", [*_QUALITIES, "learned", "classifier", "hf_metric"])
def test_its_table_names_every_option_of_the_built_ins(name):
    from instructrec.rewards.loading import load_object

    assert name in list_rewards()
    (row,) = re.findall(rf"^\| `{name}` \|.*$", PAGE, flags=re.MULTILINE)
    names = read_parameters(load_object(reward_info(name).target), name).names
    columns = {"constraints", "instruction_id_list", "kwargs", "reference"}
    given = {"prompts", "completions", "completion_ids", "log_metric"}
    for option in set(names) - columns - given:
        assert f"`{option}`" in row


def test_the_reference_is_the_generated_one():
    page = Path(__file__).parents[2] / "docs" / "rewards_reference.md"
    assert page.read_text(encoding="utf-8") == markdown_page()
