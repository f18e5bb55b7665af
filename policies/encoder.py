"""Encoders as readers: tokenised text in, one state for each text out.

BERT, DistilBERT, RoBERTa, ModernBERT and the like see a text in both directions and cannot write
on, so they answer nothing by themselves; with a head of labels (`labels`) they are classifiers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from instructrec.errors import ConfigError, PolicyError
from instructrec.policies.base import Prompt, Responses
from instructrec.policies.chat import inert_text
from instructrec.policies.config import Sampling
from instructrec.policies.model_policy import ModelPolicy, check_vocabulary


class EncoderPolicy(ModelPolicy):
    """The trunk of an encoder; see `ModelPolicy` for the arguments.

    Raises:
        ConfigError: A system prompt is set: an encoder reads no chat.
    """

    def __init__(self, model: Any, tokenizer: Any, **settings: Any) -> None:
        super().__init__(model, tokenizer, **settings)
        # Some count positions from behind the pad token: the tokenizer knows how many are left.
        self.max_length = min(self.max_length, int(tokenizer.model_max_length))
        self._inert = inert_text(tokenizer)
        if self.config.system_prompt:
            raise ConfigError(
                f"policy.system_prompt = {self.config.system_prompt!r}, but {self.name!r} is an "
                "encoder and reads no chat: set it to ''."
            )

    @property
    def takes_system(self) -> bool:
        """It reads no chat."""
        return False

    def encode(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Returns the token ids of each text, between the tokens that its tokenizer adds.

        Special tokens that stand in the text are read as text. A conversation is read as the texts
        of its messages, one in a line.

        Raises:
            PolicyError: A text is longer than the window, or belongs to another vocabulary.
        """
        texts = [self._inert(_text(prompt)) for prompt in prompts]
        encoded: list[list[int]] = []
        if texts:
            encoded = self.tokenizer(texts, verbose=False)["input_ids"]
        for number, ids in enumerate(encoded):
            if len(ids) > self.max_length:
                raise PolicyError(
                    f"prompt {number} has {len(ids)} tokens, and {self.name!r} reads "
                    f"{self.max_length} at most: expected a shorter text. Leave long rows out with "
                    "task.options.filters, or use a model with a longer window."
                )
        check_vocabulary(self.model, [max(ids) for ids in encoded if ids], self.name)
        return encoded

    def states(self, ids_BL: Tensor, lengths_B: Tensor) -> Tensor:
        """The mean of each text's last hidden states, padding left out: (B, H), float32.

        The mean, not the first token: without training of its own, as in ``policy.train: head``,
        that token says little of the text, and many encoders were never trained to make it do so
        (Reimers & Gurevych 2019, "Sentence-BERT", table 6).

        Args:
            ids_BL: Token ids, padded on the right.
            lengths_B: Tokens of each.
        """
        mask_BL = torch.arange(ids_BL.shape[1], device=ids_BL.device) < lengths_B[:, None]
        with self.autocast():
            output = self.model(input_ids=ids_BL, attention_mask=mask_BL.long())
        summed_BH = (output.last_hidden_state.float() * mask_BL[..., None]).sum(1)
        mean_BH: Tensor = summed_BH / lengths_B[:, None]
        return mean_BH

    def respond(
        self,
        prompts: Sequence[Prompt],
        columns: Mapping[str, Sequence[Any]] | None = None,
        sampling: Sampling | None = None,
    ) -> Responses:
        """Refuses: without labels there is nothing to answer.

        Raises:
            PolicyError: Always.
        """
        raise PolicyError(
            f"{self.name!r} is an encoder: it reads texts and writes none. Give it labels to "
            "answer: instructrec sft with sft.head: labels."
        )

    def sync(self) -> None:
        """Nothing to do: states come from the weights themselves."""


def _text(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(str(message.get("content") or "") for message in prompt)
