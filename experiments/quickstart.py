"""The quickstart: does PPO improve a real model beyond imitation of the same demonstrations?

Stages, each a run folder inside the quickstart's own: the untouched model (``base``), a short SFT
(``sft``), the best SFT on the same demonstrations (``sft-best``), and PPO from the short SFT
(``ppo``). All are measured on the same held-out instructions, which no stage sees.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from instructrec.devices import describe
from instructrec.errors import RunInterrupted
from instructrec.experiments import quickstart_report as report
from instructrec.experiments import setup_run, telling
from instructrec.experiments.plots import Baseline, learning_curve
from instructrec.experiments.progress import format_duration
from instructrec.experiments.quickstart_config import QuickstartConfig
from instructrec.experiments.quickstart_report import STAGES, Stage
from instructrec.experiments.quickstart_stages import (
    Quickstart,
    load_base,
    measure_base,
    train_stage,
)
from instructrec.experiments.quickstart_time import expected_s
from instructrec.experiments.runfolder import RunFolder, RunInfo, read_metrics
from instructrec.experiments.setup_run import LoadPolicy
from instructrec.policies.base import Policy, Prompt
from instructrec.policies.config import Sampling

_PROBE, _PROBES = 24, 3


def run_quickstart(
    config: QuickstartConfig,
    *,
    command: Sequence[str] | None = None,
    load_policy: LoadPolicy = setup_run.load,
    say: telling.Say = telling.say,
) -> RunFolder:
    """Runs all stages and reports.

    Args:
        config: Settings.
        command: The command line after the program's name, for the record.
        load_policy: Makes the policies.
        say: Receives lines for people.

    Returns:
        The quickstart's run folder; its ``report.md`` holds what was printed at the end.
    """
    base = Path(config.output.dir)
    path = base / (config.name or _next_name(base))
    given = list(command or ["quickstart"])
    run = Quickstart(config, path, given, load_policy, say)
    model = config.policy.model
    info = RunInfo("compare", "none", "quickstart", config.seed, model, config.task.name)
    settings = dataclasses.asdict(config)
    with RunFolder.create(path, info, settings, command=["instructrec", *given]) as folder:
        _base(run)
        sft = _train(run, "sft", model)
        _train(run, "sft-best", model)
        _train(run, "ppo", sft)
        _conclude(run, folder)
    return folder


def _next_name(base: Path) -> str:
    """``quickstart-<n>`` with the first number above those that exist."""
    numbers = [
        int(match[1])
        for path in base.glob("quickstart-*")
        if (match := re.fullmatch(r"quickstart-(\d+)", path.name))
    ]
    return f"quickstart-{max(numbers, default=0) + 1}"


# Stages -------------------------------------------------------------------------------------------


def _base(run: Quickstart) -> None:
    _title(run, "base", "the untouched model")
    policy = load_base(run)
    run.say(describe(policy.device, policy.compute_dtype))
    run.expected = expected_s(run.config, len(run.test), _response_s(run, policy))
    total = format_duration(sum(run.expected.values()))
    run.say(f"about {total} for all four stages, at the speed that this machine has just now")
    measure_base(run, policy)


def _train(run: Quickstart, name: str, model: str) -> str:
    """Trains and measures one stage; returns its folder, from which another may start."""
    config = run.config
    about = {
        "sft": f"{config.sft.demonstrations} demonstrations, {config.sft.max_steps} steps",
        "sft-best": "the same start and demonstrations, stopped on validation exact match",
        "ppo": f"from the short SFT, {config.ppo.num_updates} updates on exact match",
    }[name]
    _title(run, name, about)
    settings = config.stage(name, str(run.path), model)
    try:
        return train_stage(run, name, settings)
    except RunInterrupted as error:
        command = "sft" if settings.algorithm == "sft" else "train"
        file = run.path / name / "config.yaml"
        raise RunInterrupted(
            f"the quickstart was stopped during {name} and will not be compared; start it again. "
            f"That stage alone goes on with: instructrec {command} {file} --resume"
        ) from error


def _response_s(run: Quickstart, policy: Policy) -> float:
    """Seconds of one response in a small batch, as busy as the machine is now."""
    number = min(_PROBE, len(run.test))
    prompts = [run.test[i].prompt for i in range(number)]
    sampling = Sampling(run.config.ppo.response_length, 0.0)
    policy.respond(prompts[:2], sampling=sampling)  # the first call pays for set-up
    return median(_seconds(policy, prompts, sampling) for _ in range(_PROBES)) / number


def _seconds(policy: Policy, prompts: Sequence[Prompt], sampling: Sampling) -> float:
    start = time.perf_counter()
    policy.respond(prompts, sampling=sampling)
    return time.perf_counter() - start


# The end ------------------------------------------------------------------------------------------


def _conclude(run: Quickstart, folder: RunFolder) -> None:
    stages = run.stages
    curve = learning_curve(
        read_metrics(folder.path / "ppo"),
        folder.path / "learning_curve.png",
        reward="exact_match",
        title="PPO from the short SFT",
        baselines={stage.title: _baseline(stage) for stage in stages.values()},
    )
    sections = {
        "Held-out exact match": report.results_table(list(stages.values())),
        "Differences": "\n".join(report.difference_lines(stages)),
        "Before and after": "\n".join(report.sample_lines(stages, run.config.seed)),
    }
    written = report.write_report(folder.path, sections)
    total = time.perf_counter() - run.started
    folder.finish("finished", {**report.summary_of(stages), "wall_s": total})
    for title, text in sections.items():
        run.say(f"\n{title}\n\n{text}")
    paths = [("report", written), ("learning curve", curve)]
    paths += [(STAGES[name], folder.path / name) for name in stages]
    paths += [("trained policy", folder.path / "ppo" / "policy")]
    lines = [f"{label:<15}  {path}" for label, path in paths]
    lines += [f"{'tracking of PPO':<15}  {run.tracking}"] if run.tracking else []
    run.say("\n".join(["", f"{format_duration(total)} in all. Written:", *lines]))


def _baseline(stage: Stage) -> Baseline:
    found = stage.greedy.interval("exact_match")
    return Baseline(found.mean, found.low, found.high)


def _title(run: Quickstart, name: str, about: str) -> None:
    number = list(STAGES).index(name) + 1
    run.say(f"\n{number} of {len(STAGES)}  {STAGES[name]}: {about}")
