"""``--decoding`` and ``--n`` of ``evaluate``: what they become, and what contradicts them."""

from __future__ import annotations

from pathlib import Path

import pytest

from instructrec.errors import ConfigError
from instructrec.experiments import api, command_line
from instructrec.experiments.cli import command_parser
from instructrec.experiments.config import EvaluateConfig
from instructrec.experiments.decoding_words import evaluate_config
from instructrec.experiments.evaluate_policy import run_evaluation


def config_of(*options: str, policy: str = "oracle") -> EvaluateConfig:
    arguments = [policy, *options]
    return evaluate_config(command_line.parse(command_parser("evaluate"), arguments), arguments)


@pytest.mark.parametrize(
    ("options", "temperature", "samples"),
    [
        ([], None, None),
        (["--decoding", "greedy"], 0.0, None),
        (["--decoding", "greedy", "--temperature", "0", "--n", "1"], 0.0, 1),
        (["--decoding", "sample"], 1.0, None),
        (["--decoding", "sample", "--n", "8"], 1.0, 8),
        (["--decoding=sample", "--n=8", "--samples=8"], 1.0, 8),
        (["--decoding", "sample", "--temperature", "0.7", "--samples", "4"], 0.7, 4),
        (["--n", "4", "--temperature", "0.7"], 0.7, 4),
    ],
)
def test_the_words_become_temperature_and_samples(
    options: list[str], temperature: float, samples: int | None
) -> None:
    assert config_of(*options) == EvaluateConfig(temperature=temperature, samples=samples)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--decoding", "greedy", "--temperature", "0.7"], "greedy decoding is temperature 0"),
        (["--decoding", "sample", "--temperature", "0"], "Leave --temperature out"),
        (["--n", "8"], "add --decoding sample"),
        (["--samples", "8"], "add --decoding sample"),
        (["--n", "8", "--decoding", "greedy"], "give --decoding sample instead"),
        (["--n", "8", "--samples", "4", "--decoding", "sample"], "Give one of them"),
        (["--n", "0"], "samples = 0: expected at least 1"),
        (["--decoding", "beam"], "beam"),
    ],
)
def test_contradictions_are_refused_in_words(options: list[str], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        config_of(*options)


def test_fewer_responses_of_a_file_need_no_word_about_how_they_were_drawn() -> None:
    assert config_of("--samples", "2", policy="drawn.jsonl") == EvaluateConfig(samples=2)
    with pytest.raises(ConfigError, match="add --decoding sample"):
        config_of("--samples", "2", "--temperature", "0", policy="drawn.jsonl")


def test_a_file_of_settings_may_use_the_words_too(tmp_path: Path) -> None:
    file = tmp_path / "sampled.yaml"
    file.write_text("temperature: 0.0\ndecoding: sample\nn: 3\n")
    assert config_of("--config", str(file)) == EvaluateConfig(temperature=1.0, samples=3)


def test_an_evaluation_from_python_knows_the_same_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = {"task": "parity", "limit": 2, "bounds": False}
    with pytest.raises(ConfigError, match="add --decoding sample"):
        api.evaluate("oracle", {**asked, "n": 2})
    with pytest.raises(ConfigError, match="greedy decoding gives the same response"):
        run_evaluation("oracle", EvaluateConfig(task="parity", samples=2))
    found = api.evaluate("oracle", {**asked, "n": 2, "decoding": "sample"}, say=lambda line: None)
    again = {**asked, "samples": 2, "temperature": 1}
    same = api.evaluate("oracle", {**again, "name": "same"}, say=lambda line: None)
    assert found.header["sampling"] == same.header["sampling"]
    assert (found.header["samples"], len(found.rows)) == (2, 4)
