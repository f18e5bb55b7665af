"""Waiting for async reward functions from ordinary code, notebooks included.

All of them run on one event loop in a thread of its own. A notebook's running loop is therefore no
obstacle, and clients that an async reward keeps between batches find the loop they were made on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Awaitable
from typing import Any

from instructrec.errors import RewardError

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_owner = 0  # process that started the loop: a forked child inherits the object, not its thread


def run_coroutine(awaitable: Awaitable[Any]) -> Any:
    """Runs an awaitable to its end on the private loop and returns its result.

    An exception inside it is raised here; an interrupt here (Ctrl-C) cancels it.
    """
    loop = _private_loop()
    if asyncio._get_running_loop() is loop:
        if asyncio.iscoroutine(awaitable):
            awaitable.close()
        raise RewardError(
            "an async reward function called another reward without awaiting it, which would wait "
            "for ever; await the other function itself."
        )

    async def wait() -> Any:
        return await awaitable

    future = asyncio.run_coroutine_threadsafe(wait(), loop)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def _private_loop() -> asyncio.AbstractEventLoop:
    global _loop, _owner
    with _lock:
        if _loop is None or _owner != os.getpid():
            _loop, _owner = asyncio.new_event_loop(), os.getpid()
            threading.Thread(
                target=_serve, args=(_loop,), name="instructrec-async", daemon=True
            ).start()
        return _loop


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    """Runs the loop for ever: ``sys.exit`` in a task stops it, and would leave all who wait."""
    while True:
        with contextlib.suppress(SystemExit, KeyboardInterrupt):
            loop.run_forever()
