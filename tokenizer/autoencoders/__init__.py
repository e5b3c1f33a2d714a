"""Autoencoders: the bundled family, and readers of other libraries' and of one's own."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from tokenizer.autoencoders.base import Autoencoder, Decoder, Encoder
from tokenizer.errors import InputError

_ADAPTER = "tokenizer.autoencoders.adapter"
# A class, or the names of a module, imported only when it is used, and of a class in it.
AUTOENCODERS: dict[str, type[Autoencoder] | tuple[str, str]] = {
    "lapped": ("tokenizer.autoencoders.lapped.model", "LappedAutoencoder")
}
# Those of other libraries: the readers of `adapter`.
LIBRARY_KINDS = (
    "dac", "encodec", "mimi", "pocket-tts", "vibevoice",
    "oobleck", "same", "longcat", "kvae", "minimax", "cosmos",
)  # fmt: skip

__all__ = ["AUTOENCODERS", "Autoencoder", "Decoder", "Encoder", "build_autoencoder"]


def autoencoder_class(kind: Any) -> type[Autoencoder]:
    """The class of a kind; raises ValueError if it is unknown."""
    if isinstance(kind, str) and kind in LIBRARY_KINDS:
        return import_module(_ADAPTER).adapter(kind)
    entry = AUTOENCODERS.get(kind) if isinstance(kind, str) else None
    if entry is None:
        raise InputError(
            f"Unknown autoencoder kind {kind!r:.60}; known: "
            f"{', '.join((*AUTOENCODERS, *LIBRARY_KINDS))}. If it is your own, import the module "
            "that registers it first."
        )
    return getattr(import_module(entry[0]), entry[1]) if isinstance(entry, tuple) else entry


def build_autoencoder(config: dict[str, Any]) -> Autoencoder:
    """Builds an untrained autoencoder from ``{"kind": ..., **Autoencoder.to_config()}``.

    Raises:
        ValueError: If the kind is unknown or the rest does not fit it.
    """
    options = dict(config)
    return autoencoder_class(options.pop("kind", None)).from_config(options)
