"""The README is run: its Python blocks, its commands, its file tree and its links."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import io
import json
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from instructrec.checkout import PACKAGES
from instructrec.rl.config import PPOConfig

_EVAL = " --eval.limit 4 --eval.validation_limit 4 --policy.device cpu"
SMALL = {
    "sft": "--policy.model tiny --policy.train full --sft.demonstrations 8 --sft.max_steps 1 "
    "--sft.batch_size 4 --sft.validation_demonstrations 4" + _EVAL,
    "train": "--ppo.num_updates 1 --ppo.episodes_per_update 8 --ppo.num_mini_batches 1 "
    "--ppo.num_ppo_epochs 1 --ppo.response_length 4 --ppo.eval_every 0" + _EVAL,
    "evaluate": "--limit 4",
}
"""Overrides that make a training command of the README take seconds; later options win."""


@dataclass(frozen=True)
class Block:
    """One fenced block of the README."""

    language: str
    text: str


def blocks(root: Path, *languages: str) -> list[Block]:
    readme = (root / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"^```(\w+)\n(.*?)^```$", readme, flags=re.DOTALL | re.MULTILINE)
    return [Block(*pair) for pair in found if pair[0] in languages]


def commands(root: Path, program: str) -> list[str]:
    """Lines that the README types at a prompt, without the program's name."""
    lines = [line for block in blocks(root, "console") for line in block.text.splitlines()]
    return [
        line.removeprefix(f"$ {program} ") for line in lines if line.startswith(f"$ {program} ")
    ]


@pytest.fixture
def workplace(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what a reader has: the recipes, and the files that the README shows."""
    (tmp_path / "experiments").symlink_to(root / "experiments")
    for block in blocks(root, "python"):
        if name := re.match(r"# (\w+\.py)\n", block.text):
            (tmp_path / name[1]).write_text(block.text, encoding="utf-8")
    for block in blocks(root, "console"):
        if shown := re.search(r"^\$ head -n \d+ (\S+)\n((?:\{.*\}\n)+)", block.text, re.MULTILINE):
            rows = [json.loads(line) for line in shown[2].splitlines()]
            more = [{**row, "prompt": f"{row['prompt']} ({i})"} for i in range(80) for row in rows]
            text = "".join(json.dumps(row) + "\n" for row in more)
            (tmp_path / shown[1]).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> str:
    """Prints of a fresh interpreter; a failure shows its last lines."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"{shlex.join(arguments)}\n{done.stderr[-2000:]}"
    return done.stdout


def test_the_python_blocks_print_what_their_comments_say(root: Path, workplace: Path) -> None:
    expected = []
    for block in blocks(root, "python"):
        expected = re.findall(r"^print\(.*\)  # (.*)$", block.text, flags=re.MULTILINE)
        assert run("-c", block.text).splitlines() == expected
    assert expected, "the last Python block shows what it prints"


def test_every_instructrec_command_is_understood(root: Path, workplace: Path) -> None:
    """Recipes, keys and values are checked without training anything."""
    from instructrec.experiments.cli import command_parser, main

    given = commands(root, "instructrec")
    assert {"train", "sft", "evaluate", "rewards", "tasks"} <= {line.split()[0] for line in given}
    for line in given:
        arguments = shlex.split(line)
        if arguments[0] == "compare":  # reads what the commands before it write
            assert command_parser("compare").parse_args(arguments[1:]).policies == arguments[1:]
            continue
        if arguments[0] in SMALL:
            arguments.append("--print_config")
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
            assert main(arguments) == 0, line
        assert out.getvalue().strip(), line


def made_small(line: str) -> list[str]:
    """The command with a tiny model and a few episodes; a model it names becomes the tiny one."""
    arguments = shlex.split(line)
    small = [*arguments, *SMALL.get(arguments[0], "").split()]
    if arguments[0] == "train":
        small += ["--policy.model=tiny"] * ("--policy.model" in arguments)
        small += ["--policy.train=full"] * ("--policy.train" not in arguments)
    return small


@pytest.mark.slow
def test_the_instructrec_commands_run(root: Path, workplace: Path) -> None:
    """In the README's order, since one command reads what another has written."""
    lines = commands(root, "instructrec")
    for line in lines:
        run("-m", "instructrec.experiments.cli", *made_small(line))
    named = re.findall(r"--name (\w+)", "\n".join(lines))
    assert named
    for name in ("short-answers-sft-s0", "short-answers-s2", *named):
        assert (workplace / "runs" / name / "summary.json").is_file(), name
        assert (workplace / "runs" / name / "metrics.jsonl").read_text().strip(), name


def test_every_make_line_names_a_target(root: Path) -> None:
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    text = "".join((root / name).read_text() for name in ("README.md", "CONTRIBUTING.md"))
    named = re.findall(r"(?:^\$ |`)make ((?:[a-z-]+ ?)+)", text, flags=re.MULTILINE)
    used = {target for words in named for target in words.split()}
    assert {"quickstart", "test", "test-all", "lint", "setup"} <= used <= targets


def listed_files(root: Path) -> list[str]:
    """Paths of the README's file tree; an indented line lies in the folder above it."""
    (tree,) = blocks(root, "text")
    paths: list[str] = []
    folder = ""
    for line in tree.text.splitlines():
        entry = re.match(r"( *)(\S+(?: \S+)*?) {2,}\S", line)
        assert entry, f"expected 'path, two spaces, what it is', found {line!r}"
        if not entry[1]:
            folder = entry[2] if entry[2].endswith("/") else ""
            paths.append(entry[2])
        else:
            paths += [folder + name for name in entry[2].split()]
    return paths


def test_the_file_tree_is_true(root: Path) -> None:
    listed = listed_files(root)
    assert [path for path in listed if not (root / path).exists()] == []
    outputs = {"runs", "wandb", "build", "dist"}
    folders = {
        path.name
        for path in root.iterdir()
        if path.is_dir() and path.name[0] not in "._" and path.name not in outputs
        if any(path.iterdir())
    }
    assert folders - {path.split("/")[0] for path in listed} == set()
    modules = {
        path.relative_to(root).as_posix()
        for package in PACKAGES
        for path in (root / package).rglob("*.py")
        if path.name != "__init__.py" and "scripts" not in path.parts
    }
    unlisted = sorted(modules - set(listed))
    assert not unlisted, f"add a line to the tree in README.md for {', '.join(unlisted)}"


def test_links_between_documents_lead_somewhere(root: Path) -> None:
    pages = [*root.glob("*.md"), *(root / "docs").rglob("*.md"), *root.glob("*/results/*.md")]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_index_lists_every_page_of_the_documentation(root: Path) -> None:
    index = (root / "docs" / "index.md").read_text(encoding="utf-8")
    pages = [path.relative_to(root / "docs").as_posix() for path in (root / "docs").rglob("*.md")]
    assert [page for page in pages if page != "index.md" and f"({page})" not in index] == []


def test_every_setting_of_ppo_has_a_row_in_the_table_of_defaults(root: Path) -> None:
    text = (root / "docs" / "ppo.md").read_text(encoding="utf-8")
    table = text.split("\n## Defaults, and what chose them\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(named) == sorted(field.name for field in dataclasses.fields(PPOConfig))


def test_tests_that_the_ppo_page_names_exist(root: Path) -> None:
    text = (root / "docs" / "ppo.md").read_text(encoding="utf-8")
    tests = "".join(path.read_text(encoding="utf-8") for path in (root / "tests").rglob("*.py"))
    named = re.findall(r"`(test_\w+)`", text)
    assert len(named) >= 7 and [name for name in named if f"def {name}(" not in tests] == []


def test_the_code_that_the_ppo_page_points_to_exists(root: Path) -> None:
    text = (root / "docs" / "ppo.md").read_text(encoding="utf-8")
    references = set(re.findall(r"`((?:rl|policies)/\w+\.py):(\w+)`", text))
    assert len(references) > 20
    for file, name in sorted(references):
        tree = ast.parse((root / file).read_text(encoding="utf-8"))
        found = {
            node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)
        }
        targets = [node.targets[0] for node in tree.body if isinstance(node, ast.Assign)]
        found |= {target.id for target in targets if isinstance(target, ast.Name)}
        assert name in found, f"docs/ppo.md points to {name} in {file}"
