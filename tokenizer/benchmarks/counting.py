"""How many kernels a call launches, and how often it waits for a device.

On a GPU, CUDA says so. Elsewhere the operators that torch dispatches are counted: each would be a
kernel, and each scalar that is read would make the processor wait.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# They compute nothing: views, and memory that is reserved.
FREE = {
    "_local_scalar_dense", "_reshape_alias", "_unsafe_view", "alias", "as_strided", "chunk",
    "detach", "diagonal", "empty", "empty_like", "empty_strided", "expand", "imag", "lift_fresh",
    "narrow", "new_empty", "permute", "real", "reshape", "select", "set_", "slice", "split",
    "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unflatten", "unfold",
    "unsafe_split", "unsqueeze", "view", "view_as_complex", "view_as_real",
}  # fmt: skip
# Their results, or the shapes of these, are needed before the next operator.
READS = {
    "_local_scalar_dense", "_unique2", "bincount", "equal", "is_nonzero", "masked_select",
    "nonzero",
}  # fmt: skip


@dataclass(frozen=True)
class Launches:
    """What a call asks of a device.

    Attributes:
        kernels: Launched.
        waits: How often the processor waits for a result.
    """

    kernels: int
    waits: int


def launches(call: Callable[[], object], device: str) -> Launches:
    """Counts one call; call it once before, as first calls prepare tables."""
    return _of_cuda(call) if device.startswith("cuda") else _of_operators(call)


def reads_mask(name: str, args: Any) -> bool:
    """Whether an operator turns a mask into places, whose number is not known before."""
    return name.startswith("index") and any(
        isinstance(x, torch.Tensor) and x.dtype == torch.bool
        for x in (args[1] if isinstance(args[1], list | tuple) else [])
    )


class _Operators(TorchDispatchMode):
    """Counts operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        del types
        name = func.overloadpacket.__name__
        self.names[name] += 1
        if reads_mask(name, args):
            self.names["nonzero"] += 1
        return func(*args, **(kwargs or {}))


def _of_operators(call: Callable[[], object]) -> Launches:
    with _Operators() as operators:
        call()
    kernels = sum(n for name, n in operators.names.items() if name not in FREE)
    return Launches(kernels, sum(operators.names[name] for name in READS))


def _of_cuda(call: Callable[[], object]) -> Launches:
    kinds = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=kinds) as profile:
        call()
        torch.cuda.synchronize()
    kernels = sum(event.count for event in profile.key_averages() if "aunchKernel" in event.key)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return Launches(kernels, sum("synchroniz" in str(warning.message) for warning in caught))
