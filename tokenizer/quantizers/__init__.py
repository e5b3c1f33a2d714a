"""Quantizers: latents to codes and back, fitted offline on frozen latents."""

from __future__ import annotations

from typing import Any

from tokenizer.quantizers.base import LatentSource, Quantizer
from tokenizer.quantizers.residual import ResidualVectorQuantizer

QUANTIZERS: dict[str, type[Quantizer]] = {"rvq": ResidualVectorQuantizer}

__all__ = ["QUANTIZERS", "LatentSource", "Quantizer", "ResidualVectorQuantizer", "build_quantizer"]


def build_quantizer(config: dict[str, Any]) -> Quantizer:
    """Builds an unfitted quantizer from ``{"kind": ..., **Quantizer.to_config()}``.

    Raises:
        ValueError: If the kind is unknown or the rest does not fit it.
    """
    options = dict(config)
    kind = options.pop("kind", None)
    if kind not in QUANTIZERS:
        raise ValueError(f"Unknown quantizer kind {kind!r}; known: {', '.join(QUANTIZERS)}.")
    return QUANTIZERS[kind].from_config(options)
