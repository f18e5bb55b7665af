"""Code that could run what somebody else wrote, or that shows it as markup, is in few known places.

The rules look at the syntax tree, so a word in a comment or a string does not count. Each exception
names one place and why it is one; an exception that is no longer needed is a fault, too.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PLACES = ("rewards", "envs", "policies", "rl", "experiments", "src/instructrec", "benchmarks")
BANNED_CALLS = {
    **dict.fromkeys(("eval", "exec", "compile", "__import__", "execfile"), "runs text as code"),
    **dict.fromkeys(("os.system", "os.popen", "pty.spawn"), "runs a shell"),
    **dict.fromkeys(("yaml.load", "yaml.load_all", "yaml.full_load"), "use read_yaml"),
    **dict.fromkeys(("yaml.unsafe_load", "yaml.unsafe_load_all"), "builds any object"),
    **dict.fromkeys(("pickle.load", "pickle.loads", "pickle.Unpickler"), "runs what it reads"),
    **dict.fromkeys(("marshal.load", "marshal.loads", "shelve.open"), "runs what it reads"),
    **dict.fromkeys(("torch.load", "torch.save", "torch.hub.load"), "pickle: use safetensors"),
    **dict.fromkeys(("jinja2.Template", "jinja2.Environment"), "templates without a sandbox"),
    **dict.fromkeys(("wandb.Html", "wandb.Markdown"), "shows text as markup"),
    **dict.fromkeys(("csv.writer", "csv.DictWriter"), "a spreadsheet runs cells that begin with ="),
    **dict.fromkeys(("tempfile.mktemp", "os.tempnam"), "somebody else may make the file first"),
    "evaluate.load": "fetches code and runs it",
}
BANNED_METHODS = {"to_csv": "a spreadsheet runs cells that begin with =", "to_pickle": "pickle"}
BANNED_MODULES = {"dill", "joblib", "cloudpickle", "shelve", "marshal", "telnetlib", "ftplib"}
BANNED_KEYWORDS = {
    "shell": "runs a shell",
    "trust_remote_code": "runs code of a model's repository",
    "allow_pickle": "runs what it reads",
    "verify": "lets anybody answer for a server",
}
EXCEPTIONS = {
    ("rewards/sandbox_child.py", "exec"): "inside the sandbox, where model-written code runs",
    ("rewards/sandbox_child.py", "compile"): "inside the sandbox, where model-written code runs",
    ("rewards/loading.py", "exec"): "a reward file that the user names on the command line",
    ("rewards/loading.py", "compile"): "a reward file that the user names on the command line",
    ("rewards/hf_metric.py", "evaluate.load"): "modules of this package; others are refused "
    "unless the user sets trust_remote_code",
    ("rewards/worker.py", "pickle.loads"): "from the process that started it, over a socket pair",
    ("rewards/check_points.py", "pickle.loads"): "a reward that this process pickled itself",
    ("src/instructrec/endings.py", "pickle.loads"): "errors of the run's own other processes",
    ("experiments/offline_sync.py", "verify"): "asks W&B only whether a key is stored",
    ("rewards/code_tests.py", "marshal"): "writes the arguments that the sandbox reads",
    ("rewards/sandbox_process.py", "marshal"): "writes what the sandbox reads",
    ("rewards/sandbox.py", "compile"): "this project's own code for the inside of the sandbox",
    ("rewards/sandbox_child.py", "marshal"): "inside the sandbox",
    ("rewards/sandbox_child.py", "marshal.loads"): "inside the sandbox, from the process outside",
    ("experiments/wandb_tracking.py", "verify"): "asks W&B only whether a key is stored",
}
UNGUARDED_JSON = {
    "rewards/isolation.py": "from a reward's own process, whose code the user chose",
    "rewards/reasoning.py": "options that this process wrote",
    "rewards/formats.py": "the schema of a task, which is checked when the task is made",
    "envs/tasks/skills/base.py": "answers that this process wrote",
    "rl/checkpoint.py": "the run's own; what a run continues from is trusted as the run is",
    "policies/embedded.py": "the record of this project's own cache",
    "experiments/score_file.py": "rows that the same command wrote before it was stopped",
    "experiments/scripts/quickstart_seeds.py": "results that the script wrote itself",
    "experiments/scripts/critic_table.py": "results that the script wrote itself",
}


def names_of(tree: ast.AST) -> dict[str, str]:
    """Local name -> full name, of everything that is imported anywhere in a module."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {
                a.asname or a.name: a.name for a in node.names if a.asname or "." not in a.name
            }
        elif isinstance(node, ast.ImportFrom):
            found |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return found


def full_name(function: ast.expr, names: dict[str, str]) -> str:
    first, dot, rest = ast.unparse(function).partition(".")
    return names.get(first, first) + dot + rest


def banned(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """What of the lists above stands in a module, and why it should not."""
    names = names_of(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            tops = {(module or a.name).split(".")[0] for a in node.names}
            yield from ((top, "runs what it reads") for top in sorted(tops & BANNED_MODULES))
        if not isinstance(node, ast.Call):
            continue
        name = full_name(node.func, names)
        if name in BANNED_CALLS:
            yield name, BANNED_CALLS[name]
        elif isinstance(node.func, ast.Attribute) and node.func.attr in BANNED_METHODS:
            yield node.func.attr, BANNED_METHODS[node.func.attr]
        for keyword in node.keywords:
            is_off = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            if keyword.arg in BANNED_KEYWORDS and is_off == (keyword.arg == "verify"):
                yield keyword.arg, BANNED_KEYWORDS[keyword.arg]


def _meets(kind: ast.expr) -> bool:
    """Whether a handler of this kind meets a RecursionError."""
    names = {ast.unparse(node) for node in ast.walk(kind)}
    return bool(names & {"RecursionError", "RuntimeError", "Exception", "BaseException"})


def unguarded_json(tree: ast.AST) -> Iterator[int]:
    """Lines that parse JSON where a RecursionError, of deep nesting, is not expected."""
    guarded = {
        id(call)
        for block in ast.walk(tree)
        if isinstance(block, ast.Try) and any(_meets(h.type) for h in block.handlers if h.type)
        for statement in block.body
        for call in ast.walk(statement)
    }
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        if ast.unparse(call.func) in ("json.loads", "json.load") and id(call) not in guarded:
            yield call.lineno


@pytest.fixture(scope="module")
def modules(root: Path) -> dict[str, ast.Module]:
    """The modules in which a word of the lists stands at all, parsed."""
    names = {*BANNED_CALLS, *BANNED_METHODS, *BANNED_MODULES, *BANNED_KEYWORDS}
    names |= {"json.loads", "from_pretrained"}
    words = re.compile(rf"\b({'|'.join(sorted({name.split('.')[-1] for name in names}))})\b")
    found = {}
    for place in PLACES:
        for path in sorted((root / place).rglob("*.py")):
            if not any(part.is_symlink() for part in (path, *path.parents) if part != root):
                text = path.read_text(encoding="utf-8")
                if words.search(text):
                    found[path.relative_to(root).as_posix()] = ast.parse(text)
    return found


def test_nothing_runs_text_pickles_or_remote_code_but_in_known_places(
    modules: dict[str, ast.Module],
) -> None:
    found = {(at, name): why for at, tree in modules.items() for name, why in banned(tree)}
    assert {place: why for place, why in found.items() if place not in EXCEPTIONS} == {}
    assert set(EXCEPTIONS) - set(found) == set(), "no longer needed"


def test_json_of_others_is_read_where_deep_nesting_is_expected(
    modules: dict[str, ast.Module],
) -> None:
    read = {at: tree for at, tree in modules.items() if not at.startswith("benchmarks/")}
    found = {at: lines for at, tree in read.items() if (lines := list(unguarded_json(tree)))}
    assert {at: lines for at, lines in found.items() if at not in UNGUARDED_JSON} == {}


def test_models_are_loaded_without_code_of_their_own(modules: dict[str, ast.Module]) -> None:
    """Where nothing is said, transformers asks at a terminal whether it may run that code."""
    auto = re.compile(r"(Auto\w+|auto_class\))\.from_pretrained$")
    unsaid = [
        f"{at}:{call.lineno}"
        for at, tree in modules.items()
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and auto.search(ast.unparse(call.func))
        and not at.startswith("benchmarks/")
        and not {"trust_remote_code", "gguf_file", None} & {k.arg for k in call.keywords}
    ]
    assert unsaid == []


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("eval('1')", "eval"),
        ("import os\nos.system('ls')", "os.system"),
        ("from os import system as s\ns('ls')", "os.system"),
        ("import subprocess\nsubprocess.run('ls', shell=True)", "shell"),
        ("import subprocess\nsubprocess.run('ls', shell=loud)", "shell"),
        ("import yaml as y\ny.load(text)", "yaml.load"),
        ("import pickle\npickle.loads(data)", "pickle.loads"),
        ("def f():\n    from pickle import loads\n    loads(data)", "pickle.loads"),
        ("import torch\ntorch.load(file, weights_only=False)", "torch.load"),
        ("import torch\ntorch.load(file)", "torch.load"),
        ("import numpy\nnumpy.load(file, allow_pickle=True)", "allow_pickle"),
        ("from dill import loads", "dill"),
        ("model.from_pretrained(name, trust_remote_code=trust)", "trust_remote_code"),
        ("import wandb\nwandb.Html(text)", "wandb.Html"),
        ("frame.to_csv(file)", "to_csv"),
        ("from jinja2 import Template\nTemplate(text)", "jinja2.Template"),
        ("httpx.get(url, verify=False)", "verify"),
    ],
)
def test_what_is_banned_is_noticed(code: str, name: str) -> None:
    assert name in dict(banned(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        "model.eval()",
        "re.compile('a')",
        "from_pretrained(name, trust_remote_code=False)",
        "numpy.load(file, allow_pickle=False)",
        "subprocess.run(['ls'])",
        "text = 'eval(1)'  # exec()",
    ],
)
def test_what_is_harmless_is_not(code: str) -> None:
    assert list(banned(ast.parse(code))) == []


def test_unguarded_json_is_noticed() -> None:
    guarded = "try:\n    json.loads(t)\nexcept (ValueError, RecursionError):\n    pass"
    assert list(unguarded_json(ast.parse(guarded))) == []
    assert list(unguarded_json(ast.parse(guarded.replace(", RecursionError", "")))) == [2]
