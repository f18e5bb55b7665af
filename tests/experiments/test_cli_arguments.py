"""The command line: layers of files, overrides, plug-ins, and mistakes with suggestions."""

from __future__ import annotations

import errno
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from instructrec.errors import ConfigError
from instructrec.experiments import command_line
from instructrec.experiments.cli import COMMANDS, command_parser, main
from instructrec.experiments.config import EvaluateConfig, TrainConfig, reward_value


def train_config(*arguments: str) -> TrainConfig:
    rest = command_line.recipes_to_config(arguments)
    values = command_line.parse(command_parser("train"), rest)
    config: TrainConfig = command_line.as_dataclass(TrainConfig, values)
    return config


def write(file: Path, value: Any) -> str:
    file.write_text(value if isinstance(value, str) else yaml.safe_dump(value), encoding="utf-8")
    return str(file)


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 2) -> str:
    """The one line that a mistaken command prints."""
    assert main(arguments) == code
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    (line,) = printed.err.strip().splitlines()
    return line


# Layers -------------------------------------------------------------------------------------------


def test_a_shipped_recipe_is_found_by_name_and_by_path() -> None:
    by_path = train_config(str(command_line.RECIPES / "short_answers.yaml"))
    assert train_config("short_answers") == train_config("short-answers") == by_path
    assert by_path.ppo.episodes_per_update == 128


def test_later_files_and_then_the_command_line_win(tmp_path: Path) -> None:
    first = write(
        tmp_path / "a.yaml", {"seed": 1, "ppo": {"learning_rate": 1e-3, "lam_policy": 0.9}}
    )
    second = write(tmp_path / "b.yaml", {"ppo": {"learning_rate": 1e-4}})
    config = train_config(first, "--config", second, "--ppo.gamma", "0.5", "--seed", "7")
    assert (config.seed, config.ppo.lam_policy) == (7, 0.9)
    assert (config.ppo.learning_rate, config.ppo.gamma) == (1e-4, 0.5)
    assert train_config(first, second).ppo.learning_rate == 1e-4


def test_a_shipped_name_after_the_config_option_is_that_recipe(tmp_path: Path) -> None:
    mine = write(tmp_path / "mine.yaml", {"seed": 3})
    expected = train_config("tiny_smoke", mine)
    assert train_config("--config", "tiny_smoke", f"--config={mine}") == expected
    assert train_config("--config=tiny-smoke", "--config", "seed: 3") == expected


def test_a_file_replaces_the_rewards_and_the_command_line_adds_to_them(tmp_path: Path) -> None:
    first = write(tmp_path / "a.yaml", {"rewards": {"exact_match": 1.0, "bleu": 0.5}})
    second = write(tmp_path / "b.yaml", {"rewards": {"bleu": 2.0}})
    assert train_config(first, second).reward_value() == {"bleu": 2.0}
    added = train_config(first, "--rewards.politeness", "my_rewards.py:politeness")
    assert added.reward_value() == {
        "exact_match": 1.0,
        "bleu": 0.5,
        "politeness": "my_rewards.py:politeness",
    }


def test_the_long_form_of_a_reward_is_given_key_by_key() -> None:
    config = train_config(
        *("--rewards.kind.use", "my.py:kind"),
        *("--rewards.kind.weight", "0.3"),
        *("--rewards.kind.options", "{words: [please]}"),
    )
    assert config.reward_value()["kind"] == {
        "use": "my.py:kind",
        "weight": 0.3,
        "options": {"words": ["please"]},
    }


def test_what_an_evaluation_measures_is_given_key_by_key_too() -> None:
    given = ["tiny", "--rewards.kind.use", "my.py:kind", "--rewards.kind.weight", "0.3"]
    values = command_line.parse(command_parser("evaluate"), given)
    config = command_line.as_dataclass(EvaluateConfig, values)
    assert reward_value(config.rewards) == {"kind": {"use": "my.py:kind", "weight": 0.3}}


def test_deep_keys_and_mappings_are_overridden() -> None:
    config = train_config("--policy.lora.r", "4", "--task.options", "{families: [parity], size: 9}")
    assert config.policy.lora.r == 4
    assert config.task.options == {"families": ["parity"], "size": 9}


def test_printed_configuration_is_a_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", "tiny_smoke", "--ppo.lam_policy", "0.5", "--print_config"])
    assert ended.value.code == 0
    printed = write(tmp_path / "printed.yaml", capsys.readouterr().out)
    assert train_config(printed) == train_config("tiny_smoke", "--ppo.lam_policy", "0.5")


def test_sft_is_a_command_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    line = complaint(capsys, "sft", "tiny_smoke")
    assert "algorithm = 'ppo'" in line and "instructrec train" in line


# Mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian"], "unknown command 'trian'. Did you mean 'train'?"),
        (["train", "short_answer"], "Did you mean 'short_answers'?"),
        (["explain", "runs/x", "--decoding", "sample"], "Say --temperature 0 for greedy"),
        (["train", "missing.yaml"], "unknown recipe 'missing.yaml'"),
        (["train", "--ppo.learing_rate", "1"], "Did you mean 'ppo.learning_rate'?"),
        (["train", "--learning_rate", "1"], "'ppo.learning_rate' or 'sft.learning_rate'"),
        (["train", "--ppo.lr", "1"], "unknown key 'ppo.lr'"),
        (["train", "--seed", "2", "a.yaml"], "recipes come before the options"),
        (["train", "--seed", "two"], '"seed": Expected a int'),
        (["train", "--ppo.gamma", "3"], "ppo.gamma = 3.0: expected a number in (0, 1]"),
        (["train", "--policy.train", "half"], "policy.train: unknown value 'half'. Known: full"),
        (["train", "--rewards", "bleu"], "rewards is a mapping"),
        (["train", "--rewards.bleu.weigth", "1"], "Did you mean 'weight'?"),
        (
            ["train", "--rewards.bleu.options.lowercase", "true"],
            "options.lowercase is no key. Options of a reward are given together: "
            "--rewards.NAME.options '{lowercase: true}'",
        ),
        (
            ["train", "--task.options.families", "[parity]", "--task.name", "parity"],
            "no option 'families'. Options: ['seed', 'size'] (Options of a recipe stay when the "
            "command line names another task: --task.options '{}' drops them.)",
        ),
        (["train", "--rewards.blue", "1"], "unknown reward 'blue'. Did you mean 'bleu'?"),
        (["train", "--task.name", "paritty"], "Did you mean 'parity'?"),
        (["train", "tiny_smoke", "--resume", "--overwrite"], "exclude each other"),
        (
            ["train", "tiny_smoke", "--seeds", "1,2,3"],
            "separated by spaces, such as --seeds 1 2 3.",
        ),
        (["train", "tiny_smoke", "--seeds", "1", "two"], "such as --seeds 1 2 3."),
        (["train", "tiny_smoke", "--seeds", "8", "--seed", "4"], "leave --seed out"),
        (["train", "--tracking.report_to", "wandb"], "such as --tracking.report_to '[wandb]'."),
        (["train", "--tracking.report_to", "[wandb, mlflow]"], "Known: trackio, wandb."),
        (["train", "--config", "tiny_smok"], "Did you mean 'tiny_smoke'?"),
        (["train", "--config=missing.yaml"], "unknown recipe 'missing.yaml'"),
        (["sweep", "short_answers"], "is a recipe, and no file of that name is here"),
        (["sweep", "missing.yaml"], "no file missing.yaml: expected a YAML file"),
        (["rewards", "lst"], "invalid choice: 'lst'"),
        (["evaluate"], "required: policy"),
        (["evaluate", "tiny", "--samples", "2"], "same response every time"),
        (["quickstart", "--sft.demonstrations", "3"], "unfair"),
    ],
)
def test_a_mistake_is_one_line_that_helps(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in complaint(capsys, *arguments)


@pytest.mark.parametrize(
    ("arguments", "recipe"),
    [
        (["train"], "tiny_smoke"),
        (["train", "--seed", "3", "--output.dir=elsewhere"], "short_answers_raft"),
        (["train", "--sanity"], "tiny_smoke"),
        (["sft", "--seeds", "1", "2"], "short_answers_sft"),
        (["dpo"], "short_answers_dpo"),
        (["pipeline", "--resume"], "rlhf_simulated"),
    ],
)
def test_training_asks_what_to_train(
    arguments: list[str], recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = complaint(capsys, *arguments)
    assert "says nothing of what to train" in line and recipe in line


@pytest.mark.parametrize("given", ["--task.name=arithmetic", "--config=x.yaml", "x.yaml"])
def test_a_recipe_or_a_setting_says_what_to_train(given: str) -> None:
    command_line.refuse_bare("train", [given, "--seed", "3"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ppo: {learing_rate: 1}", "Did you mean 'ppo.learning_rate'?"),
        ("pppo: {learning_rate: 1}", "unknown key 'pppo.learning_rate'. Did you mean 'ppo."),
        ("polcy: tiny", "unknown key 'polcy'. Did you mean 'policy'?"),
        ("ppo: {learning_rate: fast}", "Got value: fast"),
        ("ppo: [1\n x: :", "is not valid YAML"),
        ("just a sentence", "holds a str"),
        ("rewards: {bleu: {weigth: 3}}", "Did you mean 'weight'?"),
        ("algorithm: sft\nppo: {lam_policy: 0.5}", "ppo.lam_policy given, but algorithm = 'sft'"),
    ],
)
def test_a_mistake_in_a_file_is_one_line_that_helps(
    text: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in complaint(capsys, "train", write(tmp_path / "recipe.yaml", text))


def test_a_missing_run_to_start_from_names_the_command_that_makes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = complaint(
        capsys, "train", "short_answers", "--policy.model", "runs/short-answers-sft-s2", code=4
    )
    assert "instructrec sft short_answers_sft --seed 2" in line


def test_a_reward_file_that_does_not_import_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "broken.py", "import nothing_of_this_name\n")
    line = complaint(capsys, "train", "tiny_smoke", "--rewards.mine", f"{file}:mine")
    assert "broken.py" in line and "nothing_of_this_name" in line


def test_a_column_that_a_reward_needs_is_named_before_a_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "".join(f'{{"prompt": "Say {i}.", "answer": "{i}"}}\n' for i in range(60))
    data = write(tmp_path / "data.jsonl", rows)
    line = complaint(
        capsys, "train", "--task.name", data, "--policy.model", "no/such-model", code=3
    )
    assert "'reference'" in line and "answer" in line


def test_a_malformed_line_of_data_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "data.jsonl", '{"prompt": "a", "reference": "b"}\n{"prompt": \n')
    line = complaint(capsys, "train", "--task.name", data, code=3)
    assert "data.jsonl" in line and "2" in line


# Help and errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: instructrec {command}" in capsys.readouterr().out


def test_the_help_of_a_key_is_the_docstring_of_its_field(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "one update is one rollout and its epochs" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_overview_lists_the_commands(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("instructrec 0")


def test_what_the_system_refuses_is_one_line_with_advice(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refused(values: object, command: list[str]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "weights")

    full = replace(COMMANDS["rewards"], run=refused)
    COMMANDS["fill"] = full
    try:
        line = complaint(capsys, "fill", "list", code=1)
    finally:
        del COMMANDS["fill"]
    assert line.startswith("instructrec: error: [Errno 28] No space left on device: 'weights'")
    assert "free some space" in line and "--resume" in line


def test_debug_shows_the_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["train", "--seed", "two", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("INSTRUCTREC_DEBUG", "1")
    assert main(["trian"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_mistakes_are_found_without_importing_torch() -> None:
    code = (
        "import sys; from instructrec.experiments.cli import main; "
        "code = main(['train', 'short_answers', '--ppo.lam_policy', '7']); "
        "print(code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "2 False"


# Lists --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("rewards", ["exact_match", "bleu", "learned"]),
        ("tasks", ["closed_answers", "arithmetic", "4096 / 512 / 512"]),
        ("envs", ["instructrec/Arithmetic-v0", "instructrec/Instruction-v0"]),
    ],
)
def test_lists(what: str, expected: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([what, "list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in expected)


def test_explaining_leaves_other_messages_alone() -> None:
    assert command_line.explain("something\n  else", ["a"]) == "something else"
    with pytest.raises(ConfigError):
        command_line.find_recipe("folder/short_answers")


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is a folder: expected a recipe.*config\.yaml"):
        command_line.find_recipe(str(tmp_path))


def test_a_warning_is_one_line_without_its_place_in_the_code(tmp_path: Path) -> None:
    code = (
        "import sys, warnings\n"
        "from instructrec.experiments import cli\n"
        "def run(values, command): warnings.warn('look out', RuntimeWarning)\n"
        "cli.COMMANDS['warn'] = cli.Command('Warn.', lambda parser: None, run)\n"
        "sys.exit(cli.main(['warn']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stderr == "instructrec: warning: look out\n"
