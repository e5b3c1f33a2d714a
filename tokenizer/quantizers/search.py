"""Residual search: which entry of each codebook, one codebook after another, greedily or by beam.

Shape suffixes: R vectors of a block, H hypotheses of a vector, D dimensions, S entries.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from tokenizer.quantizers.kmeans import argmax_rows, block_rows, half_squared_norms
from tokenizer.standardizer import Standardizer

# The beam looks for the best scores in two steps, by groups of which only the best are opened.
_GROUPS = 32


@dataclass(frozen=True)
class Stage:
    """What the search needs of one codebook.

    Attributes:
        centroids: ``[S, D]``, as they are subtracted from the residual.
        keys: ``[S, D]``, the same in the space where distances are measured.
        bias: ``[S]``, minus half the squared norms of the keys.
        standardizer: Maps residuals to that space; None where it is the residuals' own.
    """

    centroids: Tensor
    keys: Tensor
    bias: Tensor
    standardizer: Standardizer | None

    @classmethod
    def build(cls, centroids: Tensor, standardizer: Standardizer | None) -> Stage:
        """Prepares a codebook ``[S, D]``."""
        keys = centroids if standardizer is None else standardizer.project(centroids)
        return cls(centroids, keys, -half_squared_norms(keys), standardizer)

    def project(self, residual: Tensor) -> Tensor:
        """Residuals ``[R, D]`` in the space of the keys."""
        return residual if self.standardizer is None else self.standardizer.project(residual)


def search(x: Float[Tensor, "M D"], stages: list[Stage], width: int = 1) -> Int[Tensor, "M n"]:
    """Codes of the given stages for each vector.

    The vectors are taken in blocks of one fixed shape, the last one filled up with zeros: all
    products have the same shape, so the codes of a vector do not depend on how many others it comes
    with.

    Args:
        x: Vectors, float32.
        stages: The codebooks in order.
        width: Hypotheses kept; 1 is the greedy search.

    Returns:
        int64 codes.
    """
    size = len(stages[0].keys)
    rows = block_rows(size) if width == 1 else max(16, block_rows(size) // width)
    codes = torch.empty(len(x), len(stages), dtype=torch.int64, device=x.device)
    for start in range(0, len(x), rows):
        block = x[start : start + rows]
        missing = rows - len(block)
        if missing:
            block = functional.pad(block, (0, 0, 0, missing))
        found = greedy(block, stages) if width == 1 else beam(block, stages, width)
        codes[start : start + rows] = found[: rows - missing]
    return codes


def greedy(x: Float[Tensor, "R D"], stages: list[Stage]) -> Int[Tensor, "R n"]:
    """In each stage the entry nearest to what the stages before have left."""
    residual = x
    codes = torch.empty(len(x), len(stages), dtype=torch.int64, device=x.device)
    for k, stage in enumerate(stages):
        scores = torch.addmm(stage.bias, stage.project(residual), stage.keys.T)
        chosen = argmax_rows(scores)
        codes[:, k] = chosen
        if k + 1 < len(stages):
            residual = residual - stage.centroids.index_select(0, chosen)
    return codes


def beam(x: Float[Tensor, "R D"], stages: list[Stage], width: int) -> Int[Tensor, "R n"]:
    """Keeps, after each stage, the ``width`` best choices of entries so far.

    They are ranked by the squared length of what they leave of x, measured in that stage's space.
    """
    rows, dim = x.shape
    hypotheses = 1
    residual_RHD = x[:, None]
    codes_RHn = torch.empty(rows, 1, 0, dtype=torch.int64, device=x.device)
    row = torch.arange(rows, device=x.device)[:, None]
    for stage in stages:
        size = len(stage.keys)
        u = stage.project(residual_RHD.reshape(rows * hypotheses, dim))
        scores = _padded_scores(u, stage)
        kept = min(width, hypotheses * size)
        offsets = (u.square().sum(1) / 2).view(rows, hypotheses)
        parent, entry = _best(scores.view(rows, hypotheses, -1), offsets, kept)
        residual_RHD = residual_RHD[row, parent] - stage.centroids[entry]
        codes_RHn = torch.cat([codes_RHn[row, parent], entry[..., None]], 2)
        hypotheses = kept
    return codes_RHn[:, 0]


def _padded_scores(u: Tensor, stage: Stage) -> Tensor:
    """Scores, with columns of minus infinity up to a multiple of `_GROUPS`."""
    missing = -len(stage.keys) % _GROUPS
    if not missing:
        return torch.addmm(stage.bias, u, stage.keys.T)
    keys = functional.pad(stage.keys, (0, 0, 0, missing))
    bias = functional.pad(stage.bias, (0, missing), value=-torch.inf)
    return torch.addmm(bias, u, keys.T)


def _best(scores_RHS: Tensor, offsets_RH: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """Hypotheses and entries of the ``kept`` largest ``score - offset`` of each row, best first.

    The entries fall into groups (entry modulo `_GROUPS`). The best candidates lie in the groups
    with the best maxima, so only as many groups as candidates are opened: maxima are cheap, and
    `topk` over all candidates would cost several times the matrix product.
    """
    rows, hypotheses, size = scores_RHS.shape
    depth = size // _GROUPS
    maxima = scores_RHS.view(rows, hypotheses, depth, _GROUPS).amax(2) - offsets_RH[..., None]
    opened = min(kept, hypotheses * _GROUPS)
    group = maxima.view(rows, -1).topk(opened, sorted=False).indices
    parent = group // _GROUPS
    first = parent * size + group % _GROUPS
    members = first[..., None] + torch.arange(0, size, _GROUPS, device=first.device)
    candidates = scores_RHS.view(rows, -1).gather(1, members.view(rows, -1))
    candidates = candidates.view(rows, opened, depth) - offsets_RH.gather(1, parent)[..., None]
    best = candidates.view(rows, -1).topk(kept).indices
    which = best // depth
    return parent.gather(1, which), (group % _GROUPS).gather(1, which) + best % depth * _GROUPS
