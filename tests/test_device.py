"""Where a run computes: what memory its containers leave, and an Accelerator that is nobody else's."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch
from accelerate import Accelerator as WholeAccelerator
from accelerate.state import AcceleratorState

from finetune import device as devices
from finetune.device import Accelerator, autocasting, available_memory, deterministic, resolve_precision
from finetune.errors import ResourceError

CPU = torch.device("cpu")
MIB = 2**20


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def v2(folder: Path, most: object, used: int, idle: int = 0) -> None:
    write(folder, memory__max=most, memory__current=used, memory__stat=f"anon 1\ninactive_file {idle}\nslab 2")


def v1(folder: Path, most: int, used: int, idle: int = 0) -> None:
    stat = f"inactive_file 7\ntotal_inactive_file {idle}"
    write(folder, memory__limit_in_bytes=most, memory__usage_in_bytes=used, memory__stat=stat)


def left(tmp_path: Path, own: str = "0::/\n") -> int:
    (tmp_path / "own").write_text(own)
    return available_memory(cgroups=tmp_path / "cgroup", own=tmp_path / "own")


def test_pages_of_files_that_nobody_uses_are_no_memory_that_is_taken(tmp_path: Path) -> None:
    v2(tmp_path / "cgroup", 100 * MIB, 90 * MIB, idle=60 * MIB)
    assert left(tmp_path) == 70 * MIB


def test_a_group_is_bound_by_those_that_it_lies_in(tmp_path: Path) -> None:
    v2(tmp_path / "cgroup", "max", 500 * MIB)
    v2(tmp_path / "cgroup" / "job", 100 * MIB, 80 * MIB, idle=5 * MIB)
    v2(tmp_path / "cgroup" / "job" / "task", 64 * MIB, 10 * MIB)
    v2(tmp_path / "cgroup" / "other", MIB, MIB)
    assert left(tmp_path, "0::/job/task\n") == 25 * MIB


def test_the_first_version_of_groups_is_read_too_with_what_lies_below(tmp_path: Path) -> None:
    own = "5:cpu,cpuacct:/elsewhere\n4:memory:/docker/ab\n0::/\n"
    v1(tmp_path / "cgroup" / "memory", 2**63 - 4096, 900 * MIB)
    v1(tmp_path / "cgroup" / "memory" / "docker" / "ab", 80 * MIB, 70 * MIB, idle=20 * MIB)
    assert left(tmp_path, own) == 30 * MIB


@pytest.mark.parametrize("own", ["4:memory:/docker/ab\n", "0::/docker/ab\n", "0::/../../host\n", "", "odd\n"])
def test_inside_a_container_whose_path_is_that_of_the_host_its_root_counts(tmp_path: Path, own: str) -> None:
    v1(tmp_path / "cgroup" / "memory", 50 * MIB, 20 * MIB)
    v2(tmp_path / "cgroup", 40 * MIB, 20 * MIB)
    assert left(tmp_path, own) == 20 * MIB


def test_without_a_limit_or_groups_it_is_what_the_machine_has(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 123}))
    assert left(tmp_path) == 123
    v2(tmp_path / "cgroup", "max", 5)
    assert left(tmp_path) == 123


def test_an_accelerator_of_the_caller_stays_as_it_is_and_ours_too() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        theirs = WholeAccelerator(cpu=True, mixed_precision="bf16")
        ours = Accelerator(CPU, "float32")
        model = torch.nn.Linear(2, 2)
        run, optimiser = ours.prepare(model, torch.optim.SGD(model.parameters(), lr=1.0))
        with ours.autocast():
            output = run(torch.ones(1, 2))
        assert output.dtype == torch.float32
        ours.backward(output.sum())
        optimiser.step()
        ours.free_memory()
        Accelerator(CPU, "bfloat16")
        assert (theirs.mixed_precision, ours.mixed_precision) == ("bf16", "no")
        assert AcceleratorState().mixed_precision == "bf16"
        with theirs.autocast():
            assert model(torch.ones(1, 2)).dtype == torch.bfloat16
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def test_a_precision_that_a_device_has_not_is_one_error() -> None:
    with pytest.raises(ResourceError, match="needs a GPU"):
        Accelerator(CPU, "float16")


GPU = torch.device("cuda")


@pytest.mark.parametrize(("major", "precision"), [(6, "float32"), (7, "float32"), (8, "bfloat16"), (9, "bfloat16")])
def test_bfloat16_that_a_gpu_emulates_is_not_taken_by_itself(monkeypatch, major: int, precision: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: type("Properties", (), {"major": major}))
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda _: True)
    assert resolve_precision("auto", GPU) == precision
    assert resolve_precision("bfloat16", GPU) == "bfloat16"


def test_an_open_precision_opens_the_arithmetic_that_it_means(monkeypatch) -> None:
    monkeypatch.setattr(devices, "resolve_precision", lambda *_: "bfloat16")
    with autocasting(CPU, "auto")():
        assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.bfloat16


def test_determinism_is_asked_for_before_cuda_starts_and_put_back(monkeypatch) -> None:
    monkeypatch.delenv(devices.WORKSPACE, raising=False)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with deterministic(GPU):
            assert devices.os.environ[devices.WORKSPACE] == ":4096:8"
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
        monkeypatch.delenv(devices.WORKSPACE, raising=False)


def test_determinism_that_comes_too_late_is_refused(monkeypatch) -> None:
    monkeypatch.delenv(devices.WORKSPACE, raising=False)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(ResourceError, match="CUDA was already used") as caught, deterministic(GPU):
        pass
    assert f"{devices.WORKSPACE}=:4096:8" in caught.value.hint
    monkeypatch.setenv(devices.WORKSPACE, ":16:8")
    with deterministic(GPU):
        assert devices.os.environ[devices.WORKSPACE] == ":16:8"
