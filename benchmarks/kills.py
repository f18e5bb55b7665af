"""Kills training runs wherever they can die, and holds what they end with against whole runs.

``python -m benchmarks.kills`` (or ``make kill-test``) kills short runs of the tiny model through
the real command line: at every place of ``instructrec.crash_points``, at random moments, and twice
in a row, the second time while the run recovers. Each is then resumed, and has to end with the
same weights, critic, moments, generators, rollouts, numbers and evaluations as one that was never
stopped. The table goes to ``benchmarks/results/kills.md``.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.kill_run import GIVEN, RUNS, UPDATES, Ended, Runner, committed, faults, outcome
from instructrec.crash_points import CRASH_POINTS

RESULTS = Path(__file__).parent / "results" / "kills.md"
MEMORY = Path("/dev/shm")
"""Where runs lie, if it is there: what kill -9 leaves is the same on any disk, and this is fast."""
_AT_START = ("resume.opened", "resume.trimmed", "resume.restored", "fit.restored")
_PPO_ALONE = (*("rollout.", "update.", "metrics.written", "resume.restored", "export.moved_aside"),)
"""Places (or, ending in a dot, groups) that training on given examples does not come by."""
SHORT = (
    *("update.stepped", "rows.half:2", "checkpoint.file.begun:9", "checkpoint.renamed:2"),
    *("prune.half:1", "resume.trimmed", "export.half"),
)
"""Places of the short set."""
SHORT_GIVEN = {
    "sft": ("fit.stepped:2", "fit.reported:2", "checkpoint.renamed:2", "export.half"),
    "dpo": ("fit.reported:2",),
    "reward_model": ("fit.stepped:2", "export.half"),
}
"""Those of training on given examples in it."""


@dataclass(frozen=True)
class Case:
    """A way to be killed."""

    name: str
    """Place, with its number where it is passed often; or what else is done."""
    kind: str
    """Kind of run."""
    attack: Callable[[Runner], int]
    """Kills the run as often as it returns."""


@dataclass(frozen=True)
class Result:
    """How a case ended."""

    case: Case
    planned: int
    """Kills that there should have been."""
    seen: int
    """Update of the newest checkpoint that was there after the last kill."""
    resumed: int
    """Update that the run went on from."""
    faults: list[str]
    """What was wrong in the end."""


def at(place: str) -> Callable[[Runner], int]:
    """Kills a run at a place, which ``name:time`` gives."""
    name = place.partition(":")[0]

    def attack(runner: Runner) -> int:
        kills = 0
        if name in _AT_START:  # a run that goes on has to have been stopped
            kills += _killed(runner.start(crash_at=f"{_reported(runner.kind)}:3"))
        elif name == "resume.quarantined":
            kills += _killed(runner.start(crash_at="checkpoint.committed:3"))
            _damage(runner.run / "checkpoints" / "update-000003" / "optimizer.safetensors")
        elif name == "export.moved_aside":
            ended = runner.start()  # a policy is there to be replaced
            assert ended.code == 0, ended.output
        resume = ["--resume"] if runner.run.exists() else []
        return kills + _killed(runner.start(*resume, crash_at=place))

    return attack


def twice(first: str, second: str) -> Callable[[Runner], int]:
    """Kills a run at a place, and its continuation at another."""

    def attack(runner: Runner) -> int:
        kills = _killed(runner.start(crash_at=first))
        return kills + _killed(runner.start("--resume", crash_at=second))

    return attack


def sometime(share: float, times: int, whole_s: float) -> Callable[[Runner], int]:
    """Kills a run and its continuations after a share of the time that a whole one takes."""

    def attack(runner: Runner) -> int:
        for number in range(times):
            after_s = share * whole_s
            resume = ["--resume"] if number else []
            while not runner.start_and_kill(after_s, *resume).signal:
                after_s /= 2  # it was faster than expected: it has to be killed all the same
                if not number:
                    shutil.rmtree(runner.run)
        return times

    return attack


def moves_aside(runner: Runner) -> int:
    """A commit over a checkpoint of the same update, which a run itself has no reason for."""
    kills = _killed(runner.start(crash_at="checkpoint.committed:2"))
    folder = runner.run / "checkpoints"
    (folder / "update-000002").rename(folder / ".replaced-update-000002")
    return kills


def cases(kinds: Sequence[str], chances: int, seed: int, whole_s: float) -> Iterator[Case]:
    """The full set: every place, random moments, and kills in a row."""
    yield from _of_ppo([kind for kind in kinds if kind not in GIVEN])
    yield from _of_given([kind for kind in kinds if kind in GIVEN])
    draws = random.Random(seed)
    for number in range(chances):
        times = 2 if number % 4 == 3 else 1
        share = draws.random()
        name = f"after {share:.3f} of the time" + (" twice" if times > 1 else "")
        yield Case(name, kinds[number % len(kinds)], sometime(share, times, whole_s))


def _reported(kind: str) -> str:
    """The place behind an update or step that is recorded, before its checkpoint."""
    return "fit.reported" if kind in GIVEN else "update.reported"


def _of_given(kinds: Sequence[str]) -> Iterator[Case]:
    """Every place that training on given examples comes by, in turn, and kills in a row.

    The first kind is killed at all of them, the others take turns.
    """
    places = [name for name in CRASH_POINTS if not name.startswith(_PPO_ALONE)]
    for number, name in enumerate(places):
        answers = name == "evaluation.answered"  # which a reward model never does
        others = [k for k in kinds[1:] if not (answers and k == "reward_model")]
        for kind in [*kinds[:1], *others[number % max(len(others), 1) :][:1]]:
            yield Case(name, kind, moves_aside if name == "checkpoint.moved_aside" else at(name))
        if name.startswith(("fit.stepped", "fit.reported", "rows.", "checkpoint.file.")):
            yield from (Case(f"{name}:4", kind, at(f"{name}:4")) for kind in kinds[:1])
    for second in ("resume.opened", "resume.trimmed", "fit.restored", "checkpoint.renamed"):
        for kind in kinds:
            first = "fit.reported:2"
            yield Case(f"{first}, then {second}", kind, twice(first, second))


def _of_ppo(kinds: Sequence[str]) -> Iterator[Case]:
    """Every place that PPO comes by, and kills in a row."""
    places = [name for name in CRASH_POINTS if not name.startswith("fit.")]
    for number, name in enumerate(places):
        kind = kinds[number % len(kinds)]
        if name == "checkpoint.moved_aside":
            yield Case(name, kind, moves_aside)
            continue
        yield Case(name, kind, at(name))
    for number, name in enumerate(places):
        kind = kinds[(number + 1) % len(kinds)]
        if name.startswith(("update.", "rollout.", "rows.")):
            yield Case(f"{name}:4", kind, at(f"{name}:4"))
        if name.startswith("checkpoint.file."):
            later = f"{name}:{7 + number % 5}"
            yield Case(later, kind, at(later))
        if name == "checkpoint.committed":  # nothing is left to do but to measure the end
            yield Case(f"{name}:{UPDATES}", kind, at(f"{name}:{UPDATES}"))
        if name == "evaluation.answered":  # three while it trains: the fourth is at the end
            yield Case(f"{name}:4", kind, at(f"{name}:4"))
        if name.startswith("prune."):  # there is less to delete than to write
            yield Case(f"{name}:2", kind, at(f"{name}:2"))
    starts = [name for name in _AT_START if name in places]
    for second in (*starts, "rollout.scored", "checkpoint.sealed", "checkpoint.renamed"):
        for kind in kinds:
            yield Case(
                f"update.reported:2, then {second}", kind, twice("update.reported:2", second)
            )


def short_cases(kind: str, whole_s: float) -> Iterator[Case]:
    """A few of each sort, of a kind of PPO run and of training on given examples."""
    for place in SHORT:
        yield Case(place, kind, at(place))
    first, second = "update.reported:2", "checkpoint.sealed"
    yield Case(f"{first}, then {second}", kind, twice(first, second))
    yield Case("after 0.600 of the time", kind, sometime(0.6, 1, whole_s))
    for given, places in SHORT_GIVEN.items():
        for place in places:
            yield Case(place, given, at(place))


def try_case(case: Case, folder: Path, expected: dict[str, Any]) -> Result:
    """Kills a run, resumes it, and looks at what it ends with."""
    runner = Runner(folder, case.kind)
    try:
        kills = case.attack(runner)
    except AssertionError as error:  # it was not killed as planned
        shutil.rmtree(folder)
        return Result(case, 0, 0, 0, [str(error)])
    seen = committed(runner.run)
    ended = runner.start("--resume")
    problems = [] if ended.code == 0 else [f"exit code {ended.code}: {ended.output[-300:]}"]
    resumed = _resumed(ended)
    corrupt = len(list((runner.run / "checkpoints").glob(".corrupt-*")))
    if resumed < seen - corrupt:
        problems.append(f"went on from update {resumed} although {seen} was committed")
    if ended.code == 0:
        problems += faults(runner.run, expected)
    shutil.rmtree(folder)
    return Result(case, kills, seen, resumed, problems)


def _killed(ended: Ended) -> int:
    assert ended.signal == signal.SIGKILL, f"it was not killed: {ended.code}, {ended.output[-500:]}"
    return 1


def _damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _resumed(ended: Ended) -> int:
    for line in ended.output.splitlines():
        if line.startswith(("resuming after update ", "resuming after step ")):
            return int(line.split()[-1])
    return 0


def table(results: Sequence[Result], seconds: float, seed: int) -> str:
    """The results as a page."""
    kills = sum(result.planned for result in results)
    wrong = [result for result in results if result.faults]
    lines = [
        "# Runs that were killed",
        "",
        f"{len(results)} runs of {UPDATES} updates or steps with {kills} kills (SIGKILL), each "
        f"resumed to its end; {len(results) - len(wrong)} ended bit for bit as the run that was "
        f"never stopped. Made by `python -m benchmarks.kills --seed {seed}` in {seconds / 60:.0f} "
        "minutes on a machine that other programs shared. `full` trains all weights with a "
        "curriculum and running normalisation, `lora` trains adapters with dropout over several "
        "turns; both adapt the KL coefficient. `sft` is supervised training with dropout, whose "
        "best weights are chosen by sampled responses, as those of `dpo` are; `reward_model` is "
        "`train-reward`.",
        "",
        "| killed at | run | kills | newest checkpoint then | went on from | outcome |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for r in results:
        end = "; ".join(r.faults).replace("|", "/").replace("\n", " ") or "equal"
        lines.append(
            f"| {r.case.name} | {r.case.kind} | {r.planned} | {r.seen} | {r.resumed} | {end} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 1 where a run did not end as it should."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kills", description=__doc__)
    parser.add_argument("--short", action="store_true", help="a few cases of one kind of run")
    parser.add_argument("--chances", type=int, default=40, help="runs killed at random moments")
    parser.add_argument("--seed", type=int, default=0, help="seed of these moments")
    parser.add_argument("--only", default="", help="only cases whose names begin like this")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the table goes")
    options = parser.parse_args(arguments)
    begin = time.monotonic()
    _import_everything()
    kinds = ["full", *GIVEN] if options.short else list(RUNS)
    results: list[Result] = []
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as name:
        place, expected, whole_s = Path(name), {}, 0.0
        for kind in kinds:
            runner = Runner(place / f"whole-{kind}", kind)
            # By a process of its own: what depends on the order of hashes would differ here.
            whole = runner.start() if options.short else runner.start_anew()
            assert whole.code == 0, whole.output
            expected[kind] = outcome(runner.run)
            again = Runner(place / f"again-{kind}", kind)
            whole_s = max(whole_s, again.start().seconds)
            assert not (wrong := faults(again.run, expected[kind])), wrong
        todo = (
            list(short_cases("full", whole_s))
            if options.short
            else list(cases(kinds, options.chances, options.seed, whole_s))
        )
        todo = [case for case in todo if case.name.startswith(options.only)]
        for number, case in enumerate(todo, start=1):
            results.append(try_case(case, place / f"case-{number}", expected[case.kind]))
            said = "; ".join(results[-1].faults) or "equal"
            print(f"{number}/{len(todo)}  {case.name} ({case.kind}): {said}", flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(table(results, time.monotonic() - begin, options.seed))
    print(f"table: {options.out}")
    return 1 if any(result.faults for result in results) else 0


def _import_everything() -> None:
    import torch

    import instructrec.experiments.evaluate_policy
    import instructrec.experiments.learn_preferences
    import instructrec.experiments.reward_run
    import instructrec.experiments.train
    import instructrec.policies.causal_lm
    import instructrec.rl.ppo  # noqa: F401

    torch.set_num_threads(1)


if __name__ == "__main__":
    sys.exit(main())
