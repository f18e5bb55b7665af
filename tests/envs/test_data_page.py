"""The examples on the page about data are true."""

import json
import re

import pytest
import yaml

from instructrec.envs.tasks.base import iterate
from instructrec.envs.tasks.dataset import DatasetTask
from instructrec.envs.tasks.filters import Filters
from instructrec.envs.tasks.shapes import SHAPES
from instructrec.envs.tasks.templates import list_templates


@pytest.fixture
def page(root):
    return (root / "docs" / "data.md").read_text(encoding="utf-8")


def test_the_rows_of_the_page_load_one_of_each_shape(page, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(re.search(r"```json\n(.*?)```", page, flags=re.DOTALL)[1], encoding="utf-8")
    task = DatasetTask(path, split="all")
    assert task.catalog.shapes == dict.fromkeys(SHAPES, 1)
    answers = [item.columns["reference"] for item in iterate(task)]
    assert answers == ["Paris", "Hello", "Lima", "Hello!", "3", "Hello"]


def test_the_settings_of_the_page_are_understood(page, tmp_path):
    first, second = (
        yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    )
    assert Filters.from_mapping(second["filters"]).languages == ("en", "de")
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": "a", "answers": {"text": ["b"]}}))
    task = DatasetTask(path, split="all", **first)
    assert (task[0].prompt, task[0].columns) == (
        "a",
        {"reference": ["b"], "answers": {"text": ["b"]}},
    )


def test_the_page_names_every_template_and_option(page):
    assert all(f"`{name}`" in page for name in list_templates() if "test" not in name)
    taken = DatasetTask.__init__.__annotations__.keys() - {"path", "split", "return"}
    assert all(f"`{name}`" in page for name in taken)
    assert all(name in page for name in Filters.__annotations__)
