"""The inside of a worker process: one reward, asked over a socket until the asker goes away.

Started by ``instructrec.rewards.isolation`` in a fresh interpreter. What comes in is pickled by our
own process; what goes out is JSON, so that nothing a reward leaves behind is executed out there.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import pickle
import signal
import socket
import struct
import sys
import time
from typing import Any

from instructrec.errors import ConfigError, DataError, InstructRecError, PolicyError, RewardError
from instructrec.rewards.base import FailedScore, RewardInfo
from instructrec.rewards.calling import BoundReward, check_scores
from instructrec.rewards.scoring import explain_error

FATAL: dict[str, type[InstructRecError]] = {
    kind.__name__: kind for kind in (ConfigError, DataError, PolicyError, RewardError)
}
"""Errors that no sample is to blame for: they are raised again outside and end the run."""

_PR_SET_PDEATHSIG = 1
_HEADER = struct.Struct(">Q")


def send_frame(connection: socket.socket, payload: bytes, deadline: float | None = None) -> None:
    """Sends one message.

    Args:
        connection: To the other process.
        payload: The message.
        deadline: Of ``time.monotonic``; None waits for ever.

    Raises:
        TimeoutError: It was not taken in time.
        OSError: The other side is gone.
    """
    connection.settimeout(_left(deadline))
    connection.sendall(_HEADER.pack(len(payload)) + payload)


def receive_frame(connection: socket.socket, deadline: float | None = None) -> bytes:
    """Waits for one message; arguments as for ``send_frame``.

    Raises:
        TimeoutError: It did not come in time.
        EOFError: The other side closed the connection.
        OSError: The connection broke.
    """
    (size,) = _HEADER.unpack(_receive(connection, _HEADER.size, deadline))
    return _receive(connection, size, deadline)


def _receive(connection: socket.socket, size: int, deadline: float | None) -> bytes:
    content = bytearray()
    while len(content) < size:
        connection.settimeout(_left(deadline))
        piece = connection.recv(min(size - len(content), 1 << 20))
        if not piece:
            raise EOFError
        content += piece
    return bytes(content)


def _left(deadline: float | None) -> float | None:
    if deadline is None:
        return None
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def main(descriptor: int, parent: int, memory_mb: int, patience: int) -> None:
    """Serves one reward until the connection closes.

    Args:
        descriptor: File descriptor of the connected socket.
        parent: Id of the process that asks.
        memory_mb: Most address space in MiB; 0 for no limit.
        patience: Seconds after which an answer is for nobody: should the asking process be gone,
            nobody else ends a computation that never ends.
    """
    _die_with(parent)
    import resource  # Windows has none

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory_mb:
        limit = memory_mb << 20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    connection = socket.socket(fileno=descriptor)
    try:
        reward = _load(connection)
        while reward is not None:
            message = receive_frame(connection)
            faulthandler.dump_traceback_later(patience, exit=True)
            answer = _answer(reward, message)
            faulthandler.cancel_dump_traceback_later()
            send_frame(connection, json.dumps(answer).encode())
    except (EOFError, ConnectionError):
        return


def _load(connection: socket.socket) -> BoundReward | None:
    """Makes the reward that the first message describes; None when it cannot be made.

    What its method ``warm_up`` loads, where it has one, does not count against a deadline.
    """
    info, options = pickle.loads(receive_frame(connection))
    try:
        reward = BoundReward(RewardInfo(**info), options)
        if (warm_up := getattr(reward.function, "warm_up", None)) is not None:
            warm_up()
    except InstructRecError as error:
        send_frame(connection, json.dumps(_fatal(error)).encode())
        return None
    send_frame(connection, b"{}")
    return reward


def _answer(reward: BoundReward, message: bytes) -> dict[str, Any]:
    prompts, completions, columns = pickle.loads(message)
    try:
        result = reward.raw(prompts, completions, columns)
    except (ConfigError, DataError, PolicyError) as error:
        return _fatal(error)
    except Exception as error:
        return {"raised": explain_error(error, reward)}
    try:
        scores = check_scores(reward.__name__, result, len(completions))
    except RewardError as error:
        return _fatal(error)
    reasons = {
        i: [score.status, score.message]
        for i, score in enumerate(scores)
        if isinstance(score, FailedScore)  # JSON knows it as a NaN alone
    }
    truncated = reward.last_truncated(len(completions))
    return {"scores": scores, "failed": reasons, "truncated": truncated}


def _fatal(error: InstructRecError) -> dict[str, Any]:
    name = next((n for n, kind in FATAL.items() if isinstance(error, kind)), "RewardError")
    return {"fatal": [name, str(error)]}


def _die_with(parent: int) -> None:
    """Has the kernel end this process when the one that asks dies (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the kernel was told
            os._exit(1)
