"""``instructrec export``: a policy as a plain folder, in the precision asked for, with its card."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from instructrec.choices import check_choices
from instructrec.errors import CheckpointError, ConfigError, PolicyError
from instructrec.experiments import model_card, setup_run, telling, verification
from instructrec.experiments.jsonl import read_json, write_atomic
from instructrec.experiments.report_reading import read_run
from instructrec.experiments.runfolder import RunFolder
from instructrec.experiments.staging import staged
from instructrec.policies.config import LoraSettings, PolicyConfig, Sampling

if TYPE_CHECKING:
    from instructrec.policies.model_policy import ModelPolicy


@dataclass(frozen=True)
class ExportConfig:
    """Where a policy goes, and in what form (``instructrec export``)."""

    out: str
    """Folder of the model; it must not exist, or be empty, unless --overwrite is given."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the weights."""
    quantize: Literal["int8"] | None = None
    """int8 keeps the matrices in 8 bits (needs the extra `export`)."""
    push: str | None = None
    """Repository of the hub to upload to, owner/name; it is made when missing."""
    private: bool = True
    """Whether a repository that is made is private."""

    def __post_init__(self) -> None:
        check_choices(self)


def export_policy(
    policy: str,
    config: ExportConfig,
    *,
    overwrite: bool = False,
    say: telling.Say = telling.say,
) -> Path:
    """Writes a policy as a folder that plain transformers loads, and uploads it when asked.

    Args:
        policy: A run folder, a Hugging Face folder or hub id, or a model name.
        config: See `ExportConfig`.
        overwrite: Replace a model that lies in the folder.
        say: Receives lines for people.

    Returns:
        The folder.

    Raises:
        ConfigError: The folder is taken, an extra is missing, or the hub cannot be reached from
            here; nothing was written.
        PolicyError: The policy cannot be loaded, its weights are not those that its run recorded,
            or the upload failed.
    """
    out = Path(config.out)
    _check_place(out, overwrite)
    if config.quantize is not None:
        from instructrec.policies.exporting import check_int8

        check_int8()
    if config.push is not None:
        _check_hub(config.push)
    loaded, run = _load(policy)
    if config.quantize is not None and _asked_by(loaded):
        raise ConfigError(
            f"quantize = {config.quantize!r}, but {policy!r} answers labels: expected a policy "
            "that writes text. Leave --quantize out; --dtype bfloat16 halves the size."
        )
    with staged(out) as folder:
        _write(loaded, folder, config)
        write_atomic(folder / "README.md", _card(policy, loaded, run, config))
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    form = "int8" if config.quantize else config.dtype
    say(f"exported  {out} ({form}, {size / 1e6:.0f} MB)")
    if config.push is not None:
        _push(out, config.push, config.private)
        say(f"pushed    {config.push}")
    return out


def _check_place(out: Path, overwrite: bool) -> None:
    here = Path.cwd()
    if out.resolve() in (here, *here.parents):
        raise ConfigError(
            f"out = {str(out)!r} is the folder that this command runs in, or holds it: expected "
            "one of its own, which is made when missing."
        )
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise ConfigError(
            f"{out} exists already: expected a new folder. Choose another one with --out, or pass "
            "--overwrite."
        )
    if (out / "run.json").exists() or not _is_model(out):
        raise ConfigError(
            f"{out} was not overwritten: it holds no exported model (no config.json of one, or a "
            "run). Move it away yourself, or choose another folder."
        )


def _is_model(folder: Path) -> bool:
    """Whether a folder has the settings of a model; many programs have a config.json."""
    try:
        return "model_type" in read_json(folder / "config.json")
    except CheckpointError:
        return False


def _check_hub(repository: str) -> None:
    """Refuses an upload that cannot work, before anything is loaded."""
    from huggingface_hub import constants, get_token

    if repository.count("/") != 1 or not all(repository.split("/")):
        raise ConfigError(f"push = {repository!r}: expected owner/name.")
    if constants.HF_HUB_OFFLINE:
        raise ConfigError(
            f"push = {repository!r}, but HF_HUB_OFFLINE is set: expected a network. Unset it, or "
            "leave --push out and upload the folder later with `hf upload`."
        )
    if get_token() is None:
        raise ConfigError(
            f"push = {repository!r}, but no token of the hub is stored here. Run: hf auth login"
        )


def _load(policy: str) -> tuple[ModelPolicy, RunFolder | None]:
    """Loads a policy as it was trained, on the CPU, and checks a run's weights."""
    run = RunFolder.open(policy) if (Path(policy) / "run.json").is_file() else None
    before: dict[str, Any] = {} if run is None else run.config().get("policy", {})
    # A saved adapter knows its layers.
    layers = () if before.get("train") == "lora" else ("num_layers",)
    names = ("train", *layers, "system_prompt", "quantization")
    settings = PolicyConfig(
        model=setup_run.model_folder(policy),
        dtype="float32",
        device="cpu",
        lora=LoraSettings(**before.get("lora", {})),
        **{name: before[name] for name in names if name in before},
    )
    loaded = setup_run.load(settings, 0, Sampling(temperature=0.0))
    if run is not None:
        verification.check_loaded(loaded.weights_hash(), run)
    return loaded, run


def _write(loaded: ModelPolicy, folder: Path, config: ExportConfig) -> None:
    from instructrec.policies.exporting import write_int8, write_merged

    if config.quantize is None:
        write_merged(loaded, folder, config.dtype)
        return
    with TemporaryDirectory(prefix=".whole-", dir=folder.parent) as whole:
        write_merged(loaded, Path(whole), config.dtype)
        write_int8(Path(whole), folder)


def _asked_by(loaded: ModelPolicy) -> str:
    """How a policy that answers labels is asked; empty for one that writes text."""
    return str(getattr(loaded, "asked_by", ""))


def _card(policy: str, loaded: ModelPolicy, run: RunFolder | None, config: ExportConfig) -> str:
    known: dict[str, Any] = {
        "exported": True,
        "labels": _asked_by(loaded),
        "dtype": config.dtype,
        "int8": config.quantize is not None,
    }
    if run is None:
        return model_card.card_of_model(policy, model_card.Weights(**known))
    return model_card.card_of_run(read_run(run.path), model_card.weights_of(run.config(), **known))


def _push(folder: Path, repository: str, private: bool) -> None:
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder)
    except Exception as error:  # of the network, of the hub, of the token
        raise PolicyError(
            f"the upload to {repository!r} failed: {' '.join(str(error).split())[:300]} The model "
            f"lies in {folder}; `hf upload {repository} {folder}` tries again."
        ) from error
