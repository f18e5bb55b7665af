"""Models of a published shape, prompts of a given length, and the parts that run on them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import ppo as benchmark
from benchmarks.prepare import main as prepare_main
from benchmarks.prepare import prepare
from benchmarks.shapes import SHAPES, random_model, shape_config
from benchmarks.side_ours import run
from benchmarks.workload import Prompts, Workload

SMALL = {"hidden_size": 56, "intermediate_size": 64, "num_hidden_layers": 2}


@pytest.mark.parametrize(
    ("shape", "weights"), [("smollm2", 134_515_008), ("qwen2.5-0.5b", 494_032_768)]
)
def test_a_shape_has_as_many_weights_as_the_published_model(shape: str, weights: int) -> None:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape_config(shape))
    assert sum(p.numel() for p in model.parameters()) == weights


def test_a_vocabulary_beyond_the_tokens_trains(tmp_path: Path) -> None:
    """The tokenizer of the embedded model knows a third of the tokens of Qwen's shape."""
    loaded = random_model("qwen2.5-0.5b", vocab_size=60_000, **SMALL)
    assert loaded.model.config.vocab_size > len(loaded.tokenizer)
    prepare(loaded, tmp_path, num_prompts=4, response_length=4, prompt_length=40)
    work = Workload(
        *(str(tmp_path / "model"), str(tmp_path / "prompts.json")),
        episodes=4,
        response_length=4,
        epochs=1,
        dtype="float32",
        warmup=0,
    )
    (update,) = run(work).updates
    assert update.response_lengths == [4] * 4 and update.optimizer_steps == 1


@pytest.mark.parametrize("length", [24, 64])
def test_prompts_have_the_length_that_is_asked_for(tmp_path: Path, length: int) -> None:
    prepare("tiny", tmp_path, num_prompts=6, response_length=2, prompt_length=length)
    prompts = Prompts.read(tmp_path / "prompts.json")
    assert [len(ids) for ids in prompts.ids] == [length] * 6
    assert len(set(prompts.texts)) == 6


def test_a_prompt_that_cannot_be_so_short_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="prompts of 1 tokens are too short"):
        prepare("tiny", tmp_path, num_prompts=2, response_length=2, prompt_length=1)


def test_every_shape_is_a_choice_of_the_command() -> None:
    for shape in SHAPES:
        assert benchmark.parser().parse_args(["--shape", shape]).shape == shape


@pytest.mark.slow
def test_a_shape_is_prepared_without_a_download(tmp_path: Path) -> None:
    sizes = ["--prompts", "2", "--response-length", "2", "--prompt-length", "40"]
    prepare_main(["shape:smollm2", str(tmp_path / "made"), *sizes])
    config = json.loads((tmp_path / "made" / "model" / "config.json").read_text())
    assert (config["model_type"], config["num_hidden_layers"]) == ("llama", 30)
    assert [len(ids) for ids in Prompts.read(tmp_path / "made" / "prompts.json").ids] == [40, 40]


@pytest.mark.slow
@pytest.mark.timeout(600)  # a process for each gate, side and limit, each of which loads libraries
def test_the_parts_for_a_gpu_run_in_small_without_a_peer(tmp_path: Path) -> None:
    given = ["--model", "tiny", "--device", "cpu", "--dtype", "float32", "--out", str(tmp_path)]
    given += ["--parts", "h100", "verl", "--sides", "ours", "--rounds", "1", "--warmup", "0"]
    given += ["--episodes", "4", "--prompt-length", "40", "--response-length", "2"]
    assert benchmark.main(given) == 0
    (path,) = tmp_path.glob("*/ppo.json")
    parts = json.loads(path.read_text())["parts"]
    assert list(parts["h100"]["sides"]) == ["ours", "ours, separate critic"]
    work = parts["verl"]["sides"]["ours, separate critic"]["workload"]
    assert (work["critic"], work["epochs"], work["mini_batches"]) == ("separate", 1, 4)
    for part in parts.values():
        assert not any(key.endswith("speed") for key in part["ratios"])  # nobody to compare with
        for side in part["sides"].values():
            assert side["drift"] < 1e-4 and side["gate"]["gradient"] < 1e-3
            assert side["episodes_per_s"]["median"] > 0
