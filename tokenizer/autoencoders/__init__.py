"""Autoencoders: the bundled family and adapters to other libraries'."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from tokenizer.autoencoders.base import Autoencoder, Decoder, Encoder
from tokenizer.errors import InputError

# Imported only when used: the adapters need diffusers or more of transformers.
AUTOENCODERS = {
    "lapped": ("tokenizer.autoencoders.lapped.model", "LappedAutoencoder"),
    "oobleck": ("tokenizer.autoencoders.oobleck", "OobleckAutoencoder"),
    "dac": ("tokenizer.autoencoders.dac", "DacAutoencoder"),
    "encodec": ("tokenizer.autoencoders.encodec", "EncodecAutoencoder"),
}

__all__ = ["AUTOENCODERS", "Autoencoder", "Decoder", "Encoder", "build_autoencoder"]


def build_autoencoder(config: dict[str, Any]) -> Autoencoder:
    """Builds an untrained autoencoder from ``{"kind": ..., **Autoencoder.to_config()}``.

    Raises:
        ValueError: If the kind is unknown or the rest does not fit it.
    """
    options = dict(config)
    kind = options.pop("kind", None)
    if kind not in AUTOENCODERS:
        raise InputError(f"Unknown autoencoder kind {kind!r}; known: {', '.join(AUTOENCODERS)}.")
    module, name = AUTOENCODERS[kind]
    return getattr(import_module(module), name).from_config(options)
