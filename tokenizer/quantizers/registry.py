"""Which quantizers there are: `QUANTIZERS`, and how they are built and registered."""

from __future__ import annotations

from importlib import import_module
from typing import Any, TypeVar

from tokenizer.errors import InputError
from tokenizer.quantizers.base import Quantizer

# Every kind that a checkpoint may name: ours, and what `register_quantizer` adds. A class, or the
# names of a module here, imported only when it is used, and of a class in it.
QUANTIZERS: dict[str, type[Quantizer] | tuple[str, str]] = {
    "rvq": ("residual", "ResidualVectorQuantizer"),
    "rq-faiss": ("additive", "FaissResidualQuantizer"),
    "pq": ("product", "ProductQuantizer"),
    "opq": ("product", "OptimizedProductQuantizer"),
    "lsq": ("additive", "LocalSearchQuantizer"),
    "fsq": ("scalar", "FiniteScalarQuantizer"),
    "rfsq": ("scalar", "ResidualFiniteScalarQuantizer"),
    "qinco": ("neural", "ImplicitNeuralQuantizer"),
    "factorized": ("factorized", "FactorizedQuantizer"),
    "projected_fsq": ("factorized", "ProjectedScalarQuantizer"),
}

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
    known = quantizer_class(kind) if kind in QUANTIZERS else None
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
    return quantizer_class(options.pop("kind", None)).from_config(options)


def quantizer_class(kind: Any) -> type[Quantizer]:
    """The class of a kind; raises ValueError if it is unknown."""
    entry = QUANTIZERS.get(kind) if isinstance(kind, str) else None
    if entry is None:
        raise InputError(
            f"Unknown quantizer kind {kind!r:.60}; known: {', '.join(QUANTIZERS)}. If it is your "
            "own, import the module that calls register_quantizer first."
        )
    if isinstance(entry, tuple):
        return getattr(import_module(f"tokenizer.quantizers.{entry[0]}"), entry[1])
    return entry


def _name(quantizer: type[Quantizer]) -> str:
    return f"{quantizer.__module__}.{quantizer.__qualname__}"
