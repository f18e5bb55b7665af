"""``instructrec doctor``: is everything here that a run needs, and what would it get?

Every look is on its own: one that fails says so, and the others go on. No secret is ever shown.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import netrc
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from instructrec.errors import InstructRecError, PolicyError
from instructrec.experiments import machine
from instructrec.experiments.listing import table

State = Literal["ok", "note", "broken"]
FEATURES = {
    "agents": "value-based agents on candidate environments",
    "evaluate": "corpus metrics and hf_metric rewards",
    "export": "int8 export",
    "docs": "make docs: the documentation as a site",
    "dashboard": "instructrec dashboard: a saved view of a W&B project",
    "trackio": "tracking.report_to: [trackio]",
    "sweep": "instructrec sweep",
    "ifeval": "language detection as in IFEval",
    "code": "HumanEval, with which the sandbox for model-written code is tested",
    "label": "instructrec label at a terminal",
    "judge": "rewards by a language model behind a server",
    "maths": "rewards by mathematical equality",
    "quantized": "QLoRA: a base in 4 bits (GPU)",
    "reasoning-gym": "the tasks and rewards of reasoning-gym",
    "translation": "the task cldr_names",
}
"""Extra of the package -> what it is for."""
Requirements = Sequence[tuple[str, str | None]]
"""Packages and the extra that each is for; None for those of every run."""
LITTLE_MEMORY = 4 * 2**30
"""Bytes of free memory below which a run of the embedded model may not fit."""
LITTLE_DISK = 5 * 2**30
"""Bytes of free disk below which checkpoints may not fit."""


@dataclass(frozen=True)
class Finding:
    """What one look found."""

    name: str
    """What was looked at."""
    state: State
    """ok, note (works, but somebody may want to know) or broken (a run would fail)."""
    text: str
    """What it is, and what to do about it."""


Look = Callable[[], list[Finding]]
"""Looks at one thing; what it raises counts as broken."""


def examine(looks: Mapping[str, Look] | None = None) -> list[Finding]:
    """Looks at everything; takes some seconds, because torch and TRL are imported.

    Args:
        looks: Name -> what looks; None takes all.
    """
    found = []
    for name, look in (looks or LOOKS).items():
        try:
            found += look()
        except Exception as error:  # of whatever library is damaged
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            found.append(Finding(name, "broken", reason))
    return found


def run_doctor(as_json: bool = False, looks: Mapping[str, Look] | None = None) -> None:
    """Examines and prints.

    Args:
        as_json: Print JSON instead of a table.
        looks: As of `examine`.

    Raises:
        InstructRecError: Something that a run needs is broken.
    """
    found = examine(looks)
    if as_json:
        print(json.dumps([asdict(finding) for finding in found], indent=2))
    else:
        print(table([(_mark(f.state), f.name, f.text) for f in found]))
    broken = [finding.name for finding in found if finding.state == "broken"]
    if broken:
        raise InstructRecError(
            f"{len(broken)} of {len(found)} looks found something broken ({', '.join(broken)}): a "
            "run would fail. The lines above say what to do."
        )


def _mark(state: State) -> str:
    return {"ok": "ok", "note": "note", "broken": "BROKEN"}[state]


def _versions() -> list[Finding]:
    found = machine.versions()
    about = machine.machine_info()
    commit = machine.git_commit()
    shown = ", ".join(f"{name} {version}" for name, version in found.items())
    return [
        Finding("versions", "ok", shown + (f", commit {commit[:12]}" if commit else "")),
        Finding("machine", "ok", f"{about['os']}, {about['cpu']}, {about['cores']} cores"),
    ]


def packages(
    needed: Requirements | None = None, installed: Callable[[str], bool] | None = None
) -> list[Finding]:
    """Looks for the packages that every run needs, and for those of the extras.

    Args:
        needed: What is looked for; None takes the requirements of this package.
        installed: Says whether a package is there.
    """
    installed = installed or _installed
    by_extra: dict[str | None, list[str]] = {}
    for package, extra in requirements() if needed is None else needed:
        by_extra.setdefault(extra, []).append(package)
    gone = {extra: [p for p in found if not installed(p)] for extra, found in by_extra.items()}
    if missing := gone.pop(None, []):
        how = f"missing: {', '.join(missing)}. Run: pip install {' '.join(missing)}"
        found = [Finding("packages", "broken", how)]
    else:
        found = [Finding("packages", "ok", "all that a run needs are installed")]
    for extra in sorted(FEATURES.keys() & gone.keys()):
        what = FEATURES[extra]
        state: State = "note" if gone[extra] else "ok"
        if gone[extra]:
            what = f"missing, for {what}: pip install 'instructrec[{extra}]'"
        found.append(Finding(f"extra {extra}", state, what))
    return found


def requirements() -> Requirements:
    """Returns the requirements of this package."""
    found = []
    for line in metadata.requires("instructrec") or []:
        extra = re.search(r"extra == ['\"]([^'\"]+)['\"]", line)
        found.append((re.split(r"[^\w.-]", line, maxsplit=1)[0], extra[1] if extra else None))
    return found


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _device() -> list[Finding]:
    import torch

    from instructrec import devices

    device = devices.pick_device()
    found = [Finding("device", "ok", devices.describe(device))]
    if device.type == "cpu":
        abilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        has = [name for name in ("amx_bf16", "avx512_bf16") if abilities.get(name)]
        told = f"bfloat16 in hardware ({', '.join(has)})" if has else "no bfloat16 in hardware"
        found.append(
            Finding("precision", "ok" if has else "note", f"{told}; auto computes in "
                    f"{str(devices.pick_dtype('auto', device)).removeprefix('torch.')}")
        )  # fmt: skip
        found.append(_threads(torch.get_num_threads()))
    else:
        dtype = str(devices.pick_dtype("auto", device)).removeprefix("torch.")
        found.append(Finding("precision", "ok", f"auto computes in {dtype}"))
    return found


def _threads(used: int) -> Finding:
    cores = machine.machine_info()["cores"] or used
    given = os.environ.get("OMP_NUM_THREADS")
    told = f"{used} thread{'s' if used != 1 else ''} on {cores} cores" + (
        f" (OMP_NUM_THREADS={given})" if given else ""
    )
    if used > cores:
        return Finding("threads", "note", f"{told}: more threads than cores make each slower")
    return Finding("threads", "ok", told)


def _training() -> list[Finding]:
    """Whether the trainer can be imported, TRL included."""
    importlib.import_module("instructrec.rl.ppo")
    return [Finding("training", "ok", "PPO, RAFT and SFT can be imported")]


def _memory() -> list[Finding]:
    total, free = machine.machine_info()["memory_bytes"], _free_memory()
    if free is None:
        known = "unknown" if total is None else f"{total / 2**30:.1f} GiB"
        return [Finding("memory", "ok", known)]
    told = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free" if total else f"{free} bytes free"
    if free < LITTLE_MEMORY:
        return [Finding("memory", "note", f"{told}: a run of the embedded model may not fit")]
    return [Finding("memory", "ok", told)]


def _free_memory() -> int | None:
    """Bytes that can be had, by the system and by the limit of a container; None if unknown."""
    found = []
    try:
        text = Path("/proc/meminfo").read_text(encoding="utf-8")
        found.append(int(re.findall(r"MemAvailable:\s*(\d+) kB", text)[0]) * 1024)
    except (OSError, IndexError):
        return None
    try:
        group = Path("/sys/fs/cgroup")
        most = int((group / "memory.max").read_text(encoding="utf-8"))
        found.append(most - int((group / "memory.current").read_text(encoding="utf-8")))
    except (OSError, ValueError):  # no limit
        pass
    return min(found)


def _disk() -> list[Finding]:
    from instructrec.policies.embedded import cache_folder

    found = []
    for name, folder in (("disk here", Path.cwd()), ("disk of the cache", cache_folder())):
        place = next(p for p in (folder, *folder.parents) if p.exists())
        free = shutil.disk_usage(place).free
        told = f"{free / 2**30:.1f} GiB free in {folder}"
        if not os.access(place, os.W_OK):
            found.append(Finding(name, "broken", f"{place} cannot be written to"))
        elif free < LITTLE_DISK:
            found.append(Finding(name, "note", f"{told}: checkpoints may not fit"))
        else:
            found.append(Finding(name, "ok", told))
    return found


def _embedded() -> list[Finding]:
    from instructrec.policies.embedded import EMBEDDED_NAME, cache_folder, find_gguf

    try:
        find_gguf()
    except PolicyError as error:
        return [Finding("embedded model", "note", str(error))]
    converted = any((cache_folder() / "models").glob(f"{EMBEDDED_NAME}*/config.json"))
    told = "converted already" if converted else "it will be converted on first use, about 20 s"
    return [Finding("embedded model", "ok", f"{EMBEDDED_NAME} is installed; {told}")]


def _hub() -> list[Finding]:
    from huggingface_hub import constants, get_token

    offline = "HF_HUB_OFFLINE is set: models come from this disk alone"
    place = offline if constants.HF_HUB_OFFLINE else "asked when a model is not on this disk"
    token = "a token is stored" if get_token() else "no token (gated models need `hf auth login`)"
    return [Finding("hub", "ok", f"{place}; {token}")]


def _tracking() -> list[Finding]:
    from instructrec.experiments.config import TrainConfig

    mode, has_key = TrainConfig().tracking.wanted_mode, _has_wandb_key()
    if mode == "auto":
        mode = "online" if has_key else "offline"
    key = "a key is stored" if has_key else "no key (`wandb login` stores one)"
    told = {"offline": ", `instructrec runs sync` sends them later"}.get(mode, "")
    if mode == "online" and not has_key:
        return [Finding("W&B", "note", f"online is asked for, but {key}: runs will be offline")]
    return [Finding("W&B", "ok", f"{key}; runs are {mode}{told}")]


def _has_wandb_key() -> bool:
    """Whether W&B would find a key: its own look finds none while it is told to be offline."""
    import wandb

    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(wandb.Settings().base_url).hostname or ""
    places = [os.environ.get("NETRC"), "~/.netrc", "~/_netrc"]
    for file in (Path(place).expanduser() for place in places if place):
        try:
            if file.is_file() and netrc.netrc(file).authenticators(host):
                return True
        except netrc.NetrcParseError:
            continue
    return False


LOOKS: Mapping[str, Look] = {
    "versions": _versions,
    "packages": packages,
    "device": _device,
    "training": _training,
    "memory": _memory,
    "disk": _disk,
    "embedded model": _embedded,
    "hub": _hub,
    "W&B": _tracking,
}
"""What is looked at, in this order."""
