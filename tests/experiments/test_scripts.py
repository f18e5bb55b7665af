"""The commands as scripts: ``python experiments/compare.py A B``."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

import instructrec.experiments.cli

SCRIPTS = ["train", "evaluate_policy", "compare", "sweep", "probe", "report", "pipeline"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_does_what_its_command_does(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = Path(instructrec.experiments.cli.__file__).with_name(f"{name}.py")
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    command = "evaluate" if name == "evaluate_policy" else name
    assert ended.value.code == 0
    assert f"usage: instructrec {command}" in capsys.readouterr().out
