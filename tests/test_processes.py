"""What processes tell each other, and which launches are refused."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from instructrec import processes
from instructrec.errors import ConfigError, DataError


def test_one_process_is_trivial() -> None:
    tensor = torch.ones(2)
    processes.sum_([tensor])
    assert tensor.tolist() == [1, 1]
    with processes.joined("cpu"):
        assert (processes.rank(), processes.world_size(), processes.is_main()) == (0, 1, True)
    assert processes.gather("a") == ["a"] and processes.broadcast("a") == "a"
    assert processes.on_main(lambda: 3) == processes.together(lambda: 3) == 3
    with pytest.raises(DataError, match=r"^mine$"):
        processes.together(lambda: fail("mine"))


def fail(message: str) -> None:
    raise DataError(message)


def test_two_processes_share_values_tensors_and_failures(in_two_processes, monkeypatch) -> None:
    monkeypatch.setattr(processes, "BUCKET", 4)  # several pieces

    def work():
        mine = processes.rank()
        tensors = [torch.full(shape, float(mine + 1)) for shape in ((3,), (2, 2), (1,))]
        processes.sum_(tensors)
        named = {"x": torch.arange(3), "y": torch.ones(2, 1)} if mine == 0 else None
        shared = processes.broadcast_tensors(named)
        with pytest.raises(DataError) as caught:
            processes.together(lambda: fail("no rows") if mine == 1 else mine)
        with pytest.raises((ZeroDivisionError, RuntimeError)) as other:
            processes.on_main(lambda: 1 / 0)
        return {
            "sums": [t.tolist() for t in tensors],
            "named": {name: t.tolist() for name, t in shared.items()},
            "gathered": processes.gather(mine),
            "broadcast": processes.broadcast(f"of {mine}"),
            "any": (processes.agree_any(mine == 1), processes.agree_any(False)),
            "main": processes.on_main(lambda: "done"),
            "error": str(caught.value),
            "other": repr(other.value),
        }

    main, other = in_two_processes(work)
    assert main["sums"] == [[3] * 3, [[3, 3], [3, 3]], [3]]
    assert main["named"] == {"x": [0, 1, 2], "y": [[1], [1]]}
    assert (main["gathered"], main["broadcast"]) == ([0, 1], "of 0")
    assert main["any"] == (True, False)
    same = ("sums", "named", "gathered", "broadcast", "any")
    assert all(main[key] == other[key] for key in same)
    assert (main["main"], other["main"]) == ("done", None)
    assert (main["error"], other["error"]) == ("no rows (process 1 of 2)", "no rows")
    assert main["other"] == "ZeroDivisionError('division by zero')"
    assert "ZeroDivisionError: division by zero (process 0 of 2)" in other["other"]


@pytest.mark.parametrize(
    ("environment", "device", "message"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "cpu", "asks for FSDP .*torchrun, or with accelerate"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "cpu", "asks for DeepSpeed"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "cpu", "asks for Megatron-LM"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "cpu", "asks for a parallelism config"),
        ({}, "cuda:1", "a device of its own"),
        ({"RANK": ""}, "cpu", "RANK is not set"),
    ],
)
def test_launches_that_cannot_work_are_refused(
    environment, device, message, launcher, monkeypatch
) -> None:
    for name, value in {**launcher(2)[0], **environment}.items():
        monkeypatch.setenv(name, value)
        if not value:
            monkeypatch.delenv(name)
    with pytest.raises(ConfigError, match=message), processes.joined(device):
        raise AssertionError("a group was joined")


def test_engines_that_split_weights_are_refused_to_one_process_too(monkeypatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="asks for FSDP"), processes.joined("cpu"):
        raise AssertionError("it went on without")


@pytest.mark.parametrize("on_cpu", ["True", "False"])  # with --cpu, or on a machine without GPU
def test_a_launcher_that_starts_one_process_instead_of_several_is_refused(
    monkeypatch, on_cpu
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", on_cpu)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(ConfigError, match="has started a single one"), processes.joined("cpu"):
        raise AssertionError("it went on alone")


def test_what_one_process_has_to_do_is_refused_to_several(monkeypatch) -> None:
    processes.refuse_several("an evaluation")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="an evaluation runs in one process"):
        processes.refuse_several("an evaluation")


def test_asking_who_one_is_imports_no_torch() -> None:
    code = "import sys; from instructrec import processes as p; p.gather(p.rank())"
    code += "; p.agree_any(True); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
