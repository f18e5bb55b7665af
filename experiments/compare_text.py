"""A comparison in words and tables: verdicts, for a terminal, and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from instructrec.experiments.compare_stats import TIE, is_few
from instructrec.experiments.listing import markdown_table, table

ALL_ALIKE = "unknown (all alike)"
"""In place of an interval of width 0: where all items say the same, resampling tells nothing."""


def verdict(pair: Mapping[str, Any]) -> str:
    """What a pair of ``compare.json`` says, as a sentence."""
    sign = 1 if pair["mean"] >= 0 else -1
    better, worse = ("a", "b")[::sign]
    size = f"{abs(pair['mean']):.3f} {_ends(pair, '', sign)}, p = {pair['p_holm']:.3g}"
    if abs(pair["mean"]) < TIE:
        return f"undecided: {pair['a']} and {pair['b']} have the same mean {_ends(pair, '')}."
    over_runs = "" if pair["runs_low"] is None else _ends(pair, "runs_", sign)
    if not pair["decided_here"]:
        return (
            f"undecided: {pair[better]} is ahead of {pair[worse]} by {size}, which may be chance."
        )
    verb = "is" if pair[f"{better}_runs"] in (None, 1) else "are"
    these = f"{_runs(pair, better)} {verb} better than {_runs(pair, worse)} by {size}"
    if pair["decided"] == "no":
        return f"undecided: {these}, but others may be worse: {over_runs}."
    if pair["decided"] == "these runs":
        return f"{these}{_of_others(pair, over_runs)}."
    others = f"; of other runs {over_runs}" if over_runs else ""
    return f"{pair[better]} is better than {pair[worse]} by {size}{others}."


def _runs(pair: Mapping[str, Any], side: str) -> str:
    """The runs that a sentence speaks of; a policy that has no others goes by its name."""
    name, number = pair[side], pair[f"{side}_runs"]
    if number is None:
        return str(name)
    return f"the one run of {name}" if number == 1 else f"the {number} runs of {name}"


def _of_others(pair: Mapping[str, Any], over_runs: str) -> str:
    """What is known of other runs, and of which policy nothing is."""
    few = [side for side in ("a", "b") if is_few(pair[f"{side}_runs"])]
    name, number = pair[few[0]], pair[f"{few[0]}_runs"]
    if not over_runs:
        return f"; other seeds{'' if len(few) > 1 else f' of {name}'} are not known"
    if number > 1:
        return f"; of other runs {over_runs}, as far as {number} runs of {name} tell"
    known = pair["b" if few[0] == "a" else "a"]
    return f"; of other runs of {known} {over_runs}; other seeds of {name} are not known"


def _ends(pair: Mapping[str, Any], which: str, sign: int = 1) -> str:
    low, high = sorted((sign * pair[f"{which}low"], sign * pair[f"{which}high"]))
    return f"[{low:+.3f}, {high:+.3f}]" if high - low > TIE else "(interval unknown, all alike)"


def between(low: float | None, high: float | None, form: str = ".3f") -> str:
    """An interval for a table, or why there is none."""
    if low is None or high is None:
        return "unknown"
    return f"{low:{form}} to {high:{form}}" if high - low > TIE else ALL_ALIKE


def shown_parts(results: Mapping[str, Any]) -> list[str]:
    """Names of the rewards to show: of one reward and a total that is the same only the metric."""
    names, metric = list(results["parts"]), results["metric"]
    own = {name: [results["parts"][name][key] for key in ("policies", "pairs")] for name in names}
    alike = len(names) == 2 and "total" in names and own[names[0]] == own[names[1]]
    return [metric] if alike else names


def to_text(results: dict[str, Any]) -> str:
    """The report for a terminal."""
    blocks = [
        f"{results['instructions']} instructions of {results['task']} ({results['split']}), by "
        f"{results['metric']}",
        table(_policy_rows(results)),
        table(_pair_rows(results)),
        table(task_rows(results)),
        "\n".join(results["verdicts"]),
    ]
    blocks += ["\n".join(f"note: {text}" for text in results["warnings"])]
    return "\n\n".join(block for block in blocks if block)


def to_markdown(results: dict[str, Any]) -> str:
    """The report as Markdown."""
    blocks = [
        f"# {' against '.join(results['policies'])}",
        f"{results['instructions']} instructions of `{results['task']}` ({results['split']}), by "
        f"{results['metric']}. Intervals: 95 %, of these runs on other items and, from three "
        "on, of other runs; p: signs flipped by item, corrected for the number of pairs (Holm).",
        "\n".join(f"- {text}" for text in results["verdicts"]),
        "\n".join(f"- note: {text}" for text in results["warnings"]),
        markdown_table(_policy_rows(results)),
        markdown_table(_pair_rows(results)),
    ]
    if by_task := task_rows(results):
        blocks.append(markdown_table(by_task))
    runs = [
        f"- {name}: `{run['command'] or run['path']}`"
        + (f", commit {run['git_commit'][:12]}" if run["git_commit"] else "")
        for name, about in results["policies"].items()
        for run in about["runs"]
    ]
    blocks = [block for block in blocks if block]
    return "\n\n".join([*blocks, "## Runs", "\n".join(runs), ""])


def _policy_rows(results: dict[str, Any]) -> list[tuple[str, ...]]:
    others = [name for name in shown_parts(results) if name != results["metric"]]
    rows = [
        (
            "policy",
            results["metric"],
            "95 % interval",
            "of other runs",
            "by seed",
            "IQM of tasks",
            "tokens",
            *others,
        )
    ]
    main = results["parts"][results["metric"]]["policies"]
    for name, about in results["policies"].items():
        found = main[name]
        length = about["response_len"]
        rows.append(
            (
                name,
                f"{found['mean']:.3f}",
                between(found["low"], found["high"]),
                "-" if found["runs"] is None else between(*found["runs"]),
                ", ".join(f"{mean:.3f}" for mean in found["seed_means"]),
                f"{found['iqm']:.3f}",
                "-" if length is None else f"{length:.1f}",
                *(f"{results['parts'][other]['policies'][name]['mean']:.3f}" for other in others),
            )
        )
    return rows


def _pair_rows(results: dict[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        (
            "difference",
            "reward",
            "mean",
            "95 % interval",
            "of other runs",
            "p (Holm)",
            "better",
            "equal",
            "worse",
            "share of wins",
            "wins of a run",
        )
    ]
    for part in shown_parts(results):
        for pair in results["parts"][part]["pairs"]:
            rows.append(
                (
                    f"{pair['a']} - {pair['b']}",
                    part,
                    f"{pair['mean']:+.3f}",
                    between(pair["low"], pair["high"], "+.3f"),
                    "-"
                    if pair["runs_low"] is None
                    else between(pair["runs_low"], pair["runs_high"], "+.3f"),
                    f"{pair['p_holm']:.3g}",
                    *(str(pair[key]) for key in ("wins", "ties", "losses")),
                    wins(pair["win_share"]),
                    f"{pair['improvement']:.2f}",
                )
            )
    return rows


def wins(share: Mapping[str, Any] | None) -> str:
    """Share of wins among the instructions that differ, with its interval."""
    if share is None:
        return "-"
    known = math.isfinite(share["low"]) and math.isfinite(share["high"])
    ends = f"{share['low']:.2f} to {share['high']:.2f}" if known else "unknown"
    return f"{share['mean']:.2f} ({ends})"


def task_rows(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Means and differences by task, with intervals; nothing where there is one task."""
    tasks = results["parts"][results["metric"]]["tasks"]
    if not tasks:
        return []
    first, *others = results["policies"]
    differences = [f"{first} - {name}" for name in others]
    return [
        ("task", "instructions", *results["policies"], *differences),
        *(
            (
                label,
                str(found["n"]),
                *(_with_ends(found["policies"][name], ".3f") for name in results["policies"]),
                *(_with_ends(found["differences"][name], "+.3f") for name in others),
            )
            for label, found in tasks.items()
        ),
    ]


def _with_ends(found: Mapping[str, Any], form: str) -> str:
    ends = between(found["low"], found["high"], form)
    return f"{found['mean']:{form}} {ends if ends == ALL_ALIKE else f'({ends})'}"
