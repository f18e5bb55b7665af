"""The cache of scores: what a score belongs to, and what is never kept."""

from __future__ import annotations

import math
import os
import pickle
import sqlite3
import threading

import numpy as np
import pytest

from instructrec.errors import ConfigError
from instructrec.rewards import RewardBatch, Status, make_reward, make_rewards, register_reward

CALLS: list[str] = []


def recorded(completions, reference=None, *, factor=1.0, **columns):
    """The number in the text times a factor; na is not applicable, other words fail."""
    CALLS.extend(completions)
    return [None if c == "na" else factor * float(c) for c in completions]


@pytest.fixture(autouse=True)
def _fresh():
    CALLS.clear()


@pytest.fixture
def cached(tmp_path):
    def make(use=recorded, **options):
        spec = {"use": use, "options": options, "cache": str(tmp_path / "sub" / "scores.sqlite")}
        return make_rewards({"r": spec})

    return make


def score(combined, texts, prompts=None, columns=None, extras=None):
    return combined.score(prompts or ["p"] * len(texts), texts, columns or {}, extras)


def test_known_scores_are_not_asked_for_again(cached):
    first = score(cached(), ["1", "na", "2"])
    assert (CALLS, first.cached["r"]) == (["1", "na", "2"], [False] * 3)
    CALLS.clear()
    second = score(cached(), ["2", "3", "na", "1"])
    assert CALLS == ["3"]
    assert second.cached["r"] == [True, False, True, True]
    np.testing.assert_equal(second.parts["r"], [2.0, 3.0, math.nan, 1.0])
    assert second.status["r"][2] is Status.NOT_APPLICABLE
    assert score(cached(), ["1", "2"]).cached["r"] == [True, True]


def test_a_batch_that_is_known_joins_one_that_was_asked(cached):
    old = score(cached(), ["1"])
    old.flags["r"]["truncated"] = [True]
    both = RewardBatch.joined([old, score(cached(), ["1"])])
    assert both.flags == {"r": {"cache_hit": [False, True], "truncated": [True, False]}}


def test_failures_are_asked_about_every_time(cached):
    for _ in range(2):
        CALLS.clear()
        batch = score(cached(), ["oops", "nan"])
        assert batch.status["r"] == [Status.RAISED, Status.NONFINITE]
        assert batch.cached["r"] == [False, False]
        assert "oops" in CALLS and "nan" in CALLS


@pytest.mark.parametrize(
    ("options", "prompts", "columns"),
    [
        ({"factor": 2.0}, None, None),
        ({}, ["another prompt"], None),
        ({}, None, {"reference": ["x"]}),
        ({}, None, {"anything": ["read out of columns"]}),
    ],
)
def test_a_score_belongs_to_all_that_it_can_depend_on(cached, options, prompts, columns):
    score(cached(), ["1"])
    assert score(cached(**options), ["1"], prompts, columns).cached["r"] == [False]
    assert score(cached(**options), ["1"], prompts, columns).cached["r"] == [True]


def test_large_arrays_are_told_apart(cached):
    for place in (0, 2500):
        column = np.zeros(5000)
        column[place] = 1
        assert score(cached(), ["1"], columns={"reference": [column]}).cached["r"] == [False]


def test_mappings_whose_keys_cannot_be_sorted_are_told_apart(cached):
    for known, value in ((False, 1), (True, 1), (False, 2)):
        column = [{1: value, "a": 2}]
        assert score(cached(), ["1"], columns={"reference": column}).cached["r"] == [known]


def test_token_ids_count_only_for_rewards_that_name_them(cached):
    score(cached(), ["1"], extras={"completion_ids": [[1]]})
    assert score(cached(), ["1"], extras={"completion_ids": [[2]]}).cached["r"] == [True]


def test_another_version_or_file_is_another_reward(cached, tmp_path):
    def versioned(completions, **columns):
        return [1.0] * len(completions)

    register_reward("cache_versioned", version=1)(versioned)
    score(cached("cache_versioned"), ["a"])
    assert score(cached("cache_versioned"), ["a"]).cached["r"] == [True]
    register_reward("cache_versioned", version=2, override=True)(versioned)
    assert score(cached("cache_versioned"), ["a"]).cached["r"] == [False]
    file = tmp_path / "edited.py"
    for value in (1.0, 22.0):
        file.write_text(f"def f(completions, **columns):\n    return [{value}]\n")
        assert score(cached(f"{file}:f"), ["a"]).total.tolist() == [value]


def test_threads_and_pickled_copies_share_the_file(cached):
    combined = cached()
    score(combined, ["1"])
    twin = pickle.loads(pickle.dumps(combined))
    threads = [
        threading.Thread(target=score, args=(c, [str(i) for i in range(50)]))
        for c in (combined, twin, combined, twin)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    batch = score(twin, [str(i) for i in range(50)])
    assert all(batch.cached["r"]) and batch.total.tolist() == list(range(50))


def test_more_scores_than_one_query_takes(cached):
    texts = [str(i) for i in range(1234)]
    score(cached(), texts)
    assert all(score(cached(), texts).cached["r"])


def test_only_scores_and_hashes_are_on_disk(cached, tmp_path):
    score(cached(), ["1"], ["a very secret prompt"])
    file = tmp_path / "sub" / "scores.sqlite"
    with sqlite3.connect(file) as connection:
        [(key, value)] = connection.execute("SELECT key, score FROM scores").fetchall()
    assert (len(key), value) == (32, 1.0)
    assert b"secret" not in file.read_bytes()


def test_what_cannot_be_cached_is_refused(tmp_path):
    parts = {"parts": {"exact_match": 1}}
    with pytest.raises(ConfigError, match="made of other rewards"):
        make_rewards({"r": {"use": "weighted", "options": parts, "cache": str(tmp_path / "c")}})
    (tmp_path / "text").write_text("no database, but a text that is longer than a header" * 9)
    with pytest.raises(ConfigError, match="cannot be used"):
        make_rewards({"r": {"use": recorded, "cache": str(tmp_path / "text")}})


def test_without_a_cache_nothing_is_said_of_one():
    assert score(make_rewards({"r": recorded}), ["1"]).cached == {}


def test_a_model_folder_that_was_trained_again_in_place_is_another_reward(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    weights = folder / "model.safetensors"
    weights.write_bytes(b"old")

    def identity():
        return make_reward("learned", path=str(folder)).identity()

    before = identity()
    assert identity() == before
    os.utime(weights, ns=(0, 0))
    touched = identity()
    weights.write_bytes(b"new weights")
    os.utime(weights, ns=(0, 0))
    assert len({before, touched, identity()}) == 3
    combined = {"parts": {"learned": {"use": "learned", "options": {"path": str(folder)}}}}
    outer = make_reward("weighted", **combined).identity()
    (folder / "adapter.safetensors").write_bytes(b"")
    assert make_reward("weighted", **combined).identity() != outer


def test_a_file_that_fails_costs_a_warning_and_no_run(cached):
    combined = cached()
    score(combined, ["1"])
    connection = combined.parts["r"]._cache._connection
    connection.execute("PRAGMA max_page_count = 1")  # no page more than it has: a full disk
    texts = [str(i) for i in range(5000)]
    with pytest.warns(RuntimeWarning, match=r"fails \(database or disk is full\)") as warned:
        assert score(combined, texts).total.tolist() == list(range(5000))
        assert score(combined, texts).total.tolist() == list(range(5000))
    assert len(warned) == 1
    combined.close()
    assert score(combined, ["1"]).cached["r"] == [True]  # opened again, it is as it was


def test_a_file_that_cannot_be_read_any_more_is_done_without(cached, tmp_path):
    combined = cached()
    score(combined, ["1"])
    combined.parts["r"]._cache._connection.execute("DROP TABLE scores")
    with pytest.warns(RuntimeWarning, match=r"no such table: scores\): scoring goes on without"):
        batch = score(combined, ["1", "2"])
    assert batch.total.tolist() == [1.0, 2.0] and batch.cached["r"] == [False, False]
