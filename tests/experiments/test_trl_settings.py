"""Every setting of TRL's trainer, given on our command line."""

from __future__ import annotations

import dataclasses
import re

import pytest
from trl import GRPOConfig

from instructrec.errors import ConfigError
from instructrec.experiments import command_line
from instructrec.experiments.cli import command_parser
from instructrec.rl.config import PPOConfig
from instructrec.rl.trl_names import OURS, explain_trl_name

ALL = {field.name for field in dataclasses.fields(GRPOConfig)}
ACCEPTED = ALL & {field.name for field in dataclasses.fields(PPOConfig)}


@pytest.mark.slow
def test_a_setting_that_we_lack_is_refused_by_name_and_explained() -> None:
    parser = command_parser("train")
    assert len(ALL) > 150
    for name in sorted(ALL - ACCEPTED):
        with pytest.raises(ConfigError) as error:
            command_line.parse(parser, [f"--ppo.{name}", "1"])
        message, explanation = str(error.value), explain_trl_name(name)
        assert f"'ppo.{name}'" in message and explanation, name
        assert explanation[1:] in message, message


def test_settings_that_we_share_are_keys() -> None:
    keys = set(command_line.known_keys(command_parser("train")))
    assert ACCEPTED and {f"ppo.{name}" for name in ACCEPTED} <= keys


def test_what_is_named_instead_exists() -> None:
    keys = set(command_line.known_keys(command_parser("train")))
    for name, ours in OURS.items():
        named = re.findall(r"\b(?:ppo|policy|eval|output|tracking)\.\w+", ours)
        assert set(named) <= keys, name
        assert named or ours.removeprefix("--").split()[0] in keys or "rewards" in ours, name
