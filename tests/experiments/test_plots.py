from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from instructrec.experiments.plots import _BASELINES, _EVAL, _TRAIN, Baseline, learning_curve


def run(updates=8, every=4):
    rows = []
    for update in range(updates + 1):
        row = {"train/update": float(update)}
        if update:
            row["reward/exact_match/mean"] = 0.3 + 0.05 * update / updates
        if update % every == 0:
            row |= {"eval/exact_match/mean": 0.6, "eval/exact_match/ci_low": 0.55}
            row["eval/exact_match/ci_high"] = 0.65
        rows.append(row)
    return rows


def rows_of_color(path, color):
    """Returns the rows of pixels, from the top, that hold exactly this colour."""
    image = np.round(imread(path)[..., :3] * 255)
    hit = np.abs(image - np.round(np.array(to_rgb(color)) * 255)).max(-1) <= 1
    return np.flatnonzero(hit[: int(len(hit) * 0.8)].any(1))  # the legend stands below


def test_the_curve_is_a_picture_of_the_run(tmp_path):
    path = learning_curve(run(), tmp_path / "plots" / "curve.png", reward="exact_match")
    image = imread(path)
    assert image.shape[:2] == (720, 1200)
    assert list(path.parent.iterdir()) == [path]
    training, evaluation = rows_of_color(path, _TRAIN), rows_of_color(path, _EVAL)
    assert training.size
    assert evaluation.max() < training.min()  # the higher score stands above


def test_a_baseline_stands_at_its_score(tmp_path):
    lines = {"bad": Baseline(0.1, 0.05, 0.15), "good": Baseline(0.9)}
    path = learning_curve(run(), tmp_path / "a.png", reward="exact_match", baselines=lines)
    bad, good = rows_of_color(path, _BASELINES[0]), rows_of_color(path, _BASELINES[1])
    assert good.max() < rows_of_color(path, _EVAL).min()
    assert bad.min() > rows_of_color(path, _TRAIN).max()


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"train/update": 1.0}],
        [{"train/update": 1.0, "reward/total/mean": None, "eval/total/mean": float("nan")}],
        [{"train/update": 1.0, "reward/total/mean": 0.5}],
        [{"train/update": u, "reward/total/mean": -2.0 * u} for u in range(1, 100)],
        [{"train/update": 1.0, "eval/total/mean": 0.5}],
    ],
)
def test_short_broken_and_long_runs_are_drawn_too(tmp_path, rows):
    path = learning_curve(rows, tmp_path / "a.png", title="x")
    assert imread(path).std() > 0


def test_an_existing_picture_is_replaced(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("old")
    learning_curve(run(), path)
    assert imread(path).shape[1] == 1200
