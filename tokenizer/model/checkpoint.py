"""Tokenizers as checkpoints: read, hashed, pickled and copied with equal bits."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from safetensors.torch import load as load_tensors, load_file, save as save_tensors
from torch import Tensor, nn
from torch.utils.weak import WeakIdRef

from tokenizer.model.core_config import TokenizerConfig
from tokenizer.model.validation import check_stored, check_values, read_config, weight_files
from tokenizer.networks.filling import memoryless
from tokenizer.saving import damage_named

T = TypeVar("T", bound="Checkpoint")
KIND = "tokenizer checkpoint"
_IMPORTED_IN = os.getpid()


class Checkpoint(nn.Module):
    """A module that is built from its configuration and loses no bit when it is copied."""

    config_class: ClassVar[type[TokenizerConfig]] = TokenizerConfig
    config: TokenizerConfig
    # Names of attributes that copies keep, besides configuration and weights.
    settings: ClassVar[tuple[str, ...]] = ()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(chain(self.parameters(), self.buffers())).device

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits: a hash of configuration and weights, on any device."""
        return self.cached_hash(
            "all", (self,), lambda: hashlib.sha256(self._as_bytes()).hexdigest()[:16]
        )

    def cached_hash(
        self, name: str, modules: Sequence[nn.Module], compute: Callable[[], str]
    ) -> str:
        """A hash of configuration and weights, computed again only after one of them has changed.

        To hash all weights takes longer than to encode a clip. A change is noticed if a tensor of
        ``modules`` is replaced, moved or changed in place, but not through ``tensor.data`` or a
        NumPy view.
        """
        config = self._config_json()
        tensors = [x for m in modules for x in chain(m.parameters(), m.buffers())]
        if any(tensor.is_inference() for tensor in tensors):
            return compute()  # Such tensors do not count their changes.
        # The references keep no replaced tensor alive, and tell it from a new one at its address.
        state = config, [(WeakIdRef(x), x.data_ptr(), x._version) for x in tensors]
        cache = self.__dict__.setdefault("_hashes", {})
        if name not in cache or cache[name][0] != state:
            cache[name] = state, compute()
        return cache[name][1]

    def update_config(self) -> None:
        """Writes into ``config`` what the model is made of; called before every use of it."""

    def _config_json(self) -> str:
        self.update_config()
        names = ("autoencoder", "quantizer", "has_finetuned_decoder", "default_gain")
        return json.dumps({name: getattr(self.config, name) for name in names}, sort_keys=True)

    def _as_bytes(self) -> bytes:
        header = self._config_json().encode()
        return len(header).to_bytes(8, "little") + header + module_bytes(self)

    def _apply(self: T, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> T:
        # Pipelines call ``.to("cuda", torch.float16)`` on all that they hold. A tokenizer goes to
        # the device and stays as exact as it is: another precision would give other codes.
        return super()._apply(partial(_moved, fn), recurse)

    def __reduce__(self) -> tuple[Any, ...]:
        # `Dataset.map` hashes the pickled function to find its cache and sends it to its workers:
        # these bytes depend on configuration and weights alone, so a second process finds the
        # cache of the first.
        return _from_bytes, (type(self), self._as_bytes(), *self._settings())

    def __deepcopy__(self: T, memo: dict[int, Any]) -> T:
        del memo
        copy = _from_bytes(type(self), self._as_bytes(), *self._settings())
        return copy.to(self.device)  # pyright: ignore

    def _settings(self) -> tuple[tuple[str, Any], ...]:
        """What was set on the model and is not of its configuration, but decides its results."""
        return tuple((k, self.__dict__[k]) for k in self.settings if k in self.__dict__)


def _moved(fn: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    """What ``fn`` makes of a tensor, in the tensor's own precision."""
    moved = fn(value)
    return moved if moved.dtype == value.dtype else value.to(moved.device)


def module_bytes(module: nn.Module) -> bytes:
    """All parameters and buffers of a module as safetensors, the same on any device."""
    weights = {k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}
    return save_tensors(weights)


def _from_bytes(kind: type[T], data: bytes, *settings: tuple[str, Any]) -> T:
    if os.getpid() != _IMPORTED_IN:
        # A forked worker, e.g. of Dataset.map(num_proc=...). OpenMP's threads did not survive the
        # fork, and waiting for them would never end. DataLoader's workers do the same.
        torch.set_num_threads(1)
    size = int.from_bytes(data[:8], "little")
    model = kind(kind.config_class(**json.loads(data[8 : 8 + size])))
    model.load_state_dict(load_tensors(data[8 + size :]))
    for name, value in settings:
        setattr(model, name, value)
    return model.eval()


def empty_model(kind: type[T], folder: Path, variant: str | None = None) -> T:
    """The model of a checkpoint folder, without memory for its weights.

    ValueError if the configuration describes no model, or another one than the weights are of.
    """
    config = kind.config_class.from_dict(read_config(folder / "config.json"))
    with memoryless():
        model = kind(config)
    check_stored(model.state_dict(), folder, variant)
    return model


def read_checkpoint(kind: type[T], folder: Path) -> T:
    """Reads a checkpoint folder, in float32, on the CPU; ValueError if it is damaged."""
    with damage_named(str(folder), KIND):
        model = empty_model(kind, folder)
        stored = {k: v for file in weight_files(folder) for k, v in load_file(file).items()}
        # Files are mapped into memory at unaligned addresses, where matrix products can differ in
        # their last bits: copies are aligned.
        weights = {k: stored[k].to(v.dtype, copy=True) for k, v in model.state_dict().items()}
        model.load_state_dict(weights, assign=True)
    check_values(weights, model.config.weights_checksum, str(folder))
    return model
