"""Sampled evaluations that were broken off end with the rows that a whole one has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from instructrec.envs.tasks.base import make_task
from instructrec.experiments.evaluation import evaluate
from instructrec.experiments.playing import SINGLE_ANSWERS, Episodes
from instructrec.policies.causal_lm import load_policy
from instructrec.policies.config import PolicyConfig, Sampling
from instructrec.policies.labels import LabelPolicy
from instructrec.policies.model_policy import ModelPolicy
from instructrec.rewards import make_rewards

SAMPLED = Sampling(max_new_tokens=5, temperature=1.0)
SEVERAL = Episodes("refine", max_turns=3)


def writes() -> ModelPolicy:
    return load_policy(PolicyConfig(model="tiny", dtype="float32", device="cpu"), seed=3)


def labels() -> ModelPolicy:
    return LabelPolicy(writes(), ["even", "odd"])  # type: ignore[arg-type]


def even(completions: list[str], **columns: Any) -> list[float]:
    """Full marks for some answers, so that episodes end after one turn or several."""
    return [float(len(text) % 2 == 0) for text in completions]


class Killed(BaseException):
    """The process has gone."""


def measure(policy: ModelPolicy, out: Path, episodes: Episodes, most: int = 99) -> list[Any]:
    """Evaluates in batches of four; is killed behind the batch with row ``most``."""

    def stop(done: int, total: int) -> None:
        if done >= most:
            raise Killed

    task, reward = make_task("parity", split="test", size=40), make_rewards({"even": even})
    found = evaluate(
        policy,
        task,
        reward,
        sampling=SAMPLED,
        samples=2,
        batch_size=4,
        limit=7,
        episodes=episodes,
        out=out,
        on_progress=stop,
    )
    return found.rows


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize(
    ("make", "episodes"), [(writes, SINGLE_ANSWERS), (writes, SEVERAL), (labels, SINGLE_ANSWERS)]
)
def test_the_rest_is_drawn_as_if_it_had_never_been_broken_off(
    tmp_path: Path, make: Callable[[], ModelPolicy], episodes: Episodes, lost: int
) -> None:
    whole, out = make(), tmp_path / "whole.jsonl"
    rows = measure(whole, out, episodes)
    assert len({row["response"] for row in rows}) > 1
    assert episodes is SINGLE_ANSWERS or len({row["num_turns"] for row in rows}) > 1
    broken = tmp_path / "broken.jsonl"
    with pytest.raises(Killed):
        measure(make(), broken, episodes, most=8)
    lines = broken.read_bytes().splitlines(keepends=True)
    assert len(lines) == 8
    torn = lines[-lost][:9] if lost else b""  # as a kill within a write leaves it
    broken.write_bytes(b"".join(lines[: 8 - lost]) + torn)
    policy = make()
    assert measure(policy, broken, episodes) == rows
    assert broken.read_bytes() == out.read_bytes()
    assert policy.generator_state().equal(whole.generator_state())


def test_what_comes_behind_an_evaluation_that_is_read_draws_as_behind_one_that_is_made(
    tmp_path: Path,
) -> None:
    made, read = writes(), writes()
    for policy in (made, read):
        measure(policy, tmp_path / "rows.jsonl", SEVERAL)
    assert read.generator_state().equal(made.generator_state())
    assert not read.generator_state().equal(writes().generator_state())
