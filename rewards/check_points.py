"""The points that ``check_reward`` looks at, each a function from a probe to a verdict."""

from __future__ import annotations

import os
import pickle
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from instructrec.rewards.base import Status
from instructrec.rewards.check_probe import Point, Probe, Verdict
from instructrec.rewards.check_samples import GARBAGE, HOSTILE, Samples
from instructrec.rewards.deceptions import middle_of, try_to_deceive
from instructrec.rewards.scoring import PartScores

SLOW_SECONDS = 0.1
"""Time for one response from which a reward is called slow."""
NOTHING_SCORED = "no response was scored"
"""Why there is nothing to compare."""
_THREADS = 4
_RTOL, _ATOL = 1e-4, 1e-5  # a model's scores differ a little with the padding of the batch


# Points -------------------------------------------------------------------------------------------


def usable(probe: Probe) -> Point:
    """Whether ordinary responses get numbers inside the range."""
    failed = [i for i, status in enumerate(probe.base.status) if status.failed]
    label = "finite and in range"
    if not failed:
        scored = [s is Status.SCORED for s in probe.base.status]
        if not any(scored):
            text = "not applicable to any response: check with data that it is meant for"
            return Point(label, "warn", text)
        known = probe.base.scores[scored]
        return Point(label, "ok", f"scores from {known.min():g} to {known.max():g}")
    i = failed[0]
    return Point(
        label,
        "fail",
        f"{len(failed)} of {len(probe.base.status)} ordinary responses failed, first "
        f"{_short(probe.samples.completions[i])}: {probe.base.status[i]}: {probe.base.messages[i]}",
    )


def declared_range(probe: Probe) -> Point:
    """Whether a range is declared."""
    limits = probe.reward.info.range
    if limits is None:
        text = "declares none: register_reward(range=(low, high)) turns impossible scores to errors"
        return Point("range", "warn", text)
    return Point("range", "ok", f"declares [{limits[0]:g}, {limits[1]:g}]")


def deterministic(probe: Probe) -> Point:
    """Whether it gives the same scores twice; notes it in the probe."""
    if not probe.scored:
        return Point("deterministic", "skip", NOTHING_SCORED)
    probe.deterministic = _difference(probe, probe.score()) == ""
    if probe.deterministic:
        return Point("deterministic", "ok", "the same scores twice")
    text = "other scores the second time: draw no random numbers, or seed by the response's text"
    return Point("deterministic", "warn", text)


def _order(probe: Probe) -> tuple[Verdict, str]:
    rows = list(range(len(probe.samples)))[::-1]
    changed = _difference(probe, probe.score(rows).spread(rows, len(rows)))
    return _verdict(changed, "the same scores in any order", "score each response by itself")


def _singles(probe: Probe) -> tuple[Verdict, str]:
    for i in range(len(probe.samples)):
        single = probe.score([i])
        if not _equal(probe.base, single, i, 0):
            return "fail", (
                f"{_short(probe.samples.completions[i])} scores {_shown(single, 0)} alone and "
                f"{_shown(probe.base, i)} in a batch: score each response by itself"
            )
    return "ok", "a response scores alone as in a batch"


def _chat(probe: Probe) -> tuple[Verdict, str]:
    samples = probe.samples
    as_chat = probe.score(
        completions=[_message("assistant", c) for c in samples.completions],
        prompts=[_message("user", p) for p in samples.prompts],
    )
    advice = "read responses with instructrec.rewards.completion_text"
    return _verdict(_difference(probe, as_chat), "text and chat messages score alike", advice)


def _pickles(probe: Probe) -> tuple[Verdict, str]:
    try:
        twin = pickle.loads(pickle.dumps(probe.reward))
    except Exception as error:
        return "fail", (
            f"cannot be pickled ({type(error).__name__}: {error}): define it at the top level of a "
            "file, and keep open files and locks out of its attributes"
        )
    advice = "make what it needs in __init__, from its options"
    return _verdict(_difference(probe, probe.score(reward=twin)), "survives pickling", advice)


def _threads(probe: Probe) -> tuple[Verdict, str]:
    barrier = threading.Barrier(_THREADS)
    results: list[PartScores] = []
    errors: list[BaseException] = []

    def together() -> None:
        barrier.wait()
        try:
            results.append(probe.score())
        except BaseException as error:
            errors.append(error)

    # Daemons, unlike those of a pool: a reward that hangs in them does not keep the process.
    threads = [threading.Thread(target=together, daemon=True) for _ in range(_THREADS)]
    with probe.patience():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]
    changed = next((c for r in results if (c := _difference(probe, r))), "")
    advice = "keep working variables in the function, or hold a threading.Lock"
    return _verdict(changed, f"the same scores from {_THREADS} threads at once", advice)


def _hostile(probe: Probe) -> tuple[Verdict, str]:
    if all(status.failed for status in probe.base.status):
        return "skip", NOTHING_SCORED
    names, texts = list(HOSTILE), list(HOSTILE.values())
    rows = [i % len(probe.samples) for i in range(len(texts))]
    scored = probe.score(rows, completions=texts)
    failed = [
        f"{name} ({status}: {message})"
        for name, status, message in zip(names, scored.status, scored.messages, strict=True)
        if status.failed
    ]
    if failed:
        return "fail", f"fails on {'; '.join(failed)}: every text needs a score or None"
    return "ok", f"{len(texts)} kinds of odd text get a score"


def _gold(probe: Probe) -> tuple[Verdict, str]:
    samples, rows = probe.samples, _answered(probe)
    if not rows:
        return "skip", "no expected answers to which it applies among the columns that it reads"
    scored = probe.score(rows, completions=[samples.gold[i] for i in rows])
    golden = scored.scores
    for i, status, message in zip(rows, scored.status, scored.messages, strict=True):
        if status.failed:
            return "fail", f"fails on the expected answer {_short(samples.gold[i])}: {message}"
    limits = probe.reward.info.range
    ordinary = probe.base.scores[np.isfinite(probe.base.scores)]
    if limits is None and not (ordinary.size and np.ptp([*ordinary, *golden])):
        return "skip", "it declares no range and its scores do not differ, so none is at the top"
    top = limits[1] if limits is not None else float(ordinary.max())
    low = [i for i, score in zip(rows, golden, strict=True) if score < top - _ATOL]
    if low:
        at = rows.index(low[0])
        return "fail", (
            f"the expected answer {_short(samples.gold[low[0]])} scores {golden[at]:g}, below "
            f"{top:g}: an answer that is right must score at the top"
        )
    return "ok", f"expected answers score {top:g}"


def _garbage(probe: Probe) -> tuple[Verdict, str]:
    samples, rows = probe.samples, _answered(probe)
    if not rows:
        return "skip", "no expected answers to compare with"
    golden = probe.score(rows, completions=[samples.gold[i] for i in rows]).scores
    for text in GARBAGE:
        scores = probe.score(rows, completions=[text] * len(rows)).scores
        for i, good, bad in zip(rows, golden, scores, strict=True):
            if bad >= good and text.strip() != str(samples.gold[i]).strip():
                return "fail", (
                    f"{text!r} scores {bad:g} where the expected answer {_short(samples.gold[i])} "
                    f"scores {good:g}: a policy would learn to say it"
                )
    return "ok", f"{len(GARBAGE)} worthless answers score less than the expected ones"


def deceptions(probe: Probe) -> tuple[Verdict, str]:
    """Whether a judge likes responses that deserve nothing; for rewards that name some."""
    if middle_of(probe.reward) is None:
        return "warn", "not tried: without a range with two ends nobody knows which scores are good"
    trial = try_to_deceive(
        probe.reward.__name__,
        probe.reward,
        len(probe.samples),
        lambda row, texts: probe.score([row] * len(texts), completions=texts),
    )
    return ("fail", trial.warning) if trial.warning else ("ok", str(trial))


@contextmanager
def fresh_randomness() -> Iterator[None]:
    """Global generators in states that no reward can restore by chance; put back afterwards."""
    kept = random.getstate(), np.random.get_state()
    random.seed()
    np.random.seed()
    try:
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])


def surroundings() -> dict[str, Any]:
    """What a reward shares with the whole process, by name."""
    state = {
        "the generator of random": random.getstate(),
        "the generator of numpy": np.random.get_state(),
        "the working folder": os.getcwd(),
        "environment variables": dict(os.environ),
        "signal handlers": {s: signal.getsignal(s) for s in signal.valid_signals()},
    }
    if "torch" in sys.modules:
        state["the generator of torch"] = sys.modules["torch"].get_rng_state().tolist()
    return state


def side_effects(before: Mapping[str, Any], after: Mapping[str, Any]) -> Point:
    """Whether the surroundings are what they were before the first call."""
    changed = [name for name in before if not _same_state(before[name], after[name])]
    if not changed:
        text = "leaves global random numbers, folder, environment and signals alone"
        return Point("side effects", "ok", text)
    return Point(
        "side effects",
        "fail",
        f"changes {', '.join(changed)}: use a generator of your own (random.Random(0), "
        "numpy.random.default_rng(0)) and leave the process as it was",
    )


def arguments(before: Samples, after: Samples) -> Point:
    """Whether the samples are what they were before the first call."""
    label = "arguments"
    if before == after:
        return Point(label, "ok", "are left as they were")
    return Point(label, "fail", "it changes what it is given: copy lists before you edit them")


def speed(probe: Probe, seconds: float) -> Point:
    """Whether it is fast enough, by the time for one response."""
    if not probe.scored:
        return Point("speed", "skip", NOTHING_SCORED)
    shown = f"{seconds * 1e3:.3g} ms for one response"
    if seconds <= SLOW_SECONDS:
        return Point("speed", "ok", shown)
    text = f"{shown}: consider isolation: worker with more workers, a cache, or larger batches"
    return Point("speed", "warn", text)


def _where_it_is_meant_for(point: Callable[[Probe], tuple[Verdict, str]]) -> Callable[..., Any]:
    """The point without blame where nobody gave data: the reward may be right about our rows."""

    def excused(probe: Probe) -> tuple[Verdict, str]:
        verdict, message = point(probe)
        if verdict == "fail" and probe.samples.own:
            return "warn", (
                f"{message} (these are the check's own rows: pass data that the reward is meant "
                "for, --data FILE)"
            )
        return verdict, message

    return excused


COMPARISONS: dict[str, Callable[[Probe], tuple[Verdict, str]]] = {
    "order": _order,
    "batch and singles": _singles,
    "text and chat": _chat,
    "pickling": _pickles,
    "threads": _threads,
}
"""Points that compare scores, and mean nothing for a reward that is not deterministic."""
OTHERS: dict[str, Callable[[Probe], tuple[Verdict, str]]] = {
    "odd text": _hostile,
    "expected answers": _where_it_is_meant_for(_gold),
    "worthless answers": _where_it_is_meant_for(_garbage),
}
"""The other points that call the reward."""

# Helpers ------------------------------------------------------------------------------------------


def _answered(probe: Probe) -> list[int]:
    """Rows with an expected answer to which the reward applies, or on which it fails."""
    gold = probe.samples.gold
    rows = [i for i in range(len(gold) // 2) if gold[i] is not None]
    if not rows:
        return []
    scored = probe.score(rows, completions=[gold[i] for i in rows])
    says_nothing = Status.NOT_APPLICABLE
    return [i for i, s in zip(rows, scored.status, strict=True) if s is not says_nothing]


def _difference(probe: Probe, other: PartScores) -> str:
    """The first response whose outcome is another one than in the first call; empty for none."""
    for i, text in enumerate(probe.samples.completions):
        if not _equal(probe.base, other, i, i):
            return f"{_short(text)}: {_shown(probe.base, i)} and then {_shown(other, i)}"
    return ""


def _equal(left: PartScores, right: PartScores, i: int, k: int) -> bool:
    same = left.status[i] is right.status[k]
    close = np.isclose(left.scores[i], right.scores[k], _RTOL, _ATOL, equal_nan=True)
    return same and bool(close)


def _verdict(changed: str, fine: str, advice: str) -> tuple[Verdict, str]:
    return ("fail", f"{changed}: {advice}") if changed else ("ok", fine)


def _message(role: str, value: Any) -> Any:
    return [{"role": role, "content": value}] if isinstance(value, str) else value


def _shown(scored: PartScores, i: int) -> str:
    is_score = scored.status[i] is Status.SCORED
    return f"{scored.scores[i]:g}" if is_score else str(scored.status[i])


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _same_state(before: Any, after: Any) -> bool:
    if isinstance(before, tuple):
        return all(np.array_equal(b, a) for b, a in zip(before, after, strict=True))
    return bool(before == after)
