"""Finite scalar quantization of principal components, plain and residual.

Mentzer, Minnen, Agustsson, Tschannen: Finite Scalar Quantization: VQ-VAE Made Simple (2023); the
symmetric levels are those of Parker et al.: Scaling Transformers for Low-Bitrate High-Quality
Speech Coding (2024). There a network learns to fill the range. Here it is frozen, so the range is
fitted to it: what is coded are principal components, each clipped where that costs least.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from math import prod
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import trange

from tokenizer.errors import InputError
from tokenizer.quantizers.base import LatentSource, Quantizer, check_at_least_one
from tokenizer.quantizers.blocks import in_blocks
from tokenizer.quantizers.standardizer import covariance

_ROWS = 1024
_PIECE = 65_536
# Ranges that are tried, in standard deviations: 5% apart, where a Gaussian's best is 0.8 for two
# levels and 3 for a hundred.
_RANGES = 0.4 * 1.05 ** torch.arange(64)


class ScalarQuantizer(Quantizer):
    """Projects the residual of each codebook to a few numbers and rounds each to one of its levels.

    The levels of a number are spread evenly from -1 to 1 times its scale, both included. A code is
    the mixed-radix number of the level indices, the first one least significant.

    Args:
        dim, num_codebooks, max_points: See `Quantizer`.
        levels: Levels of each of the L numbers that a codebook rounds, each at least 2.

    Attributes:
        mean: Buffer ``[D]``.
        projections: Buffer ``[K, D, L]``, orthonormal columns.
        scales: Buffer ``[K, L]``.

    Raises:
        ValueError: If a number is out of range.
    """

    mean: Tensor
    projections: Tensor
    scales: Tensor

    def __init__(
        self,
        dim: int,
        num_codebooks: int,
        levels: Sequence[int] = (4, 4, 4, 4, 4),
        max_points: int = 100_000,
    ) -> None:
        if not levels or min(levels) < 2:
            raise InputError(f"levels are {tuple(levels)}; expected some numbers, all at least 2.")
        if len(levels) > dim:
            raise InputError(f"{len(levels)} levels for {dim} dimensions: at most one for each.")
        super().__init__(dim, (prod(levels),) * num_codebooks)
        check_at_least_one(max_points=max_points)
        self.levels = tuple(levels)
        self.max_points = max_points
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("projections", torch.zeros(num_codebooks, dim, len(levels)))
        self.register_buffer("scales", torch.ones(num_codebooks, len(levels)))

    @abstractmethod
    def _projection(self, k: int, residual: Float[Tensor, "M D"]) -> Float[Tensor, "D L"]:
        """Which directions codebook k rounds, given what the codebooks before it have left."""

    @torch.no_grad()
    def fit(
        self, latents: LatentSource, *, generator: torch.Generator, progress: bool = False
    ) -> ScalarQuantizer:
        """Finds directions and scales, codebook by codebook, on a sample of the latents."""
        frames = self.training_sample(latents, self.max_points, generator)
        self.mean.copy_(frames.mean(0))
        residual = frames - self.mean
        for k in trange(self.num_codebooks, desc="fit", unit="codebook", disable=not progress):
            projection = self._projection(k, residual)
            self.projections[k].copy_(projection)
            u = residual @ self.projections[k]
            self.scales[k].copy_(best_scales(u, self.levels))
            for part, left in zip(u.split(_PIECE), residual.split(_PIECE), strict=True):
                left.sub_(self._round(k, part)[1] @ self.projections[k].T)
        return self.measure(latents, progress=progress)

    @torch.no_grad()
    def encode(
        self, latents: Float[Tensor, "M D"], n_codebooks: int | None = None
    ) -> Int[Tensor, "M n"]:
        """Codes of each frame; see `Quantizer.encode`."""
        x, n = self.checked_latents(latents, n_codebooks)
        mean, projections = self.mean.float(), self.projections.float()

        def encode(block: Tensor) -> Tensor:
            residual = block - mean
            codes = []
            for k in range(n):
                indices, values = self._round(k, residual @ projections[k])
                residual = residual - values @ projections[k].T
                codes.append(pack(indices, self.levels))
            return torch.stack(codes, 1)

        return in_blocks(encode, x, _ROWS)

    @torch.no_grad()
    def decode(self, codes: Int[Tensor, "M n"]) -> Float[Tensor, "M D"]:
        """Latents, as the mean and a sum over the codebooks."""
        codes = self.checked_codes(codes)
        n = codes.shape[1]
        back = self.projections[:n].float().transpose(1, 2).flatten(0, 1)
        mean, scales = self.mean.float(), self.scales[:n].float()

        def decode(block: Tensor) -> Tensor:
            values = level_values(unpack(block, self.levels), self.levels) * scales
            return values.flatten(1) @ back + mean

        return in_blocks(decode, codes, _ROWS)

    def _round(self, k: int, u: Tensor) -> tuple[Tensor, Tensor]:
        """Level indices ``[M, L]`` of codebook k, and what they stand for."""
        scales = self.scales[k].float()
        indices = nearest_levels(u / scales, self.levels)
        return indices, level_values(indices, self.levels) * scales


class FiniteScalarQuantizer(ScalarQuantizer):
    """Finite scalar quantization (FSQ) of the K L largest principal components, L to a codebook.

    The first codebook takes the components of largest variance. What is left of the others is lost:
    K L must not exceed D.

    Arguments, attributes and errors are those of `ScalarQuantizer`.
    """

    kind: ClassVar[str] = "fsq"

    def __init__(
        self,
        dim: int,
        num_codebooks: int,
        levels: Sequence[int] = (4, 4, 4, 4, 4),
        max_points: int = 100_000,
    ) -> None:
        super().__init__(dim, num_codebooks, levels, max_points)
        if num_codebooks * len(levels) > dim:
            raise InputError(
                f"{num_codebooks} codebooks of {len(levels)} levels each round "
                f"{num_codebooks * len(levels)} components, but there are only {dim}. Use fewer "
                f"codebooks or levels, or the quantizer 'rfsq'."
            )

    def _projection(self, k: int, residual: Float[Tensor, "M D"]) -> Float[Tensor, "D L"]:
        if k == 0:
            # All at once, of the latents themselves.
            directions = principal_directions(residual, self.num_codebooks * len(self.levels))
            self.projections.copy_(
                directions.view(self.dim, self.num_codebooks, -1).transpose(0, 1)
            )
        return self.projections[k]


class ResidualFiniteScalarQuantizer(ScalarQuantizer):
    """Residual FSQ: each codebook rounds the L largest principal components of what is left.

    A direction in which much is left gets another codebook, and so about the bits it is worth.
    Arguments, attributes and errors are those of `ScalarQuantizer`.
    """

    kind: ClassVar[str] = "rfsq"

    def _projection(self, k: int, residual: Float[Tensor, "M D"]) -> Float[Tensor, "D L"]:
        del k
        return principal_directions(residual, len(self.levels))


def nearest_levels(u: Float[Tensor, "M L"], levels: Sequence[int]) -> Int[Tensor, "M L"]:
    """Index of the nearest of each number's levels, which are spread evenly from -1 to 1."""
    last = torch.tensor([count - 1 for count in levels], device=u.device, dtype=u.dtype)
    return ((u.clamp(-1, 1) + 1) / 2 * last + 0.5).floor().long()


def level_values(indices: Int[Tensor, "*M L"], levels: Sequence[int]) -> Float[Tensor, "*M L"]:
    """The levels of these indices."""
    last = torch.tensor([count - 1 for count in levels], device=indices.device)
    return indices * (2 / last) - 1


def pack(indices: Int[Tensor, "M L"], levels: Sequence[int]) -> Int[Tensor, " M"]:
    """Codes of level indices, the first of which varies fastest."""
    code = torch.zeros_like(indices[:, 0])
    for number in reversed(range(len(levels))):
        code = code * levels[number] + indices[:, number]
    return code


def unpack(codes: Int[Tensor, "*M"], levels: Sequence[int]) -> Int[Tensor, "*M L"]:
    """Level indices of codes."""
    indices = []
    for count in levels:
        indices.append(codes % count)
        codes = codes // count
    return torch.stack(indices, -1)


def best_scales(u: Float[Tensor, "M L"], levels: Sequence[int]) -> Float[Tensor, " L"]:
    """For each column the scale with which rounding to its levels costs the least squared error."""
    deviation = u.square().mean(0, dtype=torch.float64).sqrt().float()
    # What does not vary at all is coded as nearly nothing.
    deviation = deviation.clamp(min=1e-6)
    errors = []
    for factor in _RANGES.tolist():
        scale = factor * deviation
        error = torch.zeros_like(deviation, dtype=torch.float64)
        for part in u.split(_PIECE):
            rounded = level_values(nearest_levels(part / scale, levels), levels) * scale
            error += (part - rounded).square().sum(0, dtype=torch.float64)
        errors.append(error)
    return deviation * _RANGES.to(u.device)[torch.stack(errors).argmin(0)]


def principal_directions(x: Float[Tensor, "M D"], count: int) -> Float[Tensor, "D count"]:
    """The ``count`` orthonormal directions of largest variance of x, which is around zero."""
    vectors = torch.linalg.eigh(covariance(x, x.new_zeros(x.shape[1]).double())).eigenvectors
    return vectors[:, -count:].flip(1).float()
