"""What judgments come to: preferences, demonstrations and scores, and how far mentors agree."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Literal

from instructrec.experiments.jsonl import Row
from instructrec.experiments.label_book import SCORES, Judgment
from instructrec.experiments.label_items import Item
from instructrec.experiments.listing import table
from instructrec.experiments.stats import share_interval

Judgments = Mapping[str, Mapping[str, Judgment]]
"""Mentor -> item -> judgment."""


def preferences(items: Sequence[Item], judgments: Judgments) -> list[Row]:
    """A row for each preference, in the shape that reward models and DPO train on.

    A better answer that a mentor wrote is preferred to every response that was shown, and of two
    responses to an instruction the one with the higher score. An id is of one row: what reads the
    file refuses rows that share one.

    Returns:
        Rows ``prompt, chosen, rejected, id, instruction_id, annotator, chosen_by, rejected_by``,
        and of scores ``margin``, their distance.
    """
    rows = []
    for item, annotator, said in _said(items, judgments):
        pairs = []
        if said.winner is not None:
            losers = [source for source in item.sources if source != said.winner]
            pairs += [(said.winner, item.text_of(said.winner), loser) for loser in losers]
        if said.correction is not None:
            pairs += [("mentor", said.correction, source) for source in item.sources]
        rows += [
            {
                "prompt": item.prompt,
                "chosen": chosen,
                "rejected": item.text_of(loser),
                "id": f"{item.id}#{annotator}#{number}",
                "instruction_id": item.instruction_id,
                "annotator": annotator,
                "chosen_by": winner,
                "rejected_by": loser,
            }
            for number, (winner, chosen, loser) in enumerate(pairs, start=1)
            if chosen != item.text_of(loser)
        ]
    return rows + _by_score(items, judgments)


def _by_score(items: Sequence[Item], judgments: Judgments) -> list[Row]:
    """A row for every two responses to an instruction to which a mentor gave different scores."""
    given: dict[tuple[str, str], list[tuple[int, Item]]] = {}
    for item, annotator, said in _said(items, judgments):
        if said.score is not None:
            given.setdefault((annotator, item.instruction_id), []).append((said.score, item))
    return [
        {
            "prompt": better.prompt,
            "chosen": better.candidates[0].text,
            "rejected": worse.candidates[0].text,
            "id": f"{better.id}#{worse.id}#{annotator}",
            "instruction_id": instruction,
            "annotator": annotator,
            "chosen_by": better.sources[0],
            "rejected_by": worse.sources[0],
            "margin": high - low,
        }
        for (annotator, instruction), scored in given.items()
        for (high, better), (low, worse) in itertools.permutations(scored, 2)
        if high > low and better.candidates[0].text != worse.candidates[0].text
    ]


def demonstrations(items: Sequence[Item], judgments: Judgments) -> list[Row]:
    """A row ``prompt, completion, id, instruction_id, annotator`` for each answer written."""
    return [
        {
            "prompt": item.prompt,
            "completion": said.correction,
            "id": f"{item.id}#{who}",
            "instruction_id": item.instruction_id,
            "annotator": who,
        }
        for item, who, said in _said(items, judgments)
        if said.correction is not None
    ]


def scores(items: Sequence[Item], judgments: Judgments) -> list[Row]:
    """A row ``prompt, response, score, id, instruction_id, annotator`` for each score."""
    return [
        {
            "prompt": item.prompt,
            "response": item.candidates[0].text,
            "score": said.score,
            "id": f"{item.id}#{who}",
            "instruction_id": item.instruction_id,
            "annotator": who,
        }
        for item, who, said in _said(items, judgments)
        if said.score is not None
    ]


def _said(items: Sequence[Item], judgments: Judgments) -> list[tuple[Item, str, Judgment]]:
    """Item by item, who said what."""
    return [
        (item, annotator, book[item.id])
        for item in items
        for annotator, book in judgments.items()
        if item.id in book
    ]


def cohens_kappa(
    pairs: Sequence[tuple[Hashable, Hashable]],
    *,
    weights: Literal["none", "quadratic"] = "none",
    categories: Sequence[Hashable] | None = None,
) -> float | None:
    """Agreement of two mentors beyond chance: 1 is perfect, 0 is chance.

    κ = 1 - Σ w·observed / Σ w·expected, where w is 1 for every disagreement, or the squared
    distance of two ordered categories (Cohen 1960; 1968 for weights).

    Args:
        pairs: What each of the two said about an item.
        weights: Whether disagreements weigh by their distance.
        categories: The categories in order; None takes those that occur.

    Returns:
        κ, or None where it is not defined: no pairs, or both always said the same one thing.
    """
    known = list(categories or dict.fromkeys(itertools.chain.from_iterable(pairs)))
    place = {category: i for i, category in enumerate(known)}

    def weight(a: Hashable, b: Hashable) -> float:
        return float((place[a] - place[b]) ** 2 if weights == "quadratic" else a != b)

    first, second = (Counter(pair[i] for pair in pairs) for i in (0, 1))
    observed = sum(weight(a, b) for a, b in pairs) * len(pairs)
    expected = sum(weight(a, b) * first[a] * second[b] for a in first for b in second)
    return 1.0 - observed / expected if expected else None


def agreement(judgments: Judgments) -> list[Row]:
    """How far each two mentors agree, over the items that both have judged.

    Returns:
        Rows ``annotators, items, agree, kappa``; κ of scores weighs by squared distance.
    """
    rows = []
    for (a, book_a), (b, book_b) in itertools.combinations(judgments.items(), 2):
        both = [(book_a[key], book_b[key]) for key in book_a if key in book_b]
        pairs = [(_verdict(x), _verdict(y)) for x, y in both if "skip" not in (x.kind, y.kind)]
        if not pairs:
            continue
        scored = all(isinstance(said, int) for pair in pairs for said in pair)
        kappa = (
            cohens_kappa(pairs, weights="quadratic", categories=SCORES)
            if scored
            else cohens_kappa(pairs)
        )
        agree = sum(x == y for x, y in pairs) / len(pairs)
        rows.append({"annotators": [a, b], "items": len(pairs), "agree": agree, "kappa": kappa})
    return rows


def _verdict(said: Judgment) -> Hashable:
    return said.score if said.score is not None else said.winner or said.kind


def summary(items: Sequence[Item], judgments: Judgments) -> Row:
    """All numbers, JSON-able: what was said, who won, which side, and the agreement.

    Intervals are of 95 %; judgments about one instruction stay together, as they are not
    independent tries. An end that is not known is None.
    """
    said = [judgment for book in judgments.values() for judgment in book.values()]
    decided = [j for j in said if j.winner is not None]
    instructions = {item.id: item.instruction_id for item in items}
    clusters = [instructions.get(j.item, j.item) for j in decided]
    first = [j.winner == j.shown[0] for j in decided]
    sources = sorted({source for item in items for source in item.sources})
    given = [j.score for j in said if j.score is not None]
    found: Row = {
        "items": len(items),
        "annotators": {name: len(book) for name, book in judgments.items()},
        "kinds": dict(Counter(j.kind for j in said)),
        "corrections": sum(j.correction is not None for j in said),
        "wins": {s: sum(j.winner == s for j in decided) for s in sources} if decided else {},
        "agreement": agreement(judgments),
    }
    if decided:
        found["wins_interval"] = {
            source: _ends([j.winner == source for j in decided], clusters) for source in sources
        }
        found["first_side"] = [sum(first) / len(first), *_ends(first, clusters)]
    if given:
        found["mean_score"] = sum(given) / len(given)
        found["mean_scores"] = _mean_scores(items, judgments)
    return found


def _mean_scores(items: Sequence[Item], judgments: Judgments) -> dict[str, float]:
    """Mean score of the responses of each source."""
    of: dict[str, list[int]] = {}
    for item, _, said in _said(items, judgments):
        if said.score is not None:
            of.setdefault(item.sources[0], []).append(said.score)
    return {source: sum(scores) / len(scores) for source, scores in sorted(of.items())}


def _ends(won: Sequence[bool], clusters: Sequence[str]) -> list[float | None]:
    interval = share_interval(won, clusters)
    return [end if math.isfinite(end) else None for end in (interval.low, interval.high)]


def to_text(found: Row) -> str:
    """The summary for people."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in found["kinds"].items())
    rows = [("items", str(found["items"]))]
    rows += [
        (f"judged by {name}", f"{count} of {found['items']}")
        for name, count in found["annotators"].items()
    ]
    rows += [("said", kinds or "nothing yet"), ("better answers", str(found["corrections"]))]
    decided = sum(found["wins"].values())
    for source, wins in found["wins"].items():
        ends = _between(found["wins_interval"][source])
        rows.append((f"better: {source}", f"{wins} of {decided} ({ends})"))
    if decided:
        share, *ends = found["first_side"]
        rows.append(("shown first won", f"{share:.2f} ({_between(ends)})"))
    for source, mean in found.get("mean_scores", {}).items():
        rows.append((f"mean score: {source}", f"{mean:.2f}"))
    for row in found["agreement"]:
        kappa = "not defined" if row["kappa"] is None else f"{row['kappa']:.2f}"
        who = " and ".join(row["annotators"])
        rows.append((f"{who}", f"agree on {row['agree']:.0%} of {row['items']}, Cohen's κ {kappa}"))
    return table(rows)


def _between(ends: Sequence[float | None]) -> str:
    low, high = ends
    return "interval unknown" if low is None or high is None else f"{low:.2f} to {high:.2f}"
