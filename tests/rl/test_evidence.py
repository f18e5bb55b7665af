"""Which responses are shown of an alarm, and the metrics that are made of texts."""

from __future__ import annotations

import numpy as np
import pytest

from instructrec.policies.base import StopReason
from instructrec.rewards.base import RewardBatch, Status
from instructrec.rl.evidence import rows_that_show
from instructrec.rl.monitor_config import MonitorsConfig
from instructrec.rl.reporting import repetitions, reward_metrics, rollout_metrics, top_response
from instructrec.rl.rollout import Rollout

IDS = [[1, 2, 3, 4, 5], [7, 7, 7, 7, 7, 7, 7, 7], [1, 2], [1, 2, 1, 2, 1, 2, 1]]
TEXTS = ["a b c d e", "same", "same ", "x y x y x y x"]
TOTALS, GOLD = [0.0, 1.0, 0.5, 1.0], [0.0, 1.0, 1.0, 0.0]


@pytest.fixture
def rollout():
    count = len(IDS)
    parts = {"proxy": np.array(TOTALS), "gold": np.array(GOLD)}
    return Rollout(
        instruction_ids=["i0", "i1", "i2", "i3"],
        prompts=["?"] * count,
        texts=TEXTS,
        prompt_ids=[[0]] * count,
        response_ids=IDS,
        action_mask=[[True] * len(ids) for ids in IDS],
        sampler_logprobs=[],
        turn_rewards=[[(len(ids) - 1, total)] for ids, total in zip(IDS, TOTALS, strict=True)],
        stop_reasons=[StopReason.EOS, StopReason.LENGTH, StopReason.EOS, StopReason.EOS],
        scored=[True] * count,
        groups=list(range(count)),
        unfinished=[False] * count,
        kept=[True, True, True, False],
        references=[None] * count,
        returns=TOTALS,
        rewards=RewardBatch(
            total=np.array(TOTALS),
            parts=parts,
            status={name: [Status.SCORED] * count for name in parts},
            messages={name: [""] * count for name in parts},
            seconds=dict.fromkeys(parts, 0.0),
            flags={"proxy": {"ood": [False, False, True, True]}},
        ),
    )


def shown(rollout, monitor):
    numbers = [{"kl_ref": kl} for kl in (3.0, None, 1.0, 2.0)]
    rows = [row | more for row, more in zip(rollout.rows(1), numbers, strict=True)]
    return [row["id"] for row in rows_that_show(monitor, rollout, rows, MonitorsConfig())]


@pytest.mark.parametrize(
    ("monitor", "expected"),
    [
        ("kl_budget", ["i0", "i3", "i2"]),
        ("far_from_reference", ["i0", "i3", "i2"]),
        ("length_growth", ["i1", "i3", "i0"]),
        ("length_collapse", ["i2", "i0", "i3"]),
        ("repetition", ["i1", "i3"]),
        ("identical_answers", ["i1", "i2"]),
        ("reward_ood", ["i3", "i2"]),
        ("proxy_gold_gap", ["i3", "i1", "i0"]),
        ("cut_responses", ["i1"]),
        ("left_out", ["i3"]),
        ("no_spread", ["i0", "i1", "i2"]),
        ("large_step", []),
    ],
)
def test_the_responses_that_show_a_trouble_best_come_first(rollout, monitor, expected):
    assert shown(rollout, monitor) == expected


def test_each_instruction_is_shown_once(rollout):
    rollout.instruction_ids = ["i0", "i1", "i1", "i3"]
    assert shown(rollout, "identical_answers") == ["i1"]


def test_repetition_is_the_share_of_runs_that_came_before(rollout):
    assert repetitions(rollout) == [0.0, 1 - 1 / 5, 0.0, 1 - 2 / 4]
    rollout.action_mask[1] = [True] * 3 + [False] + [True] * 4  # one run of its own is left
    assert repetitions(rollout)[1] == 0.0
    metrics = rollout_metrics(rollout, 1.0)
    assert metrics["rollout/repetition"] == pytest.approx(0.5 / 4)


def test_the_most_frequent_response_is_counted_without_white_space(rollout):
    assert top_response(rollout) == ("same", 2)
    assert rollout_metrics(rollout, 1.0)["rollout/top_response_frac"] == 0.5


def test_scores_out_of_distribution_are_counted(rollout):
    assert reward_metrics(rollout, {"proxy": 1.0})["reward/proxy/ood_frac"] == 0.5
