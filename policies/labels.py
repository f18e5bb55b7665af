"""A policy that answers one of a few labels: a linear head on the trunk of a model.

Of a language model the head reads the last hidden state of the prompt, where a generated answer
would begin; of an encoder the mean over the text. Its weights are a module of the model,
`label_head`, so that they train, hash and move with it; on the disk they lie beside the model,
which stays the plain folder that it was.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from instructrec.errors import PolicyError
from instructrec.policies.base import Prompt, Responses, StopReason
from instructrec.policies.causal_lm import CausalLMPolicy
from instructrec.policies.config import Sampling
from instructrec.policies.encoder import EncoderPolicy
from instructrec.policies.model_policy import ModelPolicy, let_others_read
from instructrec.policies.prefill import shared_columns
from instructrec.policies.sampling import pick_tokens
from instructrec.policies.trunk import Trunk, pad_right

HEAD_FILE = "label_head.safetensors"
"""Weights of the head, and its labels, in the folder of a policy."""


class LabelPolicy(ModelPolicy):
    """A policy whose answer is a label.

    Args:
        reader: Whose trunk is used; it must not be used any more.
        labels: What it may answer, each once, in the order of the head's outputs.
        head: Weight (labels, hidden size) and bias (labels,); None begins with zeros, for which
            all labels are as likely.
    """

    def __init__(
        self,
        reader: CausalLMPolicy | EncoderPolicy,
        labels: Sequence[str],
        head: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(
            reader.model,
            reader.tokenizer,
            config=reader.config,
            compute_dtype=reader.compute_dtype,
            sampling=reader.sampling,
            continues_adapter=reader.continues_adapter,
            rounded_base=reader.rounded_base,
        )
        self.name, self.max_length = reader.name, reader.max_length
        self.set_generator_state(reader.generator_state())
        self.labels = tuple(labels)
        self._reader = reader
        self._states = reader.states if isinstance(reader, EncoderPolicy) else _LastStates(reader)
        linear = nn.Linear(self.model.config.get_text_config().hidden_size, len(self.labels))
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        if head is not None:
            linear.load_state_dict(dict(head))
        self.model.label_head = linear.to(self.device)

    @property
    def takes_system(self) -> bool:
        """What its reader does."""
        return self._reader.takes_system

    @property
    def asked_by(self) -> Literal["chat", "text"]:
        """Whether it reads prompts in a chat template, or (an encoder) as they are."""
        return "text" if isinstance(self._reader, EncoderPolicy) else "chat"

    def encode(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Returns the token ids of each prompt, unpadded."""
        return self._reader.encode(prompts)

    def logits(self, ids_BL: Tensor, lengths_B: Tensor) -> Tensor:
        """Scores of the labels: (B, labels), float32.

        Args:
            ids_BL: Token ids of the prompts, padded on the right.
            lengths_B: Tokens of each.
        """
        states_BH = self._states(ids_BL, lengths_B)
        with torch.autocast(self.device.type, enabled=False):
            scores: Tensor = self.model.label_head(states_BH.float())
        return scores

    @torch.no_grad()
    def respond(
        self,
        prompts: Sequence[Prompt],
        columns: Mapping[str, Sequence[Any]] | None = None,
        sampling: Sampling | None = None,
    ) -> Responses:
        """Answers each prompt with its likeliest label, or draws one at a temperature above 0.

        Args:
            prompts: B prompts.
            columns: Not used.
            sampling: How to draw; ``self.sampling`` when None.

        Raises:
            PolicyError: A prompt does not fit into the window.
        """
        sampling = sampling or self.sampling
        prompt_ids = self.encode(prompts)
        uniform_B = self._draws(len(prompts), sampling)
        self.model.eval()
        ids_BL = pad_right(prompt_ids).to(self.device)
        lengths_B = torch.tensor([len(ids) for ids in prompt_ids], device=self.device)
        picked_B, _ = pick_tokens(self.logits(ids_BL, lengths_B), sampling, uniform_B)
        return Responses(
            texts=[self.labels[i] for i in picked_B.tolist()],
            prompt_ids=prompt_ids,
            stop_reasons=[StopReason.EOS] * len(prompts),
        )

    def skip(self, prompts: Sequence[Prompt], sampling: Sampling | None = None) -> None:
        """Leaves out the draws of answers that were given before; see CausalLMPolicy.skip."""
        self._draws(len(prompts), sampling or self.sampling)

    def _draws(self, number: int, sampling: Sampling) -> Tensor | None:
        """A random number for each answer; none for greedy ones."""
        if sampling.greedy:
            return None
        return torch.rand(number, dtype=torch.float64, generator=self._generator)

    def sync(self) -> None:
        """Nothing to do: labels come from the weights themselves."""

    def save(self, folder: str | Path) -> None:
        """Writes the model's folder, see CausalLMPolicy.save, and the head beside it."""
        with self.without_head():
            super().save(folder)
        self.save_head(Path(folder))

    def save_head(self, folder: Path) -> None:
        """Writes the head, in float32, and its labels into the folder of a model."""
        head = self.model.label_head.state_dict().items()
        weights = {name: p.detach().cpu().contiguous() for name, p in head}
        save_file(weights, folder / HEAD_FILE, metadata={"labels": json.dumps(self.labels)})
        let_others_read(folder)

    @contextmanager
    def without_head(self) -> Iterator[CausalLMPolicy | EncoderPolicy]:
        """Its reader with the plain model that it has, until the block ends."""
        head = self.model.label_head
        del self.model.label_head
        try:
            yield self._reader
        finally:
            self.model.label_head = head


class _LastStates:
    """The last hidden states of prompts, by a language model."""

    def __init__(self, policy: CausalLMPolicy) -> None:
        self._policy, self._trunk = policy, Trunk(policy.model)

    def __call__(self, ids_BL: Tensor, lengths_B: Tensor) -> Tensor:
        """Returns (B, H). What all prompts begin with runs once."""
        last_B = lengths_B - 1
        shared = shared_columns(self._trunk, ids_BL, int(last_B.min()))
        with self._policy.autocast():
            hidden_BSH, _ = self._trunk.full(ids_BL, shared)
        rows_B = torch.arange(len(ids_BL), device=ids_BL.device)
        return hidden_BSH[rows_B, last_B - shared]


def head_file(model: str) -> Path | None:
    """The saved head in the folder of a policy, or in its run folder; None without one."""
    folder = Path(model).expanduser()
    files = (folder / "policy" / HEAD_FILE, folder / HEAD_FILE)
    return next((file for file in files if file.is_file()), None)


def with_saved_head(reader: CausalLMPolicy | EncoderPolicy, file: Path) -> LabelPolicy:
    """The policy with the head that was saved beside its model.

    Args:
        reader: As loaded.
        file: The head.

    Raises:
        PolicyError: The head does not fit the model.
    """
    try:
        with safe_open(file, framework="pt") as saved:
            labels = json.loads(saved.metadata()["labels"])
            weights = {name: saved.get_tensor(name) for name in saved.keys()}  # noqa: SIM118
        return LabelPolicy(reader, labels, weights)
    except Exception as error:  # of safetensors, JSON and torch, for damaged files
        raise PolicyError(
            f"cannot put the labels of {file} on their model: {error}. Expected the file that "
            "`instructrec sft` with sft.head: labels wrote beside it."
        ) from error


def writer(policy: ModelPolicy, what: str) -> CausalLMPolicy:
    """The policy itself, where it writes text.

    Args:
        policy: Any.
        what: What needs one that writes, for the error.

    Raises:
        PolicyError: It answers labels.
    """
    if isinstance(policy, LabelPolicy):
        raise PolicyError(
            f"{policy.name!r} answers one of {len(policy.labels)} labels and writes no text: "
            f"{what} needs a policy that writes. Name one that was trained without sft.head: "
            "labels."
        )
    return cast(CausalLMPolicy, policy)
