"""Each monitor speaks when it should, once, says what to do, and does what its rule says."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from instructrec.rl.config import PPOConfig
from instructrec.rl.monitor_config import MonitorRule, MonitorsConfig
from instructrec.rl.monitors import MONITORS, Monitors

HEALTHY = {
    "ppo/approx_kl": 0.01,
    "ppo/kl_ref": 0.5,
    "ppo/entropy": 0.6,
    "ppo/critic_used": 1.0,
    "ppo/drift_mean": 0.01,
    "reward/total/mean": 0.4,
    "reward/total/std": 0.3,
    "reward/learned/ood_frac": 0.01,
    "rollout/response_len": 5.0,
    "rollout/truncated_frac": 0.1,
    "rollout/masked_frac": 0.0,
    "rollout/repetition": 0.05,
    "rollout/top_response_frac": 0.3,
    "rollout/zero_variance_frac": 0.4,
}
GROWING = {"ppo/kl_ref": 30.0, "rollout/response_len": 200.0}


def names(alarms):
    return [alarm.name for alarm in alarms]


def ruled(**rules):
    return PPOConfig(monitors=MonitorsConfig(**rules))


@pytest.mark.parametrize(
    ("trouble", "name", "remedy"),
    [
        ({"ppo/approx_kl": 0.3}, "large_step", "ppo.target_kl"),
        ({"ppo/kl_ref": 4.0}, "far_from_reference", "ppo.kl_coef"),
        ({"ppo/kl_ref": -4.0}, "far_from_reference", "ppo/drift_mean"),
        ({"ppo/entropy": 0.01}, "entropy_collapse", "ppo.entropy_coef"),
        ({"ppo/entropy": 3.0}, "entropy_explosion", "ppo.learning_rate"),
        ({"rollout/response_len": 11.0}, "length_growth", "length reward"),
        ({"rollout/response_len": 1.0}, "length_collapse", "pays for brevity"),
        ({"rollout/repetition": 0.4}, "repetition", "ppo.kl_coef"),
        ({"rollout/top_response_frac": 0.9}, "identical_answers", "ppo.entropy_coef"),
        ({"reward/learned/ood_frac": 0.2}, "reward_ood", "train the reward model on"),
        ({"rollout/truncated_frac": 0.9}, "cut_responses", "ppo.response_length"),
        ({"rollout/masked_frac": 0.7}, "left_out", "error_frac"),
        ({"ppo/drift_mean": 0.1}, "drift", "policy.dtype"),
        ({"rollout/zero_variance_frac": 0.95}, "no_variance", "ppo.num_generations"),
        ({"raft/kept_frac": 0.0}, "nothing_kept", "ppo.temperature"),
    ],
)
def test_a_monitor_speaks_once_until_its_trouble_is_over(trouble, name, remedy):
    monitors = Monitors(PPOConfig())
    assert monitors.check(HEALTHY) == []
    alarms = monitors.check(HEALTHY | trouble)
    assert names(alarms) == [name] == monitors.ringing
    assert remedy in alarms[0].message and alarms[0].action == "warn"
    assert monitors.check(HEALTHY | trouble) == []
    assert monitors.check(HEALTHY) == [] == monitors.ringing
    assert names(monitors.check(HEALTHY | trouble)) == [name]


@pytest.mark.parametrize(("first", "now", "rings"), [(0.002, 0.09, False), (0.02, 0.11, True)])
def test_a_policy_that_is_sure_of_its_answers_does_not_fall_apart(first, now, rings):
    monitors = Monitors(PPOConfig())
    monitors.check(HEALTHY | {"ppo/entropy": first})
    rung = names(monitors.check(HEALTHY | {"ppo/entropy": now}))
    assert rung == (["entropy_explosion"] if rings else [])


def test_a_budget_of_kl_is_over_the_whole_response():
    monitors = Monitors(PPOConfig(response_length=200))
    monitors.check(HEALTHY | {"rollout/response_len": 200.0})
    assert names(monitors.check(HEALTHY | GROWING)) == [
        "kl_budget"
    ]  # 0.15 nats per token is little
    assert Monitors(ruled(kl_budget=MonitorRule(40.0))).check(HEALTHY | GROWING) == []


def gold_run(pairs, gold="gold", std=0.4, also=()):
    """Metrics of updates with these means of the total and of gold."""
    keys = ("reward/total/mean", f"reward/{gold}/mean", f"reward/{gold}/std")
    return [HEALTHY | dict(also) | dict(zip(keys, (*pair, std), strict=True)) for pair in pairs]


@pytest.mark.parametrize(
    ("totals", "golds", "rings"),
    [
        ([0.1 * i for i in range(20)], [min(i, 8) * 0.1 for i in range(20)], False),
        ([0.1 * i for i in range(20)], [0.1 * (8 - abs(8 - i)) for i in range(20)], True),
        ([0.0] * 20, [0.1 * (8 - abs(8 - i)) for i in range(20)], False),
        ([0.1 * i for i in range(20)], [0.5 + 0.05 * (-1) ** i for i in range(20)], False),
        ([0.1 * i for i in range(20)], [0.5] * 20, False),
    ],
    ids=["both rise", "gold falls", "neither is exploited", "noise", "gold is flat"],
)
def test_a_proxy_that_rises_while_gold_falls_is_told(totals, golds, rings):
    monitors = Monitors(PPOConfig())
    run = gold_run(zip(totals, golds, strict=True))
    alarms = [alarm for metrics in run for alarm in monitors.check(metrics)]
    assert names(alarms) == (["proxy_gold_gap"] if rings else [])
    assert all("'gold' fell from 0.6" in alarm.message for alarm in alarms)


def test_gold_has_the_name_that_the_settings_give_it_and_may_be_missing():
    falling = [(0.1 * i, 0.1 * (8 - abs(8 - i))) for i in range(20)]
    for gold, expected in (("gold", []), ("judge", ["proxy_gold_gap"])):
        monitors = Monitors(ruled(gold=gold))
        found = [monitors.check(metrics) for metrics in gold_run(falling, "judge")]
        assert [name for alarms in found for name in names(alarms)] == expected


def test_a_gold_reward_that_is_never_anything_else_again_is_told():
    run = gold_run([(0.1 * i, 1.0 if i < 6 else 0.0) for i in range(14)], std=0.0)
    monitors = Monitors(PPOConfig())
    assert [name for metrics in run for name in names(monitors.check(metrics))] == [
        "proxy_gold_gap"
    ]


@pytest.mark.parametrize(
    ("trouble", "name", "remedy"),
    [
        ({"ppo/critic_used": 0.0}, "idle_critic", "ppo.critic_detach = false"),
        ({"reward/total/std": 0.0}, "no_spread", "warm start"),
        ({"reward/total/std": float(np.full(100, 0.4).std())}, "no_spread", "warm start"),
    ],
)
def test_a_lasting_trouble_is_reported_after_some_updates_in_a_row(trouble, name, remedy):
    monitors = Monitors(PPOConfig())
    for _ in range(9):
        assert monitors.check(HEALTHY | trouble) == []
    assert monitors.check(HEALTHY) == []
    for _ in range(9):
        assert monitors.check(HEALTHY | trouble) == []
    alarms = monitors.check(HEALTHY | trouble)
    assert names(alarms) == [name]
    assert remedy in alarms[0].message and "rloo" not in alarms[0].message


def test_an_idle_critic_is_no_trouble_where_none_is_wanted():
    monitors = Monitors(PPOConfig(advantage="batch_mean"))
    for _ in range(12):
        assert monitors.check(HEALTHY | {"ppo/critic_used": 0.0}) == []


def timed(score_s):
    """Metrics of an update of eight seconds without its scoring, which took so long."""
    laps = {"rollout": 3.0, "score": score_s, "advantage": 1.0, "update": 4.0}
    rewards = {"quick": 0.1, "judge": score_s, "judge.style": score_s}
    return (
        HEALTHY
        | {f"time/{name}_s": seconds for name, seconds in laps.items()}
        | {f"reward/{name}/seconds": seconds for name, seconds in rewards.items()}
    )


def test_a_slow_reward_is_told_once_with_its_name_and_what_helps():
    monitors = Monitors(PPOConfig())
    for _ in range(4):
        assert monitors.check(timed(24.0)) == []
    alarms = monitors.check(timed(24.0))
    assert names(alarms) == ["slow_reward"]
    message = alarms[0].message
    assert "75% of their time" in message and "'judge' takes the longest" in message
    for remedy in ("ppo.rollout_chunks = 4", "rewards.judge.isolation = 'worker'", "cache"):
        assert remedy in message
    assert monitors.check(timed(24.0)) == []
    found = [monitors.check(timed(1.0)) for _ in range(3)]
    assert found == [[]] * 3


def test_what_a_clock_says_is_in_no_number_and_no_checkpoint():
    slow, quick = Monitors(PPOConfig()), Monitors(PPOConfig())
    for _ in range(5):
        alarms = slow.check(timed(24.0) | {"ppo/approx_kl": 0.3})
        quick.check(timed(1.0) | {"ppo/approx_kl": 0.3})
    assert names(alarms) == ["slow_reward"]
    assert slow.ringing == quick.ringing == ["large_step"]
    assert slow.state_dict() == quick.state_dict()


def test_a_reward_as_slow_as_all_else_and_one_slow_update_are_no_trouble():
    monitors = Monitors(PPOConfig())
    for score_s in (8.0, 8.0, 900.0, 8.0, 8.0, 8.0, 900.0, 8.0):  # a model was loaded, say
        assert monitors.check(timed(score_s)) == []
    strict = Monitors(ruled(slow_reward=MonitorRule(0.4)))
    found = [name for _ in range(5) for name in names(strict.check(timed(8.0)))]
    assert found == ["slow_reward"]


def test_a_run_that_overlaps_its_scoring_is_not_told_to():
    monitors = Monitors(PPOConfig(rollout_chunks=3))
    (alarm,) = [alarm for _ in range(5) for alarm in monitors.check(timed(24.0))]
    assert "ppo.rollout_chunks = 3 hides no more" in alarm.message
    assert "Set ppo.rollout_chunks" not in alarm.message


def test_times_are_no_part_of_a_checkpoint():
    quick, slow, resumed = (Monitors(PPOConfig()) for _ in range(3))
    for monitors, score_s in ((quick, 0.5), (slow, 4.0)):
        for _ in range(4):
            monitors.check(timed(score_s))
    assert quick.state_dict() == slow.state_dict()
    resumed.load_state_dict(slow.state_dict())
    assert [resumed.check(timed(24.0)) for _ in range(4)] == [[]] * 4


@pytest.mark.parametrize(
    ("trouble", "name"),
    [
        ({"ppo/kl_ref": 15.0}, "far_from_reference"),
        ({"ppo/entropy": 0.01}, "entropy_collapse"),
        ({"rollout/response_len": 11.0}, "length_growth"),
        ({"rollout/repetition": 1.0}, "repetition"),
    ],
)
def test_a_trouble_that_shall_end_the_run_ends_it_once_it_lasts(trouble, name):
    rule = MonitorRule(action="stop", patience=3)
    monitors = Monitors(ruled(**{name: rule}))
    monitors.check(HEALTHY)
    for pause in (HEALTHY, HEALTHY | trouble):  # two in a row are none too many
        actions = []
        for metrics in (HEALTHY | trouble, HEALTHY | trouble, pause):
            alarms = monitors.check(metrics)
            actions += [alarm.action for alarm in alarms]
        assert actions == (["warn"] if pause is HEALTHY else ["warn", "stop"])
    assert f"ppo.monitors.{name}.action is 'stop'" in alarms[0].message and alarms[0].stops
    resumed = Monitors(ruled(**{name: replace(rule, patience=4)}))
    resumed.load_state_dict(monitors.state_dict())
    assert [alarm.action for alarm in resumed.check(HEALTHY | trouble)] == ["stop"]


@pytest.mark.parametrize("action", ["lower_lr", "raise_kl"])
def test_steering_is_asked_for_again_while_the_trouble_lasts(action):
    monitors = Monitors(ruled(large_step=MonitorRule(action=action, patience=2)))
    asked = []
    for _ in range(5):
        asked.append([alarm.action for alarm in monitors.check(HEALTHY | {"ppo/approx_kl": 0.3})])
    assert asked == [["warn"], [action], [], [action], []]


def test_a_rule_of_no_patience_acts_at_once_and_does_not_warn_beside():
    monitors = Monitors(ruled(large_step=MonitorRule(action="lower_lr", patience=1)))
    found = [monitors.check(HEALTHY | {"ppo/approx_kl": 0.3}) for _ in range(2)]
    assert [[alarm.action for alarm in alarms] for alarms in found] == [["lower_lr"]] * 2


def test_what_is_not_a_number_is_trouble():
    monitors = Monitors(PPOConfig())
    found = monitors.check(HEALTHY | {"ppo/kl_ref": float("nan")})
    assert set(names(found)) == {"far_from_reference", "kl_budget"}


SICK = {
    **{"ppo/approx_kl": 1.0, "ppo/kl_ref": 500.0, "ppo/drift_mean": 0.2, "ppo/critic_used": 0.0},
    **{"reward/total/std": 0.0, "raft/kept_frac": 0.0, "reward/learned/ood_frac": 1.0},
    **{"rollout/truncated_frac": 1.0, "rollout/masked_frac": 1.0, "rollout/repetition": 1.0},
    **{"rollout/top_response_frac": 1.0, "rollout/zero_variance_frac": 1.0},
    **{"time/score_s": 9.0, "time/rollout_s": 1.0},
}
"""Everything is wrong with it but for entropy and length, which cannot be so in both directions."""


@pytest.mark.parametrize("name", MONITORS)
def test_a_monitor_that_is_ignored_says_nothing(name):
    less = {"ppo/entropy": 0.0, "rollout/response_len": 1.0}
    more = {"ppo/entropy": 9.0, "rollout/response_len": 11.0}
    also = SICK | (more if name in ("entropy_explosion", "length_growth") else less)

    def rung(config):
        monitors = Monitors(config)
        monitors.check(HEALTHY)
        run = gold_run([(i, -i) for i in range(12)], also=also)
        return {alarm.name for metrics in run for alarm in monitors.check(metrics)}

    everything = rung(PPOConfig())
    assert name in everything
    assert rung(ruled(**{name: MonitorRule(action="ignore")})) == everything - {name}


def test_every_monitor_has_a_rule():
    rules = [f.name for f in fields(MonitorsConfig) if isinstance(f.default, MonitorRule)]
    assert sorted(rules) == sorted(MONITORS)


def test_no_reference_and_no_groups_are_no_trouble():
    metrics = dict(HEALTHY)
    del metrics["ppo/kl_ref"], metrics["rollout/zero_variance_frac"]
    assert Monitors(PPOConfig()).check(metrics) == []


def test_a_resumed_monitor_remembers():
    first, second = Monitors(PPOConfig()), Monitors(PPOConfig())
    for metrics in gold_run([(0.1, 0.2)] * 6):
        first.check(metrics)
    first.check(HEALTHY | {"ppo/entropy": 0.01})
    second.load_state_dict(first.state_dict())
    assert second.check(HEALTHY | {"ppo/entropy": 0.01}) == []
    assert first.check(HEALTHY | {"ppo/entropy": 0.01}) == []
    assert second.state_dict() == first.state_dict()
    assert second.memory.best is not None
