"""Nearest codebook entries, and k-means to find the codebook."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

# Scores of one block of vectors against a codebook: 2^18 float32 values are 1 MiB, which stay in
# a core's cache between the matrix product that writes them and the argmax that reads them.
_BLOCK_SCORES = 2**18


def block_rows(codebook_size: int) -> int:
    """Vectors compared at once with a codebook of this size: a power of two, 16 to 1024."""
    rows = _BLOCK_SCORES // max(codebook_size, 1)
    return min(max(1 << (max(rows, 1).bit_length() - 1), 16), 1024)


def half_squared_norms(codebook: Float[Tensor, "S D"]) -> Float[Tensor, " S"]:
    """``|c|^2 / 2`` of every entry, float32."""
    return codebook.float().square().sum(1) / 2


def argmax_rows(scores: Float[Tensor, "M S"]) -> Int[Tensor, " M"]:
    """Index of the first largest score in each row."""
    if scores.device.type == "cpu" and not torch.compiler.is_compiling():
        # torch's argmax handles one value at a time on the CPU and costs as much as the matrix
        # product before it; NumPy's is vectorised, 11 times as fast.
        return torch.from_numpy(scores.numpy().argmax(1))
    return scores.argmax(1)


def largest_in_rows(scores: Float[Tensor, "M S"], k: int) -> Int[Tensor, "M k"]:
    """Indices of the k largest scores in each row, the largest first; destroys the scores."""
    if scores.device.type != "cpu" or torch.compiler.is_compiling():
        return scores.topk(k).indices
    # For the few scores a beam keeps, k vectorised passes take a quarter of the time of `topk`.
    values = scores.numpy()
    rows = np.arange(len(values))
    indices = np.empty((len(values), k), dtype=np.int64)
    for i in range(k):
        indices[:, i] = values.argmax(1)
        values[rows, indices[:, i]] = -np.inf
    return torch.from_numpy(indices)


@torch.no_grad()
def nearest(
    x: Float[Tensor, "M D"],
    codebook: Float[Tensor, "S D"],
    half_norms: Float[Tensor, " S"] | None = None,
) -> Int[Tensor, " M"]:
    """Index of the entry nearest to each vector, by Euclidean distance; the first of equals.

    The vectors are taken in blocks of ``block_rows(S)``, the last one shorter. Matrix products of
    other shapes may round otherwise, and so choose otherwise where two entries are equally near to
    within rounding. Who needs identical codes for the same vector in two calls must split the
    vectors at the same places in both (`ResidualVectorQuantizer` pads the last block instead).

    Args:
        x: Vectors; computed in float32 whatever their type.
        codebook: Entries to choose from.
        half_norms: `half_squared_norms` of the codebook, if it is at hand.

    Returns:
        int64 codes.
    """
    return _match(x, codebook, half_norms)[0]


def _match(x: Tensor, codebook: Tensor, half_norms: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Nearest entries c and their scores ``x.c - |c|^2 / 2``: half of ``|x|^2 - distance^2``."""
    codebook = codebook.float()
    bias = -(half_squared_norms(codebook) if half_norms is None else half_norms.float())
    rows = block_rows(len(codebook))
    buffer = torch.empty(min(rows, len(x)), len(codebook), device=x.device)
    codes = torch.empty(len(x), dtype=torch.int64, device=x.device)
    best = torch.empty(len(x), device=x.device)
    for start in range(0, len(x), rows):
        block = x[start : start + rows].float()
        # An `out=` product takes no part in autocast: it stays float32.
        scores = torch.addmm(bias, block, codebook.T, out=buffer[: len(block)])
        chosen = argmax_rows(scores)
        codes[start : start + rows] = chosen
        best[start : start + rows] = scores.gather(1, chosen[:, None])[:, 0]
    return codes, best


@torch.no_grad()
def kmeans(
    x: Float[Tensor, "M D"],
    k: int,
    *,
    generator: torch.Generator,
    iterations: int = 20,
    tolerance: float = 5e-4,
) -> Float[Tensor, "k D"]:
    """Finds k centroids by Lloyd's algorithm.

    It starts from points drawn uniformly. Starts like k-means++'s were tried on audio latents, at
    1024 centroids and several stages: they leave up to 4% less distortion on the points themselves,
    but 2 to 6% more on unseen ones, because they spend centroids on outliers. A centroid that loses
    all its points moves to a point drawn with probability proportional to its squared error.

    With no more points than centroids, every point is a centroid and the rest repeat them.

    Args:
        x: Points, M >= 1, finite; computed in float32.
        k: Number of centroids.
        generator: Source of randomness.
        iterations: Most passes over the points.
        tolerance: Stop when a pass lowers the distortion by less than this fraction.

    Returns:
        Centroids, float32.

    Raises:
        ValueError: If there are no points, or values that are not finite, or k < 1 or
            iterations < 1.
    """
    if k < 1 or iterations < 1:
        raise ValueError(f"k is {k} and iterations {iterations}; both must be at least 1.")
    if len(x) == 0 or not bool(x.isfinite().all()):
        raise ValueError("k-means needs at least one point, and all of them finite.")
    x = x.float()
    if len(x) <= k:
        return x[torch.arange(k, device=x.device) % len(x)]
    # Around a distant mean, distances would be small differences of large products.
    mean = x.mean(0)
    x = x - mean
    squares = x.square().sum(1)
    order = torch.randperm(len(x), generator=generator, device=generator.device)
    centroids = x[order[:k].to(x.device)]
    previous = float("inf")
    for _ in range(iterations):
        codes, scores = _match(x, centroids)
        errors = (squares - 2 * scores).clamp_(min=0)
        distortion = float(errors.sum(dtype=torch.float64))
        counts = torch.bincount(codes, minlength=k)
        sums = torch.zeros_like(centroids).index_add_(0, codes, x)
        empty = counts == 0
        centroids = sums / counts.clamp(min=1)[:, None]
        if bool(empty.any()):
            centroids[empty] = x[_draw(errors, int(empty.sum()), generator)]
        elif distortion >= (1 - tolerance) * previous:
            break
        previous = distortion
    return centroids + mean


def _draw(weights: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Draws n different indices with probability proportional to their weights, zeros last.

    A race of exponential clocks: unlike ``multinomial``, it takes any number of weights, and still
    fills up when too few are positive (duplicated points).
    """
    clocks = torch.empty(len(weights), device=generator.device)
    clocks.exponential_(generator=generator).clamp_(min=torch.finfo(torch.float32).tiny)
    return (weights / clocks.to(weights.device)).topk(n).indices
