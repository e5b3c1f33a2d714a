"""Tokenizers as checkpoints: loaded, hashed, pickled and copied with equal bits."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load as load_tensors, save as save_tensors
from torch import nn
from torch.utils.weak import WeakIdRef
from transformers import PreTrainedModel

from tokenizer.errors import InputError, MissingFileError
from tokenizer.model.config import LatentTokenizerConfig
from tokenizer.model.validation import check_size, read_config, stored_numbers, weights_checksum
from tokenizer.saving import load_pretrained, save_pretrained

T = TypeVar("T", bound="Checkpoint")
_IMPORTED_IN = os.getpid()


class Checkpoint(PreTrainedModel):
    """A `transformers` model that refuses what does not fit and loses no bit."""

    config_class = LatentTokenizerConfig
    base_model_prefix = "latent_tokenizer"
    main_input_name = "input_values"

    def _init_weights(self, module: nn.Module) -> None:
        # transformers would otherwise re-initialise every linear and convolutional layer.
        del module

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls: type[T], pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> T:
        """Loads a checkpoint folder or hub repository, in float32.

        Args:
            pretrained_model_name_or_path: A folder, or "user/model" on the hub.
            kwargs: As for ``transformers.PreTrainedModel.from_pretrained``.

        Raises:
            FileNotFoundError: If a folder was named that is not there or holds no checkpoint.
            ValueError: If it is damaged, or its weights are not those of its configuration.
        """
        name = str(pretrained_model_name_or_path)
        if name.count("/") != 1 and not Path(name).exists():
            raise MissingFileError(f"No such checkpoint folder: {name}.")
        if Path(name).exists() and not (Path(name) / "config.json").exists():
            raise MissingFileError(f"{name} holds no config.json: it is no tokenizer checkpoint.")
        # Weights may be stored in half precision; the tokenizer computes in float32 all the same.
        kwargs.setdefault("dtype", torch.float32)
        want_info = kwargs.pop("output_loading_info", False)
        # Other sizes are ignored only to be named: transformers' own error refers to its log.
        kwargs["ignore_mismatched_sizes"] = True

        def load(name: str, **options: Any) -> Any:
            if Path(name).exists():
                cls._check_folder(Path(name))
            return super(Checkpoint, cls).from_pretrained(name, **options)

        model, info = load_pretrained(load, name, "tokenizer checkpoint", **kwargs)
        if kwargs["dtype"] == torch.float32:
            model._check_weights(name)
        return (model, info) if want_info else model  # pyright: ignore[reportReturnType]

    @classmethod
    def _check_folder(cls, folder: Path) -> None:
        """Refuses a configuration that would build far more than there are weights for."""
        config = LatentTokenizerConfig.from_dict(read_config(folder / "config.json"))
        stored = stored_numbers(folder)
        with torch.device("meta"):
            expected = sum(value.numel() for value in cls(config).state_dict().values())
        check_size(expected, stored, str(folder))

    def _check_weights(self, name: str) -> None:
        """Raises ValueError for weights that are damaged or not finite."""
        weights = self.state_dict()
        checksum = self.config.weights_checksum
        if checksum is not None and weights_checksum(weights) != checksum:
            raise InputError(
                f"The weights in {name} are damaged, or not those that its config.json was saved "
                "with (their checksum is wrong): fetch or save it again."
            )
        for key, value in weights.items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise InputError(f"The weights in {name} hold NaN or infinity, in {key}.")

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, save_directory: str | Path, *, half: bool = False, **kwargs: Any
    ) -> None:
        """Saves ``config.json`` and ``model.safetensors``, each as a whole or not at all.

        Args:
            save_directory: A folder, made if it is not there; other files in it stay.
            half: Whether to store matrices in float16, for half the size. Rounding makes another
                tokenizer of it, with another fingerprint, but nearly as good.
            kwargs: As for ``transformers.PreTrainedModel.save_pretrained``.
        """
        if half:
            kwargs["state_dict"] = {
                name: value.half() if value.is_floating_point() and value.ndim > 1 else value
                for name, value in self.state_dict().items()
            }
        self.update_config()
        self.config.weights_checksum = weights_checksum(kwargs.get("state_dict", self.state_dict()))
        save_pretrained(super().save_pretrained, save_directory, **kwargs)

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

    def __reduce__(self) -> tuple[Any, ...]:
        # `Dataset.map` hashes the pickled function to find its cache and sends it to its workers:
        # these bytes depend on configuration and weights alone, so a second process finds the
        # cache of the first.
        return _from_bytes, (type(self), self._as_bytes())

    def __deepcopy__(self: T, memo: dict[int, Any]) -> T:
        del memo
        return _from_bytes(type(self), self._as_bytes()).to(self.device)  # pyright: ignore


def module_bytes(module: nn.Module) -> bytes:
    """All parameters and buffers of a module as safetensors, the same on any device."""
    weights = {k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}
    return save_tensors(weights)


def _from_bytes(kind: type[T], data: bytes) -> T:
    if os.getpid() != _IMPORTED_IN:
        # A forked worker, e.g. of Dataset.map(num_proc=...). OpenMP's threads did not survive the
        # fork, and waiting for them would never end. DataLoader's workers do the same.
        torch.set_num_threads(1)
    size = int.from_bytes(data[:8], "little")
    model = kind(LatentTokenizerConfig(**json.loads(data[8 : 8 + size])))
    model.load_state_dict(load_tensors(data[8 + size :]))
    return model.eval()
