"""`instructrec export` and the cards: what is written, what they say, what is refused."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from instructrec.errors import ConfigError
from instructrec.experiments.cli import main
from instructrec.experiments.export_policy import ExportConfig, export_policy
from instructrec.experiments.jsonl import write_json
from instructrec.experiments.model_card import Weights, card_of_run
from instructrec.experiments.report_reading import read_run
from instructrec.experiments.staging import staged
from instructrec.policies.causal_lm import load_policy
from instructrec.policies.config import PolicyConfig
from instructrec.policies.labels import LabelPolicy


def front_matter(card: str) -> dict[str, object]:
    text = re.match(r"---\n(.*?)\n---\n", card, flags=re.DOTALL)
    assert text is not None
    found: dict[str, object] = yaml.safe_load(text[1])
    return found


def test_a_card_says_what_the_run_has_shown(
    tmp_path: Path, write_run: Callable[..., Path], write_evaluation: Callable[..., Path]
) -> None:
    runs = tmp_path / "runs"
    write_run(runs / "first", right=12, base_model="smollm2-135m")
    run = write_run(runs / "mine", base_model="runs/first", parent="runs/first")
    card = card_of_run(read_run(run), Weights(system_prompt="Be brief.", max_new_tokens=8))
    about = front_matter(card)
    assert about["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert about["license"] == "apache-2.0" and about["library_name"] == "transformers"
    (entry,) = about["model-index"]  # type: ignore[misc]
    metrics = {m["type"]: m["value"] for r in entry["results"] for m in r["metrics"]}
    assert metrics == {"match": 0.75, "total": 0.75}
    assert "better: held-out total 0.300 before, 0.750 after" in card
    assert "40 instructions of the test split, 1 response each, greedy" in card
    assert '"role": "system", "content": "Be brief."' in card and "question 0" in card
    end = json.loads((run / "eval" / "end-6.json").read_text())
    write_json(run / "eval" / "end-6.json", end | {"samples": 8})
    assert "8 responses each, greedy" in card_of_run(read_run(run), Weights())
    assert "The run warned: update 2: looks odd" in card
    assert "$ instructrec train letters\n" in card


def test_an_unknown_base_is_no_name_on_the_hub(
    tmp_path: Path, write_run: Callable[..., Path]
) -> None:
    local = write_run(tmp_path / "local")
    gone = write_run(tmp_path / "gone", base_model="runs/deleted", parent="runs/deleted")
    for run in (local, gone):
        about = front_matter(card_of_run(read_run(run), Weights()))
        assert "base_model" not in about and "license" not in about
    hub = write_run(tmp_path / "hub", base_model="somebody/a-model")
    about = front_matter(card_of_run(read_run(hub), Weights(adapter=True)))
    assert about["base_model"] == "somebody/a-model" and about["library_name"] == "peft"
    assert "license" not in about


def test_a_card_names_what_the_policy_was_rewarded_for(
    tmp_path: Path, write_run: Callable[..., Path]
) -> None:
    run = write_run(tmp_path / "ppo")
    settings = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(settings.replace("match: 1.0", "match: 1.0, watched: 0.0"))
    card = card_of_run(read_run(run), Weights())
    assert "It was rewarded for `match` (1.0), and for nothing else." in card
    sft = card_of_run(read_run(write_run(tmp_path / "sft", job_type="sft")), Weights())
    assert "imitates their demonstrations" in sft and "rewarded for" not in sft


@pytest.mark.slow
def test_a_run_is_exported_with_its_card_and_answers_from_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "tiny_smoke", "--policy.train", "lora", "--eval.before", "true"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^(better|worse|undecided): held-out total", out, flags=re.MULTILINE)
    own = Path("runs/tiny-smoke-s0/policy/README.md").read_text()
    assert "The folder holds an adapter" in own and "instructrec" in str(front_matter(own)["tags"])
    assert main(["export", "runs/tiny-smoke-s0", "--out", "out", "--dtype", "bfloat16"]) == 0
    assert "exported  out (bfloat16" in capsys.readouterr().out
    card = Path("out/README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    monkeypatch.chdir("out")
    exec(code, {})  # it prints an answer
    assert capsys.readouterr().out.endswith("\n")
    monkeypatch.chdir("..")
    assert main(["export", "runs/tiny-smoke-s0", "--out", "out"]) == 2
    assert main(["export", "runs/tiny-smoke-s0", "--out", "out", "--overwrite"]) == 0
    assert main(["report", "runs/tiny-smoke-s0"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("refuses", [True, False])
def test_the_code_of_a_runs_own_card_answers_whatever_the_template_takes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    refuses: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    start = load_policy(PolicyConfig(model="tiny", device="cpu", dtype="float32"))
    if refuses:
        start.tokenizer.chat_template = (
            "{% for m in messages %}{% if m['role'] == 'system' %}"
            "{{ raise_exception('System role not supported') }}{% endif %}"
            "{{ m['content'] }}{% endfor %}"
        )
    start.save(tmp_path / "start")
    assert main(["train", "tiny_smoke", "--policy.model", "start"]) == 0
    monkeypatch.chdir("runs/tiny-smoke-s0/policy")
    (code,) = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), flags=re.DOTALL)
    assert ('"role": "system"' in code) is not refuses
    capsys.readouterr()
    exec(code, {})
    assert capsys.readouterr().out.endswith("\n")


def test_what_cannot_be_exported_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    out = str(tmp_path / "out")
    for config, overwrite, message in (
        (ExportConfig(str(tmp_path / "mine")), False, "exists already"),
        (ExportConfig(str(tmp_path / "mine")), True, "holds no exported model"),
        (ExportConfig(out, push="nobody"), False, "expected owner/name"),
        (ExportConfig(out, push="me/model"), False, "HF_HUB_OFFLINE is set"),
    ):
        with pytest.raises(ConfigError, match=message):
            export_policy("tiny", config, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_folders_of_other_programs_and_the_one_worked_in_are_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"compilerOptions": {}}')
    with pytest.raises(ConfigError, match="holds no exported model"):
        export_policy("tiny", ExportConfig(str(other)), overwrite=True)
    assert (other / "config.json").exists()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for here in (".", ".."):
        with pytest.raises(ConfigError, match="the folder that this command runs in"):
            export_policy("tiny", ExportConfig(here), overwrite=True)


def test_a_link_to_a_folder_gets_the_model_behind_it(tmp_path: Path) -> None:
    (tmp_path / "big-disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "big-disk")
    with staged(tmp_path / "out") as folder:
        folder.mkdir()
        (folder / "config.json").write_text("{}")
    assert (tmp_path / "out").is_symlink() and (tmp_path / "big-disk" / "config.json").exists()


def test_a_model_without_a_run_is_exported_as_it_is(tmp_path: Path) -> None:
    said: list[str] = []
    out = export_policy("tiny", ExportConfig(str(tmp_path / "out")), say=said.append)
    names = {path.name for path in out.iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= names
    assert "nothing was trained" in (out / "README.md").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_labels_are_not_quantised(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    reader: Any = load_policy(PolicyConfig(model="tiny", device="cpu", dtype="float32"))
    LabelPolicy(reader, ("a", "b")).save(tmp_path / "labels")
    config = ExportConfig(str(tmp_path / "out"), quantize="int8")
    with pytest.raises(ConfigError, match="answers labels"):
        export_policy(str(tmp_path / "labels"), config)
    assert not (tmp_path / "out").exists()


def test_a_disk_that_is_full_under_the_weights_is_an_error_of_the_system(tmp_path: Path) -> None:
    from safetensors import SafetensorError

    out = tmp_path / "out"
    told = "Error while serializing: I/O error: No space left on device (os error 28)"
    with (
        pytest.raises(OSError, match="No space left") as caught,
        staged(out) as folder,
    ):
        folder.mkdir()
        raise SafetensorError(told)
    assert caught.value.errno == errno.ENOSPC and list(tmp_path.iterdir()) == []
    with pytest.raises(SafetensorError, match="another"), staged(out):
        raise SafetensorError("another fault")
