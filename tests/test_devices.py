from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from instructrec.devices import (
    OWNERS_RANK,
    check_only_gpu,
    describe,
    free_in_container,
    free_memory,
    is_out_of_memory,
    pick_device,
    pick_dtype,
)
from instructrec.errors import ConfigError


def test_importing_the_module_does_not_import_torch() -> None:
    code = "import sys, instructrec.devices; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_named_device_is_taken() -> None:
    assert pick_device("cpu") == torch.device("cpu")


def test_auto_picks_a_device_that_computes() -> None:
    assert torch.ones(2, device=pick_device("auto")).sum() == 2


@pytest.mark.parametrize("name", ["gpu", "cuda:many", ""])
def test_a_wrong_device_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="expected auto, cpu, cuda"):
        pick_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there_is_refused_with_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"sees 0 CUDA devices.*device: cpu"):
        pick_device("cuda")


def test_a_gpu_beside_others_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_only_gpu(torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"2 GPUs and one process.*CUDA_VISIBLE_DEVICES"):
        check_only_gpu(torch.device("cuda:1"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    check_only_gpu(torch.device("cuda"))


def test_each_process_and_what_scores_for_it_take_its_own_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert pick_device("cuda") == torch.device("cuda:1")
    monkeypatch.delenv("LOCAL_RANK")
    monkeypatch.setenv(OWNERS_RANK, "3")
    assert pick_device("auto") == torch.device("cuda:3")
    assert pick_device("cuda:2") == torch.device("cuda:2")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried", True),
        ("CUDA error: out of memory", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_a_full_memory_is_told_from_other_errors(said: str, expected: bool) -> None:
    assert is_out_of_memory(RuntimeError(said)) is expected
    assert not is_out_of_memory(ValueError(said))


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True, "avx512_bf16": False}, torch.bfloat16),
        ({"avx2": True}, torch.float32),
    ],
)
def test_the_cpu_computes_in_bfloat16_only_where_hardware_does(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert pick_dtype("auto", torch.device("cpu")) == expected


def test_a_torch_that_cannot_tell_gets_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert pick_dtype("auto", "cpu") == torch.float32


def test_apple_gpus_compute_in_float32_unless_asked() -> None:
    assert pick_dtype("auto", "mps") == torch.float32
    assert pick_dtype("bfloat16", "mps") == torch.bfloat16


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"float16.*expected one of auto, float32, bfloat16"):
        pick_dtype("float16")


def test_the_description_names_device_threads_and_both_precisions() -> None:
    line = describe(torch.device("cpu"), torch.bfloat16)
    count = torch.get_num_threads()
    assert line == (
        f"cpu ({count} thread{'s' if count > 1 else ''}), bfloat16 compute, float32 weights"
    )
    assert "compute, float32 weights" in describe()


def test_memory_left_in_a_container_counts_what_the_kernel_would_give_back(
    tmp_path: Path,
) -> None:
    assert free_in_container(tmp_path) == float("inf")
    old = tmp_path / "memory"
    old.mkdir()
    (old / "memory.limit_in_bytes").write_text("1000\n")
    (old / "memory.usage_in_bytes").write_text("700\n")
    (old / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 200\n")
    assert free_in_container(tmp_path) == 500
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("10\n")
    assert free_in_container(tmp_path) == 500  # no limit of version 2
    (tmp_path / "memory.max").write_text("60\n")
    (tmp_path / "memory.stat").write_text("anon 9\ninactive_file 3\n")
    assert free_in_container(tmp_path) == 53


def test_free_memory_is_no_more_than_the_machine_has() -> None:
    assert 0 < free_memory(torch.device("cpu")) < psutil.virtual_memory().total
    assert free_memory(torch.device("meta")) == float("inf")
