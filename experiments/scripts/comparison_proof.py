"""How often the intervals and verdicts of ``instructrec compare`` are right, by simulation.

    python experiments/scripts/comparison_proof.py --out experiments/results

Every experiment draws items of unequal difficulty (two instructions each), runs with luck of their
own, and right or wrong answers; the true difference is known by quadrature. The table says how
often each interval holds it, and how often a difference is claimed where there is none.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from instructrec.experiments.compare_stats import Pair, compare_all
from instructrec.experiments.jsonl import write_atomic, write_json

ITEMS, WORDINGS = 100, 2
EXPERIMENTS = 4000
ADVANTAGE = 0.3
"""How much better the better policy is, in the unit of `Setting.luck`; about 0.07 in accuracy."""
RESAMPLES = 999
_CLUSTERS = np.repeat(np.arange(ITEMS), WORDINGS).tolist()


@dataclass(frozen=True)
class Setting:
    """One kind of experiment."""

    runs: int
    """Runs of each policy."""
    luck: float = 0.0
    """Standard deviation of the runs' luck; 0 for fixed policies."""
    paired: bool = True
    """Whether run i of both policies has the same seed."""


@dataclass(frozen=True)
class Outcome:
    """What came out, as shares of the experiments."""

    setting: Setting
    """The kind of experiment."""
    truth: float
    """True difference of the means where one policy is better."""
    covered: float
    """Intervals of these very runs that hold it."""
    covered_runs: float | None
    """Intervals of other runs that hold it; None where there are none."""
    width: float
    """Mean width of the former."""
    width_runs: float | None
    """Mean width of the latter."""
    found: float
    """Verdicts that claim the difference where it is."""
    false_here: float
    """Where there is none: tests and intervals of these very runs that claim one."""
    false: float
    """Where there is none: verdicts that claim one."""


SETTINGS = (
    Setting(1),
    *(Setting(runs, luck) for runs in (3, 5, 10) for luck in (0.0, 0.2, 0.5)),
    Setting(3, 0.5, paired=False),
    Setting(5, 0.5, paired=False),
)


def experiment(rng: np.random.Generator, setting: Setting, advantage: float) -> Pair:
    """Draws items, runs and answers of two policies, and compares them.

    Run s answers item c rightly with probability ``u_c ^ exp(luck_s - advantage)``, u uniform.
    """
    difficulty = rng.random(ITEMS)
    scores = {}
    for name, ahead in (("a", advantage), ("b", 0.0)):
        exponents = np.exp(rng.normal(0, setting.luck, setting.runs) - ahead)
        shares = np.repeat(difficulty ** exponents[:, None], WORDINGS, axis=1)
        scores[name] = (rng.random(shares.shape) < shares).astype(float)
    first = list(range(setting.runs))
    seeds = {"a": first, "b": first if setting.paired else [seed + 100 for seed in first]}
    return compare_all(scores, seeds, _CLUSTERS, [""] * len(_CLUSTERS), resamples=RESAMPLES)[0]


def true_mean(luck: float, advantage: float) -> float:
    """Expected share of right answers: E[1 / (1 + exp(luck z - advantage))], z normal."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    return float((weights / (1 + np.exp(luck * nodes - advantage))).sum() / weights.sum())


def simulate(setting: Setting, experiments: int = EXPERIMENTS, seed: int = 0) -> Outcome:
    """Runs a setting's experiments with a difference, and as many without."""
    truth = true_mean(setting.luck, ADVANTAGE) - true_mean(setting.luck, 0.0)
    rng = np.random.default_rng(seed)
    real = [experiment(rng, setting, ADVANTAGE) for _ in range(experiments)]
    null = [experiment(rng, setting, 0.0) for _ in range(experiments)]
    over_runs = [
        (pair.runs_low, pair.runs_high)
        for pair in real
        if pair.runs_low is not None and pair.runs_high is not None
    ]
    return Outcome(
        setting,
        truth,
        covered=_mean(pair.low <= truth <= pair.high for pair in real),
        covered_runs=_mean(low <= truth <= high for low, high in over_runs) if over_runs else None,
        width=_mean(pair.high - pair.low for pair in real),
        width_runs=_mean(high - low for low, high in over_runs) if over_runs else None,
        found=_mean(pair.decided and pair.mean > 0 for pair in real),
        false_here=_mean(pair.decided_here for pair in null),
        false=_mean(pair.decided for pair in null),
    )


def to_markdown(outcomes: Sequence[Outcome], experiments: int) -> str:
    """The table, with what it says."""
    head = (
        "| runs of each | their luck | seeds | true difference | covered by the interval of these "
        "runs | of other runs | mean width | of other runs | found | false alarms without the "
        "runs' spread | false alarms of the verdict |"
    )
    rows = [
        f"| {o.setting.runs} | {o.setting.luck:g} | "
        f"{'same' if o.setting.paired and o.setting.runs > 1 else 'own'} | {o.truth:.3f} | "
        f"{o.covered:.1%} | {_percent(o.covered_runs)} | {o.width:.3f} | "
        f"{'-' if o.width_runs is None else f'{o.width_runs:.3f}'} | {o.found:.1%} | "
        f"{o.false_here:.1%} | {o.false:.1%} |"
        for o in outcomes
    ]
    return "\n".join(
        [
            "# How often a comparison is right",
            "",
            f"`python experiments/scripts/comparison_proof.py`: {experiments} simulated "
            f"experiments a row with a difference and as many without, {ITEMS} items in {WORDINGS} "
            "wordings, right or wrong answers. Luck is the standard deviation by which runs of one "
            f"policy differ; the better policy is ahead by {ADVANTAGE} in the same unit. Intervals "
            "are of 95 %.",
            "",
            head,
            "| --- " * 11 + "|",
            *rows,
            "",
            "Runs without luck are fixed policies: there the interval of these runs is all that is "
            "needed. Where runs differ by luck, it speaks of these runs alone and misses the "
            "difference between the methods as often as the table says; the interval of other "
            "runs, from three runs on, does not.",
            "",
        ]
    )


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def main() -> None:
    """Simulates all settings and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("experiments/results"))
    parser.add_argument("--experiments", type=int, default=EXPERIMENTS)
    given = parser.parse_args()
    outcomes = []
    for setting in SETTINGS:
        outcomes.append(simulate(setting, given.experiments))
        print(outcomes[-1], flush=True)
    given.out.mkdir(parents=True, exist_ok=True)
    rows = [asdict(outcome) for outcome in outcomes]
    write_json(
        given.out / "comparison_proof.json", {"experiments": given.experiments, "rows": rows}
    )
    write_atomic(given.out / "comparison_proof.md", to_markdown(outcomes, given.experiments))


if __name__ == "__main__":
    main()
