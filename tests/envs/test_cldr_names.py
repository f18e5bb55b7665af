"""Names in another language."""

from __future__ import annotations

import sys

import pytest

from instructrec.envs.tasks import cldr_names
from instructrec.envs.tasks.base import iterate, make_task
from instructrec.envs.tasks.partition import SPLITS
from instructrec.errors import ConfigError


def items(split, size=None):
    return list(iterate(make_task("cldr_names", split=split, size=size)))


def test_references_are_the_names_of_the_language_that_is_asked_for():
    found = {
        (item.columns["family"], item.columns["item"]): item.columns["reference"]
        for split in SPLITS
        for item in items(split, 6000)
    }
    assert found["German", "Austria"] == "Österreich"
    assert found["French", "Germany"] == "Allemagne"
    assert found["Spanish", "Norwegian"] == "noruego"


def test_a_prompt_names_its_language_and_its_name():
    for item in items("test", 200):
        assert item.columns["item"] in item.prompt and item.columns["family"] in item.prompt


def test_no_name_of_one_split_is_in_another():
    names = {split: {item.columns["item"] for item in items(split, 3000)} for split in SPLITS}
    assert not names["train"] & names["test"] and not names["train"] & names["validation"]
    assert not names["validation"] & names["test"] and len(names["test"]) > 50


def test_other_names_are_another_task(monkeypatch):
    before = make_task("cldr_names").fingerprint
    assert before == make_task("cldr_names").fingerprint
    names = cldr_names._names() | {"Austria": dict.fromkeys(cldr_names.LANGUAGES, "Austria")}
    monkeypatch.setattr(cldr_names, "_names", lambda: names)
    assert make_task("cldr_names").fingerprint != before


def test_without_babel_the_error_says_what_to_install(monkeypatch):
    cldr_names._names.cache_clear()
    monkeypatch.setitem(sys.modules, "babel", None)
    with pytest.raises(ConfigError, match=r"instructrec\[translation\]"):
        make_task("cldr_names")
    cldr_names._names.cache_clear()
