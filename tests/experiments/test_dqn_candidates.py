"""DQN of Stable-Baselines3 on candidates: it takes the environment, learns, and is measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("stable_baselines3")
pytestmark = pytest.mark.slow

Script = Callable[[str], ModuleType]


def test_stable_baselines_finds_nothing_to_say_about_the_environment(recwarn) -> None:
    from gymnasium.wrappers import FlattenObservation
    from stable_baselines3.common.env_checker import check_env

    from instructrec.envs import EmbeddingObservation

    env = EmbeddingObservation(gym.make("instructrec/Candidates-v0"), "hash")
    check_env(FlattenObservation(env))  # it flattens by itself, and recommends it before
    assert not [w for w in recwarn if "stable_baselines3" in str(w.filename)]


def test_dqn_learns_which_kind_of_answer_a_question_has(script_of: Script, tmp_path: Path) -> None:
    script, lines = script_of("dqn_candidates"), []
    arguments = ["--encoder", "hash", "--seeds", "0", "1", "--out", str(tmp_path)]
    arguments += ["--steps", "800", "--size", "96", "--limit", "60"]
    assert script.main(arguments, say=lines.append) == 0
    found = json.loads((tmp_path / "dqn_candidates.json").read_text())
    assert found["before"]["mean"] < 0.45  # one of four by chance
    assert found["gain"]["low"] > 0.1 and found["after"]["mean"] > 0.5
    after = np.array(found["scores"]["after"])
    assert after.shape == (2, 60) and after.mean() == pytest.approx(found["after"]["mean"])
    table = (tmp_path / "dqn_candidates.md").read_text()
    assert f"| after | {after.mean():.3f} |" in table and table in lines


def test_values_do_not_depend_on_the_order_of_the_candidates(script_of: Script) -> None:
    import torch

    torch.manual_seed(0)
    scorer = script_of("dqn_candidates").Scorer(rows=4, size=5, hidden=8)
    texts = torch.randn(2, 4, 5)
    order = [2, 0, 1]
    shuffled = torch.cat([texts[:, :1], texts[:, 1:][:, order]], dim=1)
    torch.testing.assert_close(scorer(shuffled.flatten(1)), scorer(texts.flatten(1))[:, order])


def test_wrong_settings_end_with_a_message(script_of: Script, capsys) -> None:
    script = script_of("dqn_candidates")
    assert script.main(["--encoder", "hash", "--candidates", "1"]) == 2
    assert "num_candidates = 1" in capsys.readouterr().err
