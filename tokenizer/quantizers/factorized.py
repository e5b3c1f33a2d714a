"""Residual stages that look at the residual through a few dimensions (factorized codes).

Each stage projects what is left of a frame to a few dimensions, finds a code there, and projects
the code's entry back: ``r <- r - (W_out entry(code(W_in r + b_in)) + b_out)``.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from tokenizer.errors import InputError
from tokenizer.precision import full_float32
from tokenizer.quantizers.base import LatentSource, Quantizer, check_at_least_one
from tokenizer.quantizers.blocks import in_blocks
from tokenizer.quantizers.kmeans import argmax_rows, block_rows, kmeans
from tokenizer.quantizers.scalar import level_values, nearest_levels, pack, unpack
from tokenizer.quantizers.standardizer import covariance

# Directions that vary less than this fraction of the one that varies most are not blown up.
_RELATIVE_FLOOR = 1e-3
# A normal variable of this deviation, after tanh, fills four to eight even levels about as the best
# scalar quantizer of so many levels would.
_DEVIATION = 0.8


class ProjectedQuantizer(Quantizer):
    """What quantizers of this form share; subclasses say what a code is (`lookup`, `entries`).

    They are what end-to-end training leaves behind (docs/end-to-end.md). `fit` is what that
    training starts from, and makes a quantizer of its own: each stage's projection is a principal
    component analysis of the residual, and the way back is a least squares fit. Codes have the
    prefix property.

    Attributes:
        codebook_dim: Dimensions that a stage looks at, d <= D.
        in_weight, in_bias: Buffers ``[K, d, D]`` and ``[K, d]``.
        out_weight, out_bias: Buffers ``[K, D, d]`` and ``[K, D]``.
    """

    in_weight: Tensor
    in_bias: Tensor
    out_weight: Tensor
    out_bias: Tensor

    def __init__(
        self, dim: int, codebook_sizes: Sequence[int], codebook_dim: int, max_points: int
    ) -> None:
        super().__init__(dim, codebook_sizes)
        check_at_least_one(codebook_dim=codebook_dim, max_points=max_points)
        if codebook_dim > dim:
            raise InputError(f"A stage cannot look at {codebook_dim} dimensions of {dim}.")
        self.codebook_dim = codebook_dim
        self.max_points = max_points
        count = len(self.codebook_sizes)
        self.register_buffer("in_weight", torch.zeros(count, codebook_dim, dim))
        self.register_buffer("in_bias", torch.zeros(count, codebook_dim))
        self.register_buffer("out_weight", torch.zeros(count, dim, codebook_dim))
        self.register_buffer("out_bias", torch.zeros(count, dim))

    @abstractmethod
    def lookup(self, k: int, u: Float[Tensor, "M d"]) -> Int[Tensor, " M"]:
        """Stage k's codes of projected residuals."""

    @abstractmethod
    def entries(self, k: int) -> Float[Tensor, "S d"]:
        """Stage k's entries."""

    def in_scale(self, deviation: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
        """What `fit` scales principal components of these standard deviations by."""
        return torch.ones_like(deviation)

    def fit_entries(self, k: int, u: Float[Tensor, "M d"], generator: torch.Generator) -> None:
        """Fits stage k's entries to projected residuals, if it has any to fit."""

    @torch.no_grad()
    def fit(
        self, latents: LatentSource, *, generator: torch.Generator, progress: bool = False
    ) -> ProjectedQuantizer:
        """Fits stage after stage to a sample of the latents."""
        residual = self.training_sample(latents, self.max_points, generator)
        for k in tqdm(range(self.num_codebooks), "fit", unit="codebook", disable=not progress):
            self._fit_projection(k, residual)
            u = torch.addmm(self.in_bias[k], residual, self.in_weight[k].T)
            self.fit_entries(k, u, generator)
            codes = self.lookup(k, u)
            self._fit_way_back(k, codes, residual)
            residual -= self._table(k).index_select(0, codes)
        return self.measure(latents, progress=progress)

    @torch.no_grad()
    def encode(
        self, latents: Float[Tensor, "M D"], n_codebooks: int | None = None
    ) -> Int[Tensor, "M n"]:
        """Codes of each frame; see `Quantizer.encode`."""
        x, n = self.checked_latents(latents, n_codebooks)
        tables = [self._table(k) for k in range(n)]
        weights = self.in_weight.float().transpose(1, 2)
        biases = self.in_bias.float()

        def search(block: Tensor) -> Tensor:
            residual = block
            codes = []
            for k, table in enumerate(tables):
                codes.append(self.lookup(k, torch.addmm(biases[k], residual, weights[k])))
                residual = residual - table.index_select(0, codes[-1])
            return torch.stack(codes, 1)

        return in_blocks(search, x, block_rows(max(self.codebook_sizes)))

    @torch.no_grad()
    def decode(self, codes: Int[Tensor, "M n"]) -> Float[Tensor, "M D"]:
        """Latents, as a sum of entries; see `Quantizer.decode`."""
        codes = self.checked_codes(codes)
        tables = [self._table(k) for k in range(codes.shape[1])]
        sizes = torch.tensor([0, *map(len, tables[:-1])], device=codes.device)
        return functional.embedding_bag(codes + sizes.cumsum(0), torch.cat(tables), mode="sum")

    def _table(self, k: int) -> Tensor:
        """Stage k's entries as they are subtracted from the residual, ``[S, D]``."""
        with full_float32():
            weight, bias = self.out_weight[k].float(), self.out_bias[k].float()
            return torch.addmm(bias, self.entries(k), weight.T)

    def _fit_projection(self, k: int, residual: Tensor) -> None:
        mean = residual.mean(0, dtype=torch.float64)
        values, vectors = torch.linalg.eigh(covariance(residual, mean))
        deviation = values.flip(0)[: self.codebook_dim].clamp(min=0).sqrt()
        deviation = deviation.clamp(min=max(float(deviation[0]) * _RELATIVE_FLOOR, 1e-12))
        basis = vectors.flip(1)[:, : self.codebook_dim].T * self.in_scale(deviation)[:, None]
        self.in_weight[k].copy_(basis)
        self.in_bias[k].copy_(-basis @ mean)

    def _fit_way_back(self, k: int, codes: Tensor, residual: Tensor) -> None:
        """The affine map of entries that is nearest to the residuals, by least squares."""
        e = self.entries(k).double().index_select(0, codes)
        e = torch.cat([e, torch.ones_like(e[:, :1])], 1)
        ridge = 1e-9 * len(e) * torch.eye(e.shape[1], dtype=e.dtype, device=e.device)
        solution = torch.linalg.solve(e.T @ e + ridge, e.T @ residual.double())
        self.out_weight[k].copy_(solution[:-1].T)
        self.out_bias[k].copy_(solution[-1])


class FactorizedQuantizer(ProjectedQuantizer):
    """Codes are directions: the entry at the smallest angle to the projected residual.

    After the quantizer of the Descript Audio Codec (Kumar et al., 2023, "High-Fidelity Audio
    Compression with Improved RVQGAN"), which has it from the improved VQGAN (Yu et al., 2022).

    Args:
        dim, num_codebooks, codebook_size, max_points, iterations: See `Quantizer`.
        codebook_dim: Dimensions of an entry, d <= D.

    Attributes:
        codebooks: Buffer ``[K, S, d]``, entries of length 1 (or nearly, where they are an average).
        in_weight, in_bias, out_weight, out_bias: Buffers; see `ProjectedQuantizer`.

    Raises:
        ValueError: If a number is below 1, or ``codebook_dim > dim``.
    """

    kind: ClassVar[str] = "factorized"
    codebooks: Tensor

    def __init__(
        self,
        dim: int,
        num_codebooks: int,
        codebook_size: int,
        codebook_dim: int = 8,
        max_points: int = 200_000,
        iterations: int = 12,
    ) -> None:
        super().__init__(dim, (codebook_size,) * num_codebooks, codebook_dim, max_points)
        check_at_least_one(iterations=iterations)
        self.codebook_size = codebook_size
        self.iterations = iterations
        self.register_buffer("codebooks", torch.zeros(num_codebooks, codebook_size, codebook_dim))

    def lookup(self, k: int, u: Float[Tensor, "M d"]) -> Int[Tensor, " M"]:
        """Codes of the entries with the largest inner product; the length of u is no matter."""
        return argmax_rows(u @ self.codebooks[k].float().T)

    def entries(self, k: int) -> Float[Tensor, "S d"]:
        """Stage k's codebook."""
        return self.codebooks[k].float()

    def fit_entries(self, k: int, u: Float[Tensor, "M d"], generator: torch.Generator) -> None:
        """K-means on directions, whose centroids are put back on the sphere."""
        directions = functional.normalize(u, dim=1)
        centroids = kmeans(
            directions, self.codebook_size, generator=generator, iterations=self.iterations
        )
        self.codebooks[k].copy_(functional.normalize(centroids, dim=1))


def scalar_levels(codebook_size: int) -> tuple[int, ...]:
    """Levels whose product is ``codebook_size``, a power of two: fours, and an eight or a two."""
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
        dim, num_codebooks, max_points: See `Quantizer`.
        levels: Of each dimension that a stage looks at, at most D of them; a codebook has as many
            entries as their product. The first dimension varies fastest in a code.

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
        return pack(nearest_levels(torch.tanh(u), self.levels), self.levels)

    def entries(self, k: int) -> Float[Tensor, "S d"]:
        """All points of the grid, which is the same in every stage."""
        del k
        codes = torch.arange(math.prod(self.levels), device=self.in_bias.device)
        return level_values(unpack(codes, self.levels), self.levels)

    def in_scale(self, deviation: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
        """Brings every component to one deviation."""
        return _DEVIATION / deviation
