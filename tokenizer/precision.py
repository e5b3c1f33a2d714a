"""Full float32, whatever a script allows for speed.

``torch.set_float32_matmul_precision("high")``, ``torch.backends.cuda.matmul.allow_tf32`` and
``torch.autocast`` let matrix products and convolutions round to 10 or 7 bits. Codes are chosen by
small differences between distances: they would depend on such a setting.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

_AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")


@contextmanager
def full_float32() -> Iterator[None]:
    """Computes float32 operations in float32; also a decorator of functions that do.

    What the caller set is restored at the end. These settings belong to the process, so threads
    that compute at the same time use full float32 as well. A backward pass that runs later has the
    caller's settings.
    """
    with ExitStack() as stack:
        for device in filter(torch.is_autocast_enabled, _AUTOCAST_DEVICES):
            stack.enter_context(torch.autocast(device, enabled=False))
        # Compiled code cannot change settings of the process.
        if not torch.compiler.is_compiling():
            stack.enter_context(_settings.raised())
        yield


@contextmanager
def networks_in(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Full float32, but for the products of networks, which are computed in ``dtype``.

    What has to be exact asks for `full_float32` by itself: transforms, linear paths, the search.
    """
    with full_float32():
        if dtype == torch.float32:
            yield
        else:
            with torch.autocast(device.type, dtype):
                yield


class _Settings:
    """The process's precision of float32 operations, raised while anything needs it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._matmul = "highest"
        self._tf32_convolutions = False
        self._precisions: dict[tuple[str, str], str] = {}

    @contextmanager
    def raised(self) -> Iterator[None]:
        """Raises the settings unless another call has; the last call to end restores them."""
        with self._lock:
            if self._users == 0:
                self._raise()
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    self._restore()

    def _raise(self) -> None:
        self._precisions = {kind: _precision(*kind) for kind in _KINDS}
        try:
            self._matmul = torch.get_float32_matmul_precision()
        except RuntimeError:
            # Refused where ``fp32_precision`` is in use instead: then this is at its default.
            self._matmul = "highest"
        if self._matmul != "highest":
            torch.set_float32_matmul_precision("highest")
        if not _KINDS:
            self._tf32_convolutions = torch.backends.cudnn.allow_tf32
            torch.backends.cudnn.allow_tf32 = False
        for kind in _KINDS:
            if _precision(*kind) not in ("ieee", "none"):
                _set_precision(*kind, "ieee")

    def _restore(self) -> None:
        if self._matmul != "highest":
            torch.set_float32_matmul_precision(self._matmul)
        if not _KINDS:
            torch.backends.cudnn.allow_tf32 = self._tf32_convolutions
        for kind, precision in self._precisions.items():
            if _precision(*kind) != precision:
                # "none" takes the setting of the backend, or of all backends.
                _set_precision(*kind, "none")
                if _precision(*kind) != precision:
                    _set_precision(*kind, precision)


# What ``fp32_precision`` in torch.backends reads and writes; torch before 2.9 has only the older
# settings. ``torch.backends.cudnn.rnn`` is hidden behind a module of that name.
_precision: Any = getattr(torch._C, "_get_fp32_precision_getter", None)
_set_precision: Any = getattr(torch._C, "_set_fp32_precision_setter", None)
_OPERATIONS = {"cuda": ("matmul", "conv", "rnn"), "mkldnn": ("matmul", "conv", "rnn")}
_KINDS = [
    (backend, operation)
    for backend, operations in _OPERATIONS.items()
    for operation in operations
    if _precision is not None
]

_settings = _Settings()
