"""The schema that editors read, and the script that completes commands in a shell."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

from instructrec.experiments.cli import main
from instructrec.experiments.command_line import RECIPES, command_of
from instructrec.experiments.config import TrainConfig
from instructrec.experiments.editor_commands import recipe_schema


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = json.loads(recipe_schema())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def complaints(validator: jsonschema.Draft202012Validator, text: str) -> str:
    return " ".join(error.message for error in validator.iter_errors(yaml.safe_load(text)))


def test_every_shipped_recipe_fits_the_schema(validator: jsonschema.Draft202012Validator) -> None:
    others, pipelines = (
        jsonschema.Draft202012Validator(json.loads(recipe_schema(name)))
        for name in ("train-reward", "pipeline")
    )
    by_command = {"train-reward": others, "pipeline": pipelines}
    for path in RECIPES.glob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        of_its_command = by_command.get(command_of(yaml.safe_load(text)), validator)
        assert complaints(of_its_command, text) == "", path.name
    assert complaints(validator, "algorithm: alignment") != ""
    assert complaints(others, "algorithm: ppo") != ""


def test_mistakes_are_marked(validator: jsonschema.Draft202012Validator) -> None:
    assert "'ppo_' was unexpected" in complaints(validator, "ppo_: {}")
    assert "learing_rate" in complaints(validator, "ppo: {learing_rate: 1.0}")
    assert "'many'" in complaints(validator, "ppo: {num_updates: many}")
    assert "'pppo'" in complaints(validator, "algorithm: pppo")


def test_keys_have_their_help_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert set(schema["properties"]) - {"$schema"} == {
        field.name for field in dataclasses.fields(TrainConfig)
    }
    updates = schema["properties"]["ppo"]["properties"]["num_updates"]
    assert updates["type"] == "integer" and updates["default"] == 16
    assert updates["description"].startswith("Updates to run; one update is one rollout")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_and_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "completion.sh"
    script.write_text(capsys.readouterr().out, encoding="utf-8")

    def completed(*words: str) -> list[str]:
        """What bash offers for the last of the words."""
        typed = " ".join(f"'{word}'" for word in ("instructrec", *words))
        code = (
            f"source {script}; COMP_WORDS=({typed}); COMP_CWORD={len(words)}; "
            "complete -p instructrec > /dev/null; "
            "$(complete -p instructrec | sed 's/.*-F \\([^ ]*\\).*/\\1/'); "
            'printf "%s\\n" "${COMPREPLY[@]}"'
        )
        done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert {"train", "sweep", "schema"} <= set(completed(""))
    assert completed("tra") == ["train", "train-reward"]
    assert "--ppo.learning_rate" in completed("train", "--ppo.learn")
    assert set(completed("train", "--ppo.advantage", "")) >= {"gae", "rloo"}
