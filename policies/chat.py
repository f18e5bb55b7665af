"""Prompts to text to token ids: chat template, system message, and templates that lack things."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from instructrec.errors import PolicyError
from instructrec.policies.base import Prompt
from instructrec.template_trial import templates_of

PLAIN_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] == 'system' %}{% if m['content'] %}{{ m['content'] + '\\n' }}{% endif %}"
    "{% elif m['role'] == 'assistant' %}{{ 'Assistant: ' + m['content'] + eos_token + '\\n' }}"
    "{% else %}{{ 'User: ' + m['content'] + '\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""Used for tokenizers without a chat template: ``User: ...`` and ``Assistant:`` lines."""

_PROBES = ("Answer", "<think>\nThought\n</think>\n\nAnswer")
"""Answers with which templates are tried out; some strip the thinking from earlier turns."""


def prepare_tokenizer(tokenizer: Any, name: str) -> Any:
    """Gives a tokenizer what it may lack: a pad token and a chat template.

    Without pad token the end token is used (masks go by length, so nothing is lost). Without
    chat template ``PLAIN_TEMPLATE`` is used, after the start token where the tokenizer puts one.

    Args:
        tokenizer: Changed in place and returned.
        name: The model's name, for the error.

    Raises:
        PolicyError: The tokenizer has no end token, so no response could ever end.
    """
    if tokenizer.eos_token_id is None:
        raise PolicyError(
            f"the tokenizer of {name!r} has no eos token, so that no response could end. "
            "Set eos_token in its tokenizer_config.json."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.chat_template is None:
        starts = tokenizer("a")["input_ids"][:1]
        has_start = tokenizer.bos_token_id is not None and starts == [tokenizer.bos_token_id]
        tokenizer.chat_template = ("{{ bos_token }}" if has_start else "") + PLAIN_TEMPLATE
    return tokenizer


class ChatEncoder:
    """Turns prompts into token ids that end where the answer begins.

    A plain string becomes one user message. Every conversation that does not begin with a system
    message gets one, even when it is empty: some templates otherwise put in a text of their own.
    A template that refuses system messages (decided once, here) gets none.

    The text of messages cannot begin or end a turn: where it contains one of the tokenizer's
    special tokens, written out, a space is put behind the token's first character.

    Args:
        tokenizer: A prepared tokenizer.
        system_prompt: Text of the system message.
        max_length: The model's window in tokens.

    Raises:
        PolicyError: The template refuses or drops a system prompt that is not empty.
    """

    def __init__(self, tokenizer: Any, *, system_prompt: str, max_length: int) -> None:
        self._tokenizer = tokenizer
        self._system: list[dict[str, str]] = [{"role": "system", "content": system_prompt}]
        self._max_length = max_length
        self._inert = inert_text(tokenizer)
        user = {"role": "user", "content": "question"}
        try:
            rendered = self._render([[*self._system, user]])[0]
        except Exception as error:  # templates raise whatever they like
            if system_prompt:
                raise PolicyError(
                    f"the model's chat template refuses system messages ({error}), but "
                    f"policy.system_prompt = {system_prompt!r}. Set it to '' and put the text "
                    "into the instructions."
                ) from error
            self._system = []
            return
        if system_prompt.strip() not in rendered:
            raise PolicyError(
                f"the model's chat template drops the system message, but policy.system_prompt = "
                f"{system_prompt!r}. Set it to '' and put the text into the instructions."
            )

    @property
    def takes_system(self) -> bool:
        """Whether prompts get a system message: a template that refuses them gets none."""
        return bool(self._system)

    @property
    def template(self) -> str:
        """Chat template that puts the system message in by itself, for other software."""
        template = templates_of(self._tokenizer)["default"]
        if not self._system:
            return template
        content = json.dumps(self._system[0]["content"], ensure_ascii=False)  # a string of Jinja
        return (
            "{%- if not messages or messages[0]['role'] != 'system' %}"
            "{%- set messages = [{'role': 'system', 'content': " + content + "}] + messages %}"
            "{%- endif %}" + template
        )

    def encode(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Returns the token ids of each prompt, unpadded, generation prompt included.

        Raises:
            PolicyError: A prompt leaves no room for a response in the window, or the template
                refuses a conversation.
        """
        if not prompts:
            return []
        conversations = [self._conversation(prompt) for prompt in prompts]
        try:
            texts = self._render(conversations)
        except Exception as error:  # templates raise whatever they like
            raise PolicyError(
                f"the model's chat template refuses a conversation: {error}. It has to alternate "
                "user and assistant messages and to end with the user's."
            ) from error
        # verbose=False: the tokenizer's own warning of a long text says less than our error.
        tokens = self._tokenizer(texts, add_special_tokens=False, verbose=False)
        encoded: list[list[int]] = tokens["input_ids"]
        for i, ids in enumerate(encoded):
            if len(ids) >= self._max_length:
                raise PolicyError(
                    f"prompt {i} has {len(ids)} tokens, but the model's window holds "
                    f"{self._max_length} for prompt and response together. It begins "
                    f"{texts[i][:80]!r}. Shorten it, or use a model with a longer window."
                )
        return encoded

    def follow_up(self, message: str, *, end_token: int | None) -> list[int]:
        """Returns the token ids between a sampled response and the answer to the next message.

        They end the response as the template does, state the message as the user's, and open the
        next answer. The response itself is never rendered: its prompt, its ids as sampled and
        these ids together are the next prompt.

        Args:
            message: What the user says next.
            end_token: The end token that the response has sampled, which is not repeated; None
                for a response that was cut.

        Raises:
            PolicyError: The template writes earlier turns otherwise than it showed them when they
                were answered, so that no conversation can go on behind its tokens.
        """
        ids = self._continuation(self._opening, _PROBES[0], self._inert(message))
        return ids[1:] if ids[0] == end_token else ids

    @cached_property
    def _opening(self) -> list[dict[str, str]]:
        """A first question, once the template has shown that it leaves earlier turns alone."""
        question = {"role": "user", "content": "Question"}
        for answer in _PROBES:
            opening = [*self._system, question]
            self._continuation(opening, answer, "Question")
            longer = [*opening, {"role": "assistant", "content": answer}, question]
            self._continuation(longer, answer, "Question")
        return [*self._system, question]

    def _continuation(self, messages: list[dict[str, str]], answer: str, message: str) -> list[int]:
        """Token ids that the template puts behind an answer to a conversation."""
        reply = [{"role": "assistant", "content": answer}, {"role": "user", "content": message}]
        try:
            before, after = self._render([messages, [*messages, *reply]])
        except Exception as error:  # templates raise whatever they like
            raise PolicyError(
                f"the model's chat template refuses a second turn: {error}. Use a template that "
                "allows user and assistant to alternate, or a single-turn environment."
            ) from error
        # Space before the answer (as in "Assistant: Hi") is the policy's to write.
        written = after.removeprefix(before)
        spaced = written[: len(written) - len(written.lstrip())] + answer
        texts = [before + spaced, after]
        head, whole = self._tokenizer(texts, add_special_tokens=False)["input_ids"]
        stable = after.startswith(texts[0]) and whole[: len(head)] == head
        if not stable or len(whole) == len(head):
            raise PolicyError(
                "the model's chat template rewrites earlier turns: with a second turn, "
                f"{texts[0][-80:]!r} is not the beginning of {after[-160:]!r}. Episodes "
                "of several turns are trained on the tokens that were sampled: use a template that "
                "leaves earlier turns as they are (some strip the thinking), or a single-turn "
                "environment."
            )
        return list(whole[len(head) :])

    def _conversation(self, prompt: Prompt) -> list[dict[str, str]]:
        if isinstance(prompt, str):
            return [*self._system, {"role": "user", "content": self._inert(prompt)}]
        messages = [self._inert_message(message) for message in prompt]
        if not messages:
            raise PolicyError("a prompt is an empty conversation: expected at least one message.")
        has_system = messages[0].get("role") == "system"
        return messages if has_system else [*self._system, *messages]

    def _inert_message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        content = message.get("content")
        return (
            {**message, "content": self._inert(content)}
            if isinstance(content, str)
            else {**message}
        )

    def _render(self, conversations: list[list[dict[str, str]]]) -> list[str]:
        return self._tokenizer.apply_chat_template(
            conversations, tokenize=False, add_generation_prompt=True
        )


def inert_text(tokenizer: Any) -> Callable[[str], str]:
    """Returns what makes text be read as text, special tokens that are written out in it included.

    A space is put behind the first character of each.
    """
    special = "|".join(re.escape(token) for token in _special_tokens(tokenizer))
    if not special:
        return lambda text: text
    pattern = re.compile(special)
    return lambda text: pattern.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)


def _special_tokens(tokenizer: Any) -> list[str]:
    """Tokens that are more than text, the longest first; one character alone is only text."""
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    names = {*tokenizer.all_special_tokens, *added}
    return sorted((name for name in names if len(name) > 1), key=len, reverse=True)
