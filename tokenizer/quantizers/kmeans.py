"""Nearest codebook entries, and k-means to find the codebook."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from tokenizer.errors import InputError
from tokenizer.precision import full_float32

# Scores of one block of vectors against a codebook: 2^18 float32 values are 1 MiB, which stay in
# a core's cache between the matrix product that writes them and the argmax that reads them.
_BLOCK_SCORES = 2**18
# Of many points, k-means looks at so many a centroid first (or at `_FEWEST`), then at four times as
# many, and so on.
_POINTS_EACH, _FEWEST = 64, 2**16
_MORE_PASSES = 3


def block_rows(codebook_size: int) -> int:
    """Vectors compared at once with a codebook of this size: a power of two, 16 to 1024."""
    rows = _BLOCK_SCORES // max(codebook_size, 1)
    return min(max(1 << (max(rows, 1).bit_length() - 1), 16), 1024)


def half_squared_norms(codebook: Float[Tensor, "*K S D"]) -> Float[Tensor, "*K S"]:
    """``|c|^2 / 2`` of every entry, float32."""
    return codebook.float().square().sum(-1) / 2


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
    # For the few scores a beam keeps, k vectorised passes are faster than `topk`.
    values = scores.numpy()
    rows = np.arange(len(values))
    indices = [values.argmax(1)]
    while len(indices) < k:
        values[rows, indices[-1]] = -np.inf
        indices.append(values.argmax(1))
    return torch.from_numpy(np.stack(indices, 1))


@lru_cache(maxsize=8)
def fused(device: torch.device) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """The kernel for GPUs that `_match` uses there, or None: no GPU, or no triton."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return None
    from tokenizer.quantizers.triton_nearest import nearest_fused

    return nearest_fused


@torch.no_grad()
@full_float32()
def nearest(x: Float[Tensor, "M D"], codebook: Float[Tensor, "S D"]) -> Int[Tensor, " M"]:
    """Index of the entry nearest to each vector, by Euclidean distance; the first of equals.

    Computed in float32, in blocks of ``block_rows(S)`` vectors, the last one shorter: a vector that
    is equally near to two entries to within rounding may get the other one in another call.
    """
    return _match(x, codebook)[0]


def _match(x: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest entries c and their scores ``x.c - |c|^2 / 2``: half of ``|x|^2 - distance^2``."""
    codebook = codebook.float()
    bias = -half_squared_norms(codebook)
    if (kernel := fused(x.device)) is not None:
        return kernel(x.float(), codebook, bias)
    rows = block_rows(len(codebook))
    buffer = torch.empty(min(rows, len(x)), len(codebook), device=x.device)
    codes = torch.empty(len(x), dtype=torch.int64, device=x.device)
    best = torch.empty(len(x), device=x.device)
    for start in range(0, len(x), rows):
        block = x[start : start + rows].float()
        scores = torch.addmm(bias, block, codebook.T, out=buffer[: len(block)])
        chosen = argmax_rows(scores)
        codes[start : start + rows] = chosen
        best[start : start + rows] = scores.gather(1, chosen[:, None])[:, 0]
    return codes, best


@torch.no_grad()
@full_float32()
def kmeans(
    x: Float[Tensor, "M D"],
    k: int,
    *,
    generator: torch.Generator,
    iterations: int = 20,
    tolerance: float = 5e-4,
    group: dist.ProcessGroup | None = None,
) -> Float[Tensor, "k D"]:
    """Finds k centroids by Lloyd's algorithm.

    It starts from points drawn uniformly (k-means++ leaves 2 to 6% more distortion on unseen audio
    latents: it spends centroids on outliers). A centroid that loses all its points moves to a point
    drawn with probability proportional to its squared error. Of many points the first passes see
    few, at least `_POINTS_EACH` a centroid, and the last all. With no more points than centroids,
    every point is a centroid and the rest repeat them.

    Args:
        x: Points, M >= 1, finite; computed in float32.
        k: Number of centroids.
        generator: Source of randomness; of equal state on all processes of a group.
        iterations: Most passes over the points, or over the first few of many.
        tolerance: Stop when a pass lowers the distortion by less than this fraction.
        group: Processes that hold a part of the points each. None: this process holds all.

    Raises:
        ValueError: If there are no points, or not finite ones, or k or iterations are below 1.
    """
    if k < 1 or iterations < 1:
        raise InputError(f"k is {k} and iterations {iterations}; both must be at least 1.")
    if len(x) == 0 or not bool(x.isfinite().all()):
        raise InputError("k-means needs at least one point, and all of them finite.")
    x = x.float()
    share = _Share(len(x), group, x.device)
    if share.total <= k:
        return share.rows(x, torch.arange(k) % share.total)
    # Around a distant mean, distances would be small differences of large products.
    mean = share.sum(x.sum(0, dtype=torch.float64)).div(share.total).float()
    x = x - mean
    order = torch.randperm(share.total, generator=generator, device=generator.device).cpu()
    centroids = share.rows(x, order[:k])
    for size, passes in _schedule(share.total, k, iterations):
        # In their own order, however many processes share them.
        subset = x if size == share.total else x[share.local(order[:size].sort().values)]
        centroids = _lloyd(subset, centroids, passes, tolerance, generator, share)
    return centroids + mean


def _schedule(total: int, k: int, iterations: int) -> list[tuple[int, int]]:
    """How many points to look at, and how often: (points, passes)."""
    sizes = []
    size = max(_POINTS_EACH * k, _FEWEST)
    while 2 * size <= total:
        sizes.append((size, iterations if not sizes else _MORE_PASSES))
        size *= 4
    return [*sizes, (total, 1 if sizes else iterations)]


def sum_over(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The sum over the processes of a group, in place; None is this process alone."""
    if group is not None:
        dist.all_reduce(x, group=group)
    return x


def _lloyd(
    x: Tensor,
    centroids: Tensor,
    passes: int,
    tolerance: float,
    generator: torch.Generator,
    share: _Share,
) -> Tensor:
    """Passes over some points; those of the share's processes count together."""
    k = len(centroids)
    squares = x.square().sum(1)
    previous = float("inf")
    for _ in range(passes):
        codes, scores = _match(x, centroids)
        errors = (squares - 2 * scores).clamp_(min=0)
        sums = torch.zeros_like(centroids).index_add_(0, codes, x).double()
        counts = torch.bincount(codes, minlength=k).double()
        distortion = errors.sum(dtype=torch.float64)
        packed = share.sum(torch.cat([sums.flatten(), counts, distortion[None]]))
        sums, counts = packed[: sums.numel()].view_as(sums), packed[sums.numel() : -1]
        centroids = (sums / counts.clamp(min=1)[:, None]).float()
        empty = counts == 0
        if bool(empty.any()):
            centroids[empty] = share.draw(x, errors, int(empty.sum()), generator)
        elif float(packed[-1]) >= (1 - tolerance) * previous:
            break
        previous = float(packed[-1])
    return centroids


class _Share:
    """What this process holds of all points: those from `first` on, in the order of processes."""

    def __init__(self, count: int, group: dist.ProcessGroup | None, device: torch.device) -> None:
        self._group, self._count, self._device = group, count, device
        self.first, self.total = 0, count
        if group is not None:
            rank = dist.get_rank(group)
            counts = torch.zeros(dist.get_world_size(group), dtype=torch.int64, device=device)
            counts[rank] = count
            self.sum(counts)
            self.first, self.total = int(counts[:rank].sum()), int(counts.sum())

    def sum(self, x: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        return sum_over(x, self._group)

    def local(self, indices: Tensor) -> Tensor:
        """Which of this process' points are among these of all."""
        own = indices - self.first
        return own[(own >= 0) & (own < self._count)].to(self._device)

    def rows(self, x: Tensor, indices: Tensor) -> Tensor:
        """Points of all processes."""
        own = indices - self.first
        is_own = (own >= 0) & (own < self._count)
        out = torch.zeros(len(indices), x.shape[1], device=self._device)
        out[is_own.to(self._device)] = x[self.local(indices)]
        return self.sum(out)

    def draw(self, x: Tensor, weights: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Different points of all processes, with probability proportional to their weights.

        A race of exponential clocks: unlike ``multinomial``, it takes any number of weights, and
        still fills up when too few are positive (duplicated points).
        """
        # A clock for every point of all, so that each process draws the same numbers.
        share = _Share(len(weights), self._group, self._device)
        clocks = torch.empty(share.total, device=generator.device).exponential_(generator=generator)
        clocks.clamp_(min=torch.finfo(torch.float32).tiny)
        own = slice(share.first, share.first + len(weights))
        speed = torch.full((share.total,), -1.0, device=weights.device)
        speed[own] = weights / clocks[own].to(weights.device)
        if self._group is not None:
            dist.all_reduce(speed, op=dist.ReduceOp.MAX, group=self._group)
        return share.rows(x, speed.topk(n).indices.cpu())
