"""The rules of monitors: defaults that are documented, and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace

import pytest

from instructrec.errors import ConfigError
from instructrec.experiments.cli import main
from instructrec.rl.config import PPOConfig, raft_settings
from instructrec.rl.monitor_config import MonitorRule, MonitorsConfig, check_gold, read_monitors


def test_a_rule_without_a_threshold_takes_that_of_its_monitor():
    monitors = MonitorsConfig(drift=MonitorRule(action="stop"), kl_budget=MonitorRule(7.0))
    assert monitors.drift == MonitorRule(0.05, "stop")
    assert set(monitors.changed()) == {"drift", "kl_budget"} and MonitorsConfig().changed() == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"drift": MonitorRule(-1.0)}, r"drift\.threshold = -1\.0: .*set its action to ignore"),
        ({"drift": MonitorRule(float("nan"))}, r"drift\.threshold = nan: expected a finite"),
        ({"drift": MonitorRule(patience=0)}, r"drift\.patience = 0: expected at least 1"),
        ({"drift": MonitorRule(action="halt")}, r"unknown ppo\.monitors\.drift\.action 'halt'"),
        ({"slow_reward": MonitorRule(action="stop")}, r"action = 'stop': expected warn or ignore"),
        ({"slow_reward": MonitorRule(action="lower_lr")}, r"expected warn or ignore.*by times"),
        ({"lr_factor": 1.0}, r"lr_factor = 1\.0: expected a number in \(0, 1\)"),
        ({"kl_factor": 1.0}, r"kl_factor = 1\.0: expected a finite number above 1"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        MonitorsConfig(**settings)


@pytest.mark.parametrize(
    ("rules", "settings", "message"),
    [
        ({"drift": MonitorRule(action="raise_kl")}, {"kl_coef": 0.0}, "to raise, or another"),
        ({"kl_budget": MonitorRule(9.0)}, {"kl_coef": 0.0}, "ppo.kl_coef = 0 keeps none"),
        ({"drift": MonitorRule(action="raise_kl")}, {"kl_target": 6.0}, "Remove the target, or"),
    ],
)
def test_a_monitor_that_contradicts_another_setting_is_refused(rules, settings, message):
    with pytest.raises(ConfigError, match=message):
        PPOConfig(**settings, monitors=MonitorsConfig(**rules))
    PPOConfig(monitors=MonitorsConfig(**rules))


def test_a_run_of_raft_keeps_the_rules_that_need_no_reference():
    rules = {"drift": MonitorRule(action="stop"), "repetition": MonitorRule(action="raise_kl")}
    config = PPOConfig(monitors=MonitorsConfig(**rules, kl_budget=MonitorRule(9.0)))
    assert raft_settings(config, 4).monitors == MonitorsConfig(drift=rules["drift"])


def test_gold_has_to_be_measured_where_it_is_asked_for():
    check_gold(MonitorsConfig(), ["exact_match"])  # at its default it asks for nothing
    check_gold(MonitorsConfig(gold="judge"), ["judge", "bleu"])
    asked = MonitorsConfig(proxy_gold_gap=MonitorRule(action="stop"))
    for monitors in (asked, MonitorsConfig(gold="jugde")):
        with pytest.raises(ConfigError, match=r"ppo\.monitors\.gold: .*weight 0 to measure it"):
            check_gold(monitors, ["judge", "bleu"])


def test_rules_are_read_back_from_a_checkpoint():
    monitors = MonitorsConfig(drift=MonitorRule(action="lower_lr"), lr_factor=0.1)
    saved = json.loads(json.dumps(asdict(monitors)))
    assert read_monitors(saved | {"gone": {"threshold": 1.0}}) == monitors
    assert monitors.steering()["lr_factor"] == 0.1
    assert replace(monitors, drift=MonitorRule(action="stop")).steering() == {}


@pytest.mark.parametrize("key", ["stop_on", "stop_after"])
def test_the_keys_of_before_are_answered_with_those_of_now(key, capsys):
    assert main(["train", "tiny_smoke", f"--ppo.{key}", "3"]) == 2
    assert f"unknown key 'ppo.{key}': " in (said := capsys.readouterr().err)
    assert "ppo.monitors.NAME" in said


def test_every_default_is_that_of_the_page(root):
    page = (root / "docs" / "monitors.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([\d.]+) \|", page, flags=re.MULTILINE)
    rules = MonitorsConfig().rules()
    assert {name: float(threshold) for name, threshold in listed} == {
        name: rule.limit for name, rule in rules.items()
    }
    assert len(listed) == len(rules)
    for name in ("gold", "lr_factor", "kl_factor"):
        assert f"| `{name}` | {getattr(MonitorsConfig(), name)} |" in page
    assert {rule.patience for rule in rules.values()} == {3}
