"""The check that tests notice when a safety is gone: its list is true, and it can tell."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.mutations import (
    BROKEN,
    GOOD,
    NOTICED,
    SKIPPED,
    STALE,
    SURVIVED,
    Mutation,
    Verdict,
    check,
    copy_tree,
    judge,
    read_mutations,
    table,
    text_problem,
)

MUTATIONS = read_mutations()
ESCAPE = next(m for m in MUTATIONS if m.safety == "escaping of HTML")


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.safety)
def test_the_text_of_each_safety_stands_where_the_list_says(root: Path, mutation: Mutation) -> None:
    assert text_problem(mutation, root) == ""
    file, _, name = mutation.test.partition("::")
    assert re.search(rf"^def {name}\(", (root / file).read_text(), flags=re.MULTILINE), name


def test_safeties_have_names_of_their_own_and_cover_what_they_should() -> None:
    names = [mutation.safety for mutation in MUTATIONS]
    assert len(set(names)) == len(names) >= 40
    text = "\n".join(names)
    for word in ("fsync", "rename", "SHA-256", "finite", "death signal", "seccomp", "Landlock"):
        assert word in text, word
    for word in ("HTML", "terminal", "spreadsheets", "keys", "lock", "torn", "masking", "deadline"):
        assert word in text, word


def test_a_text_that_is_gone_or_there_twice_or_leaves_no_python_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\ny = 1\n")
    for old, new, said in (
        ("z = 1", "", "holds the text 0 times"),
        ("= 1", "= 2", "holds the text 2 times"),
        ("x = 1", "x = (", "would be no Python"),
    ):
        assert said in text_problem(Mutation("s", "a.py", "t.py::t", old, new), tmp_path)
    assert "is not there" in text_problem(Mutation("s", "b.py", "t.py::t", "x"), tmp_path)
    verdict = judge(Mutation("s", "a.py", "t.py::t", "z = 1"), tmp_path, {})
    assert verdict.outcome == STALE and STALE not in GOOD


def test_a_test_that_is_skipped_or_fails_anyway_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    mutation = Mutation("s", "a.py", "t.py::t", "x = 1", "x = 2")
    assert judge(mutation, tmp_path, {mutation.test: {"skipped"}}).outcome == SKIPPED
    for before in ({}, {mutation.test: {"passed", "failed"}}):
        assert judge(mutation, tmp_path, before).outcome == BROKEN


def test_the_table_names_what_survived() -> None:
    page = table([Verdict(ESCAPE, NOTICED), Verdict(ESCAPE, SURVIVED, "a | b\nc")])
    last = page.splitlines()[-1]
    assert last.startswith("| escaping of HTML | `experiments/page.py` |")
    assert last.endswith("| SURVIVED: a   b c |")


def test_a_copy_holds_the_links_of_the_packages_and_no_caches(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path / "tree")
    assert (tree / "src" / "instructrec" / "rewards").is_symlink()
    assert not list(tree.rglob("__pycache__"))


@pytest.mark.slow
def test_a_safety_that_is_gone_is_noticed_and_one_that_nothing_guards_is_not() -> None:
    harmless = Mutation(
        "nothing",
        ESCAPE.file,
        ESCAPE.test,
        '    """Text as HTML; control',
        '    """Text as html; control',
    )
    said: list[str] = []
    verdicts = check([ESCAPE, harmless], say=said.append)
    assert [verdict.outcome for verdict in verdicts] == [NOTICED, SURVIVED]
    assert said[0] == "1/2  escaping of HTML: noticed" and "passes all the same" in said[1]
