"""The autoencoder that ``latok train`` begins with: sizes, another library's class, or a model."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

import torch

from tokenizer.autoencoders import LIBRARY_KINDS, Autoencoder
from tokenizer.autoencoders.lapped.model import LappedAutoencoder, LappedConfig
from tokenizer.command import short_form
from tokenizer.errors import InputError

# Sizes of the bundled family: "base" and "compact" are the shipped models, "tiny" is for trying
# things out.
PRESETS: dict[str, dict[str, Any]] = {
    "base": {
        "sampling_rate": 44_100,
        "hop_length": 441,
        "latent_dim": 112,
        "envelope_dim": 16,
        "encoder_width": 256,
        "encoder_depth": 5,
        "decoder_width": 320,
        "decoder_depth": 7,
    },
    "compact": {
        "sampling_rate": 44_100,
        "hop_length": 882,
        "latent_dim": 80,
        "envelope_dim": 16,
        "encoder_width": 256,
        "encoder_depth": 5,
        "decoder_width": 320,
        "decoder_depth": 7,
    },
    "tiny": {
        "sampling_rate": 16_000,
        "hop_length": 160,
        "latent_dim": 32,
        "envelope_dim": 4,
        "encoder_width": 48,
        "encoder_depth": 2,
        "decoder_width": 64,
        "decoder_depth": 2,
    },
}


def first_autoencoder(options: argparse.Namespace) -> Autoencoder:
    """The autoencoder of ``--init``, or a new one of ``--autoencoder`` or of sizes.

    Raises:
        ValueError: If the options contradict each other.
    """
    sizes = {
        f.name: getattr(options, f.name)
        for f in fields(LappedConfig)
        if getattr(options, f.name) is not None
    }
    if options.init is not None:
        return _pretrained(options, PRESETS.get(options.preset, {}) | sizes)
    torch.manual_seed(options.seed)
    if options.autoencoder is None:
        return LappedAutoencoder(LappedConfig(**(PRESETS[options.preset or "base"] | sizes)))
    from tokenizer.autoencoders.adapter import adapter

    kind, values = short_form(options.autoencoder, "--autoencoder", "dac:sampling_rate=16000")
    if kind not in LIBRARY_KINDS:
        raise InputError(
            f"--autoencoder {kind!r} is unknown; known: {', '.join(LIBRARY_KINDS)}. Without the "
            "option the bundled family is trained."
        )
    if options.preset is not None or sizes:
        name = "preset" if options.preset is not None else next(iter(sizes))
        raise InputError(
            f"--{name.replace('_', '-')} is for the bundled family. Sizes of {kind} are fields of "
            f"its configuration: --autoencoder {kind}:FIELD=VALUE,... (docs/howto/train.md)."
        )
    return adapter(kind).from_fields(values)


def _pretrained(options: argparse.Namespace, sizes: dict[str, Any]) -> Autoencoder:
    from tokenizer.model.loading import load_for_fitting

    if options.autoencoder is not None:
        raise InputError("--autoencoder is a new model, --init goes on from one: give one of them.")
    autoencoder = load_for_fitting(options.init).autoencoder
    source = getattr(autoencoder, "config", autoencoder)
    for name, value in sizes.items():
        own = autoencoder.num_channels if name == "channels" else getattr(source, name, None)
        if own != value:
            raise InputError(
                f"{options.init} has {name} {own}, not {value}: with --init, leave sizes out."
            )
    return autoencoder
