"""Normalised rewards: by hand, in training alone, with a memory that a checkpoint carries."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from instructrec.errors import ConfigError, RewardError
from instructrec.rewards import make_rewards
from instructrec.rewards.scaling import RunningStats, normalised


def number(completions, **columns):
    """The number in the text; na is not applicable, anything else raises."""
    return [None if text == "na" else float(text) for text in completions]


def rewards(**settings):
    return make_rewards({"number": {"use": number, **settings}})


def score(combined, texts, prompts=None):
    return combined.score(prompts or ["p"] * len(texts), texts, {})


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"normalise": "none"}, None),
        ({"normalise": "clip", "clip": [0, 2]}, [0.0, 2.0, 1.0, math.nan]),
        ({"normalise": "batch"}, [-(1.5**0.5), 1.5**0.5, 0.0, math.nan]),
        ({"normalise": "running"}, [-(1.5**0.5), 1.5**0.5, 0.0, math.nan]),
        ({"normalise": "group"}, [-1.0, 1.0, 0.0, math.nan]),
    ],
)
def test_scores_are_normalised_by_hand(settings, expected):
    combined = rewards(**settings).at_update(1)
    batch = score(combined, ["-3", "5", "1", "na"], ["one", "one", "two", "two"])
    assert batch.parts["number"][:3].tolist() == batch.total[:3].tolist() == [-3.0, 5.0, 1.0]
    if expected is None:
        assert batch.normalised is None
        assert batch.earned is batch.total
    else:
        np.testing.assert_allclose(batch.normalised, expected)
        assert batch.earned is batch.normalised


def test_nothing_is_normalised_outside_of_a_training():
    combined = rewards(normalise="running")
    assert score(combined, ["1", "5"]).normalised is None
    assert combined.state_dict() == {}


def test_equal_scores_become_zero_and_groups_may_be_chats():
    chat = [[{"role": "user", "content": "x"}]] * 2
    for how in ("batch", "group", "running"):
        batch = score(rewards(normalise=how).at_update(1), ["7", "7"], chat)
        assert batch.normalised.tolist() == [0.0, 0.0]


def test_the_running_mean_is_that_of_all_scores_so_far():
    rng = np.random.default_rng(0)
    batches = [rng.normal(3.0, 2.0, size=n) for n in (1, 5, 64, 3)]
    stats = RunningStats()
    for i, batch in enumerate(batches):
        given = np.append(batch, math.nan)
        result = normalised(given, "running", prompts=["p"] * len(given), stats=stats)
        seen = np.concatenate(batches[: i + 1])
        assert (stats.count, stats.mean) == (len(seen), pytest.approx(seen.mean()))
        assert stats.std == pytest.approx(seen.std(), abs=1e-12)
        if i:
            np.testing.assert_allclose(result[:-1], (batch - seen.mean()) / seen.std())
        assert math.isnan(result[-1])


def test_the_memory_of_a_training_goes_on_where_it_was_saved():
    whole, first, resumed = (rewards(normalise="running") for _ in range(3))
    for combined in (whole, first):
        score(combined.at_update(1), ["1", "5", "oops"])
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    after = [score(c.at_update(2), ["2", "9"]).normalised for c in (whole, resumed)]
    np.testing.assert_array_equal(*after)
    assert score(rewards(normalise="running").at_update(2), ["2", "9"]).normalised[0] != after[0][0]


def test_weights_count_behind_the_normalisation():
    combined = make_rewards(
        {
            "scaled": {"use": number, "normalise": "clip", "clip": [0, 1], "weight": 0.5},
            "plain": {"use": number, "weight": 2.0},
        }
    ).at_update(1)
    batch = score(combined, ["4"])
    assert (batch.total.tolist(), batch.normalised.tolist()) == ([10.0], [8.5])


def test_a_failed_sample_has_no_normalised_total_and_moves_no_statistics():
    for how in ("batch", "running", "group"):
        with_failure = score(rewards(normalise=how).at_update(1), ["1", "oops", "3"])
        without = score(rewards(normalise=how).at_update(1), ["1", "3"])
        assert math.isnan(with_failure.normalised[1])
        np.testing.assert_array_equal(with_failure.normalised[[0, 2]], without.normalised)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"normalise": "bach"}, r"normalise = 'bach': .*Did you mean 'batch'"),
        ({"normalise": "clip"}, r"normalise = 'clip' with clip = None"),
        ({"clip": [0, 1]}, r"normalise = 'none' with clip = \[0, 1\]"),
        ({"normalise": "clip", "clip": [1, 0]}, r"clip = \[1, 0\]: expected \[lowest, highest\]"),
        ({"normalise": "clip", "clip": 3}, r"clip = 3: expected"),
        ({"on_error": "zero"}, r"on_error = 'zero': expected one of raise, mask"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        rewards(**settings)


def test_settings_are_part_of_the_specification():
    settings = {"normalise": "clip", "clip": [0.0, 2.0], "on_error": "raise", "weight": 0.5}
    combined = make_rewards({"exact_match": {"use": "exact_match", **settings}})
    assert combined.spec == {"exact_match": {"use": "exact_match", **settings}}
    assert make_rewards(combined.spec).spec == combined.spec


def test_a_reward_may_end_the_run_where_it_fails():
    assert score(rewards(), ["1", "oops"]).valid.tolist() == [True, False]
    with pytest.raises(RewardError, match=r"'number' failed on 1 of 2 responses .*First: raised"):
        score(rewards(on_error="raise"), ["1", "oops"])
    assert score(rewards(on_error="raise"), ["1", "na"]).valid.tolist() == [True, False]


def test_batches_in_a_row_with_a_failure_are_counted_in_training():
    combined = rewards()
    for texts, streak in ((["oops", "1"], 1), (["oops"], 2), (["1"], 0), (["x", "1"], 1)):
        score(combined, ["oops"])  # an evaluation in between does not count
        score(combined.at_update(1), texts)
        assert combined.failing_batches == {"number": streak}
    resumed = rewards()
    resumed.load_state_dict(combined.state_dict())
    assert resumed.failing_batches == {"number": 1}
