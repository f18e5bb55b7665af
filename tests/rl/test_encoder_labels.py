"""Encoders that answer labels: tiny ones drawn at random, with a tokenizer made here."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerFast

from instructrec.errors import ConfigError, PolicyError
from instructrec.experiments.cli import main
from instructrec.experiments.jsonl import read_rows
from instructrec.experiments.runfolder import RunFolder
from instructrec.policies.causal_lm import load_policy
from instructrec.policies.config import LoraSettings, PolicyConfig, Sampling
from instructrec.policies.encoder import EncoderPolicy
from instructrec.policies.labels import HEAD_FILE, LabelPolicy
from instructrec.rl.config import SFTConfig
from instructrec.rl.fitting import Surroundings
from instructrec.rl.labels import run_labels
from instructrec.rl.sft import Demonstration

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "green", "apple", "pear", "a", "one"]
ROWS = [
    Demonstration(text, "warm" if "red" in text else "cold")
    for text in ("red apple", "green pear", "a red one", "green one", "red pear a", "green apple")
]
SIZES = {"vocab_size": len(WORDS), "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0}
SIZES |= {"num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 32}
SMALL = {"vocab_size": len(WORDS), "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
MODERN = SIZES | {"cls_token_id": 2, "bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3}
KINDS = {
    "BertForMaskedLM": SIZES,
    "DistilBertModel": SMALL | {"max_position_embeddings": 32},
    "RobertaForMaskedLM": SIZES,
    "ModernBertModel": MODERN,
}
GREEDY = Sampling(temperature=0)


def saved(folder: Path, kind: str = "BertForMaskedLM") -> str:
    """Writes a random encoder and its tokenizer; returns where."""
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]"},
        **{"sep_token": "[SEP]", "mask_token": "[MASK]", "model_max_length": 16},
    ).save_pretrained(folder)
    model_class = getattr(transformers, kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model_class(model_class.config_class(**KINDS[kind])).save_pretrained(folder)
    return str(folder)


def reader(folder: str, **changes: object) -> EncoderPolicy:
    config = PolicyConfig(model=folder, dtype="float32", device="cpu", **changes)
    policy = load_policy(config, seed=0, labels=True)
    assert isinstance(policy, EncoderPolicy)
    return policy


def classifier(folder: str, **changes: object) -> LabelPolicy:
    return LabelPolicy(reader(folder, **changes), ("cold", "warm"))


def fitted(policy: LabelPolicy, rate: float) -> list[dict[str, float]]:
    log: list[dict[str, float]] = []
    config = SFTConfig(max_steps=40, batch_size=6, learning_rate=rate, head="labels")
    run_labels(policy, ROWS, [], config, seed=0, around=Surroundings(on_step=log.append))
    return log


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_learns_labels_and_comes_back_from_the_disk(kind: str, tmp_path: Path) -> None:
    policy = classifier(saved(tmp_path / "base", kind))
    log = fitted(policy, 1e-2)
    assert all(row["speed/tokens_per_s"] > 0 and "speed/limit_frac" not in row for row in log)
    assert log[0]["sft/loss"] == pytest.approx(math.log(2))  # a head of zeros knows nothing
    prompts, answers = [row.prompt for row in ROWS], [row.response for row in ROWS]
    assert policy.respond(prompts, sampling=GREEDY).texts == answers
    policy.save(tmp_path / "policy")
    again = load_policy(dataclasses.replace(policy.config, model=str(tmp_path / "policy")))
    assert isinstance(again, LabelPolicy) and again.labels == ("cold", "warm")
    assert again.weights_hash() == policy.weights_hash()
    assert again.respond(prompts, sampling=GREEDY).texts == answers
    trunk = AutoModel.from_pretrained(tmp_path / "policy")  # a plain folder of its architecture
    assert type(trunk).__name__ == kind.replace("ForMaskedLM", "Model")


@pytest.mark.parametrize(
    "train", ["head", "last_layers", pytest.param("lora", marks=pytest.mark.slow)]
)
def test_what_is_not_chosen_stays_and_every_way_comes_back(train: str, tmp_path: Path) -> None:
    lora = LoraSettings(r=4)
    policy = classifier(saved(tmp_path / "base"), train=train, num_layers=1, lora=lora)
    before = {n: p.clone() for n, p in policy.model.named_parameters() if "label_head" not in n}
    fitted(policy, 0.3 if train == "head" else 1e-2)
    changed = {
        n for n, p in policy.model.named_parameters() if n in before and not p.equal(before[n])
    }
    assert bool(changed) == (train != "head")
    if train == "last_layers":
        assert not any("layer.0" in name or "embeddings" in name for name in changed)
    if train == "lora":
        assert all("lora_" in name for name in changed)
    policy.save(tmp_path / "policy")
    assert (tmp_path / "policy" / HEAD_FILE).is_file()
    again = load_policy(dataclasses.replace(policy.config, model=str(tmp_path / "policy")))
    prompts = [row.prompt for row in ROWS]
    assert again.weights_hash() == policy.weights_hash()
    answers = policy.respond(prompts, sampling=GREEDY).texts
    assert again.respond(prompts, sampling=GREEDY).texts == answers


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_of_a_text_is_the_mean_over_its_tokens_and_not_the_padding(
    kind: str, tmp_path: Path
) -> None:
    policy = reader(saved(tmp_path, kind))
    trunk, tokenizer = AutoModel.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    texts = ["red", "a red apple one", "green pear"]
    encoded = policy.encode(texts)
    assert encoded == [tokenizer(text)["input_ids"] for text in texts]
    padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(i) for i in encoded], batch_first=True)
    with torch.no_grad():
        found = policy.states(padded, torch.tensor([len(ids) for ids in encoded]))
        expected = [
            trunk.eval()(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(0)
            for ids in encoded
        ]
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=1e-4)


def test_text_is_read_as_text_and_a_conversation_as_its_messages(tmp_path: Path) -> None:
    policy = reader(saved(tmp_path))
    chat = [{"role": "system", "content": "a"}, {"role": "user", "content": "red pear"}]
    (written, spoken) = policy.encode(["red [SEP] pear", chat])
    assert written.count(3) == 1 and spoken == [2, 9, 5, 8, 3]
    with pytest.raises(PolicyError, match=r"prompt 1 has 22 tokens.*reads 16 at most"):
        policy.encode(["a", "a " * 20])


def test_an_encoder_is_no_policy_without_labels(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    config = PolicyConfig(model=folder, device="cpu")
    with pytest.raises(PolicyError, match=r"is an encoder: .*cannot write on.*sft\.head: labels"):
        load_policy(config)
    with pytest.raises(PolicyError, match="reads texts and writes none"):
        reader(folder).respond(["red"])
    with pytest.raises(ConfigError, match="reads no chat"):
        load_policy(dataclasses.replace(config, system_prompt="Be kind."), labels=True)


def test_the_command_trains_measures_exports_and_resumes_an_encoder(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    printed_by: Callable[[Path], str],
) -> None:
    monkeypatch.chdir(tmp_path)
    base = saved(tmp_path / "base")
    rows = [
        {"prompt": f"{'red' if i % 2 else 'green'} {'a ' * (i % 3)}{i}", "reference": "odd"}
        | ({} if i % 2 else {"reference": "even"})
        for i in range(90)
    ]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ["--task.name", "rows.jsonl", "--policy.model", base, "--policy.device", "cpu"]
    given += ["--sft.head", "labels", "--tracking.mode", "disabled", "--name", "run"]
    given += ["--sft.learning_rate", "1e-2", "--sft.max_steps", "40", "--sft.eval_every", "10"]
    assert main(["sft", *given]) == 0
    run = RunFolder.open("runs/run")
    assert run.summary()["classes"]["accuracy"] == run.summary()["eval/exact_match/mean"] > 0.9
    assert not run.checkpoints.exists()
    assert "precision  recall" in capsys.readouterr().out
    assert main(["evaluate", "runs/run"]) == 0  # whose weights are held against the run's
    assert main(["export", "runs/run", "--out", "out"]) == 0
    (first, *_) = read_rows(run.path / run.summary()["eval_file"])
    for folder in (run.policy, Path("out")):
        assert printed_by(folder) == first["response"]
    capsys.readouterr()
    assert main(["sft", *given, "--resume"]) == 0
    assert "runs/run has finished already" in capsys.readouterr().out
    assert main(["train", "tiny_smoke", "--policy.model", "runs/run"]) == 4
    assert "writes no text" in capsys.readouterr().err
    assert main(["train", "tiny_smoke", "--policy.model", base]) == 4
    assert "is an encoder" in capsys.readouterr().err
