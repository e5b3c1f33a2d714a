"""Quantizers: latents to codes and back, fitted offline on frozen latents."""

from __future__ import annotations

from typing import Any, TypeVar

from tokenizer.errors import InputError
from tokenizer.quantizers.additive import FaissResidualQuantizer, LocalSearchQuantizer
from tokenizer.quantizers.base import Quantizer
from tokenizer.quantizers.factorized import FactorizedQuantizer, ProjectedScalarQuantizer
from tokenizer.quantizers.measure import FitReport
from tokenizer.quantizers.neural import ImplicitNeuralQuantizer
from tokenizer.quantizers.product import OptimizedProductQuantizer, ProductQuantizer
from tokenizer.quantizers.residual import ResidualVectorQuantizer
from tokenizer.quantizers.scalar import FiniteScalarQuantizer, ResidualFiniteScalarQuantizer
from tokenizer.quantizers.sources import LatentSource, MemmapSource, TensorSource, sample_frames

# Every kind that a checkpoint may name: ours, and what `register_quantizer` adds.
QUANTIZERS: dict[str, type[Quantizer]] = {
    quantizer.kind: quantizer
    for quantizer in (
        ResidualVectorQuantizer,
        FaissResidualQuantizer,
        ProductQuantizer,
        OptimizedProductQuantizer,
        LocalSearchQuantizer,
        FiniteScalarQuantizer,
        ResidualFiniteScalarQuantizer,
        ImplicitNeuralQuantizer,
        FactorizedQuantizer,
        ProjectedScalarQuantizer,
    )
}

__all__ = [
    "QUANTIZERS",
    "FactorizedQuantizer",
    "FaissResidualQuantizer",
    "FiniteScalarQuantizer",
    "FitReport",
    "ImplicitNeuralQuantizer",
    "LatentSource",
    "LocalSearchQuantizer",
    "MemmapSource",
    "OptimizedProductQuantizer",
    "ProductQuantizer",
    "ProjectedScalarQuantizer",
    "Quantizer",
    "ResidualFiniteScalarQuantizer",
    "ResidualVectorQuantizer",
    "TensorSource",
    "build_quantizer",
    "register_quantizer",
    "sample_frames",
]

C = TypeVar("C", bound=type[Quantizer])


def register_quantizer(quantizer: C) -> C:
    """Makes a class of your own known, so that checkpoints can name its `kind`; a decorator.

    Checkpoints carry no code: whoever loads one with such a quantizer imports its class before.

    Raises:
        ValueError: If the class has no kind, or another class has the same.
    """
    kind = getattr(quantizer, "kind", None)
    if not isinstance(kind, str) or not kind:
        raise InputError(f"{quantizer.__name__} has no kind: give it a name, kind = '...'.")
    known = QUANTIZERS.get(kind)
    # A class that is defined anew, as in a notebook, replaces the one before.
    same = known is not None and _name(known) == _name(quantizer)
    if known is not None and not same:
        raise InputError(f"The kind {kind!r} is taken by {_name(known)}; choose another name.")
    QUANTIZERS[kind] = quantizer
    return quantizer


def build_quantizer(config: dict[str, Any]) -> Quantizer:
    """Builds an unfitted quantizer from ``{"kind": ..., **Quantizer.to_config()}``.

    Raises:
        ValueError: If the kind is unknown or the rest does not fit it.
    """
    options = dict(config)
    kind = options.pop("kind", None)
    if kind not in QUANTIZERS:
        raise InputError(
            f"Unknown quantizer kind {kind!r}; known: {', '.join(QUANTIZERS)}. If it is your own, "
            "import the module that calls register_quantizer first."
        )
    return QUANTIZERS[kind].from_config(options)


def _name(quantizer: type[Quantizer]) -> str:
    return f"{quantizer.__module__}.{quantizer.__qualname__}"
