"""The argument parser of the console command: layered YAML, dotted overrides, suggestions.

A thin layer over jsonargparse. It turns leading recipes into ``--config``, reads attribute
docstrings as help, and words every mistake as one ``ConfigError`` with the closest known key.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from instructrec.errors import ConfigError, did_you_mean, unknown_name
from instructrec.experiments.yaml_files import limit_parser, read_yaml
from instructrec.rewards.parts import RewardSpec
from instructrec.rl.trl_names import explain_trl_name

RECIPES = Path(__file__).parent / "recipes"
_UNKNOWN = (
    re.compile(r"unrecognized arguments: --(?P<key>[^\s=]+)"),
    re.compile(r"Group '(?P<group>[^']+)' does not accept option '(?P<key>[^']+)'"),
    re.compile(r"Option '(?P<key>[^']+)' is not accepted"),
)
_WRONG_VALUE = re.compile(
    r'Parser key "(?P<key>[^"]+)"(?P<element> element \d+)?: '
    r"Expected a (?P<kind>int|tuple|Literal\[.*\])\. Got value: (?P<given>.*)",
    re.DOTALL,
)
_REPLACED = {
    "ppo.stop_on": "each monitor has a rule of its own: ppo.monitors.NAME.action = 'stop'",
    "ppo.stop_after": "each monitor has a rule of its own: ppo.monitors.NAME.patience",
}
"""Keys that are gone, and what says the same now."""
_REWARD_KEYS = tuple(field.name for field in dataclasses.fields(RewardSpec))

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
limit_parser()


def make_parser(prog: str, description: str) -> jsonargparse.ArgumentParser:
    """Makes a parser whose mistakes are raised, and which never guesses abbreviated options."""
    return jsonargparse.ArgumentParser(
        prog=prog, description=description, exit_on_error=False, allow_abbrev=False
    )


def add_config_file(parser: jsonargparse.ArgumentParser, *, recipes: bool = True) -> None:
    """Adds ``--config FILE`` (repeatable, later files win).

    Args:
        parser: The command's.
        recipes: Whether the command takes recipes, which may stand first instead.
    """
    parser.add_argument(
        "--config",
        action="config",
        metavar="RECIPE" if recipes else "FILE",
        help="YAML file with settings; may be given several times, later ones win."
        + (
            " A recipe (path or shipped name) given as the first argument means the same." * recipes
        ),
    )


def add_allow_change(
    parser: jsonargparse.ArgumentParser, example: str, data: str, more: str = ""
) -> None:
    """Adds ``--allow_change``.

    Args:
        parser: The command's.
        example: A key of it.
        data: What its data is.
        more: What else may differ, each with a comma behind it.
    """
    parser.add_argument(
        "--allow_change",
        nargs="+",
        default=[],
        metavar="KEY",
        help="With --resume: go on although these differ from the start of the run: keys such as "
        f"{example}, data ({data}), {more}versions (of libraries).",
    )


def recipe_names() -> list[str]:
    """Names of the shipped recipes, sorted."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


COMMAND_OF = {
    "sft": "sft",
    "dpo": "dpo",
    "pipeline": "pipeline",
    "reward_model": "train-reward",
    "alignment": "train-reward",
}
"""Algorithm of a recipe -> the command that takes it; all others belong to train."""


def command_of(settings: Mapping[str, Any]) -> str:
    """The command that takes a recipe with these settings."""
    return COMMAND_OF.get(str(settings.get("algorithm")), "train")


def find_recipe(given: str) -> Path:
    """Finds a recipe by path or by shipped name (``-`` and ``_`` are the same).

    Raises:
        ConfigError: There is neither such a file nor such a shipped recipe, or the file is not
            a YAML mapping.
    """
    path = Path(given)
    if not path.is_file():
        shipped = RECIPES / f"{path.stem.replace('-', '_')}.yaml"
        if path.parent != Path() or not shipped.is_file():
            if path.is_dir():
                raise ConfigError(
                    f"{given} is a folder: expected a recipe, by its name or as a YAML file. A run "
                    f"folder keeps its settings in {path / 'config.yaml'}."
                )
            raise ConfigError(
                unknown_name("recipe", given, recipe_names())
                + " A recipe is one of these names or the path of a YAML file."
            )
        path = shipped
    _check_yaml(path)
    return path


def _check_yaml(path: Path) -> None:
    try:
        value = read_yaml(path)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        detail = " ".join(str(error).split()).replace("<unicode string>", str(path))
        raise ConfigError(f"{path} is not valid YAML: {detail}.") from error
    if value is not None and not isinstance(value, dict):
        raise ConfigError(
            f"{path} holds a {type(value).__name__}: expected `key: value` settings, as "
            "`--print_config` prints them."
        )


def recipes_to_config(arguments: Sequence[str]) -> list[str]:
    """Rewrites leading recipes: ``["a.yaml", "--seed", "2"]`` -> ``["--config", "<a>", ...]``.

    What ``--config`` names is looked up in the same way.
    """
    rewritten: list[str] = []
    rest = list(arguments)
    while rest and not rest[0].startswith("-"):
        rewritten += ["--config", str(find_recipe(rest.pop(0)))]
    for word in rest:
        if rewritten and rewritten[-1] == "--config":
            word = _as_file(word)
        elif word.startswith("--config="):
            word = f"--config={_as_file(word.removeprefix('--config='))}"
        rewritten.append(word)
    return rewritten


def _as_file(given: str) -> str:
    """The file of a recipe; settings written out in place, which the parser reads, stay."""
    return given if not given or set(given) & set(":{\n") else str(find_recipe(given))


def refuse_bare(name: str, arguments: Sequence[str]) -> None:
    """Refuses a command that says nothing of what to train: it would do so for a long time.

    Args:
        name: The command.
        arguments: The words after it.

    Raises:
        ConfigError: There is no recipe, and no setting but such as seed and folder.
    """
    options = [word.partition("=")[0] for word in arguments if word.startswith("--")]
    is_said = any(o not in _SAY_NOTHING and not o.startswith(_ABOUT_THE_RECORD) for o in options)
    if is_said or (arguments and not arguments[0].startswith("-")):
        return
    recipes = [r for r in recipe_names() if command_of(read_yaml(RECIPES / f"{r}.yaml")) == name]
    example = next((r for r in _FIRST_RECIPES if r in recipes), recipes[0])
    raise ConfigError(
        f"`{' '.join(['instructrec', name, *arguments])}` says nothing of what to train: expected "
        f"a recipe, e.g. `instructrec {name} {example}`, or settings such as --task.name. "
        f"Recipes: {', '.join(recipes)}."
    )


_SAY_NOTHING = (
    *("--resume", "--overwrite", "--allow_change", "--seed", "--seeds", "--keep_going"),
    *("--sanity", "--name", "--variant"),
)
"""Options that leave open what is trained, as do those of the groups below."""
_ABOUT_THE_RECORD = ("--output.", "--tracking.")
_FIRST_RECIPES = ("tiny_smoke", "short_answers_sft", "short_answers_dpo")
"""What a first run would take: quick, or small."""


def parse(parser: jsonargparse.ArgumentParser, arguments: Sequence[str]) -> jsonargparse.Namespace:
    """Parses, and instantiates the dataclasses.

    Raises:
        ConfigError: An argument or a key of a file is unknown, missing or of the wrong type.
    """
    try:
        return parser.instantiate(parser.parse_args(list(arguments)))
    except argparse.ArgumentError as error:
        raise ConfigError(explain(str(error), known_keys(parser))) from error


_OTHER_WORDS = {
    "decoding": ("temperature", "--temperature 0 for greedy decoding, above 0 for sampling"),
}
"""What people call a setting -> its key, and what to say instead."""


def known_keys(parser: jsonargparse.ArgumentParser) -> list[str]:
    """Every dotted key that the parser accepts."""
    actions = [action for action in parser._actions if action.dest != "help"]
    return sorted({action.dest for action in actions if action.dest != argparse.SUPPRESS})


def explain(message: str, keys: Sequence[str]) -> str:
    """Rewords a parser's message; names the closest known key where a key is unknown.

    Args:
        message: What jsonargparse or argparse said.
        keys: Dotted keys that exist.
    """
    if reward := re.match(r'Parser key "(rewards[^"]*)"', message):
        return _explain_reward(reward[1], message)
    for pattern in _UNKNOWN:
        if match := pattern.search(message):
            group = match.groupdict().get("group")
            return _explain_unknown(f"{group}.{match['key']}" if group else match["key"], keys)
    if match := re.match(r"unrecognized arguments: (\S+)", message):
        hint = "; recipes come before the options" if match[1].endswith((".yaml", ".yml")) else ""
        return f"unexpected argument {match[1]!r}{hint}. `--help` lists the options."
    message = re.sub(r"<class '(\w+)'>", r"\1", message).replace("typing.", "")
    message = " ".join(message.replace('Parser key "config": ', "").split())
    value = _WRONG_VALUE.fullmatch(message)
    return (value and _explain_value(**value.groupdict())) or message


def _explain_unknown(key: str, keys: Sequence[str]) -> str:
    if key in _REPLACED:
        return f"unknown key {key!r}: {_REPLACED[key]}."
    # The right name in the wrong section (--learning_rate) is a closer guess than a similar word.
    leaf = key.rsplit(".", 1)[-1]
    found = [k for k in keys if "." in k and k.rsplit(".", 1)[-1] == leaf]
    found.sort(key=lambda k: -difflib.SequenceMatcher(None, key, k).ratio())
    elsewhere = f" Did you mean {' or '.join(map(repr, found[:3]))}?"
    guess = elsewhere if found else did_you_mean(key, keys)
    if key in _OTHER_WORDS and _OTHER_WORDS[key][0] in keys:
        guess = f" Say {_OTHER_WORDS[key][1]}."
    # In ppo, a setting of TRL means that one, also where another section has the same word.
    if (not found or key.startswith("ppo.")) and (known := explain_trl_name(leaf)):
        guess = f" {known[0].upper()}{known[1:]}."
    return f"unknown key {key!r}.{guess} `--help` lists the options."


def _explain_value(key: str, element: str | None, kind: str, given: str) -> str | None:
    """Words for a value of the wrong type; None where the parser's own say enough."""
    if kind == "tuple":
        inner = given if re.fullmatch(r"[^\[\]{}:]+", given) else "a, b"
        return f"{key} = {given}: expected a list in brackets, such as --{key} '[{inner}]'."
    if kind.startswith("Literal"):
        known = re.findall(r"'([^']*)'", kind)
        return f"{key}: {unknown_name('value', given, known)}" if known else None
    if element:
        numbers = re.findall(r"-?\d+", given)
        example = " ".join(numbers if len(numbers) > 1 else "123")
        return (
            f"{key}: {given} is no whole number. Several are separated by spaces, such as "
            f"--{key} {example}."
        )
    return None


def _explain_reward(key: str, message: str) -> str:
    expected = (
        "expected a weight (a number, or numbers by update), module:attr or file.py:attr, or a "
        f"mapping with the keys {', '.join(_REWARD_KEYS)}"
    )
    if match := re.search(r"Option '([^']+)' is not accepted", message):
        return f"{key}: unknown key {match[1]!r}.{did_you_mean(match[1], _REWARD_KEYS)} {expected}."
    given = re.findall(r"(?:Got|Given) value: (.+)", message)
    if given and (match := re.match(r"\{'options\.([^']+)': '?([^'}]*)", given[-1])):
        return (
            f"{key}: options.{match[1]} is no key. Options of a reward are given together: "
            f"--rewards.NAME.options '{{{match[1]}: {match[2]}}}', or in a file."
        )
    what = f" = {given[-1].strip()}" if given else ""
    return f"{key}{what}: {expected}; rewards is a mapping of such entries."


def as_dataclass(kind: type[Any], values: jsonargparse.Namespace) -> Any:
    """Builds the dataclass whose fields are top-level keys of the parsed values."""
    return kind(**{f.name: values[f.name] for f in dataclasses.fields(kind)})
