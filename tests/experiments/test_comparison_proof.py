"""The intervals and verdicts of comparisons are right as often as they say."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest

Load = Callable[[str], ModuleType]


@pytest.fixture(scope="module")
def proof(script_of: Load) -> ModuleType:
    return script_of("comparison_proof")


def test_the_true_difference_is_what_many_experiments_give(proof: ModuleType) -> None:
    rng, setting = np.random.default_rng(0), proof.Setting(3, 0.5)
    means = [proof.experiment(rng, setting, proof.ADVANTAGE).mean for _ in range(150)]
    truth = proof.true_mean(0.5, proof.ADVANTAGE) - proof.true_mean(0.5, 0.0)
    assert np.mean(means) == pytest.approx(truth, abs=4 * np.std(means) / np.sqrt(150))
    assert proof.true_mean(0.0, 0.0) == pytest.approx(0.5)  # E[u] of a uniform u


def test_the_table_says_what_there_is_none_of(proof: ModuleType) -> None:
    lines = proof.to_markdown(
        [proof.Outcome(proof.Setting(1), 0.07, 0.95, None, 0.1, None, 0.5, 0.05, 0.04)], 9
    )
    row = next(line for line in lines.splitlines() if line.startswith("| 1 |"))
    assert row == "| 1 | 0 | own | 0.070 | 95.0% | - | 0.100 | - | 50.0% | 5.0% | 4.0% |"


@pytest.mark.slow
def test_fixed_policies_are_compared_as_the_intervals_promise(proof: ModuleType) -> None:
    found = proof.simulate(proof.Setting(1), 1000)
    assert found.covered >= 0.93
    assert found.false <= 0.06


@pytest.mark.slow
@pytest.mark.parametrize("paired", [True, False])
def test_lucky_runs_are_seen_by_the_interval_of_other_runs_alone(
    proof: ModuleType, paired: bool
) -> None:
    found = proof.simulate(proof.Setting(3, 0.5, paired), 400)
    assert found.covered_runs is not None and found.covered_runs >= 0.91
    assert found.covered < 0.6 and found.false_here > 0.3
    assert found.false <= 0.09
