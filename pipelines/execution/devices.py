"""Choice of device, precision and batch size."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pipelines.errors import UsageError
from pipelines.options.sources import RunOptions

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""The dtype of each ``--precision`` except ``auto``."""


def resolve_device(name: str) -> torch.device:
    """Return a device by name; ``auto`` takes the first GPU, else the CPU.

    Raises:
        UsageError: The name is unknown, or the GPU does not exist.
    """
    if not isinstance(name, str):  # from Python
        raise UsageError(f"expected the name of a device, found {name!r:.40}", "auto, cpu, cuda or cuda:N")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,9})?", name):
        raise UsageError(f"no device {name!r}: expected auto, cpu, cuda or cuda:N", "--device")
    if name != "cpu" and int(name.partition(":")[2] or 0) >= torch.cuda.device_count():
        raise UsageError(f"no device {name}: this machine has {torch.cuda.device_count()} CUDA devices", "--device cpu")
    return torch.device(name)


BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""Names in `torch.cpu.get_capabilities` of instructions that multiply matrices in bf16: two of x86 and two of ARM."""


def cpu_multiplies_bf16() -> bool:
    """Return whether this CPU has bf16 instructions, and this torch the library for them (oneDNN; not on macOS).

    Elsewhere bf16 works too, but takes longer than fp32. A torch without `get_capabilities` counts as a CPU without them.
    """
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    library = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(library) and any(capabilities.get(name) for name in BF16_INSTRUCTIONS)


def resolve_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype of a precision; ``auto`` is bf16 on a GPU and on a CPU with bf16 instructions, else fp32."""
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" or cpu_multiplies_bf16() else "fp32"
    return DTYPES[precision]


def precision_name(run: RunOptions) -> str:
    """Return ``float32`` or ``bfloat16`` for manifests, because CAMs of the two precisions must not be mixed."""
    return str(resolve_dtype(run.precision, resolve_device(run.device))).removeprefix("torch.")


def resolve_batch_size(run: RunOptions, device: torch.device) -> int:
    """Return the batch size; the default is 1 on a CPU, which one image keeps busy, and 16 on a GPU."""
    return run.batch_size or (16 if device.type == "cuda" else 1)


def memory_of(device: torch.device) -> int:
    """Return the bytes of memory that a process may use: the GPU's, or the machine's within its limits."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")] if hasattr(os, "sysconf") else [sys.maxsize]
    try:
        import resource

        limits += [limit for limit in resource.getrlimit(resource.RLIMIT_AS) if limit != resource.RLIM_INFINITY]
    except ImportError:  # not on Windows
        pass
    group = Path("/sys/fs/cgroup/memory.max")  # the limit of a container
    if group.is_file() and (found := group.read_text().strip()).isdigit():
        limits.append(int(found))
    return min(limits)


def peak_memory(device: torch.device) -> str:
    """Return the peak memory in words: the GPU's for tensors, or that of the whole process."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB of GPU memory at most"
    try:
        import resource
    except ImportError:  # not on Windows
        return "memory unknown"
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return f"{held / 2**30:.1f} GiB of memory at most"
