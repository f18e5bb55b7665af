from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from benchmarks.code_corpus import ALL_AT_ONCE, ATTACKS, BOMBS, DEADLY
from instructrec.errors import ConfigError, SandboxError
from instructrec.rewards import sandbox as sandbox_module
from instructrec.rewards import sandbox_policy
from instructrec.rewards.base import Status
from instructrec.rewards.sandbox import Limits, Sandbox
from instructrec.rewards.sandbox_process import CodeFault, NotRun, SandboxProcess
from instructrec.rewards.sandbox_values import same

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not sandbox_policy.supports(platform.machine()),
    reason="code is confined on Linux alone",
)
SYSTEM_PYTHON = "/usr/bin/python3"
ECHO = "def f(x):\n    return x\n"


def system_python() -> str:
    """An interpreter that any user may read."""
    code = "import sys; sys.exit(sys.version_info < (3, 11))"
    known = Path(SYSTEM_PYTHON).exists()
    if not known or subprocess.run([SYSTEM_PYTHON, "-c", code]).returncode != 0:
        pytest.skip(f"no {SYSTEM_PYTHON} of version 3.11 or newer")
    return SYSTEM_PYTHON


def make(kind: str, limits: Limits | None = None) -> Sandbox:
    """A sandbox of one of the kinds that this machine allows."""
    if kind == "native":
        return Sandbox(limits, bubblewrap="never")
    if kind == "other user":
        if os.geteuid() != 0:
            pytest.skip("only root can become another user")
        made = Sandbox(limits, bubblewrap="never", interpreter=system_python())
        assert "user" in made.layers
        return made
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    return Sandbox(limits, bubblewrap="require")


KINDS = pytest.mark.parametrize("kind", ["native", "other user", "bubblewrap"])


@pytest.fixture
def bait() -> Iterator[Path]:
    """A file of the host that everybody may write, as far as its rights go."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        secret = Path(folder, "secret")
        secret.write_text("secret")
        secret.chmod(0o666)
        yield secret
        assert secret.read_text() == "secret" and [*Path(folder).iterdir()] == [secret]


@pytest.fixture
def no_leftovers() -> Iterator[None]:
    """No process of ours and no temporary folder is left behind."""
    yield
    assert [p for p in psutil.Process().children() if "marshal" in " ".join(p.cmdline())] == []
    own = [p for p in Path(tempfile.gettempdir()).glob("instructrec-code-*") if owned(p)]
    assert own == []


def owned(folder: Path) -> bool:
    """Whether it was made by this test process and not by one beside it."""
    return folder.name in made_folders


made_folders: set[str] = set()


def run(sandbox: Sandbox, source: str, *args: object) -> tuple[str, object]:
    """Kind and value of one call; ``fault`` where it ended the process."""
    try:
        with sandbox.start() as process:
            made_folders.add(Path(process.folder).name)
            kind, value = process.ask("program", source, None)
            return process.ask(args, {}) if kind == "defined" else (kind, value)
    except CodeFault as fault:
        return "fault", str(fault)


@KINDS
def test_no_attack_gets_what_it_wants(kind: str, bait: Path, no_leftovers: None) -> None:
    sandbox = make(kind)
    assert len(ATTACKS) >= 26
    several = {name: code for name, code in ATTACKS.items() if name not in DEADLY}
    assert run(sandbox, ALL_AT_ONCE, several, os.getpid(), str(bait)) == ("value", [])
    for name in DEADLY:
        if name in ATTACKS:
            kind_, value = run(sandbox, ATTACKS[name], os.getpid(), str(bait))
            assert kind_ in ("raised", "fault"), (name, value)


def test_the_attacks_succeed_where_nothing_stops_them(bait: Path) -> None:
    """Else their failure in the sandbox would mean nothing."""
    free = Sandbox(confined=False)
    names = ("network socket", "pair of sockets", "fork", "read a file of the host", "thread")
    chosen = {name: ATTACKS[name] for name in (*names, "signal the host", "read the users")}
    assert run(free, ALL_AT_ONCE, chosen, os.getpid(), str(bait)) == ("value", [*chosen])


@pytest.mark.slow
@KINDS
def test_bombs_end_in_time_and_leave_the_host_as_it_was(kind: str, no_leftovers: None) -> None:
    sandbox = make(kind, Limits(timeout_s=0.5, disk_mb=0))
    run(sandbox, ECHO, 1)
    before = psutil.Process().memory_info().rss
    for name, source in BOMBS.items():
        outcome = run(sandbox, source)
        assert outcome[0] in ("raised", "fault"), (name, outcome)
    assert psutil.Process().memory_info().rss - before < 16 << 20


def test_a_limit_is_the_fault_of_the_code(no_leftovers: None) -> None:
    sandbox = make("native", Limits(timeout_s=0.3))
    assert run(sandbox, BOMBS["sleep"]) == ("fault", "it took longer than 0.3 s")
    assert run(sandbox, BOMBS["loop that ignores signals"])[0] == "fault"
    assert run(sandbox, BOMBS["memory"])[1] == "MemoryError: "
    assert "printed more" in str(run(sandbox, BOMBS["flood of output"])[1])
    assert "longer than" in str(run(sandbox, BOMBS["flood of answers"])[1])
    assert run(sandbox, BOMBS["crash"]) == ("fault", "it ended with SIGSEGV and no answer")


@KINDS
def test_files_are_written_only_where_they_are_allowed_and_count(
    kind: str, bait: Path, no_leftovers: None
) -> None:
    write = (
        "def f(name):\n    with open(name, 'w') as f: f.write('x')\n    return open(name).read()"
    )
    assert run(make(kind), write, "a.txt")[0] == "raised"
    writing = make(kind, Limits(disk_mb=1))
    assert run(writing, write, "a.txt") == ("value", "x")
    assert run(writing, write, str(bait))[0] == "raised"
    assert run(writing, "import os\ndef f(): return os.listdir('.')") == ("value", [])
    assert run(writing, BOMBS["one large file"])[0] in ("raised", "fault")
    assert run(writing, BOMBS["many files"])[0] == "fault"


def test_each_process_is_a_new_one(no_leftovers: None) -> None:
    sandbox = make("native")
    plant = "import builtins\nbuiltins.planted = 1\ndef f(): return hasattr(builtins, 'planted')"
    look = "import builtins\ndef f(): return hasattr(builtins, 'planted')"
    assert run(sandbox, plant) == ("value", True)
    assert run(sandbox, look) == ("value", False)
    order = "def f(): return list({'a', 'b', 'c', 'd', 'e', 'f'})"
    assert run(sandbox, order) == run(sandbox, order)


def test_the_code_sees_no_call_but_the_one_it_is_asked(no_leftovers: None) -> None:
    look = "import sys\ndef f(): return sys.argv[1:], sys.stdin.read(), sys.orig_argv[-1]"
    kind, value = run(make("native"), look)
    assert isinstance(value, tuple)
    (descriptor,), typed, last = value
    assert kind == "value" and descriptor.isdigit() and typed == "" and last == descriptor


def test_an_answer_to_another_question_is_a_forgery(no_leftovers: None) -> None:
    guessing = """
import os
def f():
    for fd in range(3, 64):
        try: os.write(fd, b'["0123456789abcdef","value",6]\\n')
        except OSError: pass
"""
    assert run(make("native"), guessing) == ("fault", "it answered what it was not asked")


def test_types_survive_and_other_objects_do_not(no_leftovers: None) -> None:
    sandbox = make("native")
    plain = [1, 2.5, True, None, "é\ud800\n", b"\x00", (1,), {2}, frozenset({3}), {4: [5]}, 1j]
    plain += [10**5000, -(10**30), float("inf"), 5e-324, {"a": {"b": ((),)}}]
    kind, value = run(sandbox, ECHO, plain)
    assert kind == "value" and same(value, plain, 0.0) and same(plain, value, 0.0)
    assert run(sandbox, "class A(int): pass\ndef f(): return A(1)")[0] == "unplain"
    assert run(sandbox, "def f(): return [0] * 10**6")[0] == "unplain"


def test_it_dies_with_the_host_and_its_folder_is_swept_away(
    gone: Callable[[int], bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    host = """
import sys
from instructrec.rewards.sandbox import Limits, Sandbox
with Sandbox(Limits(timeout_s=600.0), bubblewrap="never").start() as process:
    print(process._process.pid, flush=True)
    process.ask("program", "while True: pass", None)
"""
    running = subprocess.Popen([sys.executable, "-c", host], stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    child = int(running.stdout.readline())
    time.sleep(0.3)
    running.send_signal(signal.SIGKILL)
    running.wait()
    running.stdout.close()
    try:
        assert gone(child)
    finally:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)  # it would compute for ever
    kept = [tmp_path / f"instructrec-code-{os.getpid()}-x", tmp_path / "instructrec-code-mine"]
    for folder in kept:
        folder.mkdir()
    assert len([*tmp_path.iterdir()]) == 3
    Sandbox(bubblewrap="never")
    assert sorted(tmp_path.iterdir()) == sorted(kept)


@pytest.mark.slow
def test_an_unprivileged_host_confines_too(tmp_path: Path, root: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("this host is unprivileged already")
    copy = Path(tempfile.mkdtemp())
    try:
        copy.chmod(0o755)
        package = copy / "instructrec" / "rewards"
        package.mkdir(parents=True)
        for name in ("errors.py", "lazy.py"):
            shutil.copy(root / "src" / "instructrec" / name, package.parent)
        (package.parent / "__init__.py").touch()
        (package / "__init__.py").touch()
        (package / "base.py").write_text(
            "import enum\nclass Status(enum.StrEnum):\n"
            "    RAISED = 'raised'; TIMEOUT = 'timeout'; WORKER_DIED = 'worker_died'\n"
        )
        for file in (root / "rewards").glob("sandbox*.py"):
            shutil.copy(file, package)
        shutil.copy(root / "benchmarks" / "code_corpus.py", copy)
        code = (
            "import os, code_corpus as c\n"
            "from instructrec.rewards.sandbox import Sandbox\n"
            "assert os.geteuid() == 65534\n"
            "with Sandbox().start() as p:\n"
            "    several = {k: v for k, v in c.ATTACKS.items() if k not in c.DEADLY}\n"
            "    p.ask('program', c.ALL_AT_ONCE, None)\n"
            "    print(p.ask((several, os.getpid(), '/etc/hostname'), {}))\n"
        )
        done = subprocess.run(
            [system_python(), "-c", code],
            user=65534,
            group=65534,
            extra_groups=[],
            cwd=copy,
            text=True,
            capture_output=True,
            env={"PYTHONPATH": str(copy), "TMPDIR": tempfile.gettempdir()},
        )
        assert done.stdout.strip() == "('value', [])", done.stderr
    finally:
        shutil.rmtree(copy)


# Failing closed -----------------------------------------------------------------------------------


class Leaky(Sandbox):
    """One that forgets a part."""

    leak = ""

    def _rules(self) -> dict[str, object]:
        rules = super()._rules()
        if self.leak == "landlock":
            everything = sandbox_policy.landlock_rules(self._abi, ("/",)).rules[0]
            rights = (1 << 13) - 1
            rules["landlock"] = (rules["landlock"][0], [(everything[0], rights, rights)])
        if self.leak == "seccomp":
            allow = b"\x06\x00\x00\x00\x00\x00\xff\x7f"
            rules["filter"] = allow
        return rules


@pytest.mark.parametrize(
    ("leak", "told"),
    [("landlock", "read a file of the host"), ("seccomp", "open a network socket")],
)
def test_a_sandbox_that_leaks_is_refused(
    leak: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Leaky, "leak", leak)
    with pytest.raises(SandboxError, match=f"does not hold: .*{told}.*No code is run"):
        Leaky(bubblewrap="never")


@pytest.mark.parametrize("part", ["landlock", "filter", "capset"])
def test_a_part_that_the_kernel_refuses_is_named(part: str) -> None:
    made = Sandbox(bubblewrap="never")
    wrong = {"landlock": (b"", []), "filter": b"", "capset": 10**6}[part]
    made._order = replace(made._order, settings={**made._order.settings, part: wrong})
    names = {"landlock": "Landlock", "filter": "seccomp", "capset": "capabilities"}
    with pytest.raises(SandboxError, match=names[part]):
        made.check()
    with pytest.raises(NotRun, match=names[part]) as caught:
        made.start()
    assert caught.value.status is Status.WORKER_DIED


def test_a_system_without_landlock_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_module.platform, "machine", lambda: "riscv64")
    with pytest.raises(SandboxError, match=r"Linux \(x86_64, aarch64\) alone"):
        Sandbox()


def test_what_is_asked_for_and_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SandboxError, match="no bwrap on the PATH"):
        Sandbox(bubblewrap="require")
    with pytest.raises(SandboxError, match="does not start"):
        Sandbox(bubblewrap="never", interpreter="/nowhere/python")
    with pytest.raises(ConfigError, match="timeout_s = 0"):
        Sandbox(Limits(timeout_s=0.0))


def test_a_bubblewrap_that_does_not_work_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho no permission >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert "bubblewrap" not in Sandbox().layers
    with pytest.raises(SandboxError, match="no permission"):
        Sandbox(bubblewrap="require")


def test_without_a_sandbox_a_warning_is_printed_each_time(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for _ in range(2):
        assert Sandbox(confined=False).layers == ("rlimits",)
        assert "dangerously_run_without_sandbox" in capsys.readouterr().err


# The tables ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "header"),
    [
        ("x86_64", "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
        ("aarch64", "/usr/include/asm-generic/unistd.h"),
    ],
)
def test_the_numbers_of_system_calls_are_those_of_the_kernel(machine: str, header: str) -> None:
    if not Path(header).exists():
        pytest.skip("the kernel's headers are not installed")
    known = {}
    for line in Path(header).read_text().splitlines():
        words = line.split()
        if len(words) == 3 and words[0] == "#define" and words[2].isdigit():
            name = words[1].removeprefix("__NR_").removeprefix("__NR3264_")
            known.setdefault(name, int(words[2]))
    known["newfstatat"] = known.get("newfstatat", known.get("fstatat", 0))
    assert sandbox_policy.allowed_calls(machine).items() <= known.items()
    assert sandbox_policy.capset_number(machine) == known["capset"]


def test_a_process_that_never_answers_is_no_fault_of_the_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = make("native")
    monkeypatch.setattr("instructrec.rewards.sandbox_process.START_SECONDS", 0.0)
    with pytest.raises(NotRun, match="too busy") as caught:
        SandboxProcess(made._order)
    assert caught.value.status is Status.TIMEOUT
