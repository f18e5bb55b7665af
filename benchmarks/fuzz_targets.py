"""Everything that reads what others wrote, and everything that shows it: what is fuzzed.

A target has values, most of them damaged from something right, and the errors that it is documented
to raise. Beside that it says what has to hold of its result.
"""

from __future__ import annotations

import html.parser
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from hypothesis import strategies as st

from instructrec.errors import CheckpointError, ConfigError, DataError, RewardError

SECRET = "fuzz-secret-0123456789"
ANY_TEXT = st.text(alphabet=st.characters(codec="utf-8"))
BROKEN_TEXT = st.text()  # half surrogate pairs as well, as a token sequence can give
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT
ANY_JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=4),
    max_leaves=12,
)


@dataclass(frozen=True)
class Target:
    """Something that reads or shows what others wrote."""

    name: str
    """What it is called."""
    values: st.SearchStrategy[Any]
    """What it gets."""
    work: Callable[[Any], object]
    """Does it, and asserts what has to hold of the result."""
    errors: tuple[type[Exception], ...] = ()
    """What it may raise."""


@st.composite
def damaged(draw: st.DrawFn, *valid: bytes) -> bytes:
    """One of the right contents with a few edits."""
    content = draw(st.sampled_from(valid))
    for _ in range(draw(st.integers(0, 4))):
        at, to = sorted((draw(st.integers(0, len(content))), draw(st.integers(0, len(content)))))
        piece = draw(
            st.sampled_from([b"", content[at:to] * 2, b"\x00", b"\xff", b"\n", b'"', b"[" * 200])
            | st.binary(max_size=8)
            | ANY_TEXT.map(str.encode)
        )
        content = content[:at] + piece + content[to:]
    return content


def damaged_text(*valid: str) -> st.SearchStrategy[str]:
    """The same for text, and any text."""
    edited = damaged(*(text.encode() for text in valid))
    return edited.map(lambda content: content.decode("utf-8", "replace")) | ANY_TEXT


def targets(folder: Path) -> list[Target]:
    """All targets.

    Args:
        folder: Where their files go.
    """
    return [*_files(folder), *_checkpoints(folder), *_settings(), *_answers(), *_sinks()]


# Files --------------------------------------------------------------------------------------------


def _files(folder: Path) -> list[Target]:
    from instructrec.envs.tasks.dataset import DatasetTask
    from instructrec.experiments.jsonl import read_json, read_rows

    def read_as(ending: str) -> Callable[[bytes], None]:
        file = folder / f"data.{ending}"

        def read(content: bytes) -> None:
            file.write_bytes(content)
            task = DatasetTask(file, split="all")
            ids = [task[i].id for i in range(len(task))]
            assert ids and len(set(ids)) == len(ids)

        return read

    rows = ({"prompt": "é 1", "reference": ["a", "b"]}, {"messages": [{"role": "user"}], "l": 1.5})
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    whole = json.dumps(rows).encode()
    cells = b'prompt,reference\n"a, b",1\nc,"[""x""]"\n'
    any_lines = st.lists(ANY_JSON, max_size=3).map(
        lambda values: "\n".join(map(json.dumps, values)).encode()
    )
    file = folder / "rows.jsonl"

    def written(reader: Callable[[Path], object]) -> Callable[[bytes], object]:
        def read(content: bytes) -> object:
            file.write_bytes(content)
            return reader(file)

        return read

    return [
        Target("data in JSON lines", damaged(lines) | any_lines, read_as("jsonl"), (DataError,)),
        Target("data in CSV", damaged(cells), read_as("csv"), (DataError,)),
        Target("data in JSON", damaged(whole), read_as("json"), (DataError,)),
        Target("rows of a run", damaged(lines) | any_lines, written(read_rows), (DataError,)),
        Target("record of a run", damaged(whole), written(read_json), (CheckpointError,)),
    ]


def _checkpoints(folder: Path) -> list[Target]:
    import torch

    from instructrec.rl.checkpoint import Snapshot, read_checkpoint, write_checkpoint

    place = folder / "update-000001"
    tensors = {"policy.w": torch.arange(6.0), "generator.a": torch.arange(4)}
    write_checkpoint(place, Snapshot(tensors, {"update": 1}))
    right = {path.name: path.read_bytes() for path in place.iterdir()}

    def read(name: str, content: bytes) -> None:
        (place / name).write_bytes(content)
        try:
            found = read_checkpoint(place)
        finally:
            (place / name).write_bytes(right[name])
        assert found.state == {"update": 1} and found.tensors.keys() == tensors.keys()
        assert all(torch.equal(found.tensors[name], tensors[name]) for name in tensors)

    one = st.sampled_from(sorted(right)).flatmap(
        lambda name: st.tuples(st.just(name), damaged(right[name]))
    )
    manifest = ANY_JSON | st.fixed_dictionaries(
        {"format_version": ANY_JSON | st.integers(1, 3), "files": ANY_JSON, "sha256": ANY_JSON}
    )
    return [
        Target("files of a checkpoint", one, lambda given: read(*given), (CheckpointError,)),
        Target(
            "manifest of a checkpoint",
            manifest.map(lambda value: json.dumps(value).encode()),
            lambda content: read("MANIFEST.json", content),
            (CheckpointError,),
        ),
    ]


# Settings and answers -----------------------------------------------------------------------------


def _settings() -> list[Target]:
    from instructrec.envs.tasks.templates import find_template
    from instructrec.experiments.sweep_spec import parse_spec
    from instructrec.experiments.yaml_files import parse_yaml
    from instructrec.rewards.parts import make_part

    text = "a: &x [1, 2.5e3, 2026-11-23, !!set {b: *x}]\nc: {d: 'e', f: ~}\n? g\n: |\n  h\n"
    dates = st.from_regex(
        r"a: [0-9]{4}-[0-9]{2}-[0-9]{2}( [0-9]{2}:[0-9]{2}:[0-9]{2})?", fullmatch=True
    )
    part = st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(
            ("use", "weight", "options", "normalise", "on_error", "isolation", "clip"), ANY_JSON
        ),
    )
    space = st.dictionaries(ANY_TEXT | st.just("ppo.lam"), ANY_JSON, max_size=2)
    spec = st.dictionaries(
        st.sampled_from(["base", "recipe", "metric", "space", "method", "trials", "seeds"]),
        ANY_JSON | space,
        max_size=5,
    )
    return [
        Target("settings in YAML", damaged_text(text) | dates, parse_yaml, (yaml.YAMLError,)),
        Target(
            "spec of a reward",
            st.sampled_from(["exact_match", "bleu", "own"]).flatmap(
                lambda name: st.tuples(st.just(name), part | ANY_JSON)
            ),
            lambda given: make_part(*given),
            (ConfigError,),
        ),
        Target("spec of a sweep", spec, parse_spec, (ConfigError,)),
        Target("template", damaged_text("Q: {prompt}\nA: {{x}}"), find_template, (ConfigError,)),
    ]


def _answers() -> list[Target]:
    from instructrec.envs.tool_calls import literal, parse_calls, read_arguments
    from instructrec.rewards.calling import check_scores
    from instructrec.rewards.judge import parse_verdict
    from instructrec.rewards.numerals import first_number, last_number, whole_number
    from instructrec.rewards.sandbox_values import Malformed, read_answer
    from instructrec.rewards.scoring import judge_scores
    from instructrec.rewards.text import completion_text

    line = b'["a1","value",["d","k",["l",["f","0x1.8p+1"],["i","-ff"],["b","00"]],true]]'
    calls = '<tool>f(1, "b", c=[2])</tool>'
    calls += '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
    one: st.SearchStrategy[Any] = st.one_of(
        *(st.none(), st.booleans(), st.integers(), st.floats(), st.decimals(), st.fractions()),
        *(st.floats(width=32).map(np.float32), st.floats().map(np.array)),
        *(ANY_TEXT, ANY_TEXT.map(np.str_), st.complex_numbers()),
    )
    three = st.lists(st.floats(), min_size=3, max_size=3).map(np.array)
    many: st.SearchStrategy[Any] = st.one_of(
        *(st.lists(one, min_size=3, max_size=3), st.lists(one), st.tuples(one, one, one)),
        *(three, ANY_JSON),
    )

    def scored(result: Any) -> None:
        part = judge_scores(check_scores("r", result, 3), (0.0, 1.0))
        for score, status in zip(part.scores, part.status, strict=True):
            fine = math.isfinite(score) and 0 <= score <= 1
            assert (status.value == "scored") == fine, (score, status)

    def graded(text: str) -> None:
        assert 1 <= parse_verdict(text, 1, 10) <= 10

    def numbers(text: str) -> None:
        for find in (first_number, last_number, whole_number):
            find(text)

    return [
        Target("answer of a sandbox", damaged(line) | st.binary(), read_answer, (Malformed,)),
        Target("grade of a judge", damaged_text('{"score": 7}'), graded, (ValueError,)),
        Target("scores of a reward", many, scored, (RewardError,)),
        Target("calls of tools", damaged_text(calls) | BROKEN_TEXT, parse_calls),
        Target("arguments of a call", damaged_text('1, "b", c=[2]'), read_arguments, (ValueError,)),
        Target("literal of a call", damaged_text("[1, {'a': (2, 3)}]"), literal),
        Target("numbers of an answer", damaged_text("-1,234.5e6 3/4 ٣ ½ 7%"), numbers),
        Target("text of a response", ANY_JSON, completion_text, (DataError,)),
    ]


# Sinks --------------------------------------------------------------------------------------------


class _Markup(html.parser.HTMLParser):
    """Refuses whatever is more than text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.data = ""

    def handle_data(self, data: str) -> None:
        self.data += data

    def _refuse(self, *found: object) -> None:
        raise AssertionError(f"markup: {found}")

    handle_starttag = handle_endtag = handle_comment = handle_decl = handle_pi = _refuse  # type: ignore[assignment]


def _sinks() -> list[Target]:
    from instructrec.envs.tasks.rows import excerpt, visible
    from instructrec.experiments.jsonl import dump_line
    from instructrec.experiments.listing import inert
    from instructrec.experiments.page import marked, text
    from instructrec.redaction import redacted

    hostile = damaged_text("</td><script>x</script><img src=x onerror='y'>&lt;\u202e\x1b[2J", "a b")
    hostile |= BROKEN_TEXT

    def page(value: str) -> None:
        parser = _Markup()
        parser.feed(text(value))
        parser.close()
        assert parser.data.replace("\n", "").replace("\t", "").isprintable()

    def compared(values: tuple[str, str]) -> None:
        shown = marked(*values).replace("<mark>", "").replace("</mark>", "")
        parser = _Markup()
        parser.feed(shown)

    def terminal(value: str) -> None:
        assert visible(value).isprintable() and len(excerpt(value)) <= 80 * 10

    def markdown(value: str) -> None:
        shown = inert(value)
        assert "\n" not in shown
        assert not set("<[`") & {c for i, c in enumerate(shown) if i == 0 or shown[i - 1] != "\\"}

    def record(value: Any) -> None:
        line = dump_line({"value": value})
        assert line.count(b"\n") == 1 and line.endswith(b"\n")
        assert json.loads(line).keys() == {"value"}

    def hidden(values: tuple[str, str]) -> None:
        before, after = values
        os.environ["FUZZ_API_KEY"] = SECRET
        try:
            assert SECRET not in redacted(before + SECRET + after)
        finally:
            del os.environ["FUZZ_API_KEY"]

    odd = st.sampled_from([Decimal("NaN"), Fraction(1, 3), np.float32("inf"), {1, 2}, b"x", object])
    return [
        Target("page", hostile, page),
        Target("words that are new, in a page", st.tuples(hostile, hostile), compared),
        Target("terminal", hostile, terminal),
        Target("Markdown", hostile, markdown),
        Target("record", hostile | ANY_JSON | odd, record),
        Target("keys in a text", st.tuples(hostile, hostile), hidden),
    ]
