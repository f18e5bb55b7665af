"""Rewards in processes of their own: a reward that hangs, dies or eats memory costs one sample.

A worker is a fresh interpreter, never a fork of the trainer with its threads and its GPU. It gets
the reward by name, few environment variables, and a limit of memory where one is set. A call that
does not answer in time ends with the worker's death; a new one takes its place, and the responses
of the call are asked about one by one, so that exactly those to blame count as failed.

This protects a run from faults. It is no wall against hostile code.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from instructrec.devices import OWNERS_RANK
from instructrec.errors import ConfigError, RewardError
from instructrec.rewards.base import FailedScore, Status
from instructrec.rewards.calling import BoundReward
from instructrec.rewards.registry import spec_text
from instructrec.rewards.scoring import PartScores, judge_score
from instructrec.rewards.worker import FATAL, receive_frame, send_frame

GIVE_UP = 8
"""Responses in a row that may hang, one by one, before the others of a call are not asked."""
START_SECONDS = 120.0
"""How long a worker may take to import what it needs."""
ENVIRONMENT = (
    *("PATH", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "HOME", "TMPDIR", "TZ"),
    *("LANG", "LC_ALL", "LC_CTYPE", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS"),
    *("TOKENIZERS_PARALLELISM", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE"),
)
"""Environment variables that every worker gets; keys and tokens are not among them."""

_BOOTSTRAP = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from instructrec.rewards.worker import main; main(*map(int, sys.argv[2:]))"
)
_LONGEST = 10**8  # seconds that a timer may be set to
_Judged = tuple[float, Status, str, bool | None]  # the last: whether its text was read in part


@dataclass(frozen=True)
class WorkerSettings:
    """How the processes of a reward run."""

    workers: int = 1
    """Processes, which score parts of a batch side by side."""
    timeout: float = 60.0
    """Seconds that one call may take."""
    memory_mb: int | None = None
    """Most address space of a process in MiB, of which CUDA takes tens of GiB; None: no limit."""
    environment: tuple[str, ...] = ()
    """Environment variables that it gets beside ``ENVIRONMENT``."""
    chunk: int = 64
    """Most responses in one call of a process."""


class Workers:
    """Scores with one reward in processes of their own, which are started when first needed.

    Args:
        reward: The reward; its name and options travel, the object stays.
        settings: How the processes run.

    Raises:
        ConfigError: The reward cannot be named to another process, keeps state, or is made of
            other rewards.
    """

    def __init__(self, reward: BoundReward, settings: WorkerSettings) -> None:
        self.reward, self.settings = reward, settings
        self._order = _order(reward)
        self._lock = threading.Lock()
        self._crew: list[_Worker] = []
        self._pool: ThreadPoolExecutor | None = None
        self._finalizer: Any = None
        self._owner = 0  # process that started them: a fork inherits what it may not use

    def score(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        columns: Mapping[str, Sequence[Any]],
    ) -> PartScores:
        """Scores B responses; arguments and errors as for ``score_part``.

        Raises:
            RewardError: The workers do not start.
        """
        start = time.perf_counter()
        self.reward.check_columns(columns)
        self.reward.check_extras(columns)
        used = {name: columns[name] for name in self.reward.used_columns(columns)}
        size = max(1, min(self.settings.chunk, math.ceil(len(completions) / self.settings.workers)))

        def call(first: int) -> list[_Judged]:
            worker = idle.get()
            try:
                rows = range(first, min(first + size, len(completions)))
                return self._judge(worker, rows, prompts, completions, used)
            finally:
                idle.put(worker)

        with self._lock:
            pool, idle = self._ready()
            try:
                pieces = list(pool.map(call, range(0, len(completions), size)))
            except BaseException:  # an error of the reward, or Ctrl-C: nobody waits any longer
                self.close()
                raise
        judged = [one for piece in pieces for one in piece]
        truncated = [cut for *_, cut in judged]
        tells = any(cut is not None for cut in truncated)
        return PartScores(
            scores=np.array([score for score, *_ in judged], dtype=np.float64),
            status=[status for _, status, *_ in judged],
            messages=[message for *_, message, _ in judged],
            seconds=time.perf_counter() - start,
            flags={"truncated": [bool(cut) for cut in truncated]} if tells else {},
        )

    def close(self) -> None:
        """Ends the processes; they start again when something is scored."""
        if self._finalizer is not None:
            self._finalizer()
        self._pool, self._finalizer = None, None

    def _judge(
        self,
        worker: _Worker,
        rows: range,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        columns: Mapping[str, Sequence[Any]],
    ) -> list[_Judged]:
        """Outcomes of some responses: with one call or, when that fails, with one call each."""
        data = (
            [prompts[i] for i in rows],
            [completions[i] for i in rows],
            {name: [values[i] for i in rows] for name, values in columns.items()},
        )
        try:
            scores, truncated = worker.ask(pickle.dumps(data))
        except _Failure as failure:
            if len(rows) == 1:
                return [(math.nan, failure.status, str(failure), None)]
            return self._one_by_one(worker, rows, prompts, completions, columns)
        limits = self.reward.info.range
        return [(*judge_score(s, limits), cut) for s, cut in zip(scores, truncated, strict=True)]

    def _one_by_one(
        self,
        worker: _Worker,
        rows: range,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        columns: Mapping[str, Sequence[Any]],
    ) -> list[_Judged]:
        """Outcomes with one call for each; a reward that hangs on everything is given up."""
        outcomes: list[_Judged] = []
        hung = 0
        for i in rows:
            if hung == GIVE_UP:
                message = f"not asked: the {GIVE_UP} responses before it hung"
                outcomes.append((math.nan, Status.TIMEOUT, message, None))
                continue
            outcomes += self._judge(worker, range(i, i + 1), prompts, completions, columns)
            hung = hung + 1 if outcomes[-1][1] is Status.TIMEOUT else 0
        return outcomes

    def _ready(self) -> tuple[ThreadPoolExecutor, queue.SimpleQueue[_Worker]]:
        if self._pool is None or self._owner != os.getpid():
            # The threads live as long as the workers: the kernel ends a worker together with the
            # thread, not only with the process, that started it.
            count = self.settings.workers
            self._pool = ThreadPoolExecutor(count, thread_name_prefix="reward-worker")
            self._crew = [_Worker(self._order, self.settings) for _ in range(count)]
            self._owner = os.getpid()
            self._finalizer = weakref.finalize(self, _dismiss, self._crew, self._pool, self._owner)
        idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._crew:
            idle.put(worker)
        return self._pool, idle

    def __reduce__(self) -> tuple[Any, ...]:
        return Workers, (self.reward, self.settings)


class _Failure(Exception):
    """A call that gave no scores."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Worker:
    """One process, replaced when it dies."""

    def __init__(self, order: bytes, settings: WorkerSettings) -> None:
        self._order, self._settings = order, settings
        self._dismissed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None

    def ask(self, message: bytes) -> tuple[list[float | None], Sequence[bool | None]]:
        """Has one batch scored; returns the scores, and which texts were read only in part.

        Raises:
            _Failure: It raised, hung, or died.
        """
        if self._dismissed:
            raise RuntimeError("this worker was sent away while it was asked")
        if self._process is not None and self._process.poll() is not None:
            self.kill()  # it died while nobody asked: no response is to blame
        if self._process is None:
            self._start()
        try:
            answer = self._exchange(message, self._settings.timeout)
        except TimeoutError:
            self.kill(patience=0.0)
            seconds = f"{self._settings.timeout:g} s"
            raise _Failure(Status.TIMEOUT, f"no answer within {seconds}") from None
        except (EOFError, OSError):
            raise _Failure(Status.WORKER_DIED, f"its process {self.kill()}") from None
        if "fatal" in answer:
            kind, text = answer["fatal"]
            raise FATAL[kind](text)
        if "raised" in answer:
            raise _Failure(Status.RAISED, answer["raised"])
        scores: list[float | None] = answer["scores"]
        for place, (status, reason) in answer["failed"].items():
            scores[int(place)] = FailedScore(Status(status), reason)
        return scores, answer["truncated"] or [None] * len(scores)

    def dismiss(self) -> None:
        """Ends the process for good: a thread that still asks does not start another one."""
        self._dismissed = True
        self.kill(patience=0.0)

    def kill(self, patience: float = 2.0) -> str:
        """Ends the process and all that it started; returns how it ended.

        Args:
            patience: Seconds for a process that is dying by itself, and says more about why.
        """
        process, self._process = self._process, None
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if process is None:
            return "was not running"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
        ended = process.returncode
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if ended is None:
            return "closed the connection"
        if ended < 0:
            return f"was killed by {signal.Signals(-ended).name}"
        return f"ended with exit status {ended} and no scores"

    def _start(self) -> None:
        here, there = socket.socketpair()
        inherited = {*ENVIRONMENT, *self._settings.environment}
        environment = {name: os.environ[name] for name in inherited if name in os.environ}
        if "LOCAL_RANK" in os.environ:
            environment[OWNERS_RANK] = os.environ["LOCAL_RANK"]
        self._connection = here
        with there:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-c", _BOOTSTRAP, json.dumps(sys.path)),
                    *(str(there.fileno()), str(os.getpid()), str(self._settings.memory_mb or 0)),
                    str(min(math.ceil(2 * self._settings.timeout) + 5, _LONGEST)),
                ],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a reward prints is for people; scores go another way
                pass_fds=[there.fileno()],
                start_new_session=True,
            )
        try:
            answer = self._exchange(self._order, START_SECONDS)
        except (EOFError, OSError):
            limit = self._settings.memory_mb
            cause = (
                f" memory_mb = {limit} may be too small: it limits address space, of which a model "
                "on a GPU needs far more than memory (leave it out there)."
            )
            raise RewardError(
                f"the worker of a reward did not start: its process {self.kill()}. What it printed "
                f"stands above.{cause * (limit is not None)}"
            ) from None
        if "fatal" in answer:
            self.kill()
            kind, text = answer["fatal"]
            raise FATAL[kind](text)

    def _exchange(self, message: bytes, seconds: float) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        assert self._connection is not None
        send_frame(self._connection, message, deadline)
        answer: dict[str, Any] = json.loads(receive_frame(self._connection, deadline))
        return answer


def _dismiss(crew: list[_Worker], pool: ThreadPoolExecutor, owner: int) -> None:
    if os.getpid() != owner:
        return
    for worker in crew:
        worker.dismiss()
    pool.shutdown(wait=False, cancel_futures=True)


def _order(reward: BoundReward) -> bytes:
    """What a worker makes the reward from."""
    if hasattr(reward.function, "score_parts"):
        raise ConfigError(
            f"reward {reward.__name__!r} is made of other rewards and stays in this process: set "
            "isolation: worker on those of its parts that need it."
        )
    if hasattr(reward.function, "state_dict"):
        raise ConfigError(
            f"reward {reward.__name__!r} keeps state, which a worker would lose when it is "
            "replaced: expected a reward without state_dict, or isolation: none."
        )
    target = reward.info.target
    place = target if isinstance(target, str) else spec_text(target)
    if ":" not in place:
        raise ConfigError(
            f"reward {reward.__name__!r} is known by its name in this process alone: write it to a "
            "file, and name it as 'file.py:attr'."
        )
    try:
        json.dumps(reward.options)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"reward {reward.__name__!r}: its options cannot be sent to a worker: {error}. "
            "Expected numbers, texts, lists and mappings."
        ) from error
    return pickle.dumps((asdict(replace(reward.info, target=place)), reward.options))
