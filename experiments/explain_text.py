"""An explained episode, for a terminal and as a page with coloured tokens."""

from __future__ import annotations

from instructrec.envs.tasks.base import render_prompt
from instructrec.experiments import page
from instructrec.experiments.env_commands import shown
from instructrec.experiments.jsonl import Row
from instructrec.experiments.listing import table

COLUMNS = {
    "logprob": "log-prob under the policy, nats",
    "reference": "log-prob under what it is held against, nats",
    "kl": "their difference, nats: above 0, training made the token likelier",
    "entropy": "entropy of the policy in that place, nats",
    "value": "the critic's value before the token",
    "advantage": "what the token is credited with, before whitening",
}
"""Column of numbers -> what it means."""


def to_text(found: Row) -> str:
    """The episode for a terminal; text that could steer it is written out."""
    blocks = [
        f"[{shown(found['id'])}]\n{shown(_asked(found))}",
        f"response  {shown(found['response'])}",
    ]
    if found["expected"] is not None:
        blocks.append(f"expected  {shown(str(found['expected']))}")
    if found["statuses"]:
        blocks.append(table(_rewards(found)))
    names = [name for name in COLUMNS if any(t[name] is not None for t in found["tokens"])]
    rows = [("token", *names, "instead")]
    rows += [
        (
            shown(repr(token["token"])),
            *(_number(token[name]) for name in names),
            shown(_instead(token)),
        )
        for token in found["tokens"]
    ]
    blocks.append(table(rows))
    if found["words"]:
        several = _several(found)
        words = [("word", "adds to the total", *several)]
        words += [
            (
                shown(row["word"]),
                _number(row["adds"]),
                *(_number(row["parts"].get(name)) for name in several),
            )
            for row in found["words"]
        ]
        blocks.append(table(words))
    held = f", held against {found['reference']}" if found["reference"] else ""
    blocks.append(f"policy {found['policy']}{held}")
    return "\n\n".join([*blocks, *(f"note: {shown(note)}" for note in found["notes"])])


def _asked(found: Row) -> str:
    prompt = found["prompt"]
    return prompt if isinstance(prompt, str) else render_prompt(tuple(prompt))


def _rewards(found: Row) -> list[tuple[str, str]]:
    total = "none applies" if found["total"] is None else _number(found["total"])
    rows = [("reward", total)]
    for name, status in found["statuses"].items():
        rows.append((name, _number(found["parts"][name]) if name in found["parts"] else status))
    return rows


def _several(found: Row) -> list[str]:
    """Rewards shown beside the total of the words: all of several, none of a single one."""
    names = list(dict.fromkeys(name for row in found["words"] for name in row["parts"]))
    return names if len(names) > 1 else []


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _instead(token: Row) -> str:
    """The likeliest tokens in its place."""
    return "  ".join(f"{top['token']!r} {top['share']:.2f}" for top in token["top"])


def page_of(found: Row) -> str:
    """The episode as a page: its tokens coloured by each of the numbers."""
    names = [name for name in COLUMNS if any(t[name] is not None for t in found["tokens"])]
    held = f", held against {found['reference']}" if found["reference"] else ""
    facts = [("instruction", _asked(found)), ("response", found["response"])]
    if found["expected"] is not None:
        facts.append(("expected", str(found["expected"])))
    body = [
        f"<h1>{page.text(found['id'])}</h1>",
        f"<p>{page.text(found['policy'] + held)}</p>",
        page.facts([*facts, *(_rewards(found) if found["statuses"] else [])]),
        page.bullets(found["notes"], "notes"),
        *(page.section(name, _coloured(found, name)) for name in names),
        page.section("What each word adds", _words(found)),
        page.section("All numbers", _numbers(found, names)),
    ]
    return page.document(f"{found['id']} explained", body)


def _coloured(found: Row, name: str) -> str:
    """The tokens on colours: blue above zero, orange below, the deeper the larger."""
    values = [token[name] for token in found["tokens"]]
    return f"<p>{page.text(COLUMNS[name])}</p>" + _spans(
        [token["token"] for token in found["tokens"]], values
    )


def _words(found: Row) -> str:
    if not found["words"]:
        return ""
    words = [row["word"] + " " for row in found["words"]]
    columns = {"the total of the response": [row["adds"] for row in found["words"]]}
    for name in _several(found):
        columns[f"reward {name} of the response"] = [r["parts"].get(name) for r in found["words"]]
    return "".join(
        f"<p>{page.text(about)} less that without the word</p>{_spans(words, values)}"
        for about, values in columns.items()
    )


def _spans(texts: list[str], values: list[float | None]) -> str:
    most = max((abs(value) for value in values if value is not None), default=0.0) or 1.0
    parts = []
    for text, value in zip(texts, values, strict=True):
        if value is None:
            parts.append(f"<span title='-'>{page.text(text)}</span>")
            continue
        rgb = "37, 99, 235" if value >= 0 else "234, 88, 12"
        depth = 0.6 * abs(value) / most
        shown = page.text(text) if text.strip() else page.text(repr(text)[1:-1])
        parts.append(
            f'<span title="{value:.3f}" style="background: rgba({rgb}, {depth:.2f})">{shown}</span>'
        )
    return f"<div class=tokens>{''.join(parts)}</div>"


def _numbers(found: Row, names: list[str]) -> str:
    rows = [
        [
            page.text(repr(token["token"])),
            *(_number(token[name]) for name in names),
            page.long(_instead(token)),
        ]
        for token in found["tokens"]
    ]
    return page.table(["token", *names, "instead"], rows)
