"""From the reports of a part's sides to tables and ratios.

Pure functions. Times depend on the machine and on whoever else uses it; what is kept and compared
are ratios of numbers that were taken in the same sitting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from benchmarks.parts import Part
from benchmarks.workload import Report, Workload

PHASES = (*("prefill", "decode", "score", "reference", "values", "update", "optimizer", "other"),)
"""Phases of an update, in the order in which they run."""

Spread = dict[str, float]
"""``median``, ``min`` and ``max`` over the rounds."""


def spread(values: Sequence[float]) -> Spread:
    """Median, smallest and largest of some numbers."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def seconds_of(report: Report, workload: Workload) -> float:
    """Median seconds of the timed updates of one process."""
    return median(update.seconds for update in report.updates[workload.warmup :])


def phases_of(reports: Sequence[Report], workload: Workload) -> dict[str, float]:
    """Median seconds of each phase over all timed updates of all rounds."""
    timed = [update.phases for report in reports for update in report.updates[workload.warmup :]]
    return {
        name: median(phases.get(name, 0.0) for phases in timed)
        for name in PHASES
        if any(name in phases for phases in timed)
    }


def side_summary(
    reports: Sequence[Report], workload: Workload, limit: Mapping[str, Any]
) -> dict[str, Any]:
    """The numbers of one side over its rounds.

    Args:
        reports: One for each round.
        workload: What it did.
        limit: What ``benchmarks.limits`` says about it.
    """
    seconds = [seconds_of(report, workload) for report in reports]
    phases = phases_of(reports, workload)
    flops = sum(limit["flops"].values())
    least = sum(limit["seconds"].values())
    update_rate = limit["flops"]["update"] / max(phases.get("update", 0.0), 1e-9)
    memory = [report.peak_rss_bytes for report in reports]
    updates = [update for report in reports for update in report.updates]
    drifts = [update.drift for update in updates if update.drift is not None]
    cuda = [report.peak_cuda_bytes for report in reports if report.peak_cuda_bytes is not None]
    lengths = [length for update in updates for length in update.response_lengths]
    return {
        "settings": reports[0].settings,
        "versions": reports[0].versions,
        "logprob_error": max(report.logprob_error for report in reports),
        "drift": max(drifts) if drifts else None,
        "episodes_per_s": spread([workload.episodes / s for s in seconds]),
        "tokens_per_s": spread([limit["tokens"] / s for s in seconds]),
        "mfu": spread([flops / s / limit["peak_flops_per_s"] for s in seconds]),
        "limit_frac": spread([least / s for s in seconds]),
        "update_limit_frac": update_rate / limit["matrix_flops_per_s"],
        "peak_rss_bytes": spread([float(n) for n in memory]),
        "peak_cuda_bytes": spread([float(n) for n in cuda]) if cuda else None,
        "phases_s": phases,
        "limits_s": dict(limit["seconds"]),
        "response_length": {"mean": fmean(lengths), "min": min(lengths), "max": max(lengths)},
        "extra": reports[-1].extra,
    }


def ratios(
    part: Part, reports: Mapping[str, Sequence[Report]], workloads: Mapping[str, Workload]
) -> dict[str, Spread]:
    """Each side over the peer of its part, round by round; nothing where there is no peer.

    Returns:
        ``<part>/<side>/speed`` (episodes per second, larger is better), ``…/update`` (episodes
        per second of the phases update and optimizer alone, where both sides have them) and
        ``…/memory`` (peak memory, smaller is better; on a GPU that of the GPU). No speeds where
        there was no warm-up.
    """
    found: dict[str, Spread] = {}
    if part.peer is None:
        return found
    peer = part.peer.name
    for side in part.sides[:-1]:
        pairs = list(zip(reports[side.name], reports[peer], strict=True))
        if workloads[peer].warmup:
            speeds = [
                _rate(ours, workloads[side.name]) / _rate(theirs, workloads[peer])
                for ours, theirs in pairs
            ]
            found[f"{part.name}/{side.name}/speed"] = spread(speeds)
            if all(workloads[name].steps for name in (side.name, peer)):
                steps = [
                    _update_rate(ours, workloads[side.name]) / _update_rate(theirs, workloads[peer])
                    for ours, theirs in pairs
                ]
                found[f"{part.name}/{side.name}/update"] = spread(steps)
        memory = [_memory(ours) / _memory(theirs) for ours, theirs in pairs]
        found[f"{part.name}/{side.name}/memory"] = spread(memory)
    return found


def _rate(report: Report, workload: Workload) -> float:
    return workload.episodes / seconds_of(report, workload)


def _update_rate(report: Report, workload: Workload) -> float:
    phases = phases_of([report], workload)
    return workload.episodes / (phases.get("update", 0.0) + phases.get("optimizer", 0.0))


def _memory(report: Report) -> float:
    return float(report.peak_cuda_bytes or report.peak_rss_bytes)


def own_shares(part: Part, sides: Mapping[str, Mapping[str, Any]]) -> dict[str, Spread]:
    """How near our sides come to the machine's limit, where there were rounds enough to say."""
    return {
        f"{part.name}/{name}/limit_frac": dict(side["limit_frac"])
        for name, side in sides.items()
        if name.startswith("ours") and part.rounds is None
    }


def markdown(result: Mapping[str, Any]) -> str:
    """The tables of a result, for people."""
    machine = result["machine"]
    gpus = ", ".join(machine["gpus"])
    lines = [
        f"# {result['model']} on {gpus or machine['cpu']}",
        "",
        f"{machine['cores']} cores, {machine['os']}, commit {result['commit']}. Medians over "
        f"{result['rounds']} rounds with the smallest and the largest in brackets.",
    ]
    for name, part in result["parts"].items():
        lines += ["", f"## {name}: {part['title']}", "", *_sides_table(part["sides"])]
        lines += _lengths_lines(part["sides"])
        lines += ["", *_gate_lines(part["sides"])]
        if part["ratios"]:
            lines += ["", "| ratio to the last row | value |", "| --- | --- |"]
            lines += [f"| {key} | {_show(value)} |" for key, value in part["ratios"].items()]
        lines += ["", *_phases_table(part["sides"])]
    return "\n".join(lines) + "\n"


def _lengths_lines(sides: Mapping[str, Any]) -> list[str]:
    """The lengths of the responses, where they differ; they are those of every side."""
    found = next(iter(sides.values()))["response_length"]
    if found["min"] == found["max"]:
        return []
    return [
        "",
        f"Responses of {found['min']} to {found['max']} tokens, {found['mean']:.1f} on average.",
    ]


def _sides_table(sides: Mapping[str, Any]) -> list[str]:
    head = (
        *("side", "episodes/s", "tokens/s", "MFU", "of the limit", "update, of the matrix rate"),
        *("memory, GB", "log-prob error", "drift"),
    )
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for name, side in sides.items():
        memory = side["peak_cuda_bytes"] or side["peak_rss_bytes"]
        cells = (
            name,
            _show(side["episodes_per_s"]),
            _show(side["tokens_per_s"]),
            _show(side["mfu"]),
            _show(side["limit_frac"]),
            f"{side['update_limit_frac']:.3g}",
            _show({key: value / 1e9 for key, value in memory.items()}),
            f"{side['logprob_error']:.2g}",
            "-" if side["drift"] is None else f"{side['drift']:.2g}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _gate_lines(sides: Mapping[str, Any]) -> list[str]:
    """What the gate measured of the passes that are timed, in words."""
    return [
        f"Gate of {name}, differences to plain passes: "
        + ", ".join(f"{key} {value:.2g}" for key, value in side["gate"].items())
        for name, side in sides.items()
        if side["gate"]
    ]


def _phases_table(sides: Mapping[str, Any]) -> list[str]:
    """Seconds of each phase, and behind them the least that they could take."""
    names = [name for name in PHASES if any(name in side["phases_s"] for side in sides.values())]
    lines = ["| seconds (least) | " + " | ".join(names) + " |", "|" + " --- |" * (len(names) + 1)]
    for title, side in sides.items():
        cells = []
        for name in names:
            least = side["limits_s"].get(name)
            cell = f"{side['phases_s'].get(name, 0.0):.3g}"
            cells.append(cell + (f" ({least:.3g})" if least else ""))
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return lines


def _show(values: Spread) -> str:
    return f"{values['median']:.3g} ({values['min']:.3g} to {values['max']:.3g})"
