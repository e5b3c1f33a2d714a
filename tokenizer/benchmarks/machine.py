"""What this machine can do at best, and what a call costs."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from tokenizer.evaluation.coding import best_of

Call = Callable[[], object]


def matmul_rate(device: str = "cpu", repetitions: int = 9) -> float:
    """Multiply-adds a second of the best of some float32 matrix products."""
    best = 0.0
    sizes = [(1024, 1024, 1024), (256, 256, 768), (64, 320, 960)]
    for m, k, n in sizes if device == "cpu" else [*sizes, (4096, 4096, 4096)]:
        a, b = torch.randn(m, k, device=device), torch.randn(k, n, device=device)
        out = torch.empty(m, n, device=device)
        calls = max(1, 2**28 // (m * k * n))

        def run(a: torch.Tensor = a, b: torch.Tensor = b, out: torch.Tensor = out) -> None:
            for _ in range(calls):  # noqa: B023 -- called within this turn of the loop
                torch.mm(a, b, out=out)

        seconds = best_of([run], repetitions, device)[0]
        best = max(best, calls * m * k * n / seconds)
    return best


def multiply_adds(call: Call) -> int:
    """Of the matrix products and convolutions of a call."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() // 2


def peak_mib(device: str = "cpu") -> float:
    """The largest resident memory of this process so far, or what a GPU had allocated."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource

    # Linux counts in KiB, macOS in bytes.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def describe(device: str) -> str:
    """The machine, for the head of a table."""
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{name}, {os.cpu_count()} CPUs{load}, torch {torch.__version__}"
