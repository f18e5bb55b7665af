"""What a pipeline found: its policies by the true reward, and where PPO went too far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from instructrec.envs.tasks.base import render_prompt
from instructrec.experiments.evaluation import Evaluation, cluster_of, load_evaluation
from instructrec.experiments.jsonl import Row, read_rows, write_atomic, write_json
from instructrec.experiments.listing import markdown_table
from instructrec.experiments.overoptimisation import Point, overoptimised, points_of
from instructrec.experiments.pipeline_config import GOLD, PROXY, ChoiceConfig, PipelineConfig
from instructrec.experiments.progress import format_duration
from instructrec.experiments.runfolder import RunFolder, read_metrics
from instructrec.experiments.stats import Difference, mean_interval, paired_difference
from instructrec.rewards.combine import make_rewards

_SHOWN = 6
_LONGEST = 300


@dataclass(frozen=True)
class Round:
    """Samples, preferences, reward model and PPO, once."""

    number: int
    """From 1."""
    data: Path
    """Preferences of this round and those before."""
    reward_model: Path
    """Run folder of the reward model."""
    ppo: RunFolder
    """Run folder of PPO."""
    start: Point
    """Proxy and gold on validation instructions before PPO."""

    @property
    def points(self) -> list[Point]:
        """The start and the evaluated updates."""
        return [self.start, *points_of(read_metrics(self.ppo.path))]


@dataclass(frozen=True)
class Result:
    """A pipeline whose stages are finished."""

    config: PipelineConfig
    """Settings."""
    base: Evaluation
    """The untouched model on the test split."""
    sft: RunFolder
    """Run folder of the first stage."""
    rounds: Sequence[Round]
    """In order."""
    best_of: Evaluation
    """Several responses of the SFT policy on the test split, scored by the last reward model."""


@dataclass(frozen=True)
class Measured:
    """One policy on the test split."""

    name: str
    """What it is called."""
    rows: list[Row]
    """One row per instruction."""
    proxy: list[float]
    """Scores by the last reward model, row by row."""
    kl: float | None = None
    """KL to where it started, in nats per response; None where it was not measured."""
    seconds: float | None = None
    """Wall time of its training."""


def write(result: Result, folder: Path) -> tuple[dict[str, Any], str]:
    """Writes ``report.md``, ``pipeline.json`` and a picture for each round.

    Returns:
        The content of ``pipeline.json``, and the tables for the terminal.
    """
    policies = _policies(result)
    differences = {p.name: difference(p, policies[1]) for p in policies[2:]}
    ends = [ending(r.points, r.ppo.summary(), result.config.choice) for r in result.rounds]
    numbers: dict[str, Any] = {
        "format_version": 1,
        "policies": {p.name: _numbers(p) for p in policies},
        "differences_to_sft": {name: asdict(d) for name, d in differences.items()},
        "rounds": [_round_numbers(r, e) for r, e in zip(result.rounds, ends, strict=True)],
    }
    main = "\n\n".join([policy_table(policies), difference_table(differences)])
    parts = [f"# {folder.name}", _about(result.config), "## Held-out instructions", main]
    for each, end in zip(result.rounds, ends, strict=True):
        parts += _round_parts(each, end, folder)
    parts += ["## Before and after", samples(policies[1], policies[-2])]
    write_atomic(folder / "report.md", "\n\n".join(parts) + "\n")
    write_json(folder / "pipeline.json", numbers)
    return numbers, "\n\n".join([main, *(end["told"] for end in ends)])


def _about(config: PipelineConfig) -> str:
    mentor = config.mentor
    who = "a person"
    if mentor.kind == "simulated":
        who = f"a mentor who goes by the gold reward and errs in {mentor.noise:.0%} of the pairs"
    return (
        f"`gold` is the true reward ({', '.join(config.gold or config.task.own_rewards())}), which "
        f"no policy was trained on; preferences came from {who}. `proxy` is the reward model that "
        "was learned from them, on the scale of its own held-out scores (mean 0, deviation 1). "
        f"All policies answered the same held-out instructions of `{config.task.name}`."
    )


# Policies -----------------------------------------------------------------------------------------


def _policies(result: Result) -> list[Measured]:
    """Untouched model, SFT, PPO of each round, and the best of several SFT responses."""
    last = result.rounds[-1].reward_model
    proxy = make_rewards({PROXY: result.config.both_rewards(last)[PROXY]})

    def scored(rows: Sequence[Row]) -> list[float]:
        texts = [row["response"] for row in rows]
        return [float(x) for x in proxy.score([row["prompt"] for row in rows], texts, {}).total]

    found = [Measured("untouched model", result.base.rows, scored(result.base.rows))]
    trained = [("SFT", result.sft), *((f"PPO, round {r.number}", r.ppo) for r in result.rounds)]
    for name, folder in trained:
        summary = folder.summary()
        rows = load_evaluation(folder.path / summary["eval_file"]).rows
        kl = None if name == "SFT" else kept_point(read_metrics(folder.path), summary)
        found.append(Measured(name, rows, scored(rows), kl, summary["train_s"]))
    return [*found, best_by_proxy(result.best_of)]


def kept_point(rows: Sequence[Row], summary: Row) -> float | None:
    """The KL in the rollout of the update that was kept; None where it is not known."""
    kept = [row for row in rows if row.get("train/update") == summary["best_update"]]
    return float(kept[0]["ppo/kl_ref"]) if kept else None


def best_by_proxy(evaluation: Evaluation) -> Measured:
    """Of several responses to each instruction, the one that the reward model likes best.

    Its KL to the policy that was sampled is at most ``log n - (n - 1) / n`` (Stiennon et al. 2020,
    https://arxiv.org/abs/2009.01325).
    """
    best: dict[str, Row] = {}
    for row in evaluation.rows:
        score = row["parts"].get(PROXY)
        if score is None:
            continue
        if row["id"] not in best or score > best[row["id"]]["parts"][PROXY]:
            best[row["id"]] = row
    n = int(evaluation.header["samples"])
    rows = list(best.values())
    name = f"best of {n} SFT responses by the reward model"
    return Measured(name, rows, [row["parts"][PROXY] for row in rows], math.log(n) - (n - 1) / n)


def gold_of(row: Row) -> float | None:
    """The true reward of a response; None without one."""
    value = row["parts"].get(GOLD)
    return None if value is None else float(value)


def difference(after: Measured, before: Measured) -> Difference:
    """Paired difference in the true reward, clustered by item."""
    first = {row["id"]: row for row in before.rows if gold_of(row) is not None}
    rows = [row for row in after.rows if row["id"] in first and gold_of(row) is not None]
    return paired_difference(
        [row["parts"][GOLD] for row in rows],
        [first[row["id"]]["parts"][GOLD] for row in rows],
        [cluster_of(row) for row in rows],
    )


def _numbers(policy: Measured) -> dict[str, Any]:
    golds = [(gold_of(row), cluster_of(row)) for row in policy.rows]
    scored = [(score, cluster) for score, cluster in golds if score is not None]
    gold = mean_interval([score for score, _ in scored], [cluster for _, cluster in scored])
    lengths = [row["response_len"] for row in policy.rows if row["response_len"] is not None]
    return {
        "gold": {"mean": gold.mean, "low": gold.low, "high": gold.high, "n": gold.n},
        "proxy": sum(policy.proxy) / len(policy.proxy) if policy.proxy else None,
        "kl": policy.kl,
        "response_len": sum(lengths) / len(lengths) if lengths else None,
        "train_s": policy.seconds,
    }


def policy_table(policies: Sequence[Measured]) -> str:
    """One row for each policy."""
    rows: list[tuple[str, ...]] = [
        ("policy", "gold", "95 % interval", "proxy", "KL to its start", "tokens", "trained in")
    ]
    for policy in policies:
        found = _numbers(policy)
        gold = found["gold"]
        rows.append(
            (
                policy.name,
                _told(gold["mean"]),
                f"{_told(gold['low'])} to {_told(gold['high'])}",
                _told(found["proxy"]),
                _told(found["kl"], 2),
                _told(found["response_len"], 1),
                format_duration(policy.seconds) if policy.seconds else "-",
            )
        )
    return markdown_table(rows)


def difference_table(differences: dict[str, Difference]) -> str:
    """Each policy against SFT, by the true reward."""
    rows: list[tuple[str, ...]] = [("gold against SFT", "difference", "95 % interval", "0 is")]
    for name, found in differences.items():
        out = found.low > 0 or found.high < 0
        interval = f"{found.low:+.3f} to {found.high:+.3f}"
        rows.append((name, f"{found.mean:+.3f}", interval, "excluded" if out else "included"))
    return markdown_table(rows)


def _told(value: float | None, digits: int = 3) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


# Rounds -------------------------------------------------------------------------------------------


def ending(points: Sequence[Point], summary: Row, choice: ChoiceConfig) -> dict[str, Any]:
    """Which update was kept by what, which one gold would have kept, and where the two parted.

    Args:
        points: The start and the evaluated updates.
        summary: The summary of PPO.
        choice: The rule.
    """
    kept = next((p for p in points if p.update == summary["best_update"]), None)
    by_gold = max(points, key=lambda point: point.gold)
    over = overoptimised(points, choice.patience)
    budget = "" if choice.kl_budget is None else f" within a KL of {choice.kl_budget:g} nats"
    how = f"best {choice.by} on validation instructions{budget}"
    told = [f"Update {summary['best_update']} was kept: {how}."]
    if choice.by == "gold":
        told.append("That looks at the true reward, which is not there where it is hidden.")
    elif kept is not None:
        told.append(
            f"Gold was {kept.gold:.3f} there; the best gold was {by_gold.gold:.3f}, after update "
            f"{by_gold.update} (known here alone: no choice went by it)."
        )
    told.append(
        "Gold did not fall while proxy rose: no over-optimisation was seen."
        if over is None
        else f"Over-optimisation: gold stopped rising at update {over.update} (KL {over.kl:.2f} "
        f"nats, proxy {over.proxy:.3f}, gold {over.gold:.3f}), and proxy went on."
    )
    if summary["stopped"] == "pruned":
        told.append(
            f"PPO was ended there, after update {summary['updates']} (stop_at_overoptimisation, "
            "which looks at gold)."
        )
    return {
        "kept_update": summary["best_update"],
        "kept_by": choice.by,
        "kl_budget": choice.kl_budget,
        "best_gold_update": by_gold.update,
        "overoptimised_from": None if over is None else asdict(over),
        "stopped": summary["stopped"],
        "updates": summary["updates"],
        "told": " ".join(told),
    }


def _round_numbers(each: Round, end: dict[str, Any]) -> dict[str, Any]:
    summary = RunFolder.open(each.reward_model).summary()
    rows = read_rows(each.data)
    return {
        "preferences": len(rows),
        "turned_round": sum(bool(row.get("flipped")) for row in rows),
        "pair_accuracy": {
            key: summary.get(f"eval/pair_accuracy/{key}") for key in ("mean", "ci_low", "ci_high")
        },
        "pair_accuracy_on": summary.get("measured_on"),
        "pairs_chose_the_weights": summary.get("measured_pairs_chose_the_weights"),
        "points": [asdict(point) for point in each.points],
        **end,
    }


def _round_parts(each: Round, end: dict[str, Any], folder: Path) -> list[str]:
    from instructrec.experiments.plots import two_rewards

    found = _round_numbers(each, end)
    accuracy = found["pair_accuracy"]
    ends = f"{_told(accuracy['ci_low'])} to {_told(accuracy['ci_high'])}"
    chose = ", which also chose its weights and flatter it" * bool(found["pairs_chose_the_weights"])
    over = end["overoptimised_from"]
    marks = {} if over is None else {"gold stops rising": over["kl"]}
    picture = two_rewards(
        [(point.kl, point.gold) for point in each.points],
        [(point.kl, point.proxy) for point in each.points],
        folder / f"overoptimisation-{each.number}.png",
        names=("gold (true reward)", "proxy (reward model)"),
        axis="KL to the start of PPO, nats per response",
        marks=marks,
        title=f"PPO, round {each.number}",
    )
    return [
        f"## Round {each.number}",
        f"{found['preferences']} preferences so far, {found['turned_round']} of them turned round "
        f"by the simulated mentor. The reward model is right on {_told(accuracy['mean'])} of the "
        f"held-out pairs ({ends}){chose}, mistakes of the mentor included.",
        end["told"],
        point_table(each.points, end),
        f"![Proxy and gold against KL]({picture.name})",
    ]


def point_table(points: Sequence[Point], end: dict[str, Any]) -> str:
    """Proxy and gold of each evaluated update, with its KL."""
    over = end["overoptimised_from"]
    rows: list[tuple[str, ...]] = [("update", "KL, nats", "proxy", "gold", "")]
    for point in points:
        notes = {
            "kept": point.update == end["kept_update"],
            "gold stops rising": over is not None and point.update == over["update"],
        }
        values = (_told(point.kl, 2), _told(point.proxy), _told(point.gold))
        rows.append((str(point.update), *values, ", ".join(k for k, v in notes.items() if v)))
    return markdown_table(rows)


def samples(before: Measured, after: Measured) -> str:
    """The instructions on which two policies differ most in the true reward, both ways."""
    first = {row["id"]: row for row in before.rows}
    both = [(first[row["id"]], row) for row in after.rows if row["id"] in first]
    changed: list[tuple[float, Row, Row]] = []
    for old, new in both:
        was, now = gold_of(old), gold_of(new)
        if was is not None and now is not None:
            changed.append((now - was, old, new))
    changed.sort(key=lambda entry: entry[0])
    half = _SHOWN // 2
    picked = changed if len(changed) <= _SHOWN else [*changed[-half:][::-1], *changed[:half]]
    blocks = []
    for change, old, new in picked:
        lines = [
            f"{render_prompt(old['prompt'])}   ({change:+.3f})",
            f"  {before.name}: {_short(old['response'])}",
            f"  {after.name}: {_short(new['response'])}",
        ]
        blocks.append("\n".join(lines))
    return "`````text\n" + "\n\n".join(blocks).replace("`````", "'''''") + "\n`````"


def _short(text: str) -> str:
    text = " ".join(str(text).split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
