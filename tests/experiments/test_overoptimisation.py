"""Proxy and gold over the updates of a run: where they part, and which update is kept."""

from __future__ import annotations

import pytest

from instructrec.errors import DataError
from instructrec.experiments.overoptimisation import Point, choice_of, overoptimised, points_of


def curve(proxy: list[float], gold: list[float]) -> list[Point]:
    return [Point(i, float(i), p, g) for i, (p, g) in enumerate(zip(proxy, gold, strict=True))]


def test_the_point_is_the_best_gold_before_it_falls_under_a_rising_proxy() -> None:
    points = curve([0, 1, 2, 3, 4], [0.1, 0.4, 0.5, 0.3, 0.2])
    assert overoptimised(points, 2) == points[2]
    assert overoptimised(points[:4], 2) is None, "one evaluation is not yet believed"
    assert overoptimised(points[:4], 1) == points[2]


@pytest.mark.parametrize(
    ("proxy", "gold"),
    [
        ([0, 1, 2, 3], [0.1, 0.2, 0.3, 0.4]),  # both rise
        ([3, 2, 1, 0], [0.4, 0.3, 0.2, 0.1]),  # both fall: broken, but not over-optimised
        ([0, 1, 2, 3], [0.2, 0.2, 0.2, 0.2]),  # gold never moves
        ([], []),
    ],
)
def test_nothing_is_found_where_the_two_do_not_part(proxy: list[float], gold: list[float]) -> None:
    assert overoptimised(curve(proxy, gold), 1) is None


def test_a_gold_that_only_falls_was_best_at_the_start() -> None:
    found = overoptimised(curve([0, 1, 2], [0.5, 0.4, 0.3]), 2)
    assert found is not None and found.update == 0


def test_a_dip_that_is_made_up_for_is_forgotten() -> None:
    points = curve([0, 1, 2, 3], [0.3, 0.2, 0.2, 0.5])
    assert overoptimised(points[:3], 2) == points[0]
    assert overoptimised(points, 2) is None


def test_patience_is_at_least_one() -> None:
    with pytest.raises(DataError, match="patience = 0"):
        overoptimised(curve([0], [0]), 0)


def metrics(update: int, kl: float, proxy: float, gold: float) -> dict[str, float]:
    return {
        "train/update": update,
        "ppo/kl_ref": kl,
        "eval/proxy/mean": proxy,
        "eval/gold/mean": gold,
    }


def test_points_are_read_from_evaluated_updates_alone() -> None:
    rows = [{"train/update": 1, "ppo/kl_ref": 0.0}, metrics(2, 0.5, 1.0, 0.3)]
    assert points_of(rows) == [Point(2, 0.5, 1.0, 0.3)]


def test_the_choice_goes_by_one_reward_within_the_budget() -> None:
    near, far, further = metrics(1, 1, 0.1, 0.9), metrics(2, 5, 0.8, 0.1), metrics(3, 9, 0.9, 0.0)
    free = choice_of("proxy", None)
    assert max((near, far, further), key=free) is further
    assert max((near, far, further), key=choice_of("gold", None)) is near
    bound = choice_of("proxy", 2.0)
    assert max((near, far, further), key=bound) is near
    assert bound(far) > bound(further), "of those beyond the budget the nearest is the best"
