"""The card of a trained policy: ``README.md`` beside its weights, with the numbers of its run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from instructrec.errors import InstructRecError
from instructrec.experiments import report_text
from instructrec.experiments.before_after import parents
from instructrec.experiments.jsonl import read_json, write_atomic
from instructrec.experiments.listing import inert, markdown_table
from instructrec.experiments.report import results_of
from instructrec.experiments.report_reading import Reading, read_run
from instructrec.experiments.runfolder import RunFolder
from instructrec.policies.embedded import EMBEDDED_HUB_ID, EMBEDDED_LICENCE, EMBEDDED_NAME

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_GENERATIONS = 20
"""Most parents that are followed to the first model."""


_LABELS = (
    "The policy answers one of a few labels: a linear head in `label_head.safetensors` beside the "
    "model. `instructrec evaluate` and `instructrec.policies.load_policy` read both."
)
_MERGING = (
    "The folder holds an adapter. `instructrec evaluate` and `instructrec chat` take it as it is; "
    "`instructrec export RUN --out DIR` merges it into a model that plain transformers loads."
)


@dataclass(frozen=True)
class Weights:
    """What lies beside a card."""

    adapter: bool = False
    """Whether it is an adapter rather than a whole model."""
    exported: bool = False
    """Whether the chat template puts the system message in by itself."""
    dtype: str = "float32"
    """Precision of the weights."""
    int8: bool = False
    """Whether the matrices are in int8."""
    system_prompt: str | None = ""
    """System message that the policy was trained with; None where its template takes none."""
    max_new_tokens: int = 64
    """Most tokens in one response of its evaluation."""
    labels: str = ""
    """How a policy that answers labels is asked: by its chat template (chat), or with the text as
    it is (text); empty for one that writes."""


def weights_of(config: dict[str, Any], **known: Any) -> Weights:
    """What is known from the settings of a run.

    Args:
        config: Content of ``config.yaml``.
        **known: More fields of `Weights`.
    """
    policy, ppo, measured = (config.get(key) or {} for key in ("policy", "ppo", "eval"))
    tokens = measured.get("max_new_tokens") or ppo.get("response_length")
    return Weights(
        system_prompt=policy.get("system_prompt") or "",
        **({"max_new_tokens": tokens} if tokens else {}),
        **known,
    )


def describe(
    run: RunFolder, *, takes_system: bool, labels: str = "", warn: Callable[[str], None]
) -> None:
    """Writes the card of a finished run into its ``policy/``; what goes wrong is only said.

    Args:
        run: A run with an exported policy.
        takes_system: Whether the policy's chat template takes a system message.
        labels: As in `Weights`.
        warn: Receives one line.
    """
    try:
        adapter = (run.policy / "adapter_config.json").is_file()
        weights = weights_of(run.config(), adapter=adapter, labels=labels)
        if not takes_system:
            weights = replace(weights, system_prompt=None)
        card = card_of_run(read_run(run.path), weights)
        write_atomic(run.policy / "README.md", card)
    except (InstructRecError, OSError, ValueError) as error:
        warn(f"no card was written beside the policy: {error}")


def card_of_run(reading: Reading, weights: Weights) -> str:
    """The card of a run's policy as Markdown with YAML in front, as the hub reads it."""
    results = results_of(reading)
    first, on_hub = first_model(reading.path, reading.record)
    name = str(results["name"])
    changed = [f"- {line}" for line in results["verdicts"]] or ["- not measured"]
    task = results["task"]
    blocks = [
        f"# {name}",
        f"A policy trained by instructrec with {results['algorithm']}, from `{first}`, to answer "
        f"the instructions of `{task}`. {_aim(results)}",
        "## How to load it",
        _loading(weights, _prompt(reading)),
        "## Result on held-out instructions",
        "\n".join(changed),
        markdown_table(report_text.score_rows(results)) if results["scores"] else "",
        _measured(reading, weights),
        markdown_table(report_text.family_rows(results)) if results["families"] else "",
        markdown_table(report_text.level_rows(results)) if results["levels"] else "",
        "## How it was trained",
        markdown_table([("", ""), *report_text.fact_rows(results)]),
        "\n".join(f"- {line}" for line in report_text.time_lines(results)),
        "## Limits",
        "\n".join(f"- {line}" for line in _limits(results)),
        "## Again",
        f"```console\n$ {report_text.command_of(results)}\n```" if results["command"] else "",
        "\n".join(f"- {label}: {value}" for label, value in report_text.machine_rows(results)),
    ]
    front = _front(name, first if on_hub else None, weights, reading)
    return front + "\n\n".join(b for b in blocks if b) + "\n"


def card_of_model(model: str, weights: Weights) -> str:
    """The card of an exported model that no run of ours stands behind.

    Args:
        model: What it was called.
        weights: What was written.
    """
    name, known = Path(model).name, _hub_name(model)
    blocks = [
        f"# {name}",
        f"`{model}`, written as one plain folder by `instructrec export`; nothing was trained.",
        "## How to load it",
        _loading(weights, "..."),
    ]
    return _front(name, known, weights, None) + "\n\n".join(blocks) + "\n"


def first_model(run: Path, record: dict[str, Any]) -> tuple[str, bool]:
    """The model that the first run of a chain of runs started from.

    Args:
        run: The last run folder.
        record: Its ``run.json``.

    Returns:
        Its name, and whether that is one of the hub.
    """
    for _ in range(_GENERATIONS):
        above = parents(run, record)
        if not above or above[0].resolve() == run.resolve():
            break
        run, record = above[0], read_json(above[0] / "run.json")
    name = str(record.get("base_model"))
    known = None if record.get("parent") else _hub_name(name)  # else a run that is no longer there
    return known or name, known is not None


def _hub_name(model: str) -> str | None:
    """What a model is called on the hub; None for one that only this machine has."""
    if model == EMBEDDED_NAME:
        return EMBEDDED_HUB_ID
    return model if _HUB_ID.fullmatch(model) and not Path(model).exists() else None


def _front(name: str, model: str | None, weights: Weights, reading: Reading | None) -> str:
    """The YAML that the hub reads: base model, licence, tags, metrics."""
    from huggingface_hub import EvalResult, ModelCardData

    kind = "text-classification" if weights.labels else "text-generation"
    results = []
    if reading is not None and reading.evaluation is not None:
        task, split = (str(reading.evaluation.header[key]) for key in ("task", "split"))
        results = [
            EvalResult(
                task_type=kind,
                dataset_type=task,
                dataset_name=f"{task} ({split})",
                dataset_split=split,
                metric_type=part,
                metric_value=round(found["mean"], 4),
            )
            for part, found in results_of(reading)["scores"].items()
            if found["mean"] is not None
        ]
    data = ModelCardData(
        base_model=model,
        license=EMBEDDED_LICENCE.lower() if model == EMBEDDED_HUB_ID else None,
        library_name="peft" if weights.adapter else "transformers",
        pipeline_tag=kind,
        tags=["instructrec"] + ([str(reading.record["algorithm"])] if reading else []),
        model_name=name,
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---\n\n"


def _aim(results: dict[str, Any]) -> str:
    """What it was trained for."""
    if results["job_type"] == "dpo":
        return "It prefers what they prefer; rewards only measured it."
    if results["job_type"] == "sft":
        return "It imitates their demonstrations; rewards only measured it."
    weights = results["settings"]["rewards"]
    named = [f"`{name}` ({weight})" for name, weight in weights.items() if weight != 0]
    return f"It was rewarded for {', '.join(named)}, and for nothing else." if named else ""


def _prompt(reading: Reading) -> str:
    """An instruction of the kind that the policy has learned to answer."""
    rows = reading.evaluation.rows if reading.evaluation is not None else reading.samples
    prompts = (row.get("prompt") for row in rows)
    return next((prompt for prompt in prompts if isinstance(prompt, str)), "...")


def _loading(weights: Weights, prompt: str) -> str:
    """Code that loads the folder and asks it a question."""
    about = [_LABELS] if weights.labels else []
    if weights.adapter:
        return "\n\n".join([*about, _MERGING])
    if weights.int8:
        about.append("The matrices are in int8, which needs `torchao`.")
    lines = (_label_code if weights.labels else _answer_code)(weights, prompt)
    return "\n\n".join([*about, "```python\n" + "\n".join(lines) + "\n```"])


def _asking(weights: Weights, prompt: str) -> list[str]:
    """Lines that make the ids of a prompt."""
    if weights.labels == "text":
        text = json.dumps(prompt, ensure_ascii=False)
        return [f'inputs = tokenizer({text}, return_tensors="pt")']
    messages = [{"role": "user", "content": prompt}]
    if not weights.exported and weights.system_prompt is not None:
        # Templates of some models otherwise put in a text of their own.
        messages.insert(0, {"role": "system", "content": weights.system_prompt})
    return [
        f"messages = {json.dumps(messages, ensure_ascii=False)}",
        "inputs = tokenizer.apply_chat_template(",
        '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
        ")",
    ]


def _answer_code(weights: Weights, prompt: str) -> list[str]:
    """Lines that print an answer."""
    return [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'folder = "."  # where this file lies',
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        f'model = AutoModelForCausalLM.from_pretrained(folder, dtype="{weights.dtype}")',
        *_asking(weights, prompt),
        f"answer = model.generate(**inputs, max_new_tokens={weights.max_new_tokens}, "
        "do_sample=False)",
        'start = inputs["input_ids"].shape[1]',
        "print(tokenizer.decode(answer[0, start:], skip_special_tokens=True))",
    ]


def _label_code(weights: Weights, prompt: str) -> list[str]:
    """Lines that print a label: the head on the last state of a chat, or on the mean of a text."""
    state = "states[-1]" if weights.labels == "chat" else "states.mean(0)"
    return [
        "import json",
        "",
        "import torch",
        "from safetensors import safe_open",
        "from transformers import AutoModel, AutoTokenizer",
        "",
        'folder = "."  # where this file lies',
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        f'model = AutoModel.from_pretrained(folder, dtype="{weights.dtype}")',
        'with safe_open(f"{folder}/label_head.safetensors", "pt") as head:',
        '    labels = json.loads(head.metadata()["labels"])',
        '    weight, bias = head.get_tensor("weight"), head.get_tensor("bias")',
        *_asking(weights, prompt),
        'given = {name: inputs[name] for name in ("input_ids", "attention_mask")}',
        "with torch.no_grad():",
        "    states = model(**given).last_hidden_state[0].float()",
        f"print(labels[int((weight @ {state} + bias).argmax())])",
    ]


def _measured(reading: Reading, weights: Weights) -> str:
    """On how many instructions, how answered, and whether by these very weights."""
    if reading.evaluation is None:
        return ""
    header, rows = reading.evaluation.header, reading.evaluation.rows
    samples = header.get("samples", 1)
    temperature = (header.get("sampling") or {}).get("temperature", 1.0)
    how = "greedy" if temperature == 0 else f"sampled at temperature {temperature:g}"
    form = "int8" if weights.int8 else weights.dtype
    rounded = f" Measured before the weights were rounded to {form}." if form != "float32" else ""
    return (
        f"{len({row['id'] for row in rows})} instructions of the {header.get('split')} split, "
        f"{samples} response{'s' if samples > 1 else ''} each, {how}. "
        f"Intervals are 95 %, items resampled.{rounded}"
    )


def _limits(results: dict[str, Any]) -> list[str]:
    lines = [
        f"It was measured on `{results['task']}` alone: nothing is known of other instructions, "
        "and what the model could do before may have been lost.",
        "The intervals speak of other instructions, not of another seed: train more seeds to know.",
        "It learned to please what measures it. Read its responses before you rely on the numbers."
        if results["job_type"] not in ("sft", "dpo")
        else "It learned to sound like its demonstrations. Read its responses, too.",
        "It was not made safe, truthful or fair by this training; the licence of the base model "
        "applies.",
    ]
    return lines + [f"The run warned: {inert(text)}" for text in results["warnings"]]
