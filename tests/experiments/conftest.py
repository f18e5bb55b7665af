"""Scripts beside the package, loaded by name; training that takes no time."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest

from instructrec.envs.tasks.base import make_task
from instructrec.experiments.config import TrainConfig
from instructrec.experiments.evaluation import evaluate
from instructrec.experiments.runfolder import RunFolder, RunInfo, read_metrics
from instructrec.policies.config import Sampling
from instructrec.policies.scripted import RandomPolicy
from instructrec.rewards.combine import make_rewards


@pytest.fixture(scope="session")
def script_of(root: Path) -> Callable[[str], ModuleType]:
    """Loads a script of ``experiments/scripts`` as a module."""

    def load(name: str) -> ModuleType:
        file = root / "experiments" / "scripts" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module

    return load


class QuickTraining:
    """Takes the place of ``run_training``: learns nothing, and answers by chance at the end.

    Attributes:
        curve: Validation score of a run after an update.
        before: Called before each update of a run; it may raise.
        trained: Folders that were trained, in order, with their first update.
    """

    def __init__(self) -> None:
        self.curve: Callable[[TrainConfig, int], float] = lambda config, update: update / 10
        self.before: Callable[[TrainConfig, int], None] = lambda config, update: None
        self.trained: list[tuple[str, int]] = []

    def __call__(
        self,
        config: TrainConfig,
        *,
        resume: bool = False,
        overwrite: bool = False,
        command: Sequence[str] | None = None,
        should_prune: Callable[[int, dict[str, float]], bool] = lambda update, metrics: False,
        say: Callable[[str], None] = print,
    ) -> None:
        """Trains one run."""
        config = config.resolved()
        resume = resume and config.folder.exists()
        info = RunInfo(
            "train", config.algorithm, config.resolved_variant, config.seed, "none", "parity"
        )
        folder = RunFolder.create(
            config.folder,
            info,
            config.to_dict(),
            resume=resume,
            overwrite=overwrite,
            command=command,
        )
        done = len(read_metrics(folder.path)) if resume else 0
        self.trained.append((folder.path.name, done + 1))
        stopped = "finished"
        with folder, folder.metrics_log() as log:
            for update in range(done + 1, config.ppo.num_updates + 1):
                self.before(config, update)
                metrics = {"eval/total/mean": self.curve(config, update)}
                log.write({"train/update": update, **metrics})
                if should_prune(update, metrics):
                    stopped = "pruned"
                    break
            self._finish(config, folder, update, stopped)

    def _finish(self, config: TrainConfig, folder: RunFolder, update: int, stopped: str) -> None:
        file = folder.eval_path("parity", "test", "greedy", update)
        evaluation = evaluate(
            RandomPolicy(config.seed),
            make_task("parity", split="test", size=20),
            make_rewards(config.reward_value()),
            sampling=Sampling(temperature=0.0),
            out=file,
        )
        summary = {"eval_file": str(file.relative_to(folder.path)), "best_update": update}
        folder.finish("finished", {**evaluation.metrics(), **summary, "stopped": stopped})


@pytest.fixture
def quick_training() -> QuickTraining:
    """Training that takes no time."""
    return QuickTraining()
