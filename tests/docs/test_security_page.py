"""The page on threats: its catalogue is complete, and its tests exist."""

from __future__ import annotations

import re
from pathlib import Path


def test_every_threat_names_tests_that_exist(root: Path) -> None:
    page = (root / "docs" / "security.md").read_text(encoding="utf-8")
    sources = "\n".join(path.read_text(encoding="utf-8") for path in root.glob("tests/**/*.py"))
    known = set(re.findall(r"^def (test_\w+)", sources, flags=re.MULTILINE))
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| S")]
    assert [row[0] for row in rows] == [f"S{number:02}" for number in range(1, 37)]
    for number, threat, happens, tests in rows:
        named = set(re.findall(r"`(test_\w+)`", tests))
        assert threat and happens and named, number
        assert named <= known, (number, named - known)


def test_the_policy_says_who_is_trusted_what_is_no_boundary_and_how_to_report(root: Path) -> None:
    policy = (root / "SECURITY.md").read_text(encoding="utf-8")
    heads = re.findall(r"^## (.+)$", policy, flags=re.MULTILINE)
    assert {"Who is trusted", "What is a boundary", "What is no boundary", "Reporting"} <= set(
        heads
    )
    for package in ("policies", "envs", "rewards", "rl", "experiments"):
        assert f"| `instructrec.{package}` |" in policy


def test_the_audit_informs_and_fails_nothing(root: Path) -> None:
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(r"^audit:.*\n((?:\t.*\n)+)", makefile, flags=re.MULTILINE)
    assert recipe is not None and "pip-audit" in recipe[1] and "|| echo" in recipe[1]
    assert "audit" not in (root / ".ci" / "run").read_text(encoding="utf-8")
