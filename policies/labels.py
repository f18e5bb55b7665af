"""A policy that answers one of a few labels: a linear head on the trunk of a language model.

The head reads the last hidden state of the prompt, where a generated answer would begin. Its
weights are a module of the model, `label_head`, so that they train, hash and move with it; on the
disk they lie beside the model, which stays the plain folder that it was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from instructrec.errors import PolicyError
from instructrec.policies.base import Prompt, Responses, StopReason
from instructrec.policies.causal_lm import CausalLMPolicy, let_others_read
from instructrec.policies.config import Sampling
from instructrec.policies.prefill import shared_columns
from instructrec.policies.sampling import pick_tokens
from instructrec.policies.trunk import Trunk, pad_right

HEAD_FILE = "label_head.safetensors"
"""Weights of the head, and its labels, in the folder of a policy."""


class LabelPolicy(CausalLMPolicy):
    """A policy whose answer is a label.

    Args:
        policy: Whose trunk is used; it must not be used any more.
        labels: What it may answer, each once, in the order of the head's outputs.
        head: Weight (labels, hidden size) and bias (labels,); None begins with zeros, for which
            all labels are as likely.
    """

    def __init__(
        self,
        policy: CausalLMPolicy,
        labels: Sequence[str],
        head: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(
            policy.model,
            policy.tokenizer,
            config=policy.config,
            compute_dtype=policy.compute_dtype,
            sampling=policy.sampling,
            continues_adapter=policy.continues_adapter,
            rounded_base=policy.rounded_base,
            decoder=policy.decoder,
        )
        self.name = policy.name
        self.set_generator_state(policy.generator_state())
        self.labels = tuple(labels)
        self.trunk = Trunk(self.model)
        linear = nn.Linear(self.trunk.hidden_size, len(self.labels))
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        if head is not None:
            linear.load_state_dict(dict(head))
        self.model.label_head = linear.to(self.device)

    def logits(self, ids_BL: Tensor, lengths_B: Tensor) -> Tensor:
        """Scores of the labels: (B, labels), float32. What all prompts begin with runs once.

        Args:
            ids_BL: Token ids of the prompts, padded on the right.
            lengths_B: Tokens of each.
        """
        last_B = lengths_B - 1
        shared = shared_columns(self.trunk, ids_BL, int(last_B.min()))
        with self.autocast():
            hidden_BSH, _ = self.trunk.full(ids_BL, shared)
        rows_B = torch.arange(len(ids_BL), device=self.device)
        with torch.autocast(self.device.type, enabled=False):
            scores: Tensor = self.model.label_head(hidden_BSH[rows_B, last_B - shared].float())
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
        uniform_B = None
        if not sampling.greedy:
            uniform_B = torch.rand(len(prompts), dtype=torch.float64, generator=self._generator)
        self.model.eval()
        ids_BL = pad_right(prompt_ids).to(self.device)
        lengths_B = torch.tensor([len(ids) for ids in prompt_ids], device=self.device)
        picked_B, _ = pick_tokens(self.logits(ids_BL, lengths_B), sampling, uniform_B)
        return Responses(
            texts=[self.labels[i] for i in picked_B.tolist()],
            prompt_ids=prompt_ids,
            stop_reasons=[StopReason.EOS] * len(prompts),
        )

    def sync(self) -> None:
        """Nothing to do: labels come from the weights themselves."""

    def save(self, folder: str | Path) -> None:
        """Writes the model's folder, see CausalLMPolicy.save, and the head beside it."""
        folder, head = Path(folder), self.model.label_head
        del self.model.label_head
        try:
            super().save(folder)
        finally:
            self.model.label_head = head
        weights = {name: p.detach().cpu().contiguous() for name, p in head.state_dict().items()}
        save_file(weights, folder / HEAD_FILE, metadata={"labels": json.dumps(self.labels)})
        let_others_read(folder)


def with_saved_head(policy: CausalLMPolicy, model: str) -> CausalLMPolicy:
    """The policy with the head that was saved beside its model; as it is where there is none.

    Args:
        policy: As loaded.
        model: What it was loaded from: the policy's folder, or its run folder.

    Raises:
        PolicyError: The head does not fit the model.
    """
    folder = Path(model).expanduser()
    files = [file for file in (folder / "policy" / HEAD_FILE, folder / HEAD_FILE) if file.is_file()]
    if not files:
        return policy
    try:
        with safe_open(files[0], framework="pt") as file:
            labels = json.loads(file.metadata()["labels"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return LabelPolicy(policy, labels, weights)
    except Exception as error:  # of safetensors, JSON and torch, for damaged files
        raise PolicyError(
            f"cannot put the labels of {files[0]} on their model: {error}. Expected the file that "
            "`instructrec sft` with sft.head: labels wrote beside it."
        ) from error


def refuse_labels(policy: object, what: str) -> None:
    """Refuses a policy that answers labels where text is needed.

    Raises:
        PolicyError: It is one.
    """
    if isinstance(policy, LabelPolicy):
        raise PolicyError(
            f"{policy.name!r} answers one of {len(policy.labels)} labels and writes no text: "
            f"{what} needs a policy that writes. Name one that was trained without sft.head: "
            "labels."
        )
