from __future__ import annotations

import subprocess
import sys

import pytest

from instructrec.errors import ConfigError
from instructrec.experiments.tracking import TrackingConfig


def test_disabled_tracking_imports_no_wandb(tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from instructrec.experiments.tracking import TrackingConfig, open_tracking\n"
        "open_tracking(TrackingConfig(mode='disabled'), Path(), name='', job_type='', group='')\n"
        "assert not {'wandb', 'torch'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_project_name_that_wandb_refuses_is_refused_at_once():
    with pytest.raises(ConfigError, match=r"tracking\.project = 'a/b'"):
        TrackingConfig(project="a/b")
