"""Each monitor speaks when it should, once, and says what to do."""

from __future__ import annotations

import pytest

from instructrec.errors import ConfigError
from instructrec.rl.config import PPOConfig
from instructrec.rl.config_rules import MONITORS
from instructrec.rl.monitors import PATIENCE, Monitors

HEALTHY = {
    "ppo/approx_kl": 0.01,
    "ppo/kl_ref": 0.5,
    "ppo/entropy": 0.6,
    "ppo/critic_used": 1.0,
    "ppo/drift_mean": 0.01,
    "reward/total/mean": 0.4,
    "reward/total/std": 0.3,
    "rollout/response_len": 5.0,
    "rollout/truncated_frac": 0.1,
    "rollout/masked_frac": 0.0,
    "rollout/zero_variance_frac": 0.4,
}


def names(alarms):
    return [alarm.name for alarm in alarms]


@pytest.mark.parametrize(
    ("trouble", "name", "remedy"),
    [
        ({"ppo/approx_kl": 0.3}, "large_step", "ppo.target_kl"),
        ({"ppo/kl_ref": 4.0}, "far_from_reference", "ppo.kl_coef"),
        ({"ppo/kl_ref": -4.0}, "far_from_reference", "ppo/drift_mean"),
        ({"ppo/entropy": 0.01}, "entropy", "ppo.entropy_coef"),
        ({"ppo/entropy": 3.0}, "entropy", "ppo.learning_rate"),
        ({"rollout/response_len": 11.0}, "length", "length reward"),
        ({"rollout/response_len": 1.0}, "length", "pays for brevity"),
        ({"rollout/truncated_frac": 0.9}, "cut_responses", "ppo.response_length"),
        ({"rollout/masked_frac": 0.7}, "left_out", "error_frac"),
        ({"ppo/drift_mean": 0.1}, "drift", "policy.dtype"),
        ({"rollout/zero_variance_frac": 0.95}, "no_variance", "ppo.num_generations"),
    ],
)
def test_a_monitor_speaks_once_until_its_trouble_is_over(trouble, name, remedy):
    monitors = Monitors(PPOConfig())
    assert monitors.check(HEALTHY) == []
    alarms = monitors.check(HEALTHY | trouble)
    assert names(alarms) == [name]
    assert remedy in alarms[0].message and not alarms[0].stops
    assert monitors.check(HEALTHY | trouble) == []
    assert monitors.check(HEALTHY) == []
    assert names(monitors.check(HEALTHY | trouble)) == [name]


@pytest.mark.parametrize(
    ("trouble", "name", "remedy"),
    [
        ({"ppo/critic_used": 0.0}, "idle_critic", "ppo.critic_detach = false"),
        ({"reward/total/std": 0.0}, "no_spread", "warm start"),
    ],
)
def test_a_lasting_trouble_is_reported_after_some_updates_in_a_row(trouble, name, remedy):
    monitors = Monitors(PPOConfig())
    for _ in range(PATIENCE - 1):
        assert monitors.check(HEALTHY | trouble) == []
    assert monitors.check(HEALTHY) == []
    for _ in range(PATIENCE - 1):
        assert monitors.check(HEALTHY | trouble) == []
    alarms = monitors.check(HEALTHY | trouble)
    assert names(alarms) == [name]
    assert remedy in alarms[0].message and "rloo" not in alarms[0].message


def test_an_idle_critic_is_no_trouble_where_none_is_wanted():
    monitors = Monitors(PPOConfig(advantage="batch_mean"))
    for _ in range(PATIENCE + 1):
        assert monitors.check(HEALTHY | {"ppo/critic_used": 0.0}) == []


@pytest.mark.parametrize("drift", [0.4, float("nan")])
def test_a_sampler_that_is_not_the_policy_stops_the_run(drift):
    alarms = Monitors(PPOConfig(max_drift=0.3)).check(HEALTHY | {"ppo/drift_mean": drift})
    assert [alarm.name for alarm in alarms if alarm.stops] == ["broken_sampler"]
    for remedy in ("policy.dtype = 'float32'", "the decoder", "raise ppo.max_drift only if"):
        assert remedy in alarms[-1].message


@pytest.mark.parametrize(
    ("trouble", "name"),
    [
        ({"ppo/kl_ref": 400.0}, "far_from_reference"),
        ({"ppo/kl_ref": float("nan")}, "far_from_reference"),
        ({"ppo/entropy": 0.01}, "entropy"),
        ({"rollout/response_len": 11.0}, "length"),
    ],
)
def test_a_trouble_that_shall_end_the_run_ends_it_once_it_lasts(trouble, name):
    monitors = Monitors(PPOConfig(stop_on=(name,), stop_after=3))
    monitors.check(HEALTHY)
    for pause in (HEALTHY, HEALTHY | trouble):  # two in a row are none too many
        for metrics in (HEALTHY | trouble, HEALTHY | trouble, pause):
            last = monitors.check(metrics)
            stopping = [alarm for alarm in last if alarm.stops]
            assert names(stopping) == ([name] if metrics is pause is not HEALTHY else [])
    assert f"ppo.stop_on holds '{name}'" in stopping[0].message
    resumed = Monitors(PPOConfig(stop_on=(name,), stop_after=4))
    resumed.load_state_dict(monitors.state_dict())
    assert any(alarm.stops for alarm in resumed.check(HEALTHY | trouble))


def test_every_monitor_may_end_a_run_and_no_other_name():
    from instructrec.rl import monitors

    assert set(MONITORS) == set(monitors._MONITORS)
    with pytest.raises(ConfigError, match=r"ppo.stop_on: unknown monitor 'entropie'.*'entropy'"):
        PPOConfig(stop_on=("entropie",))
    with pytest.raises(ConfigError, match=r"ppo.stop_after = 5 has no effect without ppo.stop_on"):
        PPOConfig(stop_after=5)


def test_no_reference_and_no_groups_are_no_trouble():
    metrics = dict(HEALTHY)
    del metrics["ppo/kl_ref"], metrics["rollout/zero_variance_frac"]
    assert Monitors(PPOConfig()).check(metrics) == []


def test_a_resumed_monitor_remembers():
    first, second = Monitors(PPOConfig()), Monitors(PPOConfig())
    first.check(HEALTHY)
    first.check(HEALTHY | {"ppo/entropy": 0.01})
    second.load_state_dict(first.state_dict())
    assert second.check(HEALTHY | {"ppo/entropy": 0.01}) == []
    assert second.state_dict() == first.state_dict()
