from __future__ import annotations

import pytest
import torch

from pipelines.errors import UsageError
from pipelines.execution.devices import resolve_batch_size, resolve_device, resolve_dtype
from pipelines.options.sources import RunOptions

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("name", ["", "gpu", "CPU", "cuda:", "cuda:-1", "cuda:a", "cuda:1:2", "cpu:0", "mps", " cpu", "cpu\n"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(UsageError, match="expected auto, cpu, cuda or cuda:N"):
        resolve_device(name)


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7"])
def test_no_gpu_at_all(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UsageError, match=f"no device {name}: this machine has 0 CUDA devices .*--device cpu"):
        resolve_device(name)


def test_index_too_high(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    assert resolve_device("cuda").type == "cuda"
    with pytest.raises(UsageError, match="this machine has 2 CUDA devices"):
        resolve_device("cuda:2")


@pytest.mark.parametrize("name", ["cuda:1000", "cuda:99999999999999999999", "cuda:\u0663"])
def test_index_beyond_torchs_range(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError):
        resolve_device(name)


@pytest.mark.parametrize("available", [True, False])
def test_auto(monkeypatch: pytest.MonkeyPatch, available: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert resolve_device("auto").type == ("cuda" if available else "cpu")
    assert resolve_device("cpu") == CPU


@pytest.mark.parametrize(
    ("precision", "device", "instructions", "onednn", "expected"),
    [
        ("auto", CPU, {"avx2": True, "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, True, torch.float32),
        ("auto", CPU, {"avx512_f": True, "avx512_bf16": True, "amx_bf16": False}, True, torch.bfloat16),
        ("auto", CPU, {"avx512_bf16": False, "amx_tile": True, "amx_bf16": True}, True, torch.bfloat16),
        ("auto", CPU, {"avx512_bf16": False, "amx_tile": True, "amx_int8": True}, True, torch.float32),
        ("auto", CPU, {"architecture": "aarch64", "neon": True, "bf16": True}, True, torch.bfloat16),
        ("auto", CPU, {"architecture": "aarch64", "neon": True, "sve_bf16": True}, True, torch.bfloat16),
        ("auto", CPU, {"architecture": "aarch64", "neon": True, "bf16": False}, True, torch.float32),
        ("auto", CPU, {"architecture": "aarch64", "neon": True, "bf16": True}, False, torch.float32),  # macOS
        ("auto", CPU, None, True, torch.float32),  # torch 2.10
        ("fp32", CPU, {"avx512_bf16": True}, True, torch.float32),
        ("bf16", CPU, {}, True, torch.bfloat16),
        ("auto", GPU, {}, True, torch.bfloat16),
        ("fp32", GPU, {"avx512_bf16": True}, True, torch.float32),
    ],
)
def test_precision(
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    device: torch.device,
    instructions: dict[str, object] | None,
    onednn: bool,
    expected: torch.dtype,
) -> None:
    if instructions is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions, raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)
    assert resolve_dtype(precision, device) == expected


@pytest.mark.parametrize(("asked", "device", "expected"), [(0, CPU, 1), (0, GPU, 16), (5, CPU, 5), (5, GPU, 5)])
def test_batch_size(asked: int, device: torch.device, expected: int) -> None:
    assert resolve_batch_size(RunOptions(batch_size=asked), device) == expected
