"""The documentation as a site: what is in it, its links, and the notebook."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

GENERATED = ("docs/api/", "docs/notebooks/")


@pytest.fixture(scope="module")
def build_site(root: Path) -> Iterator[ModuleType]:
    """The script ``docs/build_site.py`` as a module."""
    sys.path.insert(0, str(root / "docs"))
    yield importlib.import_module("build_site")
    sys.path.remove(str(root / "docs"))


@pytest.fixture
def notebook(root: Path) -> Path:
    return root / "docs" / "notebooks" / "first_run.ipynb"


def navigation(entries: list[dict[str, Any]]) -> Iterator[str]:
    for entry in entries:
        for value in entry.values():
            yield from navigation(value) if isinstance(value, list) else [value]


def test_every_page_is_in_the_navigation_once(root: Path, build_site: ModuleType) -> None:
    text = (root / "docs" / "site_config.toml").read_text(encoding="utf-8")
    listed = list(navigation(tomllib.loads(text)["project"]["nav"]))
    files = {
        file.relative_to(root).as_posix()
        for folder in build_site.FOLDERS
        for file in (root / folder).glob("*.md")
    }
    assert len(listed) == len(set(listed))
    assert {page for page in listed if not page.startswith(GENERATED)} == files
    api = {page for page in listed if page.startswith("docs/api/")}
    assert api == {f"docs/api/{name}.md" for name in ("instructrec", *build_site.PACKAGES)}


def test_every_page_is_in_the_index(root: Path) -> None:
    index = (root / "docs" / "index.md").read_text(encoding="utf-8")
    pages = {file.name for file in (root / "docs").glob("*.md")} - {"index.md"}
    assert pages and all(f"]({name})" in index for name in pages)


def test_the_reference_lists_what_the_packages_export(root: Path, build_site: ModuleType) -> None:
    for package in build_site.PACKAGES:
        module = importlib.import_module(f"instructrec.{package}")
        assert set(build_site.public_names(root / package)) == set(module.__all__)


def test_links_that_lead_nowhere_are_found(tmp_path: Path, build_site: ModuleType) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.html").write_text('<h1 id="there">B</h1>')
    (tmp_path / "a.html").write_text(
        '<a href="sub/b.html#there">good</a><a href="#">top</a><a href="https://x.org">web</a>'
        '<a href="sub/b.html#gone">no anchor</a><a href="c.html">no file</a>'
        '<script src="https://x.org/x.js"></script>'
    )
    assert build_site.broken_links(tmp_path) == [
        "a.html -> sub/b.html#gone",
        "a.html -> c.html",
        "a.html loads https://x.org/x.js",
    ]


@pytest.mark.slow
def test_the_site_is_built_without_warnings_and_its_links_lead_somewhere(
    root: Path, tmp_path: Path
) -> None:
    pytest.importorskip("zensical", reason="needs the extra docs")
    command = [sys.executable, str(root / "docs" / "build_site.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    reference = (tmp_path / "docs" / "docs" / "api" / "rl.html").read_text(encoding="utf-8")
    assert "Passes over the rollout in each update" in reference  # the docstring of a field


def test_the_notebook_is_kept_without_outputs(notebook: Path) -> None:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 5
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.slow
def test_the_notebook_runs_and_its_policy_beats_the_start(notebook: Path, tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    book = nbformat.read(notebook, as_version=4)
    nbclient.NotebookClient(
        book, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    (verdict,) = [out for out in book.cells[-1].outputs if out.output_type == "execute_result"]
    assert "is better than tiny by" in verdict["data"]["text/plain"]
    assert (tmp_path / "runs" / "vowels-s1" / "policy" / "README.md").is_file()
