"""What the doctor finds, and that it never shows a secret."""

from __future__ import annotations

import json

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


def test_a_missing_extra_is_a_note_that_names_the_feature(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor, "_installed", lambda package: package != "optional-thing")
    lines = ["torch>=2", 'optional-thing>=1; extra == "maths"']
    monkeypatch.setattr(doctor.metadata, "requires", lambda _: lines)
    (finding,) = doctor._extras()
    assert finding.state == "note" and "mathematical equality" in finding.text
    assert "pip install 'instructrec[maths]'" in finding.text
    assert doctor._packages()[0].state == "ok"


def test_what_is_broken_fails_the_command_after_all_was_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def raises() -> list[doctor.Finding]:
        raise ImportError("no such library")

    monkeypatch.setattr(doctor, "_training", raises)
    with pytest.raises(InstructRecError, match=r"something broken \(training\)"):
        doctor.run_doctor()
    out = capsys.readouterr().out
    assert "BROKEN  training" in out and "no such library" in out and "extra maths" in out


def test_every_extra_has_a_feature() -> None:
    named = {extra for _, extra in doctor._requirements() if extra} - {"dev"}
    assert named == set(doctor.FEATURES)
