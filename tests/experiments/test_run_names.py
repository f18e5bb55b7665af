"""Names of runs and sweeps name one folder, wherever they come from."""

from __future__ import annotations

import pytest

from instructrec.errors import ConfigError
from instructrec.experiments.config import EvaluateConfig, TrainConfig

HOSTILE = ["../../x", "..", ".", "/etc/x", "a/b", "a\\b", "a\x00b", "a\n", "-x", "x" * 300, "", "é"]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_that_are_no_plain_folder_names_are_refused(name: str) -> None:
    for make in (
        lambda: TrainConfig(name=name),
        lambda: TrainConfig(variant=name),
        lambda: EvaluateConfig(name=name),
    ):
        with pytest.raises(ConfigError, match="names a folder"):
            make()
