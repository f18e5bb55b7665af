"""The page of a comparison: one file that works without a network, every text of it escaped.

What policies wrote is shown as text and never becomes markup. The one script is fixed, and the
page's content-security policy allows it by its hash and nothing else.
"""

from __future__ import annotations

import base64
import difflib
import hashlib
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instructrec.experiments.compare_charts import bars, curves, distribution, key, text
from instructrec.experiments.contenders import Comparison, Member

SAMPLES = 200
"""Most instructions whose responses are shown, those first on which policies differ most."""
_ASSETS = Path(__file__).parent


def page(results: dict[str, Any], comparison: Comparison) -> str:
    """The page as HTML.

    Args:
        results: What ``compare.json`` holds.
        comparison: The policies.
    """
    script = (_ASSETS / "compare_page.js").read_text(encoding="utf-8")
    style = (_ASSETS / "compare_page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    title = " against ".join(results["policies"])
    body = [
        f"<h1>{text(title)}</h1>",
        f"<p>{results['instructions']} instructions of {text(results['task'])} "
        f"({text(results['split'])}), by {text(results['metric'])}.</p>",
        "<ul class=verdicts>" + "".join(f"<li>{text(v)}" for v in results["verdicts"]) + "</ul>",
        _section("Means", _means(results)),
        _section("Differences", _pairs(results)),
        _section("By task", _tasks(results)),
        _section("Learning curves", curves(comparison)),
        _section("Scores by instruction", distribution(results, comparison)),
        _section("Responses", _samples(results, comparison)),
        _section("Notes", "<ul>" + "".join(f"<li>{text(w)}" for w in results["warnings"]) + "</ul>"
                 if results["warnings"] else ""),
        _section("Runs", _runs(results)),
    ]  # fmt: skip
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{style}</style></head><body><main>"
        + "\n".join(part for part in body if part)
        + f"</main><script>{script}</script></body></html>\n"
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{text(title)}</h2>{content}</section>" if content else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    cells = "".join(f"<th><button>{text(name)}</button></th>" for name in head)
    lines = ("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class=wide><table class="sortable {kind}"><thead><tr>{cells}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _means(results: dict[str, Any]) -> str:
    """A bar with its interval for each policy, and the numbers of all rewards."""
    main = results["parts"][results["metric"]]["policies"]
    parts = list(results["parts"])
    rows = [
        [
            key(i) + text(name),
            *(_interval(results["parts"][part]["policies"][name]) for part in parts),
            "-" if about["response_len"] is None else f"{about['response_len']:.1f}",
            str(len(about["runs"])),
        ]
        for i, (name, about) in enumerate(results["policies"].items())
    ]
    return bars(main) + _table(["policy", *parts, "tokens", "runs"], rows)


def _interval(found: dict[str, Any]) -> str:
    return f"{found['mean']:.3f} <small>{found['low']:.3f} to {found['high']:.3f}</small>"


def _pairs(results: dict[str, Any]) -> str:
    rows = [
        [
            f"{text(pair['a'])} - {text(pair['b'])}",
            text(part),
            f"{pair['mean']:+.3f} <small>{pair['low']:+.3f} to {pair['high']:+.3f}</small>",
            f"{pair['p_holm']:.3g}",
            "yes" if pair["decided"] else "no",
            str(pair["wins"]),
            str(pair["ties"]),
            str(pair["losses"]),
            _wins(pair["win_share"]),
            f"{pair['improvement']:.2f}",
        ]
        for part, found in results["parts"].items()
        for pair in found["pairs"]
    ]
    head = ["pair", "reward", "difference", "p (Holm)", "decided", "better", "equal", "worse"]
    return _table([*head, "share of wins", "wins of a run"], rows)


def _wins(share: dict[str, Any] | None) -> str:
    if share is None:
        return "-"
    return f"{share['mean']:.2f} <small>{share['low']:.2f} to {share['high']:.2f}</small>"


def _tasks(results: dict[str, Any]) -> str:
    tasks = results["parts"][results["metric"]]["tasks"]
    if not tasks:
        return ""
    names = list(results["policies"])
    rows = [
        [text(label), *(f"{means[name]:.3f}" for name in names)] for label, means in tasks.items()
    ]
    return _table(["task", *names], rows)


def _samples(results: dict[str, Any], comparison: Comparison) -> str:
    """Responses side by side; those on which the policies differ most come first."""
    metric = results["metric"]
    members = [contender.members[0] for contender in comparison.contenders]
    rows = comparison.rows
    spread = []
    for place in comparison.kept(metric):
        found = [member.score(comparison.ids[place], metric) for member in members]
        spread.append((max(found) - min(found), place))
    chosen = [place for _, place in sorted(spread, key=lambda item: (-item[0], item[1]))[:SAMPLES]]
    lines = []
    for place in chosen:
        row, instruction = rows[place], comparison.ids[place]
        first = str(members[0].by_instruction[instruction][0]["response"])
        cells = [
            _response(member, instruction, metric, first if i else None)
            for i, member in enumerate(members)
        ]
        prompt = row["prompt"]
        if not isinstance(prompt, str):
            prompt = "\n".join(f"{m['role']}: {m['content']}" for m in prompt)
        label = comparison.labels([place])[0]
        lines.append(
            [text(prompt), text(row.get("reference") or ""), *cells, text(label)]
        )  # fmt: skip
    head = ["instruction", "reference", *(c.name for c in comparison.contenders), "task"]
    shown = f"{len(lines)} of {len(comparison.ids)} instructions, the largest differences first"
    seeds = (
        "; of several runs those of the first"
        if any(len(c.members) > 1 for c in comparison.contenders)
        else ""
    )
    search = '<input type="search" placeholder="only rows with ..." aria-label="filter rows">'
    return f"<p>{text(shown + seeds)}.</p>{search}" + _table(head, lines, "samples")


def _response(member: Member, instruction: str, metric: str, against: str | None) -> str:
    """A response with its score; words that another one lacks are marked."""
    response = str(member.by_instruction[instruction][0]["response"])
    shown = text(response) if against is None else _marked(against, response)
    return f"{shown} <small>{member.score(instruction, metric):.3f}</small>"


def _marked(first: str, second: str) -> str:
    a, b = first.split(), second.split()
    parts = []
    for kind, _, _, start, end in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        words = text(" ".join(b[start:end]))
        if words:
            parts.append(words if kind == "equal" else f"<mark>{words}</mark>")
    return " ".join(parts)


def _runs(results: dict[str, Any]) -> str:
    rows = [
        [
            text(name),
            text(about["algorithm"] or "-"),
            "<br>".join(text(run["path"]) for run in about["runs"]),
        ]
        for name, about in results["policies"].items()
    ]
    return _table(["policy", "algorithm", "runs"], rows)
