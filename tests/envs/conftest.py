"""What tests of environments share."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv


def assert_told(ours: Mapping[str, Any], theirs: Mapping[str, Any], *, more: bool = False) -> None:
    """What a batched info tells of a copy, ours tells too; SAME_STEP adds ended copies' rewards."""
    for name, expected in theirs.items():
        adds = more or name.lstrip("_").startswith("reward_")
        if isinstance(expected, dict):
            assert_told(ours[name], expected, more=adds)
            continue
        told = theirs.get("_" + name, np.ones(len(expected), dtype=bool))
        assert ours[name].dtype == expected.dtype, name
        if not name.startswith("_"):
            assert ours[name][told].tolist() == expected[told].tolist(), name
        elif adds:
            assert not (expected & ~ours[name]).any(), name
        else:
            np.testing.assert_array_equal(ours[name], expected, err_msg=name)


@pytest.fixture
def assert_equal_to_scalars() -> Callable[..., list[tuple[Any, ...]]]:
    """Steps a vector environment and Gymnasium's copies of the scalar one side by side."""

    def play(
        vector: Callable[..., Any],
        scalar: Callable[..., Any],
        mode: str,
        answers: Iterator[str],
        *,
        seeds: int = 20,
        size: int = 3,
        steps: int = 4,
    ) -> list[tuple[Any, ...]]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of NEXT_STEP
            ours = vector(size, autoreset_mode=mode)
        theirs = SyncVectorEnv([scalar] * size, autoreset_mode=AutoresetMode[mode])
        assert ours.observation_space == theirs.observation_space
        outcomes = []

        def reset(**how: Any) -> None:
            (obs, info), (their_obs, their_info) = ours.reset(**how), theirs.reset(**how)
            assert obs == their_obs and obs in ours.observation_space
            assert_told(info, their_info)

        for count in range(seeds * steps):
            if count % steps == 0:
                reset(seed=count)
                reset()
            actions = tuple(next(answers) for _ in range(size))
            step, their_step = ours.step(actions), theirs.step(actions)
            assert step[0] == their_step[0] and step[0] in ours.observation_space
            for array, expected in zip(step[1:4], their_step[1:4], strict=True):
                assert array.dtype == expected.dtype
                np.testing.assert_array_equal(array, expected)
            assert_told(step[4], their_step[4])
            outcomes.append(step)
            over = step[2] | step[3]
            if mode == "DISABLED" and over.any():
                reset(options={"reset_mask": over})
        assert [g.random() for g in ours.np_random] == [g.random() for g in theirs.np_random]
        return outcomes

    return play
