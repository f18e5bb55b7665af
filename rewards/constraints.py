"""Reward for following constraints that a program can check, such as those of IFEval."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from instructrec.errors import ConfigError, DataError, did_you_mean
from instructrec.rewards.constraint_checks import bound_check, full_name, list_constraints
from instructrec.rewards.text import completion_text, prompt_text

Mode = Literal["strict", "loose"]
"""``strict`` checks the response as it is; ``loose`` also seven forms of it."""

_NO_COLUMN = (
    "reward 'constraints' needs the column 'constraints' (a list of {id, kwargs} per row) or "
    "IFEval's columns 'instruction_id_list' and 'kwargs', and the data has neither. To read "
    "others, set the options constraints_column or instruction_id_list_column."
)


def constraints(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    constraints: Sequence[Any] | None = None,
    instruction_id_list: Sequence[Any] | None = None,
    kwargs: Sequence[Any] | None = None,
    *,
    mode: Mode = "strict",
    score: Literal["share", "all"] = "share",
    only: str | None = None,
    log_metric: Callable[[str, float], None] | None = None,
    **columns: Any,
) -> list[float | None]:
    """How many of its constraints each response follows; a blank response follows none.

    Args:
        prompts: B instructions, for the constraint that asks to repeat it.
        completions: B responses.
        constraints: B lists of ``{id, kwargs}`` (or JSON text of one): the name of a constraint,
            with or without its group, and its settings.
        instruction_id_list: IFEval's own columns instead: B lists of names ...
        kwargs: ... and B lists of their settings.
        mode: ``strict`` checks the response itself. ``loose`` lets a constraint pass when it holds
            for the response, or for it without asterisks, without its first line, without its last
            line, or any of these together.
        score: ``share`` of the constraints that hold, or 1 only when ``all`` do.
        only: Name or group of the constraints that count; the others are left out.
        log_metric: TRL's; gets ``constraints/<name>``, the share of responses that follow each.
        **columns: Not read.

    Returns:
        B scores in [0, 1]; None where the sample has no constraint (that counts).

    Raises:
        DataError: When the columns are missing, or a row names an unknown constraint or setting.
        ConfigError: When ``only`` names neither a constraint nor a group.
    """
    rows = _rows(constraints, instruction_id_list, kwargs, len(completions))
    wanted = _selection(only)
    scores: list[float | None] = []
    passed: dict[str, list[bool]] = {}
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        chosen = [(name, given) for name, given in _row(rows[i], i) if name in wanted]
        text = completion_text(completion)
        results = check_constraints(text, chosen, prompt=prompt_text(prompt), mode=mode)
        for name, holds in results:
            passed.setdefault(name, []).append(holds)
        share = sum(holds for _, holds in results) / len(results) if results else None
        scores.append(float(share == 1) if score == "all" and share is not None else share)
    if log_metric is not None:
        for name, held in passed.items():
            log_metric(f"constraints/{name.rpartition(':')[2]}", sum(held) / len(held))
    return scores


def _check_columns(available: Mapping[str, Any] | Sequence[str]) -> None:
    """Says before a run begins what ``constraints`` would say at its first batch."""
    if "constraints" not in available and "instruction_id_list" not in available:
        raise DataError(_NO_COLUMN)


def _check_options(options: Mapping[str, Any]) -> None:
    """Says when the reward is made what ``constraints`` would say at its first batch."""
    _selection(options.get("only"))


constraints.check_columns = _check_columns  # type: ignore[attr-defined]
constraints.check_options = _check_options  # type: ignore[attr-defined]


def check_constraints(
    text: str,
    constraints: Sequence[tuple[str, Mapping[str, Any]]],
    *,
    prompt: str = "",
    mode: Mode = "strict",
) -> list[tuple[str, bool]]:
    """Says of each constraint whether a response follows it.

    Args:
        text: The response.
        constraints: Pairs of a name, with or without its group, and settings.
        prompt: The instruction, for the constraint that asks to repeat it.
        mode: ``strict`` or ``loose``, as in ``constraints``.

    Returns:
        Pairs of the full name and whether it holds, in the order given.

    Raises:
        DataError: When a name or setting is unknown.
    """
    forms = [text] if mode == "strict" else loose_forms(text)
    results = []
    for name, settings in constraints:
        holds = bound_check(name, settings, prompt)
        results.append((full_name(name), any(holds(form) for form in forms)))
    return results


def loose_forms(text: str) -> list[str]:
    """Returns the eight forms of a response that IFEval's loose accuracy accepts (section 2.2)."""
    lines = text.split("\n")
    cut = ["\n".join(kept).strip() for kept in (lines[1:], lines[:-1], lines[1:-1])]
    forms = [text, *cut]
    return forms + [form.replace("*", "") for form in forms]


def _rows(
    constraints: Sequence[Any] | None,
    names: Sequence[Any] | None,
    settings: Sequence[Any] | None,
    size: int,
) -> list[Any]:
    """One row per sample in the form of the column ``constraints``."""
    if constraints is not None:
        return list(constraints)
    if names is None:
        raise DataError(_NO_COLUMN)
    rows = []
    for i, (ids, given) in enumerate(zip(names, settings or [None] * size, strict=True)):
        ids, given = _parsed(ids, i), _parsed(given, i)
        if given is not None and ids is not None and len(given) != len(ids):
            raise DataError(
                f"reward 'constraints': sample {i} has {len(ids)} names in instruction_id_list but "
                f"{len(given)} entries in kwargs; expected one each."
            )
        pairs = zip(ids or [], given or [{}] * len(ids or []), strict=True)
        rows.append([{"id": name, "kwargs": each} for name, each in pairs])
    return rows


def _row(row: Any, index: int) -> list[tuple[str, Mapping[str, Any]]]:
    pairs = []
    for entry in _parsed(row, index) or []:
        if isinstance(entry, str):
            entry = {"id": entry}
        settings = entry.get("kwargs") or {} if isinstance(entry, Mapping) else None
        if not isinstance(settings, Mapping) or not isinstance(entry.get("id"), str):
            raise DataError(
                f"reward 'constraints': sample {index} has the entry {entry!r}; expected "
                "{'id': 'number_words', 'kwargs': {'num_words': 20, 'relation': 'at most'}}."
            )
        pairs.append((full_name(entry["id"]), settings))
    return pairs


def _parsed(value: Any, index: int) -> list[Any] | None:
    """A cell as a list: CSV files and some tables hold it as JSON text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"reward 'constraints': sample {index} holds {value[:80]!r}, which is no JSON: "
                f"{error}. Expected a list."
            ) from None
    value = value.tolist() if hasattr(value, "tolist") else value
    if value is None or isinstance(value, list | tuple):
        return None if value is None else list(value)
    raise DataError(
        f"reward 'constraints': sample {index} holds {value!r} ({type(value).__name__}); "
        "expected a list."
    )


def _selection(only: str | None) -> set[str]:
    names = list_constraints()
    groups = {name.partition(":")[0] for name in names}
    if only is None:
        return set(names)
    chosen = {n for n in names if only in (n, *n.split(":"))}
    if not chosen:
        known = sorted(groups | {name.partition(":")[2] for name in names})
        raise ConfigError(
            f"reward 'constraints': only = {only!r}: there is no such constraint or group."
            f"{did_you_mean(only, known)} Known: {', '.join(known)}."
        )
    return chosen
