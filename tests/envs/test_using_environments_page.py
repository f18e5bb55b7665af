"""What the page about using the environments shows runs as it stands."""

import io
import re
import warnings

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from instructrec.experiments.cli import main


def blocks(root, language):
    text = (root / "docs" / "using_environments.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.fixture(scope="module")
def ran(root):
    """What the Python blocks of the page leave behind, in order."""
    namespaces = []
    for block in blocks(root, "python"):
        namespaces.append({})
        exec(block, namespaces[-1])
    return namespaces


def test_the_loops_earn_what_the_constant_answer_is_worth(ran):
    single, many, groups, *_ = ran
    assert len(single["earned"]) == 20 and 0 < np.mean(single["earned"]) < 1
    assert many["rewards"].shape == (8,) and many["asked"] != many["prompts"]
    assert set(many["rewards"].tolist()) == {0.0, 1.0}
    assert len(set(groups["returns"].tolist())) == 1 and not groups["active"].any()


def test_the_rewards_score_the_rows_as_a_trainer_of_trl_calls_them(ran):
    trl = ran[3]
    rows = trl["rows"][:4]
    completions = [[{"role": "assistant", "content": text}] for text in rows["reference"]]
    for reward in trl["rewards"]:
        columns = {name: rows[name] for name in ("reference", "family", "item")}
        scores = reward(prompts=rows["prompt"], completions=completions, **columns)
        assert scores == [1.0] * 4
    assert len(trl["weights"]) == len(trl["rewards"])


@pytest.mark.slow
def test_a_trainer_of_trl_takes_the_rows_and_rewards(ran, tmp_path):
    from trl import GRPOConfig, GRPOTrainer

    from instructrec.policies.tiny import make_tiny_model, make_tiny_tokenizer

    trl = ran[3]
    trainer = GRPOTrainer(
        make_tiny_model(),
        reward_funcs=trl["rewards"],
        args=GRPOConfig(
            output_dir=str(tmp_path),
            reward_weights=trl["weights"],
            per_device_train_batch_size=4,
            num_generations=4,
            max_completion_length=4,
            max_steps=1,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            bf16=False,
        ),
        train_dataset=trl["rows"],
        processing_class=make_tiny_tokenizer(),
    )
    trainer.train()
    assert "rewards/exact_match/mean" in trainer.state.log_history[0]


def test_the_wrapper_for_agents_of_numbers_is_an_environment(ran):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*different from the unwrapped version")
        wrapped = ran[4]["Choices"](ran[4]["env"].env.unwrapped, ["even", "odd"])
        # The two checks left out make the environment again by the name of the wrapper's module.
        check_env(wrapped, skip_render_check=True, skip_close_check=True)
    env = ran[4]["env"]
    rewards = []
    for action in (0, 1):
        observation, _ = env.reset(seed=5)
        assert observation.sum() > 3 and observation in env.observation_space
        rewards.append(env.step(action)[1])
    assert sorted(rewards) == [0.0, 1.0]


def test_the_commands_of_the_page_run(root, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("42\n"))
    lines = [line for block in blocks(root, "console") for line in block.splitlines()]
    assert len(lines) == 3
    for line in lines:
        assert main(line.removeprefix("$ instructrec ").split()) == 0, line
    printed = capsys.readouterr().out
    assert "instructrec/Parity-v0" in printed and "oracle" in printed and "episodes" in printed
