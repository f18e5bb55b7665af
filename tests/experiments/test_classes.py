from __future__ import annotations

import pytest

from instructrec.experiments.classes import per_class, table


def test_counts_of_classes_are_those_done_by_hand() -> None:
    pairs = [("a", "a"), ("a", "a"), ("a", "b"), ("b", "b"), ("b", "c"), ("c", "c")]
    rows = [{"reference": [label], "response": answer} for label, answer in pairs]
    found = per_class(rows, ["d"])
    assert found["accuracy"] == pytest.approx(4 / 6)
    a, b, c, d = (found["classes"][name] for name in "abcd")
    assert (a["precision"], a["recall"], a["n"]) == (1, pytest.approx(2 / 3), 3)
    assert a["f1"] == pytest.approx(0.8)
    assert (b["precision"], b["recall"], b["f1"], b["n"]) == (0.5, 0.5, 0.5, 2)
    assert (c["precision"], c["recall"]) == (0.5, 1) and c["f1"] == pytest.approx(2 / 3)
    assert d == {"precision": 0, "recall": 0, "f1": 0, "n": 0}
    assert found["macro_f1"] == pytest.approx((0.8 + 0.5 + 2 / 3) / 3)
    assert found["confusion"]["b"] == {"a": 0, "b": 1, "c": 1, "d": 0}
    text = table(found)
    assert "accuracy 0.667, mean F1 0.656" in text and "b taken for c: 1" in text
    assert "a taken for a" not in text
