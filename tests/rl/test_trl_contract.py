"""What this project relies on in TRL and transformers; each failure says which name broke it."""

from __future__ import annotations

import ast
import dataclasses
import inspect

import pytest
import torch
import transformers
import trl
from trl import GRPOConfig, GRPOTrainer, SFTTrainer

from instructrec import processes
from instructrec.rl import trl_bridge
from instructrec.rl.config import PPOConfig
from instructrec.rl.optim import learning_rate_factor
from instructrec.rl.ppo import PPOTrainer
from instructrec.rl.trl_bridge import RolloutTrainer
from instructrec.rl.trl_names import OURS, REFUSED, explain_trl_name

VERSIONS = f"trl {trl.__version__}, transformers {transformers.__version__}"


PRIVATE = {name for name in dir(GRPOTrainer) if name[0] == "_" and not name.startswith("__")}


def test_no_private_method_of_trl_is_overridden():
    ours = {*vars(RolloutTrainer), *vars(PPOTrainer)}
    assert {name for name in ours & PRIVATE if callable(getattr(GRPOTrainer, name))} == set()


def test_no_private_attribute_of_trl_is_read():
    for module in (trl_bridge, inspect.getmodule(PPOTrainer)):
        tree = ast.parse(inspect.getsource(module))
        used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not used & PRIVATE


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("training_step", ["self", "model", "inputs", "num_items_in_batch"]),
        ("create_optimizer", ["self", "model"]),
        ("create_scheduler", ["self", "num_training_steps", "optimizer"]),
        ("log", ["self", "logs", "start_time"]),
    ],
)
def test_signatures_that_are_overridden_are_those_of_trl(name, parameters):
    method = getattr(GRPOTrainer, name, None)
    assert method is not None, f"{VERSIONS} has no GRPOTrainer.{name} any more"
    actual = list(inspect.signature(method).parameters)
    assert actual == parameters, f"{VERSIONS} changed the signature of GRPOTrainer.{name}"


def test_settings_that_we_pass_exist():
    fields = set(GRPOConfig.__dataclass_fields__)
    source = inspect.getsource(trl_bridge.trl_settings)
    call = next(
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "GRPOConfig"
    )
    passed = {keyword.arg for keyword in call.keywords}
    assert passed <= fields, f"{VERSIONS} removed {passed - fields} from GRPOConfig"


def test_settings_leave_to_trl_only_what_it_shall_do(tmp_path):
    config = PPOConfig(episodes_per_update=32, num_mini_batches=2, num_ppo_epochs=3)
    settings = trl_bridge.trl_settings(
        config, seed=5, num_updates=4, device=torch.device("cpu"), output_dir=tmp_path
    )
    expected = {
        "generation_batch_size": 32,
        "per_device_train_batch_size": 32,
        "max_steps": 4,
        "max_grad_norm": 0,
        "num_generations": 1,
        "beta": 0.0,
        "disable_dropout": True,
        "report_to": [],
        "save_strategy": "no",
    }
    changed = {
        name: f"{getattr(settings, name)!r}, expected {value!r}"
        for name, value in expected.items()
        if getattr(settings, name) != value
    }
    assert not changed, f"{VERSIONS}: GRPOConfig makes of our settings {changed}"


def test_one_training_step_of_trl_is_one_update(toy):
    class Noting(PPOTrainer):
        seen = ()

        def training_step(self, model, inputs, num_items_in_batch=None):
            before = self.policy.weights_hash()
            assert self.seen == () or self.seen[-1][2] == before, f"{VERSIONS}: a weight moved"
            loss = super().training_step(model, inputs, num_items_in_batch)
            self.seen += ((len(inputs), before, self.policy.weights_hash()),)
            return loss

    trainer = toy.trainer(toy.fast, kind=Noting)
    trainer.train()
    assert [rows for rows, _, _ in trainer.seen] == [toy.fast.episodes_per_update] * 4, VERSIONS
    assert all(before != after for _, before, after in trainer.seen)
    assert trainer.policy.weights_hash() == trainer.seen[-1][2], f"{VERSIONS}: a weight moved"


def test_processes_that_have_not_found_each_other_are_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(processes, "world_size", lambda: 1)
    with pytest.raises(trl_bridge.ConfigError, match="expected the call inside of"):
        trl_bridge.trl_settings(
            PPOConfig(),
            seed=0,
            num_updates=1,
            device=torch.device("cpu"),
            output_dir=tmp_path,
        )


def test_the_model_is_not_wrapped_to_reduce_gradients_a_second_time(toy, in_two_processes):
    config = dataclasses.replace(toy.fast, num_updates=1)

    class Looking(PPOTrainer):
        def end_update(self):
            assert self.accelerator.num_processes == 2, VERSIONS
            assert self.model_wrapped is self.policy.model, f"{VERSIONS} wraps the model"
            return super().end_update()

    def updates():
        trainer = toy.trainer(config, kind=Looking)
        trainer.train()
        return trainer.progress.update

    assert in_two_processes(updates) == [1, 1], VERSIONS


def test_learning_rate_factor_by_hand():
    assert [learning_rate_factor(s, "constant", 4, 10) for s in (0, 1, 3, 4, 9)] == [
        0.25, 0.5, 1.0, 1.0, 1.0,
    ]  # fmt: skip
    assert learning_rate_factor(5, "linear", 0, 10) == 0.5
    assert learning_rate_factor(5, "cosine", 0, 10) == pytest.approx(0.5)
    assert learning_rate_factor(10, "cosine", 0, 10) == pytest.approx(0.0)


def test_sft_trainer_still_has_what_is_overridden():
    assert "compute_loss" in vars(SFTTrainer), VERSIONS
    assert "skip_prepare_dataset" in inspect.getsource(SFTTrainer), VERSIONS


def test_every_setting_of_grpo_is_ours_renamed_or_refused_with_a_reason():
    theirs = {field.name for field in dataclasses.fields(GRPOConfig)}
    ours = {field.name for field in dataclasses.fields(PPOConfig)}
    unexplained = {name for name in theirs - ours if explain_trl_name(name) is None}
    assert not unexplained, f"{VERSIONS}: GRPOConfig has new settings {sorted(unexplained)}"
    assert not set(REFUSED) & ours and not set(OURS) & ours and not set(REFUSED) & set(OURS)
    assert explain_trl_name("learning_speed") is None
