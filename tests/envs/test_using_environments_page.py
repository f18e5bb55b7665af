"""What the page about using the environments shows runs as it stands."""

import io
import re

import numpy as np
import pytest

from instructrec.experiments.cli import main


def blocks(root, language):
    text = (root / "docs" / "using_environments.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.fixture(scope="module")
def ran(root):
    """What the Python blocks of the page leave behind, in order."""
    namespaces = []
    for block in blocks(root, "python")[:5]:  # the sixth needs an extra
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


def test_agents_of_numbers_choose_among_candidates_that_are_vectors(ran):
    choice = ran[4]
    assert choice["info"].keys() == {"task_index", "instruction_id"}
    assert choice["vectors"].shape == (5, 256)
    assert choice["vectors"] in choice["env"].observation_space
    assert choice["text"].count("\n") == 5 and "\n0: " in choice["text"]
    assert choice["reward"] in (0.0, 1.0) and choice["terminated"]


@pytest.mark.slow
def test_dqn_of_stable_baselines_runs_as_it_stands(root):
    pytest.importorskip("stable_baselines3")
    namespace = {}
    exec(blocks(root, "python")[5], namespace)
    assert namespace["model"].num_timesteps == 100 and namespace["action"] in range(4)


def test_the_commands_of_the_page_run(root, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("42\n"))
    lines = [line for block in blocks(root, "console") for line in block.splitlines()]
    assert len(lines) == 3
    for line in lines:
        assert main(line.removeprefix("$ instructrec ").split()) == 0, line
    printed = capsys.readouterr().out
    assert "instructrec/Parity-v0" in printed and "oracle" in printed and "episodes" in printed
