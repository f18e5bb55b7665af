"""Builds the documentation as a site into ``build/docs``: ``make docs``.

The pages stay where they are, and so do their links: the Markdown files of the repository are laid
out in ``build/site/pages`` as in the checkout, the reference of every public name and the notebook
are written beside them, Zensical renders all, and every link of the result is followed. Needs the
extra ``docs``; no network. Another folder than ``build`` may be given as the one argument.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from check_links import broken_links

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("rewards", "envs", "policies", "rl", "experiments")
FOLDERS = ("", "docs", "experiments/results", "benchmarks")
"""Folders whose Markdown files are pages."""
LINKED = re.compile(r"\]\((?!https?:|#)([^)#\s]+)[^)]*\)")


def public_names(package: Path) -> dict[str, str]:
    """The public names of a package and the modules they come from, read without importing it."""
    tree = ast.parse((package / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_exports":
            names: dict[str, str] = ast.literal_eval(node.value)
            return names
    raise ValueError(f"{package}/__init__.py has no _exports: expected a dict of public names.")


def reference_page(title: str, names: dict[str, str]) -> str:
    """Markdown from which mkdocstrings makes a page: one entry for each name."""
    entries = "".join(f"::: {module}.{name}\n\n" for name, module in names.items())
    return f"# {title}\n\nThe public names, as `from {title} import …` gives them.\n\n{entries}"


def notebook_page(file: Path) -> str:
    """A notebook as Markdown: its text and its code, without outputs."""
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    parts = []
    for cell in cells:
        text = "".join(cell["source"]).strip()
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    parts.append(f"This page is a notebook: [`{file.name}`]({file.name}).")
    return "\n\n".join(parts) + "\n"


def stage(pages: Path) -> None:
    """Lays out all pages, and the files that they link to."""
    for folder in FOLDERS:
        for source in sorted((ROOT / folder).glob("*.md")):
            target = pages / folder / source.name
            target.parent.mkdir(parents=True, exist_ok=True)
            text = source.read_text(encoding="utf-8")
            on_the_site = text.replace(".ipynb)", ".md)")  # a notebook is a page there
            target.write_text(on_the_site, encoding="utf-8")
            for link in LINKED.findall(text):
                linked = (source.parent / link).resolve()
                if linked.is_file() and linked.suffix != ".md":
                    copy = pages / linked.relative_to(ROOT)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(linked, copy)
    shutil.copy(ROOT / "docs" / "site.css", pages / "docs")
    for notebook in (ROOT / "docs" / "notebooks").glob("*.ipynb"):
        target = pages / "docs" / "notebooks" / f"{notebook.stem}.md"
        target.parent.mkdir(exist_ok=True)
        target.write_text(notebook_page(notebook), encoding="utf-8")
        shutil.copy(notebook, target.parent)
    write_reference(pages / "docs" / "api")


def write_reference(folder: Path) -> None:
    """One page for each package, and one for what stands at the top."""
    folder.mkdir()
    top = dict.fromkeys(("train", "evaluate", "compare"), "instructrec.experiments.api")
    (folder / "instructrec.md").write_text(reference_page("instructrec", top), encoding="utf-8")
    for package in PACKAGES:
        page = reference_page(f"instructrec.{package}", public_names(ROOT / package))
        (folder / f"{package}.md").write_text(page, encoding="utf-8")


def build(out: Path) -> Path:
    """Renders the site.

    Args:
        out: Folder of the site, ``docs``, and of what it is made from, ``site``.

    Returns:
        Folder of the site. Ends the process with what Zensical printed when it failed or warned.
    """
    workshop, site = out / "site", out / "docs"
    for folder in (workshop, site):
        shutil.rmtree(folder, ignore_errors=True)
    stage(workshop / "pages")
    shutil.copy(ROOT / "docs" / "site_config.toml", workshop / "zensical.toml")
    (workshop / "src").symlink_to(ROOT / "src")
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    done = subprocess.run(command, cwd=workshop, capture_output=True, text=True)
    said = done.stdout + done.stderr
    if done.returncode or re.search("warning", said, flags=re.IGNORECASE):
        sys.exit(said)
    shutil.move(workshop / "html", site)
    return site


def main() -> None:
    """Builds the site and follows its links; ends with 1 when anything is wrong."""
    site = build(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT / "build")
    if broken := broken_links(site):
        sys.exit("\n".join(["Links that lead nowhere, or load from elsewhere:", *broken]))
    print(f"{len(list(site.rglob('*.html')))} pages: open {site / 'index.html'}")


if __name__ == "__main__":
    main()
