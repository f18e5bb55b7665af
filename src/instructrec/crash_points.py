"""Named places where a run may be made to die, so that dying there can be tried out.

Code says where it is with ``crash_point("checkpoint.renamed")``. That does nothing unless the
environment names the place: ``INSTRUCTREC_CRASH_AT=checkpoint.renamed`` kills the process there as
``kill -9`` would, ``checkpoint.renamed:3`` the third time that it comes by, and
``checkpoint.renamed:3:TERM`` sends it another signal.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

VARIABLE = "INSTRUCTREC_CRASH_AT"
"""Environment variable that names a place: ``name[:time[:signal]]``."""

CRASH_POINTS = {
    "run.created": "the run folder has its settings and nothing else",
    "rollout.answered": "answers were drawn, none of them is scored",
    "rollout.scored": "answers are scored, the rewards have counted them, nothing is learned",
    "update.stepped": "the optimizer has stepped, the schedule has not",
    "update.learned": "the update is over, no number of it is written",
    "evaluation.answered": "an evaluation has answers that are in no file yet",
    "rows.half": "half of a line is in a file of rows (numbers, samples, evaluations)",
    "metrics.written": "the numbers of the update are on the disk, its samples are not",
    "update.reported": "all of the update is recorded, its checkpoint is not begun",
    "fit.stepped": "training on given examples has taken a step, no number of it is written",
    "fit.reported": "all of such a step is recorded, its checkpoint is not begun",
    "checkpoint.staged": "the checkpoint's staging folder is there and empty",
    "checkpoint.file.opened": "a file of the checkpoint is there and empty",
    "checkpoint.file.begun": "a file of the checkpoint is written in part",
    "checkpoint.file.flushed": "a file of the checkpoint is whole and on the disk",
    "checkpoint.unsealed": "all files but the manifest are there",
    "checkpoint.sealed": "the manifest is there, the staging folder is not flushed",
    "checkpoint.flushed": "the staging folder is whole and on the disk",
    "checkpoint.moved_aside": "an older checkpoint of the same update has made room",
    "checkpoint.renamed": "the checkpoint has its name, which may not be on the disk",
    "checkpoint.committed": "the checkpoint is whole, named and on the disk",
    "prune.renamed": "a checkpoint that is no longer kept has lost its name",
    "prune.half": "some files of such a checkpoint are deleted",
    "resume.opened": "a run that goes on has found its checkpoint and changed nothing",
    "resume.quarantined": "damaged checkpoints have lost their names",
    "resume.trimmed": "numbers behind the checkpoint are dropped, samples and warnings are not",
    "resume.restored": "everything of the checkpoint is put back",
    "fit.restored": "everything of the checkpoint of training on given examples is put back",
    "export.half": "the exported policy or reward model is written under another name",
    "export.moved_aside": "the policy of before has made room for the new one",
    "finish.summary": "the summary is written, the run is not yet called finished",
}
"""Every place by name, and what is true there."""

_seen: Counter[str] = Counter()
_listener: Callable[[str], None] | None = None


def crash_point(name: str, last_act: Callable[[], None] | None = None) -> None:
    """Dies here if the environment says so.

    Args:
        name: One of ``CRASH_POINTS``.
        last_act: What is done before dying, and else not at all.
    """
    if _listener is not None:
        _listener(name)
    if VARIABLE not in os.environ:
        return
    wanted, _, rest = os.environ[VARIABLE].partition(":")
    if wanted == name:
        time, _, how = rest.partition(":")
        _seen[name] += 1
        if _seen[name] == int(time or 1):
            if last_act is not None:
                last_act()
            os.kill(os.getpid(), signal.Signals[f"SIG{how or 'KILL'}"])


@contextmanager
def listening(listener: Callable[[str], None]) -> Iterator[None]:
    """Tells the listener of every place that is passed while the block lasts."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before
