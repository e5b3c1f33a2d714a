"""Settings of a comparison."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tokenizer.errors import InputError
from tokenizer.training.loop import LoopConfig
from tokenizer.training.quantizer import FitConfig


@dataclass(frozen=True)
class CompareConfig:
    """What a comparison holds equal for all quantizers.

    Attributes:
        bitrates: Rates in bit/s and channel; a quantizer uses the most codebooks that fit.
        codebook_size: Entries of a codebook, for quantizers whose specification does not say.
        fit: Which latents quantizers are fitted to.
        finetune: How each quantizer's decoder is finetuned; None: not at all.
    """

    bitrates: tuple[float | int, ...] = (24_000, 16_000, 10_000, 3_000)
    codebook_size: int = 1024
    fit: FitConfig = field(default_factory=FitConfig)
    finetune: LoopConfig | None = None

    def __post_init__(self) -> None:
        if not self.bitrates or min(self.bitrates) <= 0:
            raise InputError(f"Name at least one rate, all positive: {self.bitrates}.")
        if self.codebook_size < 2:
            raise InputError(f"codebook_size is {self.codebook_size}; it must be at least 2.")


@dataclass(frozen=True)
class Competitor:
    """A finished tokenizer that is evaluated beside the quantizers, e.g. one trained end to end.

    Attributes:
        name: For tables.
        path: Its checkpoint.
    """

    name: str
    path: str

    @classmethod
    def parse(cls, text: str) -> Competitor:
        """Reads ``NAME=PATH``, or ``PATH``, which is then called like its folder."""
        name, equals, path = text.partition("=")
        if equals and name and path:
            return cls(name, path)
        parts = [part for part in Path(text).parts if part != "model"]
        return cls(parts[-1] if parts else text, text)
