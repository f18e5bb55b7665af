from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from instructrec.errors import PolicyError
from instructrec.policies.causal_lm import load_policy
from instructrec.policies.config import PolicyConfig
from instructrec.policies.tiny import make_tiny_tokenizer


def load(model: str | Path) -> Any:
    return load_policy(PolicyConfig(model=str(model), dtype="float32", device="cpu"))


def folder_with_config(tmp_path: Path, **config: Any) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(config))
    make_tiny_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def safetensors_header(entries: dict[str, Any]) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


def test_a_misspelt_name_gets_a_suggestion() -> None:
    with pytest.raises(PolicyError, match=r"unknown model 'smollm-135m'. Did you mean 'smollm2-1"):
        load("smollm-135m")


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "a/b/c"])
def test_a_missing_folder_is_named(name: str) -> None:
    with pytest.raises(PolicyError, match="there is no folder"):
        load(name)


def test_a_hub_model_without_network_says_what_to_do() -> None:
    with pytest.raises(PolicyError, match=r"the hub did not give it.*network"):
        load("nobody-here/no-such-model")


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"is no model: expected a run folder"):
        load(tmp_path)


def test_a_run_that_has_no_policy_yet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(PolicyError, match=r"no policy/ yet.*--resume"):
        load(tmp_path)


def test_encoder_decoder_models_are_refused(tmp_path: Path) -> None:
    folder = folder_with_config(tmp_path, model_type="t5", is_encoder_decoder=True)
    with pytest.raises(PolicyError, match="t5 is an encoder-decoder model"):
        load(folder)


def test_models_that_see_are_refused(tmp_path: Path) -> None:
    folder = folder_with_config(tmp_path, model_type="llava")
    with pytest.raises(PolicyError, match="llava also takes images or sound"):
        load(folder)


def test_models_without_language_head_are_refused(tmp_path: Path) -> None:
    folder = folder_with_config(tmp_path, model_type="vit")
    with pytest.raises(PolicyError, match="vit has no language-model head"):
        load(folder)


def test_quantised_models_are_refused(tmp_path: Path) -> None:
    quantised = {"quant_method": "gptq", "bits": 4}
    folder = folder_with_config(tmp_path, model_type="llama", quantization_config=quantised)
    with pytest.raises(PolicyError, match="its weights are quantised"):
        load(folder)


def test_code_in_a_model_folder_is_never_run(tmp_path: Path) -> None:
    proof = tmp_path / "was_run"
    (tmp_path / "modeling_mine.py").write_text(f"open({str(proof)!r}, 'w').close()\n")
    names = {"AutoConfig": "modeling_mine.Config", "AutoModelForCausalLM": "modeling_mine.Model"}
    folder = folder_with_config(tmp_path, model_type="mine", auto_map=names)
    with pytest.raises(PolicyError, match="never run"):
        load(folder)
    assert not proof.exists()


def test_damaged_weights_are_an_error_that_names_the_folder(tmp_path: Path) -> None:
    load("tiny").save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(PolicyError, match=rf"cannot load the model in {tmp_path}"):
        load(tmp_path)


class Bomb:
    """Pickled, it writes a file when it is read."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.proof,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "training_args.bin", "optimizer.pt"])
def test_pickles_in_a_model_folder_are_never_read(tmp_path: Path, name: str) -> None:
    proof, folder = tmp_path / "was_read", tmp_path / "model"
    load("tiny").save(folder)
    (folder / name).write_bytes(pickle.dumps(Bomb(proof)))
    load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(PolicyError, match="safetensors"):
        load(folder)
    assert not proof.exists()
    pickle.loads((folder / name).read_bytes())
    assert proof.exists(), "the bomb is none"


def test_a_pickled_adapter_is_never_read(tmp_path: Path) -> None:
    proof, folder = tmp_path / "was_read", tmp_path / "adapter"
    tiny = PolicyConfig(model="tiny", train="lora", dtype="float32", device="cpu")
    load_policy(tiny).save(folder)
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Bomb(proof)))
    with pytest.raises(PolicyError, match=r"no adapter_model\.safetensors"):
        load(folder)
    assert not proof.exists()


@pytest.mark.parametrize(
    "header",
    [
        (2**40).to_bytes(8, "little") + b"{",
        (2**63).to_bytes(8, "little"),
        (2).to_bytes(8, "little") + b"[[",
        safetensors_header({"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}),
        safetensors_header({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**40]}}),
        safetensors_header({"w": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}),
    ],
)
def test_weights_whose_header_lies_are_refused(tmp_path: Path, header: bytes) -> None:
    load("tiny").save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(header + b"\0" * 4)
    with pytest.raises(PolicyError, match="cannot load the model"):
        load(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "[1]", "\x00"])
def test_a_damaged_adapter_is_an_error_that_names_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(PolicyError, match=r"adapter_config\.json cannot be read"):
        load(tmp_path)


def test_an_adapter_whose_base_is_gone_names_the_base(tmp_path: Path) -> None:
    policy = load_policy(PolicyConfig(model="tiny", train="lora", dtype="float32", device="cpu"))
    policy.save(tmp_path)
    file = tmp_path / "adapter_config.json"
    settings = json.loads(file.read_text())
    assert settings["base_model_name_or_path"] == "tiny@0"
    file.write_text(json.dumps(settings | {"base_model_name_or_path": "/gone/base"}))
    with pytest.raises(PolicyError, match=r"belongs on '/gone/base'.*there is no folder"):
        load(tmp_path)


def test_loading_shows_no_progress_bars(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load("tiny").save(tmp_path)
    load(tmp_path)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
