"""What the doctor finds, and that it never shows a secret."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from instructrec.errors import InstructRecError
from instructrec.experiments import doctor
from instructrec.experiments.cli import main


def test_everything_is_looked_at_and_no_key_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = "0123456789abcdef" * 2 + "01234567"
    monkeypatch.setenv("WANDB_API_KEY", secret)
    monkeypatch.setenv("HF_TOKEN", f"hf_{secret}")
    assert main(["doctor", "--json"]) == 0
    out, err = capsys.readouterr()
    found = {finding["name"]: finding for finding in json.loads(out)}
    assert {"versions", "packages", "device", "training", "memory", "embedded model"} <= set(found)
    assert found["packages"]["state"] == "ok" and "torch" in found["versions"]["text"]
    assert "a key is stored; runs are offline" in found["W&B"]["text"]
    assert "a token is stored" in found["hub"]["text"]
    assert secret not in out + err


def test_a_missing_extra_is_a_note_that_names_the_feature() -> None:
    needed = [("torch", None), ("optional-thing", "maths")]
    every, extra = doctor.packages(needed, lambda package: package == "torch")
    assert every.state == "ok" and extra.state == "note" and "mathematical" in extra.text
    assert "pip install 'instructrec[maths]'" in extra.text
    every, extra = doctor.packages(needed, lambda package: package != "torch")
    assert every.state == "broken" and "pip install torch" in every.text and extra.state == "ok"


def test_what_is_broken_fails_the_command_after_all_was_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def raises() -> list[doctor.Finding]:
        raise ImportError("no such library")

    def fine() -> list[doctor.Finding]:
        return [doctor.Finding("after", "ok", "looked at all the same")]

    with pytest.raises(InstructRecError, match=r"something broken \(training\)"):
        doctor.run_doctor(looks={"training": raises, "after": fine})
    out = capsys.readouterr().out
    assert "BROKEN  training" in out and "no such library" in out and "at all the same" in out


def test_every_extra_has_a_feature(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["optional-dependencies"].keys() - {"dev"} == doctor.FEATURES.keys()
