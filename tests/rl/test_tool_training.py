"""Training with tools: the tiny model learns to call one and to use what it says."""

from __future__ import annotations

import dataclasses
import json

import pytest

from instructrec.envs.tool_calls import Call
from instructrec.envs.tool_use import ToolVectorEnv
from instructrec.rl.reporting import rollout_metrics
from instructrec.rl.rollout import collect


def any_other_character_calls(text):
    """One character is a call or an answer: an untrained model would never find a whole tag."""
    calls = len(text) == 1 and text.isascii() and not text.islower()
    return [Call("oracle", "")] if calls else []


def told(completions, trace, **columns):
    """1.0 for a letter as the answer, after a call; without a call, or with no answer, 0.0."""
    return [
        float(bool(calls) and len(text) == 1 and text.islower())
        for text, calls in zip(completions, trace, strict=True)
    ]


def oracle() -> str:
    """Tells what nobody else knows."""
    return "now answer"


def secrets(size, path):
    """Episodes that take a call first, and an answer then."""
    path.write_text((json.dumps({"prompt": "go", "reference": "a"}) + "\n") * 64)
    given = {"task": str(path), "split": "all", "reward": told, "tools": oracle, "max_turns": 2}
    given |= {"parse": any_other_character_calls, "describe": "none", "observe": "last"}
    return ToolVectorEnv(size, autoreset_mode="DISABLED", **given)


def test_results_are_tokens_of_the_environment(toy, tmp_path):
    env = secrets(32, tmp_path / "go.jsonl")
    config = dataclasses.replace(toy.fast, response_length=1)
    rollout = collect(toy.policy(), env, range(32), config)
    called = [len(turns) == 2 for turns in rollout.turn_rewards]
    assert 0 < sum(called) < 32
    for i in range(32):
        assert sum(rollout.action_mask[i]) == 1 + called[i]
        said = bytes(t for t in rollout.response_ids[i] if t < 256)
        assert (b"Result: " in said) == called[i]
    again = [
        c and bool(any_other_character_calls(text))
        for c, text in zip(called, rollout.texts, strict=True)
    ]
    assert rollout.unfinished == again
    calls = [c["num_calls"] for c in rollout.counts]
    assert calls == [c + a for c, a in zip(called, again, strict=True)]
    metrics = rollout_metrics(rollout, 1.0)
    assert metrics["rollout/num_calls"] == pytest.approx(sum(calls) / 32)
    assert metrics["rollout/num_errors"] == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_it_learns_to_call_the_tool_and_then_to_answer(toy, tmp_path, seed):
    """Whoever says the same in both turns gets nothing: the result has to be heeded."""
    toy.learns(secrets(64, tmp_path / "go.jsonl"), seed)
