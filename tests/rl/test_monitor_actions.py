"""What a monitor does about a trouble, in runs that were made to have it."""

from __future__ import annotations

import dataclasses

import pytest

from instructrec.errors import CheckpointError, NumericsError
from instructrec.rl.checkpoint import checkpoint_path
from instructrec.rl.checkpoint_keeping import latest_checkpoint
from instructrec.rl.learner import PPOLearner
from instructrec.rl.monitor_config import MonitorRule, MonitorsConfig
from instructrec.rl.monitors import Alarm
from instructrec.rl.steering import act


def steady(toy, **rules):
    """A short run whose learning rate nothing but a monitor changes."""
    return dataclasses.replace(
        toy.fast,
        **{"episodes_per_update": 8, "micro_batch_size": 4, "num_ppo_epochs": 1},
        **{"warmup_steps": 0, "save_every": 1, "keep_checkpoints": 9, "kl_coef": 0.05},
        monitors=MonitorsConfig(**rules),
    )


def always(action, patience=1):
    """A rule for ``large_step`` that every update breaks."""
    return MonitorRule(0.0, action, patience)


def values(log, key):
    return [metrics[key] for metrics, _ in log]


def test_a_warning_changes_nothing(toy):
    alarms = []
    loud = steady(toy, large_step=always("warn"))
    warned, _, log = toy.train(loud, on_alarm=alarms.append)
    silent, _, _ = toy.train(steady(toy, large_step=always("ignore")))
    assert [alarm.action for alarm in alarms if alarm.name == "large_step"] == ["warn"]
    assert warned.weights_hash() == silent.weights_hash() != toy.policy().weights_hash()
    assert values(log, "monitors/ringing")[0] >= 1


def test_a_stop_leaves_a_checkpoint_from_which_another_rule_goes_on(toy, tmp_path):
    config = steady(toy, large_step=always("stop", patience=2))
    config = dataclasses.replace(config, save_every=0)
    with pytest.raises(NumericsError, match=r"large_step\.action is 'stop'") as error:
        toy.train(config, checkpoint_dir=tmp_path)
    assert error.value.exit_code == 7
    last = latest_checkpoint(tmp_path)
    assert last == checkpoint_path(tmp_path, 2)
    warns = dataclasses.replace(config, monitors=MonitorsConfig(large_step=always("warn")))
    _, result, log = toy.train(warns, resume_from=last, checkpoint_dir=tmp_path)
    assert (result.updates, len(log)) == (4, 2)
    steers = dataclasses.replace(config, monitors=MonitorsConfig(large_step=always("lower_lr")))
    with pytest.raises(CheckpointError, match=r"ppo\.monitors\.large_step = .*--allow_change"):
        toy.train(steers, resume_from=last)
    _, _, log = toy.train(steers, resume_from=last, allow_change=["ppo.monitors"])
    assert values(log, "ppo/lr") == [3e-3, 1.5e-3]


@pytest.mark.parametrize(
    ("action", "key", "expected"),
    [
        ("lower_lr", "ppo/lr", [3e-3, 1.5e-3, 0.75e-3, 0.375e-3]),
        ("raise_kl", "ppo/kl_coef", [0.05, 0.1, 0.2, 0.4]),
    ],
)
def test_a_run_is_steered_and_resumes_bit_for_bit(toy, tmp_path, action, key, expected):
    config, alarms = steady(toy, large_step=always(action)), []
    whole, _, log = toy.train(config, checkpoint_dir=tmp_path / "whole", on_alarm=alarms.append)
    assert values(log, key) == pytest.approx(expected)
    effects = [alarm.effect for alarm in alarms if alarm.action == action]
    assert len(effects) == 4 and all(" -> " in effect for effect in effects)
    untouched, _, _ = toy.train(steady(toy))
    assert whole.weights_hash() != untouched.weights_hash()
    for done in (1, 3):
        start = checkpoint_path(tmp_path / "whole", done)
        rest, _, tail = toy.train(config, resume_from=start, checkpoint_dir=tmp_path / str(done))
        assert rest.weights_hash() == whole.weights_hash()
        assert toy.without_times(tail) == toy.without_times(log[done:])


def test_the_schedule_goes_on_under_a_lowered_rate(toy):
    config = dataclasses.replace(
        steady(toy, large_step=always("lower_lr", patience=2)),
        lr_schedule="linear",
        num_updates=4,
    )
    _, _, log = toy.train(config)
    _, _, same = toy.train(dataclasses.replace(config, monitors=MonitorsConfig()))
    (*first, third, _), plain = values(log, "ppo/lr"), values(same, "ppo/lr")  # it ends at 0
    assert first == plain[:2] and third == pytest.approx(0.5 * plain[2])


def test_the_critic_keeps_its_rate_and_neither_factor_grows_without_end(toy):
    config = steady(toy)
    learner = PPOLearner(toy.policy(), config)
    critic = learner.optimizer.param_groups[1]["lr"]
    told = [act(Alarm("x", "Odd.", "lower_lr"), learner) for _ in range(9)]
    assert learner.optimizer.param_groups[0]["lr"] == pytest.approx(3e-3 / 64)
    assert learner.optimizer.param_groups[1]["lr"] == critic
    assert told[0].text == "Odd. From here on: ppo.learning_rate 0.003 -> 0.0015."
    assert [" stays at " in alarm.effect for alarm in told] == [False] * 6 + [True] * 3
    told = [act(Alarm("x", "Odd.", "raise_kl"), learner) for _ in range(9)]
    assert learner.coefficients.kl.coef == pytest.approx(0.05 * 64)
    assert [" stays at " in alarm.effect for alarm in told] == [False] * 6 + [True] * 3
    assert act(Alarm("x", "Odd."), learner) == Alarm("x", "Odd.")


def test_an_alarm_comes_with_the_responses_that_show_it(toy):
    alarms = []

    def long_ones(completions, **columns):
        return [len(text) / 9 for text in completions]

    config = steady(toy, length_collapse=MonitorRule(100.0))
    _, _, log = toy.train(config, reward=long_ones, on_alarm=alarms.append)
    (alarm,) = [alarm for alarm in alarms if alarm.name == "length_collapse"]
    _, rows = log[0]
    assert len({row["id"] for row in alarm.samples}) == len(alarm.samples) == 3
    assert all(row in rows for row in alarm.samples)
    shortest = min(row["response_len"] for row in rows)
    assert alarm.samples[0]["response_len"] == shortest
