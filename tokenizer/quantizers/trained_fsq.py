"""Residual finite scalar quantization with a projection to a few dimensions in each stage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenizer.errors import InputError
from tokenizer.quantizers.factorized import ProjectedQuantizer

# A normal variable of this deviation, after tanh, fills four to eight even levels about as the best
# scalar quantizer of so many levels would.
_DEVIATION = 0.8


def scalar_levels(codebook_size: int) -> tuple[int, ...]:
    """Levels whose product is ``codebook_size``: fours, and an eight or a two for what is left.

    Raises:
        ValueError: If it is not a power of two, or 1.
    """
    bits = max(codebook_size, 1).bit_length() - 1
    if bits < 1 or codebook_size != 1 << bits:
        raise InputError(
            f"Scalar quantization needs a codebook size that is a power of two, not "
            f"{codebook_size}."
        )
    if bits == 1:
        return (2,)
    return ((8,) if bits % 2 else ()) + (4,) * ((bits - 3 * (bits % 2)) // 2)


class ProjectedScalarQuantizer(ProjectedQuantizer):
    """Codes are points of a grid: each projected dimension, after tanh, is rounded to even levels.

    A stage is a finite scalar quantizer (Mentzer et al., 2023, "Finite Scalar Quantization: VQ-VAE
    Made Simple") in the form with levels from -1 to 1 (Parker et al., 2024, "Scaling Transformers
    for Low-Bitrate High-Quality Speech Coding"), between two affine maps.

    Args:
        dim: D.
        num_codebooks: K.
        levels: Of each dimension that a stage looks at, at most D of them; a codebook has as many
            entries as their product. The first dimension varies fastest in a code.
        max_points: `fit` draws at most so many frames.

    Attributes:
        in_weight, in_bias, out_weight, out_bias: Buffers; see `ProjectedQuantizer`.

    Raises:
        ValueError: If a number is out of range.
    """

    kind: ClassVar[str] = "projected_fsq"

    def __init__(
        self, dim: int, num_codebooks: int, levels: Sequence[int], max_points: int = 200_000
    ) -> None:
        if min(levels, default=1) < 2:
            raise InputError(f"levels are {tuple(levels)}; each must be at least 2.")
        sizes = (math.prod(levels),) * num_codebooks
        super().__init__(dim, sizes, len(levels), max_points)
        self.levels = tuple(levels)

    def lookup(self, k: int, u: Float[Tensor, "M d"]) -> Int[Tensor, " M"]:
        """Codes of the nearest points of the grid."""
        del k  # all stages have the same grid
        steps, places = self._steps_and_places(u.device)
        digits = (steps * (torch.tanh(u) + 1) / 2 + 0.5).floor()
        return (digits.long() * places).sum(1)

    def entries(self, k: int) -> Float[Tensor, "S d"]:
        """All points of the grid, which is the same in every stage."""
        del k
        steps, places = self._steps_and_places(self.in_bias.device)
        codes = torch.arange(math.prod(self.levels), device=places.device)
        digits = (codes[:, None] // places) % (steps.long() + 1)
        return digits * (2 / steps) - 1

    def in_scale(self, deviation: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
        """Brings every component to one deviation."""
        return _DEVIATION / deviation

    def _steps_and_places(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Levels less one, float32; and what a digit of each dimension counts in a code."""
        steps = torch.tensor([level - 1.0 for level in self.levels], device=device)
        places = [math.prod(self.levels[:i]) for i in range(len(self.levels))]
        return steps, torch.tensor(places, device=device)
