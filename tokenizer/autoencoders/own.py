"""One's own modules as autoencoders, in ten lines: `register_autoencoder`."""

from __future__ import annotations

from copy import copy, deepcopy
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from tokenizer.autoencoders import AUTOENCODERS, LIBRARY_KINDS, Autoencoder
from tokenizer.autoencoders.adapter import LibraryAutoencoder
from tokenizer.autoencoders.reader import Reader, Sizes
from tokenizer.errors import InputError

C = TypeVar("C", bound=type[nn.Module])
_NUMBERS = ("sampling_rate", "hop_length", "latent_dim")


def register_autoencoder(module: C) -> C:
    """Makes a class of your own known, so that checkpoints can name its ``kind``; a decorator.

    The class is a module with ``encode``, from audio ``[B, C, N]`` of whole hops to latents ``[B,
    D, T]``, and ``decode``, from these to audio ``[B, C, T * hop]``. It says in attributes:

    * ``kind``, a name; ``sampling_rate``, ``hop_length`` and ``latent_dim`` D;
    * perhaps ``num_channels`` C (default 1); ``context``, the frames on either side that a frame
      depends on (default None: the whole signal); ``normalize`` (default False), whether audio is
      divided by its level;
    * perhaps ``config``, a dict of the arguments that build it again (default: none).

    A finetuned decoder is a copy of the module without a child called ``encoder``.
    `tokenizer.LatentTokenizer.from_autoencoder` takes such a module. A subclass of `Autoencoder`
    is registered as it is. Checkpoints carry no code: whoever loads one imports the class before.

    Raises:
        ValueError: If the class has no kind, or another class has the same.
    """
    kind = getattr(module, "kind", None)
    if not isinstance(kind, str) or not kind:
        raise InputError(f"{module.__name__} has no kind: give it a name, kind = '...'.")
    entry = AUTOENCODERS.get(kind)
    known = getattr(entry, "module_class", entry)
    # A class that is defined anew, as in a notebook, replaces the one before.
    if kind in LIBRARY_KINDS or (known is not None and _name(known) != _name(module)):
        raise InputError(f"The kind {kind!r} is taken; choose another name.")
    AUTOENCODERS[kind] = _adapted(kind, module)
    return module


def as_autoencoder(module: nn.Module) -> Autoencoder:
    """An autoencoder as it is, or a module of a registered class as one.

    Raises ValueError if its class is not registered.
    """
    if isinstance(module, Autoencoder):
        return module
    entry = AUTOENCODERS.get(getattr(module, "kind", ""))
    if isinstance(entry, type) and getattr(entry, "module_class", None) is type(module):
        return entry(module)
    raise InputError(f"{type(module).__name__} is no autoencoder: call register_autoencoder on it.")


class ModuleAutoencoder(LibraryAutoencoder):
    """A module of one's own; `register_autoencoder` makes a subclass for each class."""

    module_class: ClassVar[type[nn.Module]]

    @classmethod
    def _described(cls, model: Any) -> dict[str, Any]:
        return dict(getattr(model, "config", {}))

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ModuleAutoencoder:
        """Builds an untrained module of these arguments."""
        try:
            return cls(cls.module_class(**config))
        except TypeError as error:
            raise InputError(f"Not a configuration of {cls.kind}: {error}.") from error


def _adapted(kind: str, module: type[nn.Module]) -> type[Autoencoder]:
    if issubclass(module, Autoencoder):
        return module
    reader = Reader("", module.__name__, (), _sizes, _halves, _encode, _decode)
    members = {"kind": kind, "reader": reader, "module_class": module, "__module__": __name__}
    return type(f"{module.__name__}Autoencoder", (ModuleAutoencoder,), members)


def _sizes(module: Any) -> Sizes:
    lacking = [name for name in (*_NUMBERS, "encode", "decode") if not hasattr(module, name)]
    if lacking:
        raise InputError(f"{type(module).__name__} lacks {', '.join(lacking)}.")
    context = getattr(module, "context", None)
    reach = None if context is None else (context, context)
    numbers = {name: getattr(module, name) for name in _NUMBERS}
    return Sizes(
        **numbers,
        num_channels=getattr(module, "num_channels", 1),
        encoder_reach=reach,
        decoder_reach=reach,
        normalize=getattr(module, "normalize", False),
    )


def _halves(module: nn.Module) -> tuple[nn.Module, nn.Module]:
    return _without(module, "decoder"), deepcopy(_without(module, "encoder"))


def _without(module: nn.Module, name: str) -> nn.Module:
    half = copy(module)
    half._modules = {key: child for key, child in module._modules.items() if key != name}
    return half


def _encode(module: Any, audio: Tensor) -> Tensor:
    return module.encode(audio)


def _decode(module: Any, latents: Tensor) -> Tensor:
    return module.decode(latents)


def _name(module: Any) -> str:
    return f"{module.__module__}.{module.__qualname__}"
