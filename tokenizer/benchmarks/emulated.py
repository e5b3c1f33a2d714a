"""A device that computes on the CPU, but is none for the code that runs on it.

Tensors on it say that their device is "meta", so every branch for devices that are not CPUs is
taken, and hold their numbers in a tensor of the CPU, so results are right. What is counted are the
operators that work on them, each of which would be a kernel of a GPU, and how often the processor
would have to wait for it: for scalars and for tensors that are copied back.

    with EmulatedDevice() as device:
        model.to(device.name)
        with device.counted() as launches:
            model.encode(x.to(device.name))
    print(launches.kernels, launches.waits)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from tokenizer.benchmarks.counting import FREE, READS, Launches, reads_mask


class DeviceTensor(Tensor):
    """A tensor on the emulated device; ``numbers`` holds its numbers."""

    numbers: Tensor

    @staticmethod
    def __new__(cls: type[DeviceTensor], values: Tensor) -> DeviceTensor:
        """Wraps a tensor of the CPU."""
        # A tensor of inference mode cannot be a view of weights, which are none.
        with torch.inference_mode(False):
            tensor = Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
                cls,
                values.shape,
                strides=values.stride(),
                storage_offset=values.storage_offset(),
                dtype=values.dtype,
                device=torch.device(EmulatedDevice.name),
            )
        tensor.numbers = values
        return tensor

    def __repr__(self, **_: Any) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return f"DeviceTensor({self.numbers})"

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Adds what torch refuses subclasses: lists of numbers."""
        del types
        with torch._C.DisableTorchFunctionSubclass():
            if func is Tensor.tolist:
                return args[0].cpu().tolist()
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Computes outside of the mode, as a backward pass may."""
        del types
        return _computed(func, args, kwargs or {})


class EmulatedDevice(TorchDispatchMode):
    """While it is entered, tensors can be made on the device ``name`` and moved there."""

    name = "meta"

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    @contextmanager
    def counted(self) -> Iterator[Callable[[], Launches]]:
        """Counts what happens inside; call what it yields for the numbers."""
        self.names.clear()
        yield lambda: Launches(
            sum(n for name, n in self.names.items() if name not in FREE),
            sum(self.names[name] for name in READS) + self.names["copy out"],
        )

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Counts an operator on the device, and computes it."""
        del types
        kwargs = kwargs or {}
        if func._can_decompose():  # In inference mode operators come as they were called.
            with self:
                return func.decompose(*args, **kwargs)
        inputs, target = _inputs(args, kwargs), _target(args, kwargs)
        name = func.overloadpacket.__name__
        if inputs and target is not None and not _is_here(target):
            self.names["copy out"] += 1
        elif inputs or _is_here(target):
            self.names[name] += 1
            if reads_mask(name, args):
                self.names["nonzero"] += 1
        return _computed(func, args, kwargs)


def _is_here(device: torch.device | None) -> bool:
    return device is not None and device.type == EmulatedDevice.name


def _target(args: Any, kwargs: dict[str, Any]) -> torch.device | None:
    """The device that an operator names for its result."""
    named = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.device)]
    return named[0] if named else None


def _inputs(args: Any, kwargs: dict[str, Any]) -> list[DeviceTensor]:
    found: list[DeviceTensor] = []
    tree_map(lambda x: found.append(x) if isinstance(x, DeviceTensor) else None, (args, kwargs))
    return found


def _on_cpu(x: Any) -> Any:
    if isinstance(x, DeviceTensor):
        return x.numbers
    return torch.device("cpu") if isinstance(x, torch.device) and _is_here(x) else x


def _computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    target = _target(args, kwargs)
    stays = bool(_inputs(args, kwargs)) if target is None else _is_here(target)
    plain_args, plain_kwargs = tree_map(_on_cpu, (args, kwargs))
    out = func(*plain_args, **plain_kwargs)
    returns = func._schema.returns
    if len(returns) == 1 and returns[0].alias_info is not None and returns[0].alias_info.is_write:
        # In place: what is returned is the tensor that was changed.
        written = [a.name for a in func._schema.arguments if a.alias_info and a.alias_info.is_write]
        return kwargs[written[0]] if written[0] in kwargs else args[0]
    if not stays:
        return out
    return tree_map(lambda x: DeviceTensor(x) if isinstance(x, Tensor) else x, out)
