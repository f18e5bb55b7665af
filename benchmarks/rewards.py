"""How fast rewards are, and whether faults in worker processes are counted exactly.

``python benchmarks/rewards.py --json rewards.json`` prints a table and writes the numbers. Ratios
come from interleaved rounds in one process, so that a busy machine slows both sides alike.

* ``bleu`` against bare sacrebleu on sentences of 20 words.
* ``exact_match`` with three normalisations, responses per second.
* Rewards in worker processes of which 1 % raise, 1 % hang, 0.5 % give NaN and 0.2 % die.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

FAULTS = {"raised": 0.01, "timeout": 0.01, "nonfinite": 0.005, "worker_died": 0.002}
"""Status of a faulty response -> share of the responses."""
WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "sat",
    "ran",
    "on",
    "under",
    "mat",
    "house",
    "red",
    "green",
    "old",
]


def faulty(completions: list[str], **columns: Any) -> list[float]:
    """The number in the text, or the fault that the text names."""
    scores = []
    for text in completions:
        if text == "raised":
            raise ValueError("planned")
        if text == "timeout":
            time.sleep(3600)
        if text == "worker_died":
            os._exit(0)
        scores.append(float("nan") if text == "nonfinite" else float(text))
    return scores


def sentences(number: int, words: int, seed: int) -> list[str]:
    """Random sentences of a fixed number of words."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=words)) for _ in range(number)]


def seconds(call: Callable[[], Any]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure_bleu(number: int, rounds: int) -> dict[str, float]:
    """Speed of the reward ``bleu`` beside sacrebleu alone, in responses per second."""
    from sacrebleu.metrics import BLEU

    from instructrec.rewards import make_rewards

    texts, references = sentences(number, 20, 0), sentences(number, 20, 1)
    metric, rewards = BLEU(effective_order=True), make_rewards("bleu")
    prompts = ["p"] * number

    def bare() -> list[float]:
        pairs = zip(texts, references, strict=True)
        return [metric.sentence_score(text, [reference]).score for text, reference in pairs]

    def ours() -> Any:
        return rewards.score(prompts, texts, {"reference": references}).total

    assert max(abs(a / 100 - b) for a, b in zip(bare(), ours(), strict=True)) < 1e-9
    times = [(seconds(bare), seconds(ours)) for _ in range(rounds)]
    return {
        "sacrebleu_per_s": number / statistics.median(t for t, _ in times),
        "bleu_per_s": number / statistics.median(t for _, t in times),
        "ratio": statistics.median(theirs / mine for theirs, mine in times),
    }


def measure_exact_match(number: int, rounds: int) -> dict[str, float]:
    """Responses per second of the reward function ``exact_match``, by normalisation."""
    from instructrec.rewards import make_reward

    texts = sentences(number, 3, 0)
    references = [text if i % 2 else "another answer" for i, text in enumerate(texts)]
    speeds = {}
    for how in ("strip", "casefold", "squad"):
        reward = make_reward("exact_match", normalise=how)
        times = [
            seconds(partial(reward, texts, texts, reference=references)) for _ in range(rounds)
        ]
        speeds[f"{how}_per_s"] = number / statistics.median(times)
    return speeds


def measure_workers(number: int, workers: int, timeout: float) -> dict[str, Any]:
    """Scores responses with planned faults in worker processes; counts must come out exactly."""
    from instructrec.rewards import make_rewards

    texts = [str(i % 100) for i in range(number)]
    faults = [name for name, share in FAULTS.items() for _ in range(round(share * number))]
    for place, fault in zip(
        random.Random(2).sample(range(number), len(faults)), faults, strict=True
    ):
        texts[place] = fault
    rewards = make_rewards(
        {
            "faulty": {
                "use": f"{Path(__file__).resolve()}:faulty",
                "isolation": "worker",
                "workers": workers,
                "timeout": timeout,
            }
        }
    )
    start = time.perf_counter()
    batch = rewards.score(["p"] * number, texts, {})
    wall = time.perf_counter() - start
    rewards.close()
    expected = [text if text in FAULTS else "scored" for text in texts]
    found = [status.value for status in batch.status["faulty"]]
    right = sum(
        status == "scored" and float(text) == score
        for text, status, score in zip(texts, found, batch.parts["faulty"], strict=True)
    )
    return {
        "planned": dict(Counter(expected)),
        "counted": dict(Counter(found)),
        "exact": bool(expected == found and right == expected.count("scored")),
        "right_scores": int(right),
        "workers": workers,
        "timeout_s": timeout,
        "wall_s": wall,
    }


def main() -> int:
    """Runs the measurements; returns 1 when a fault was not counted as planned."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--texts", type=int, default=2000, help="responses of the speed tests")
    parser.add_argument("--rounds", type=int, default=7, help="repetitions of each")
    parser.add_argument("--isolated", type=int, default=10_000, help="rewards in workers")
    parser.add_argument("--workers", type=int, default=2, help="worker processes")
    parser.add_argument("--timeout", type=float, default=1.0, help="seconds before one is ended")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    given = parser.parse_args()
    results: dict[str, Any] = {
        "bleu": measure_bleu(given.texts, given.rounds),
        "exact_match": measure_exact_match(10 * given.texts, given.rounds),
        "workers": measure_workers(given.isolated, given.workers, given.timeout),
    }
    bleu, exact, faults = results["bleu"], results["exact_match"], results["workers"]
    print(f"bleu / bare sacrebleu, 20 words   {bleu['ratio']:.2f}   ({bleu['bleu_per_s']:,.0f}/s)")
    for name, speed in exact.items():
        print(f"exact_match, {name.removesuffix('_per_s'):<20} {speed:,.0f}/s")
    print(f"{given.isolated:,} rewards in {given.workers} workers   {faults['wall_s']:.1f} s")
    for name, planned in faults["planned"].items():
        print(f"  {name:<14} planned {planned:>6,}   counted {faults['counted'].get(name, 0):>6,}")
    print(f"  right scores   {faults['right_scores']:,}")
    print("every fault counted exactly" if faults["exact"] else "FAULTS WERE MISCOUNTED")
    if given.json is not None:
        given.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0 if faults["exact"] else 1


if __name__ == "__main__":
    sys.exit(main())
