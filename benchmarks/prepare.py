"""Makes what every side of a comparison starts from: one model folder and one file of prompts."""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.shapes import SHAPES, random_model
from benchmarks.workload import Prompts
from instructrec.envs.tasks.base import make_task
from instructrec.policies.chat import ChatEncoder
from instructrec.policies.loading import Loaded, load_source

_TASK = "closed_answers"
_FROZEN = 8
"""Responses with known log-probs."""
_WORDS = ("river", "seven", "quiet", "lemon", "under", "paper", "signal", "orbit", "north", "a")


def prepare(
    model: str | Loaded,
    folder: Path,
    *,
    num_prompts: int,
    response_length: int,
    prompt_length: int | None = None,
) -> None:
    """Writes ``model/`` and ``prompts.json`` into a folder.

    The pad token is one that no text holds: where it is the end token as well, TRL 1.12 takes end
    tokens inside a prompt for padding. No side may sample it.

    Args:
        model: A model, one that the package can load, or ``shape:`` and one of ``SHAPES``.
        folder: Where to write.
        num_prompts: Different prompts.
        response_length: Tokens of the frozen responses.
        prompt_length: Tokens of each prompt; None leaves what the task gives.

    Raises:
        RuntimeError: There are not as many prompts, or none of that length.
    """
    torch.manual_seed(0)
    loaded = model if isinstance(model, Loaded) else _load(model)
    tokenizer = loaded.tokenizer
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.pad_token = unused_token(tokenizer)
    settings = loaded.model.generation_config
    settings.pad_token_id = tokenizer.pad_token_id
    settings.suppress_tokens = [tokenizer.pad_token_id]
    target = folder / "model"
    loaded.model.save_pretrained(target)
    tokenizer.save_pretrained(target)

    encode = ChatEncoder(tokenizer, system_prompt="", max_length=2**31).encode
    texts = _different_prompts(num_prompts)
    if prompt_length is not None:
        texts = [_of_length(text, i, prompt_length, encode) for i, text in enumerate(texts)]
    ids = encode(texts)
    rendered = [tokenizer.decode(row, skip_special_tokens=False) for row in ids]
    if [tokenizer(text)["input_ids"] for text in rendered] != ids:
        raise RuntimeError(f"{loaded.base}: the text of a prompt does not give its tokens again.")
    responses = [_sample(loaded.model, row, response_length) for row in ids[:_FROZEN]]
    logprobs = [
        _logprobs(loaded.model, *pair) for pair in zip(ids[:_FROZEN], responses, strict=True)
    ]
    Prompts(texts, ids, rendered, responses, logprobs).write(folder / "prompts.json")


def _load(model: str) -> Loaded:
    kind, _, shape = model.partition(":")
    return random_model(shape) if kind == "shape" and shape in SHAPES else load_source(model)


def unused_token(tokenizer: Any) -> str:
    """The last special token that neither begins nor ends anything."""
    added = tokenizer.added_tokens_decoder
    taken = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id}
    return str(added[max(token for token in added if token not in taken)])


def _different_prompts(num: int) -> list[str]:
    task = make_task(_TASK)
    found = dict.fromkeys(str(task[i].prompt) for i in range(min(len(task), 8 * num)))
    if len(found) < num:
        raise RuntimeError(f"{_TASK} gave {len(found)} different prompts: {num} are needed.")
    return list(found)[:num]


def _of_length(
    text: str, number: int, length: int, encode: Callable[[list[str]], list[list[int]]]
) -> str:
    """The instruction with as many words more or less as make it a prompt of that length."""

    def missing(candidate: str) -> int:
        return length - len(encode([candidate])[0])

    rng = random.Random(number)
    found = f"{number}. {text}"
    while missing(found) < 0 and " " in found:
        found = found.rpartition(" ")[0]
    if (left := missing(found)) < 0:
        raise RuntimeError(
            f"prompts of {length} tokens are too short: the template and the number of the "
            f"instruction alone take {length - left}."
        )
    while left:
        pieces = (f" {rng.choice(_WORDS)}", " a", "a")  # a short one is a single token
        longer = ((found + piece, missing(found + piece)) for piece in pieces)
        fitting = next((pair for pair in longer if 0 <= pair[1] < left), None)
        if fitting is None:
            raise RuntimeError(f"no word brings {found!r} nearer to {length} tokens.")
        found, left = fitting
    return found


@torch.no_grad()
def _sample(model: Any, prompt: list[int], length: int) -> list[int]:
    """A response of a given length, drawn at temperature 1."""
    ids = torch.tensor([prompt])
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        max_new_tokens=length,
        min_new_tokens=length,
    )
    return [int(token) for token in out[0, len(prompt) :]]


@torch.no_grad()
def _logprobs(model: Any, prompt: list[int], response: list[int]) -> list[float]:
    """Log-probs of a response: one plain pass over one sequence in float32 (nats)."""
    logits = model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0]
    behind = logits[len(prompt) - 1 : -1].float().log_softmax(-1)
    return [float(row[token]) for row, token in zip(behind, response, strict=True)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepares a folder that is not there yet; it appears as a whole."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prompts", type=int, required=True)
    parser.add_argument("--response-length", type=int, required=True)
    parser.add_argument("--prompt-length", type=int)
    given = parser.parse_args(arguments)
    staging = given.folder.with_name(f".{given.folder.name}-{os.getpid()}")
    staging.mkdir(parents=True)
    prepare(
        given.model,
        staging,
        num_prompts=given.prompts,
        response_length=given.response_length,
        prompt_length=given.prompt_length,
    )
    staging.rename(given.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
