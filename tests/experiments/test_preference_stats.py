"""What scores of held-out pairs say: hand-computed accuracy, calibration, margins and length."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from instructrec.experiments.preference_stats import pair_report


def report(chosen, rejected, **changes):
    number = len(chosen)
    given = {
        "clusters": [f"q{i}" for i in range(number)],
        "chosen_length": [2] * number,
        "rejected_length": [1] * number,
    }
    return pair_report(chosen, rejected, **given | changes)


def test_accuracy_loss_and_scores_by_hand():
    found = report([2.0, 0.0, 1.0, 5.0], [0.0, 1.0, 1.0, 4.0])
    assert found.accuracy.mean == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    losses = [math.log1p(math.exp(-d)) for d in (2, -1, 0, 1)]
    assert found.loss == pytest.approx(sum(losses) / 4)
    assert found.score_mean == pytest.approx(14 / 8)
    assert found.score_std == pytest.approx(np.std([2, 0, 1, 5, 0, 1, 1, 4]))
    json.dumps(found.to_dict())


def test_the_interval_goes_by_instruction():
    right = [1.0] * 60 + [-1.0] * 40
    apart = report(right, [0.0] * 100)
    together = report(right, [0.0] * 100, clusters=[f"q{i // 10}" for i in range(100)])
    assert together.accuracy.n_clusters == 10
    width = apart.accuracy.high - apart.accuracy.low
    assert together.accuracy.high - together.accuracy.low > 1.5 * width


def test_a_model_that_is_as_sure_as_it_is_right_is_calibrated():
    sure = 0.75
    difference = math.log(sure / (1 - sure))
    found = report([difference] * 75 + [-difference] * 25, [0.0] * 100)
    (only,) = found.calibration
    assert (only.n, only.accuracy) == (100, 0.75) and only.predicted == pytest.approx(0.75)
    assert found.calibration_error == pytest.approx(0.0, abs=1e-9)
    boasting = report([9.0] * 75 + [-9.0] * 25, [0.0] * 100)
    assert boasting.calibration_error == pytest.approx(1 / (1 + math.exp(-9)) - 0.75)


def test_calibration_bins_are_weighted_by_their_pairs():
    # Three pairs at 0.5 + epsilon, all right; one pair nearly certain, and wrong.
    found = report([0.01, 0.01, 0.01, -50.0], [0.0] * 4)
    assert [b.n for b in found.calibration] == [3, 1]
    low = 1 / (1 + math.exp(-0.01))
    assert found.calibration_error == pytest.approx(0.75 * (1 - low) + 0.25 * 1.0)


def test_accuracy_by_margin_keeps_equal_margins_together():
    margins = [1, 1, 1, 1, 2, 2, 3, 3]
    found = report([-1, -1, 1, 1, 1, 1, 1, 1], [0] * 8, margins=margins)
    assert [(b.low, b.high, b.n) for b in found.by_margin] == [(1, 1, 4), (2, 2, 2), (3, 3, 2)]
    assert [b.accuracy for b in found.by_margin] == [0.5, 1.0, 1.0]
    assert report([1, 2], [0, 0], margins=[1, 1]).by_margin == []
    assert report([1, 2], [0, 0]).by_margin == []


def test_a_model_that_goes_by_length_is_found_out():
    long, short = [10] * 50, [5] * 50
    chosen_length, rejected_length = long[:30] + short[:20], short[:30] + long[:20]
    found = report(
        [length / 5 for length in chosen_length],
        [length / 5 for length in rejected_length],
        chosen_length=chosen_length,
        rejected_length=rejected_length,
    ).length
    assert found.longer_wins.mean == 0.6 and found.model_prefers_longer.mean == 1.0
    assert (found.accuracy_when_longer_wins, found.accuracy_when_shorter_wins) == (1.0, 0.0)
    assert found.correlation == pytest.approx(1.0)
    assert found.rank_correlation == pytest.approx(1.0)


def test_equal_lengths_say_nothing_about_length():
    found = report([1.0, 2.0], [0.0, 0.0], chosen_length=[3, 3], rejected_length=[3, 3]).length
    assert found.longer_wins.mean == found.model_prefers_longer.mean == 0.5
    assert found.correlation is None and found.accuracy_when_longer_wins is None
