"""Modules that are built without numbers in their weights, which come later."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_RANDOM = ("normal_", "uniform_", "kaiming_normal_", "kaiming_uniform_")


class Undrawn(TorchFunctionMode):
    """Modules that are made in this context draw no random numbers for their weights."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.__name__ in _RANDOM:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextmanager
def memoryless() -> Iterator[None]:
    """Tensors that are made in this context are on the device "meta"."""
    # To draw random numbers there, torch would import its compiler.
    with torch.device("meta"), Undrawn():
        yield
