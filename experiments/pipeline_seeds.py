"""``instructrec pipeline --seeds``: pipelines of several seeds, and what PPO gained in them."""

from __future__ import annotations

import shlex

from instructrec.experiments.child_runs import is_finished
from instructrec.experiments.compare_stats import FEWEST_RUNS
from instructrec.experiments.contenders import read_policy
from instructrec.experiments.pipeline import run_pipeline
from instructrec.experiments.pipeline_config import GOLD, PipelineConfig, refuse_changed
from instructrec.experiments.seeds import (
    Job,
    Scores,
    SeedRun,
    SeedsOutcome,
    in_a_table,
    mean_of,
    with_interval,
)
from instructrec.experiments.stats import paired_difference, seeds_interval
from instructrec.experiments.yaml_files import read_config

SFT, GAIN = "SFT", "difference"
"""The first stage, and what the last one gained on it."""


def is_done(config: PipelineConfig) -> bool:
    """Whether all rounds of the pipeline came to their end, under these settings.

    Raises:
        ConfigError: They did, under other ones.
    """
    if not is_finished(config.folder):
        return False
    refuse_changed(config)
    return bool(read_config(config.folder)["rounds"] == config.rounds)


def outcome_of(runs: list[SeedRun]) -> SeedsOutcome:
    """Gold of SFT and of the last PPO over all seeds, and their difference, paired by seed.

    Raises:
        DataError: The seeds answered different instructions.
    """
    last = _rounds(runs)
    paths = [run.folder.path for run in runs]
    both = read_policy([path / stage for stage in ("sft", f"ppo-{last}") for path in paths])
    places = both.kept(GOLD)
    clusters = both.clusters(places)
    if len(set(clusters)) < 2:
        return SeedsOutcome(runs, {})
    scores = both.contenders[0].scores([both.ids[i] for i in places], GOLD)
    sft_SN, ppo_SN = scores[: len(runs)], scores[len(runs) :]
    found: Scores = {SFT: mean_of(sft_SN, clusters), _ppo(last): mean_of(ppo_SN, clusters)}
    if len(runs) < FEWEST_RUNS:
        found[GAIN] = paired_difference(ppo_SN.mean(0), sft_SN.mean(0), clusters)
    else:
        found[GAIN] = seeds_interval(ppo_SN - sft_SN, clusters, differences=True)
    return SeedsOutcome(runs, found)


def report(outcome: SeedsOutcome) -> str:
    """The seeds as a table by gold, their mean, and how to compare their stages further."""
    last = _rounds(outcome.runs)

    def cell(run: SeedRun, name: str) -> str:
        gain = run.summary["differences_to_sft"][_ppo(last)]
        found = gain if name == GAIN else run.summary["policies"][name][GOLD]
        return with_interval(found["mean"], found["low"], found["high"])

    heads = {name: name for name in (SFT, _ppo(last), GAIN)}
    told = in_a_table(outcome, heads, cell, title="gold on held-out instructions")
    paths = [run.folder.path for run in outcome.runs]
    stages = {"sft": "sft", "ppo": f"ppo-{last}"}
    named = [f"{name}={','.join(str(p / of) for p in paths)}" for name, of in stages.items()]
    command = ["instructrec", "compare", *named, "--metric", GOLD]
    return f"{told}\n\ncompare  {shlex.join(command)}"


JOB = Job(run_pipeline, is_done, outcome_of, report, "pipelines of several seeds")
"""What `seeds.run_each` does with each seed."""


def _rounds(runs: list[SeedRun]) -> int:
    return len(runs[0].summary["rounds"])


def _ppo(number: int) -> str:
    """What a report calls PPO of a round."""
    return f"PPO, round {number}"
