"""Functions of one line: references are right, rules differ, splits share no number."""

from __future__ import annotations

import json

import pytest

from instructrec.envs.tasks.base import iterate, make_task
from instructrec.envs.tasks.functions import NAMES, PHRASINGS, RULES
from instructrec.envs.tasks.partition import SPLITS
from instructrec.errors import ConfigError
from instructrec.rewards.code_tests import read_cases
from instructrec.rewards.sandbox_values import same


def results(code: str, name: str, calls) -> list[object]:
    """What a function of ours returns."""
    space: dict = {}
    exec(code, space)
    return [space[name](*case.args) for case in calls]


@pytest.mark.parametrize("level", RULES)
def test_references_are_right_and_pass_no_cases_of_another_rule(level: int) -> None:
    for split in SPLITS:
        task = make_task("one_line_functions", split=split, level=level, size=300)
        by_key: dict[str, list] = {}
        for item in iterate(task):
            columns = item.columns
            cases = read_cases(columns["cases"], 0)
            found = results(columns["reference"], columns["function"], cases)
            wanted = [case.expected for case in cases]
            assert same(found, wanted, 0.0), columns
            assert columns["function"] in item.prompt and columns["item"] in item.prompt
            by_key.setdefault(columns["item"], []).append((columns["family"], wanted))
        for known in by_key.values():
            for family, wanted in known:
                assert not any(same(wanted, w, 0.0) for f, w in known if f != family)


def test_every_rule_phrasing_and_name_occurs() -> None:
    assert len(PHRASINGS) >= 8
    for level, rules in RULES.items():
        items = list(iterate(make_task("one_line_functions", level=level, size=1000)))
        assert {i.columns["family"] for i in items} == {rule[0] for rule in rules}
        assert {i.columns["function"] for i in items} == set(NAMES)
        assert len({i.prompt for i in items}) == len(items) == 1000


def test_splits_share_no_number() -> None:
    numbers = {
        split: {
            item.columns["item"]
            for item in iterate(make_task("one_line_functions", split=split, level=2, size=500))
        }
        for split in SPLITS
    }
    assert all(numbers.values())
    for one in SPLITS:
        assert all(not numbers[one] & numbers[other] for other in SPLITS if other != one)


def test_levels_are_checked_and_decide_the_fingerprint() -> None:
    prints = {make_task("one_line_functions", level=level).fingerprint for level in RULES}
    assert len(prints) == 3
    with pytest.raises(ConfigError, match="level is 4"):
        make_task("one_line_functions", level=4)
    json.loads(make_task("one_line_functions")[0].columns["cases"])
