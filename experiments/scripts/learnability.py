"""Measures what a small model makes of each family of skills: is there anything to learn from?

For every family, level and language, on the test split::

    python experiments/scripts/learnability.py --out runs/learnability

* zero-shot: score of the untouched model's greedy answers;
* pass@8: chance that one of its eight sampled answers gets full marks;
* after 50 demonstrations: score after a short supervised fine-tuning;
* after 10 updates: score after that many updates of PPO from there, and the paired difference of
  the two with its interval. A family without a difference above 0 is marked as without signal.

A number that is in ``learnability.json`` already is not measured again, so that an interrupted call
can be repeated. ``learnability.md`` is the table. Cost on two CPU cores: some minutes a family.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from instructrec.envs.tasks.base import iterate, make_task
from instructrec.envs.tasks.skills.base import LEVELS, REWARDS
from instructrec.envs.tasks.skills.catalog import SKILLS
from instructrec.errors import InstructRecError
from instructrec.experiments import setup_run, telling
from instructrec.experiments.config import EvalConfig, OutputConfig, TaskConfig, TrainConfig
from instructrec.experiments.evaluation import Evaluation, evaluate, load_evaluation
from instructrec.experiments.jsonl import read_json, write_json
from instructrec.experiments.quickstart_config import QuickstartConfig
from instructrec.experiments.runfolder import RunFolder
from instructrec.experiments.stats import paired_difference
from instructrec.experiments.tracking import TrackingConfig
from instructrec.experiments.train import run_training
from instructrec.policies.config import PolicyConfig, Sampling
from instructrec.rewards.combine import make_rewards

SAMPLES = 8
"""Sampled answers of pass@8."""
_COLUMNS = ("family", "level", "language", "zero-shot", "pass@8", "after demonstrations")


@dataclass(frozen=True)
class Cell:
    """One family in one level and language."""

    family: str
    level: int
    language: str

    @property
    def name(self) -> str:
        """Its name in files."""
        return f"{self.family}-{self.language}{self.level}"

    @property
    def options(self) -> dict[str, Any]:
        """Options of its task."""
        return {"level": self.level, "language": self.language}


class Probe:
    """Measures cells and keeps the numbers in a file.

    Args:
        out: Folder of the numbers and the runs.
        policy: The model, and which of its weights train.
        limit: Test instructions of each measurement.
        demonstrations: Demonstrations of the fine-tuning.
        updates: Updates of PPO.
        episodes: Episodes of an update.
        say: Receives lines for people.
    """

    def __init__(
        self,
        out: Path,
        policy: PolicyConfig,
        *,
        limit: int = 200,
        demonstrations: int = 50,
        updates: int = 10,
        episodes: int = 128,
        say: telling.Say = telling.say,
    ) -> None:
        self.out, self.policy, self.limit, self.say = out, policy, limit, say
        default = QuickstartConfig()
        self.sft = replace(default.sft, demonstrations=demonstrations)
        # Without the filter by family: a cell has one family only.
        self.ppo = replace(
            default.ppo,
            num_updates=updates,
            episodes_per_update=episodes,
            prompt_filter=None,
            eval_every=0,
        )
        self.file = out / "learnability.json"
        self.settings = {
            **{"model": policy.model, "train": policy.train, "limit": limit},
            **{"demonstrations": demonstrations, "updates": updates, "episodes": episodes},
        }
        self.cells: dict[str, dict[str, Any]] = self._read()
        self._base: Any = None

    def measure(self, cell: Cell) -> None:
        """Measures what is not known of a cell yet."""
        known = self.cells.setdefault(cell.name, {"cell": vars(cell)})
        stages: dict[str, Callable[[Cell], Any]] = {
            "zero_shot": self._zero_shot,
            "pass_at_8": self._pass_at_8,
            "demonstrations": self._demonstrations,
            "updates": self._updates,
        }
        for stage, measure in stages.items():
            if stage not in known:
                known[stage] = measure(cell)
                self.say(f"{cell.name}: {stage} {known[stage]}")
                self._write()

    def _read(self) -> dict[str, dict[str, Any]]:
        if not self.file.exists():
            return {}
        before = read_json(self.file)
        if before["settings"] != self.settings:
            raise SystemExit(
                f"{self.file} was measured with {before['settings']}, not {self.settings}: name "
                "another folder with --out."
            )
        return dict(before["cells"])

    def _write(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        write_json(self.file, {"settings": self.settings, "cells": self.cells})
        (self.out / "learnability.md").write_text(markdown(self.cells), encoding="utf-8")

    @property
    def base(self) -> Any:
        """The untouched model."""
        if self._base is None:
            self._base = setup_run.load(self.policy, 0, Sampling(self.ppo.response_length, 0.0))
        return self._base

    def _length(self, cell: Cell) -> int:
        """Tokens that the longest of all answers needs, of train and test, with its end."""
        tasks = [make_task(cell.family, split=split, **cell.options) for split in ("train", "test")]
        answers = {item.columns["reference"] for task in tasks for item in iterate(task)}
        tokenizer = self.base.tokenizer
        return 2 + max(len(tokenizer(answer)["input_ids"]) for answer in answers)

    def _evaluate(self, cell: Cell, temperature: float, samples: int) -> Evaluation:
        return evaluate(
            self.base,
            make_task(cell.family, split="test", **cell.options),
            make_rewards(REWARDS),
            sampling=Sampling(self._length(cell), temperature),
            samples=samples,
            limit=self.limit,
        )

    def _zero_shot(self, cell: Cell) -> dict[str, float]:
        found = self._evaluate(cell, 0.0, 1).interval()
        return {"mean": found.mean, "ci_low": found.low, "ci_high": found.high}

    def _pass_at_8(self, cell: Cell) -> float:
        return self._evaluate(cell, 1.0, SAMPLES).metrics()[f"eval/pass_at_{SAMPLES}"]

    def _demonstrations(self, cell: Cell) -> dict[str, float]:
        return self._train(cell, "sft", self.policy.model)

    def _updates(self, cell: Cell) -> dict[str, float]:
        numbers = self._train(cell, "ppo", str(self.out / cell.name / "sft"))
        after, before = self._rows(cell, "ppo"), self._rows(cell, "sft")
        found = paired_difference(after.scores(), before.scores(), after.clusters)
        difference = {"gain": found.mean, "gain_low": found.low, "gain_high": found.high}
        return numbers | difference

    def _train(self, cell: Cell, algorithm: str, model: str) -> dict[str, float]:
        length = self._length(cell)
        section = {"sft": self.sft, "ppo": replace(self.ppo, response_length=length)}[algorithm]
        config = TrainConfig(
            name=algorithm,
            variant=f"{cell.name}-{algorithm}",
            algorithm=algorithm,  # type: ignore[arg-type]
            task=TaskConfig(name=cell.family, options=cell.options),
            policy=replace(self.policy, model=model),
            rewards=make_rewards(REWARDS).spec,
            eval=EvalConfig(limit=self.limit, max_new_tokens=length),
            tracking=TrackingConfig(mode="disabled"),
            output=OutputConfig(dir=str(self.out / cell.name)),
            **{algorithm: section},  # type: ignore[arg-type]
        )
        resume = (config.folder / "run.json").exists()
        summary = run_training(config, resume=resume, say=telling.say_nothing).summary
        return {key: summary[f"eval/total/{key}"] for key in ("mean", "ci_low", "ci_high")}

    def _rows(self, cell: Cell, stage: str) -> Evaluation:
        folder = RunFolder.open(self.out / cell.name / stage)
        return load_evaluation(folder.path / folder.summary()["eval_file"])


def markdown(cells: dict[str, dict[str, Any]]) -> str:
    """The table of all cells; what is not measured yet says so."""
    header = (*_COLUMNS, "after updates", "gain of the updates", "signal")
    lines = [f"| {' | '.join(header)} |", f"| {' | '.join('---' for _ in header)} |"]
    for known in cells.values():
        cell, gain, signal = known["cell"], "not measured yet", "not measured yet"
        if "updates" in known:
            low, high = known["updates"]["gain_low"], known["updates"]["gain_high"]
            gain = f"{known['updates']['gain']:+.3f} ({low:+.3f} to {high:+.3f})"
            signal = "yes" if low > 0 else "none seen"
        scores = [_shown(known.get(stage)) for stage in ("zero_shot", "pass_at_8")]
        scores += [_shown(known.get(stage)) for stage in ("demonstrations", "updates")]
        about = (cell["family"], str(cell["level"]), cell["language"])
        lines.append(f"| {' | '.join((*about, *scores, gain, signal))} |")
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    if value is None:
        return "not measured yet"
    return f"{value['mean'] if isinstance(value, dict) else value:.3f}"


def main(arguments: Sequence[str] | None = None, *, say: telling.Say = telling.say) -> int:
    """Measures the cells asked for; returns the exit code."""
    default = QuickstartConfig().policy
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, default=Path("runs/learnability"))
    parser.add_argument("--families", nargs="+", choices=SKILLS, default=list(SKILLS))
    parser.add_argument("--levels", nargs="+", type=int, choices=LEVELS, default=[1])
    parser.add_argument("--languages", nargs="+", choices=("en", "zh"), default=["en"])
    parser.add_argument("--model", default=default.model)
    parser.add_argument("--train", default=default.train, help="which weights train")
    parser.add_argument("--device", default="auto")
    for name, value in (("limit", 200), ("demonstrations", 50), ("updates", 10), ("episodes", 128)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args(arguments)
    policy = replace(default, model=given.model, train=given.train, device=given.device)
    sizes = {n: getattr(given, n) for n in ("limit", "demonstrations", "updates", "episodes")}
    try:
        probe = Probe(given.out, policy, **sizes, say=say)
        for family in given.families:
            for level in given.levels:
                for language in (name for name in SKILLS[family] if name in given.languages):
                    probe.measure(Cell(family, level, language))
    except InstructRecError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    say(markdown(probe.cells))
    return 0


if __name__ == "__main__":
    sys.exit(main())
