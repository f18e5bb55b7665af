"""How long a quickstart takes: the guess, and what the stages make of it."""

from __future__ import annotations

import pytest

from instructrec.experiments.quickstart_config import QuickstartConfig
from instructrec.experiments.quickstart_report import STAGES
from instructrec.experiments.quickstart_time import expected_s, left_s


def test_every_stage_is_guessed_and_most_of_it_is_work() -> None:
    found = expected_s(QuickstartConfig(), 1000, 0.1)
    assert list(found) == list(STAGES)
    assert found["base"] < found["sft"] < found["sft-best"] < found["ppo"]
    # 1200 responses are measured; 32 updates of 128 episodes and their one pass cost 1.6 each.
    assert found["base"] == pytest.approx(20 + 0.1 * 0.28 * 1200)
    assert found["ppo"] - found["base"] == pytest.approx(0.1 * 1.6 * 4096)
    twice = expected_s(QuickstartConfig(), 1000, 0.2)
    assert all(twice[name] < 2 * found[name] for name in found)


def test_what_stages_took_corrects_what_is_left() -> None:
    expected = {"base": 10.0, "sft": 20.0, "ppo": 70.0}
    assert left_s(expected, {}, 0.0) == 100.0
    assert left_s(expected, {"base": None}, 30.0) == 270.0
    assert left_s(expected, {"base": None, "sft": None}, 30.0) == 70.0
    assert left_s(expected, dict.fromkeys(expected), 500.0) == 0.0
    assert left_s({}, {"base": None}, 30.0) == 0.0
