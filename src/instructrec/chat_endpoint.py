"""Asking a server with OpenAI's chat-completions interface, without trusting it.

Every call ends: it has a deadline, its answer a size limit, its repetitions a number. Redirects are
not followed, proxies and credentials of the surroundings (``.netrc``) are not used. The key is read
from the environment when a call is made and appears in no message.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import os
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from instructrec.errors import ConfigError

if TYPE_CHECKING:
    import httpx

_FIRST_PAUSE_S = 0.5


class CallFailed(Exception):
    """A call got no usable answer.

    Args:
        message: Why.
        timed_out: Whether there was no time left for it.
        unreachable: Whether the server itself was the reason, not what it was asked.
    """

    def __init__(self, message: str, *, timed_out: bool = False, unreachable: bool = False) -> None:
        super().__init__(message)
        self.timed_out = timed_out
        self.unreachable = unreachable


class _TryAgain(CallFailed):
    """A failure that another attempt may mend.

    Args:
        message: Why.
        timed_out: As for ``CallFailed``.
        pause_s: Shortest pause that the server asks for.
    """

    def __init__(self, message: str, *, timed_out: bool = False, pause_s: float = 0.0) -> None:
        super().__init__(message, timed_out=timed_out, unreachable=True)
        self.pause_s = pause_s


@dataclass(frozen=True)
class Answer:
    """What a server's model answered."""

    text: str
    """The message, without the key."""
    finish_reason: str
    """Why it ended: ``stop``, ``length``, or what else the server says; empty when it does not."""


class ChatEndpoint:
    """One model behind one address.

    Args:
        url: Address up to ``/v1``.
        model: Name of the model.
        owner: Who asks, for messages: "reward 'llm_judge'".
        api_key_env: Name of the environment variable with the key; None for no key.
        retries: Repetitions of a failed call.
        timeout_s: Longest time for one call, in seconds.
        max_bytes: Longest answer of the server.
        allow_http: Whether http may leave this machine.

    Raises:
        ConfigError: When the address is not allowed or a number is wrong.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        owner: str,
        api_key_env: str | None,
        retries: int,
        timeout_s: float,
        max_bytes: int,
        allow_http: bool,
    ) -> None:
        if find_spec("httpx") is None:
            raise ConfigError(f"{owner} needs the package httpx: pip install 'instructrec[judge]'.")
        self.url = _checked_url(url, allow_http, owner) + "/chat/completions"
        if not (retries >= 0 and timeout_s > 0 and max_bytes >= 1):
            raise ConfigError(
                f"{owner}: retries = {retries}, timeout_s = {timeout_s}, max_bytes = {max_bytes}: "
                "expected 0 or more retries and positive limits."
            )
        self.model = model
        self.owner = owner
        self.api_key_env = api_key_env
        self.retries = retries
        self.timeout_s = timeout_s
        self.max_bytes = max_bytes

    async def complete(
        self,
        client: httpx.AsyncClient,
        messages: Sequence[Mapping[str, str]],
        end: float,
        **settings: Any,
    ) -> Answer:
        """Returns what the model answers.

        Args:
            client: From ``connect``.
            messages: The chat.
            end: When to give up, on the clock of the running loop.
            **settings: More fields of the request, such as ``max_tokens`` and ``temperature``.

        Raises:
            CallFailed: When no attempt got a usable answer in time.
            ConfigError: When the server refuses the key or does not know the address.
        """
        loop = asyncio.get_running_loop()
        request = {"model": self.model, "messages": list(messages), **settings}
        body = json.dumps(request).encode("ascii")
        for attempt in range(self.retries + 1):
            left = end - loop.time()
            if left <= 0:
                raise CallFailed("the time for the batch is over", timed_out=True)
            try:
                return self._answer(await self._call(client, body, min(self.timeout_s, left)))
            except _TryAgain as failure:
                pause = _FIRST_PAUSE_S * 2**attempt * random.SystemRandom().uniform(0.5, 1.5)
                pause = max(pause, failure.pause_s)
                if attempt == self.retries or loop.time() + pause >= end:
                    raise
                await asyncio.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    @contextlib.asynccontextmanager
    async def connect(self) -> AsyncIterator[httpx.AsyncClient]:
        """Opens the connections of one batch.

        Raises:
            ConfigError: When the key's variable is not set.
        """
        import httpx

        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        key = self._key()
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        async with httpx.AsyncClient(
            headers=headers,
            timeout=self.timeout_s,
            follow_redirects=False,
            trust_env=False,
            limits=httpx.Limits(max_connections=None),
        ) as client:
            yield client

    async def _call(self, client: httpx.AsyncClient, body: bytes, seconds: float) -> bytes:
        import httpx

        try:
            async with (
                asyncio.timeout(seconds),
                client.stream("POST", self.url, content=body) as response,
            ):
                if response.status_code != 200:
                    self._refuse(response, await self._read(response, 5000, cut=True))
                if response.headers.get("Content-Encoding", "identity") != "identity":
                    raise CallFailed("the server's answer is compressed, which was not asked for")
                return await self._read(response, self.max_bytes)
        except (TimeoutError, httpx.TimeoutException):
            message = f"no answer within {seconds:.3g} s"
            raise _TryAgain(message, timed_out=True) from None
        except httpx.HTTPError as error:
            # Without its cause: a traceback would show the request with its headers.
            raise _TryAgain(f"{type(error).__name__}: {self._safe(str(error))}") from None

    async def _read(self, response: httpx.Response, limit: int, cut: bool = False) -> bytes:
        body = b""
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > limit:
                if cut:
                    return body[:limit]
                raise CallFailed(f"the server's answer is longer than {limit} bytes")
        return body

    def _refuse(self, response: httpx.Response, body: bytes) -> None:
        code, said = response.status_code, self._safe(body.decode("utf-8", "replace"))
        if code == 401:
            where = f"the key in {self.api_key_env}" if self.api_key_env else "a call without key"
            raise ConfigError(
                f"{self.owner}: {self.url} refuses {where} (status 401). Set api_key_env to "
                "the name of the variable that holds a valid key."
            )
        if code == 404:
            raise ConfigError(
                f"{self.owner}: {self.url} knows no such address or no model {self.model!r} "
                f"(status 404: {said}). The endpoint ends in /v1 as a rule."
            )
        if 300 <= code < 400:
            raise CallFailed(f"status {code}: the server sends elsewhere, which is not followed")
        if code in (408, 429) or code >= 500:
            asked = response.headers.get("Retry-After", "")
            pause = float(asked) if asked.isdecimal() and len(asked) < 6 else 0.0
            raise _TryAgain(f"status {code}: {said}", pause_s=pause)
        raise CallFailed(f"status {code}: {said}")

    def _key(self) -> str | None:
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "").strip()
        if not key or not key.isascii() or not key.isprintable():
            raise ConfigError(
                f"{self.owner}: the environment variable {self.api_key_env!r} is "
                f"{'not a key' if key else 'not set'}; set it to the key, or api_key_env to null."
            )
        return key

    def _answer(self, body: bytes) -> Answer:
        """What stands in an answer, without the key: people are shown what is of no use."""
        content = reason = None
        try:
            choice = json.loads(body)["choices"][0]
            content, reason = choice["message"]["content"], choice.get("finish_reason")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            pass
        if not isinstance(content, str):
            said = self._safe(body.decode("utf-8", "replace"))
            raise CallFailed(f"the server answered {said}; expected a chat completion")
        return Answer(self._without_key(content), reason if isinstance(reason, str) else "")

    def _safe(self, text: str) -> str:
        """What the other side said, for a message: without the key, short and on one line."""
        return shown(self._without_key(text))

    def _without_key(self, text: str) -> str:
        key = self._key()
        return text if key is None else text.replace(key, "[key]")


def shown(text: str) -> str:
    """Returns foreign text for a message: quoted, ASCII, at most 200 characters of it."""
    return ascii(text if len(text) <= 200 else text[:200] + "...")


def _checked_url(url: str, allow_http: bool, owner: str) -> str:
    try:
        parts = urlsplit(url.strip())
        host, credentials = parts.hostname, parts.username or parts.password
    except ValueError:
        host = credentials = None
        parts = urlsplit("")
    if credentials:
        raise ConfigError(
            f"{owner}: the endpoint holds a user name or password; leave it out and name the "
            "variable with the key in api_key_env."
        )
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise ConfigError(
            f"{owner}: endpoint = {url!r}: expected an address such as "
            "https://api.example.org/v1 or http://localhost:8000/v1."
        )
    if parts.scheme == "http" and not allow_http and not _is_this_machine(host):
        raise ConfigError(
            f"{owner}: endpoint = {url!r} would send prompts and the key unencrypted to "
            "another machine; use https, or set allow_http: true in a network that you trust."
        )
    return url.strip().rstrip("/")


def _is_this_machine(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
