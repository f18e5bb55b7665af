"""A model behind a server with OpenAI's chat-completions interface, as a policy to evaluate.

It has neither tokens nor log-probs, so it can be measured and not trained. Imports no torch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from instructrec.asynchronous import run_coroutine
from instructrec.chat_endpoint import Answer, CallFailed, ChatEndpoint
from instructrec.errors import ConfigError, PolicyError
from instructrec.policies.base import Prompt, Responses, StopReason
from instructrec.policies.config import EndpointConfig, Sampling

_MOST_STOP_STRINGS = 4  # what the interface takes


def is_endpoint(policy: str) -> bool:
    """Returns whether a policy's name is the address of a server."""
    return policy.startswith(("http://", "https://"))


class EndpointPolicy:
    """Asks a server; a call that fails in spite of all repetitions ends the evaluation.

    The rows that were written before that stay, so the same command goes on behind them.

    Args:
        url: Address up to ``/v1``.
        config: Model, key, limits.
        system_prompt: System message put before every instruction given as plain text.
        sampling: How responses are drawn unless a call says otherwise.
        seed: Sent along, counted up from answer to answer; servers need not heed it.

    Raises:
        ConfigError: The address or a limit is wrong, no model is named, or httpx is missing.
    """

    def __init__(
        self,
        url: str,
        config: EndpointConfig,
        *,
        system_prompt: str = "",
        sampling: Sampling | None = None,
        seed: int = 0,
    ) -> None:
        self._endpoint = ChatEndpoint(
            url,
            config.model or "",
            owner=f"policy {config.model!r}" if config.model else "policy behind a server",
            api_key_env=config.api_key_env,
            retries=config.retries,
            timeout_s=config.timeout_s,
            max_bytes=config.max_bytes,
            allow_http=config.allow_http,
        )
        if not config.model:  # the address is known to hold no password: it may be shown
            raise ConfigError(
                f"policy {url}: which of the server's models? Give --endpoint.model NAME."
            )
        self.name = f"{config.model} at {url}"
        self._config = config
        self._system_prompt = system_prompt
        self._sampling = sampling or Sampling()
        self._next_seed = seed

    def skip(self, prompts: Sequence[Prompt], sampling: Sampling | None = None) -> None:
        """Leaves out the seeds of answers that were given before, so that others get their own.

        Args:
            prompts: What they were answers to.
            sampling: Not used.
        """
        self._next_seed += len(prompts)

    def respond(
        self,
        prompts: Sequence[Prompt],
        columns: Mapping[str, Sequence[Any]] | None = None,
        sampling: Sampling | None = None,
    ) -> Responses:
        """Answers each prompt once.

        Raises:
            ConfigError: The server refuses the key or knows no such model, or cannot draw so.
            PolicyError: A prompt got no answer.
        """
        chats = [_messages(prompt, self._system_prompt) for prompt in prompts]
        answers = run_coroutine(self._ask(chats, self._request(sampling or self._sampling)))
        return Responses(
            texts=[answer.text.strip() for answer in answers],
            stop_reasons=[
                StopReason.LENGTH if answer.finish_reason == "length" else StopReason.EOS
                for answer in answers
            ],
        )

    def _request(self, sampling: Sampling) -> dict[str, Any]:
        if sampling.top_k:
            raise ConfigError(
                f"top_k = {sampling.top_k}: the chat-completions interface has no such setting. "
                "Use top_p, or leave it out."
            )
        if len(sampling.stop_strings) > _MOST_STOP_STRINGS:
            raise ConfigError(
                f"{len(sampling.stop_strings)} stop strings: the chat-completions interface takes "
                f"{_MOST_STOP_STRINGS} at the most."
            )
        request: dict[str, Any] = {
            self._config.length_field: sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
        }
        if sampling.stop_strings:
            request["stop"] = list(sampling.stop_strings)
        return request

    async def _ask(
        self, chats: Sequence[list[dict[str, str]]], request: Mapping[str, Any]
    ) -> list[Answer]:
        places = asyncio.Semaphore(self._config.concurrency)
        first, self._next_seed = self._next_seed, self._next_seed + len(chats)

        async with self._endpoint.connect() as client:

            async def ask(number: int, chat: list[dict[str, str]]) -> Answer:
                async with places:
                    end = asyncio.get_running_loop().time() + self._config.deadline_s
                    return await self._endpoint.complete(
                        client, chat, end, **request, seed=first + number
                    )

            tasks = [asyncio.create_task(ask(i, chat)) for i, chat in enumerate(chats)]
            try:
                return list(await asyncio.gather(*tasks))
            except CallFailed as failure:
                raise PolicyError(
                    f"{self.name} gave no answer: {failure}. What was answered before is kept; "
                    "the same command goes on from there."
                ) from None
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)


def _messages(prompt: Prompt, system_prompt: str) -> list[dict[str, str]]:
    if isinstance(prompt, str):
        messages = [{"role": "user", "content": prompt}]
    else:
        messages = [dict(message) for message in prompt]
    if not messages:
        raise PolicyError(
            "a conversation without messages cannot be answered: expected one or more."
        )
    if system_prompt and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system_prompt})
    return messages
