from __future__ import annotations

from pathlib import Path

import pytest

from instructrec.errors import ConfigError
from instructrec.metrics import METRICS, lookup, markdown_page, markdown_table

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"


def test_the_page_of_metrics_is_the_generated_one():
    assert PAGE.read_text(encoding="utf-8") == markdown_page()


def test_every_metric_is_documented_once():
    keys = [metric.key for metric in METRICS]
    assert len(set(keys)) == len(keys)
    assert all(metric.unit and metric.meaning.endswith(".") for metric in METRICS)
    assert markdown_table().count("\n") == len(METRICS) + 2


@pytest.mark.parametrize(
    ("key", "definition"),
    [
        ("train/update", "train/update"),
        ("reward/total/mean", "reward/total/mean"),
        ("reward/exact_match/mean", "reward/<reward>/mean"),
        ("eval/total/ci_low", "eval/<reward>/ci_low"),
        ("eval/pass_at_8", "eval/pass_at_<k>"),
    ],
)
def test_a_logged_key_finds_its_definition(key, definition):
    assert lookup(key).key == definition


@pytest.mark.parametrize(
    "key", ["reward/a/b/mean", "eval/pass_at_0", "eval/exact-match/mean", "train/updat", ""]
)
def test_an_unknown_key_is_refused(key):
    with pytest.raises(ConfigError, match="unknown metric"):
        lookup(key)


def test_the_refusal_names_the_closest_key():
    with pytest.raises(ConfigError, match="Did you mean 'train/update'"):
        lookup("train/updates")
