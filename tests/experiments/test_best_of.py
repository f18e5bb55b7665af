"""The best of several responses, and its place beside the mean."""

from __future__ import annotations

import itertools

import pytest

from instructrec.envs.tasks.base import make_task
from instructrec.errors import ConfigError, DataError
from instructrec.experiments.best_of import expected_best, pass_at_k
from instructrec.experiments.evaluation import Evaluation, evaluate
from instructrec.experiments.evaluation_report import report
from instructrec.policies.base import Responses
from instructrec.policies.config import Sampling
from instructrec.policies.scripted import EmptyPolicy
from instructrec.rewards import make_rewards


def totals(scores, items=None):
    """An evaluation with these totals, instruction by instruction."""
    return Evaluation(
        [
            {"id": name, "total": total, "item": (items or {}).get(name), "family": None}
            for name, row in scores.items()
            for total in row
        ]
    )


def test_the_best_of_n_by_hand():
    evaluation = totals({"a": [0.1, 0.9, 0.5], "b": [-1.0, None, -3.0, -2.0], "c": [None] * 3})
    assert evaluation.samples_scored == 3
    best = evaluation.best_of(3)
    assert (best.mean, best.n, best.n_clusters) == (pytest.approx((0.9 - 1.0) / 2), 2, 2)
    # All pairs: (0.9 + 0.9 + 0.5) / 3 and (-1 - 1 - 2) / 3.
    assert evaluation.best_of(2).mean == pytest.approx((2.3 / 3 - 4 / 3) / 2)
    assert evaluation.best_of(1).mean == pytest.approx((0.5 - 2.0) / 2)
    with pytest.raises(ConfigError, match="best of 4 of 3 scored responses: expected 1 to 3"):
        evaluation.best_of(4)


def test_the_best_of_n_is_clustered_by_item():
    scores = {str(i): [0.0, float(i % 3 == 0)] for i in range(12)}
    items = {str(i): i // 4 for i in range(12)}
    assert totals(scores, items).best_of(2).n_clusters == 3
    assert totals(scores).best_of(2).n_clusters == 12


def test_the_expected_best_equals_a_slow_loop():
    scores = [0.3, -1.0, 2.0, 2.0, 0.7, 0.0]
    for k in range(1, 7):
        taken = [max(chosen) for chosen in itertools.combinations(scores, k)]
        assert expected_best(scores, k) == pytest.approx(sum(taken) / len(taken))


def test_the_table_shows_the_best_of_n_beside_the_mean():
    class Alternating(EmptyPolicy):
        """Right at the first of two samples."""

        right = False

        def respond(self, prompts, columns=None, sampling=None):
            self.right = not self.right
            return Responses(columns["reference"] if self.right else [""])

    def measure(samples):
        task, reward = make_task("parity", split="test", size=4), make_rewards("exact_match")
        sampled = Sampling(max_new_tokens=8, temperature=1.0)
        return evaluate(
            Alternating(), task, reward, sampling=sampled, samples=samples, batch_size=1
        )

    text = report("fake", measure(2))
    mean, best = (next(li for li in text.splitlines() if name in li) for name in ("exact", "best"))
    assert "0.500" in mean and "best of 2" in best and "1.000" in best
    chances = [line for line in text.splitlines() if line.startswith("pass@")]
    assert [line.split()[:2] for line in chances] == [["pass@1", "0.500"], ["pass@2", "1.000"]]
    assert all(" to " in line for line in chances)
    assert "best_of" not in text and "pass_at" not in text
    assert "best of" not in report("fake", measure(1))


def test_pass_at_k_has_rows_like_the_best_of_k():
    rows = [
        {"id": str(i), "total": float(right), "parts": {"a": float(right)}, "item": i // 2}
        for i in range(8)
        for right in (True, i % 2 == 0, False)
    ]
    evaluation = Evaluation([{**row, "family": None} for row in rows], {"weights": {"a": 1.0}})
    assert evaluation.samples_scored == 3
    for k in (1, 2, 3):  # full marks or nothing
        passed, best = evaluation.pass_at(k), evaluation.best_of(k)
        assert passed.mean == pytest.approx(best.mean)
        assert (passed.n, passed.n_clusters) == (best.n, best.n_clusters) == (8, 4)
        assert (passed.low, passed.high) == pytest.approx((best.low, best.high))


def test_pass_at_k_equals_counting_all_draws():
    n, k = 6, 3
    for c in range(n + 1):
        draws = list(itertools.combinations([1] * c + [0] * (n - c), k))
        expected = sum(any(draw) for draw in draws) / len(draws)
        assert pass_at_k([c], n, k)[0] == pytest.approx(expected, abs=1e-12)


def test_pass_at_one_is_the_share_of_correct_responses():
    assert pass_at_k([0, 2, 8], 8, 1) == pytest.approx([0.0, 0.25, 1.0])


def test_pass_at_k_needs_k_samples():
    with pytest.raises(DataError, match="1 <= k <= samples"):
        pass_at_k([1, 2], 4, 8)
