"""Residual search: which entry of each codebook, one codebook after another, greedily or by beam.

Shape suffixes: R vectors of a block, H hypotheses of a vector, D dimensions, P padded entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from tokenizer.precision import full_float32
from tokenizer.quantizers.kmeans import argmax_rows, fused, half_squared_norms, largest_in_rows
from tokenizer.quantizers.standardizer import Standardizer

# The beam looks for the best scores in two steps, by groups of which only the best are opened.
_GROUPS = 64
# Rows of one product: so many that all cores have work worth sharing, and so few that a CPU's
# cache holds their scores. Fewer vectors are not filled up to as many where that changes no bit.
_CPU_PRODUCT, _GPU_PRODUCT = 1024, 16_384
# Hypotheses of all vectors that are searched together, on a GPU: their scores take 256 MiB for 1024
# entries. The fewer kernels there are, the less time is lost between them.
_GPU_HYPOTHESES = 4 * _GPU_PRODUCT
_SMALLER_PRODUCTS = (32, 128, 256, 512)


@dataclass(frozen=True)
class Stage:
    """What the search needs of one codebook.

    One product gives distances: ``(u, 1, -|u|^2 / 2) . (c, -|c|^2 / 2, 1) = -|u - c|^2 / 2``.

    Attributes:
        centroids: ``[S, D]``, as they are subtracted from the residual.
        lifted: ``[P, D + 2]``, the right factors of that product for the same entries in the space
            where distances are measured; up to a multiple of `_GROUPS`, some that never win.
        standardizer: Maps residuals to that space; None where it is the residuals' own.
    """

    centroids: Tensor
    lifted: Tensor
    standardizer: Standardizer | None

    @property
    def keys(self) -> Float[Tensor, "P D"]:
        """The entries in the space where distances are measured."""
        return self.lifted[:, :-2]

    @property
    def bias(self) -> Float[Tensor, " P"]:
        """Minus half the squared norms of the keys."""
        return self.lifted[:, -2]

    def measured(self, residual: Float[Tensor, "R D"]) -> Float[Tensor, "R D"]:
        """Residuals in the space where distances are measured."""
        return residual if self.standardizer is None else self.standardizer.project(residual)


def build_stages(
    codebooks: Sequence[Float[Tensor, "S D"]], standardizers: Sequence[Standardizer | None]
) -> list[Stage]:
    """Prepares codebooks for the search, all in the same few operations."""
    keys = [
        book if standardizer is None else standardizer.project(book)
        for book, standardizer in zip(codebooks, standardizers, strict=True)
    ]
    size, dim = keys[0].shape
    lifted = keys[0].new_empty(len(keys), size + -size % _GROUPS, dim + 2)
    entries = lifted[:, :size, :dim]
    torch._foreach_copy_(list(entries.unbind()), keys)  # pyright: ignore[reportPrivateImportUsage]
    lifted[:, size:, :dim] = 0
    lifted[:, :size, dim] = -half_squared_norms(entries)
    lifted[:, size:, dim] = -torch.inf
    lifted[:, :, dim + 1] = 1
    return [Stage(*each) for each in zip(codebooks, lifted, standardizers, strict=True)]


def lift(u: Float[Tensor, "R D"]) -> Float[Tensor, "R D+2"]:
    """The left factors of the product that gives distances (see `Stage`)."""
    lifted = functional.pad(u, (0, 2), value=1.0)
    lifted[:, -1] = u.square().sum(1) / -2
    return lifted


class Scores:
    """Scores of vectors against a codebook: minus half the squared distances.

    A vector's scores, and its codes, do not depend on how many others it comes with: products have
    one shape, to which zeros fill up, or a smaller one that gets the bits of that one.
    """

    def __init__(self, vectors: int, stage: Stage, product: int) -> None:
        self.product = product
        rows = -(-vectors // product) * product
        # One buffer for all scores: to allocate it anew costs more than to choose among them.
        self._buffer = stage.lifted.new_empty(rows, len(stage.lifted))

    def __call__(self, stage: Stage, residual: Float[Tensor, "R L"]) -> Float[Tensor, "R P"]:
        """Scores of lifted residuals, in a buffer that the next call overwrites."""
        count, keys = len(residual), stage.lifted.T
        for start in range(0, count, self.product):
            u = residual[start : start + self.product]
            if stage.standardizer is None:
                u = filled(u, self._rows(len(u), *keys.shape))
            else:
                u = lift(stage.standardizer.project(filled(u[:, :-2], self.product)))
            torch.mm(u, keys, out=self._buffer[start : start + len(u)])
        return self._buffer[:count]

    def _rows(self, vectors: int, dim: int, size: int) -> int:
        """Rows of the product for so many vectors."""
        if self._buffer.device.type == "cpu":
            for rows in _SMALLER_PRODUCTS:
                if vectors <= rows < self.product and _same_bits(
                    rows, self.product, dim, size, torch.get_num_threads()
                ):
                    return rows
        return self.product


def filled(block: Float[Tensor, "R D"], rows: int) -> Float[Tensor, "rows D"]:
    """Vectors and zeros, so many."""
    missing = rows - len(block)
    return functional.pad(block, (0, 0, 0, missing)) if missing else block


@lru_cache(maxsize=256)
def _same_bits(rows: int, usual: int, dim: int, size: int, threads: int) -> bool:  # noqa: ARG001
    """Whether products of so many rows get the bits of the usual ones; noise shows it."""
    g = torch.Generator().manual_seed(0)
    x, keys = (torch.randn(n, dim, generator=g) for n in (usual, size))
    parts = [torch.mm(part.clone(), keys.T) for part in x.split(rows)]
    return torch.equal(torch.cat(parts), torch.mm(x, keys.T))


@torch.no_grad()
def search(
    x: Float[Tensor, "M D"], stages: list[Stage], width: int = 1, common: Standardizer | None = None
) -> Int[Tensor, "M n"]:
    """Codes of each vector, which do not depend on what other vectors there are.

    ``width`` hypotheses are kept; 1 is the greedy search. ``common`` maps the vectors to the space
    that the centroids of all stages are in; None where they are in it.
    """
    return search_each(x, np.full(len(x), len(stages)), stages, width, common)


@torch.no_grad()
@full_float32()
def search_each(
    x: Float[Tensor, "M D"],
    counts: Int[np.ndarray, " M"],
    stages: list[Stage],
    width: int = 1,
    common: Standardizer | None = None,
) -> Int[Tensor, "M n"]:
    """The codes that `search` finds of each vector with only its own number of the first stages.

    Behind them is 0. All vectors share each stage's product, however many stages they have.
    """
    if x.device.type == "cpu":
        product, together = _CPU_PRODUCT, _CPU_PRODUCT // width
    else:
        product, together = _GPU_PRODUCT, min(_GPU_PRODUCT, _GPU_HYPOTHESES // width)
    rows = min(max(together, 1), max(len(x), 1))
    scores = Scores(rows * width, stages[0], product)
    codes = torch.zeros(len(x), len(stages), dtype=torch.int64, device=x.device)
    # The most stages first: in a block those that go on are always the first ones.
    order = np.argsort(-counts, kind="stable")
    places = None
    if not bool((np.diff(order) == 1).all()):
        places = torch.from_numpy(order).to(x.device)
        x, counts = x.index_select(0, places), counts[order]
    for start in range(0, len(x), rows):
        block, own = x[start : start + rows], counts[start : start + rows]
        if common is not None:
            block = common.project(filled(block, product))[: len(block)]
        first = stages[: own[0]]
        if width == 1:
            block_codes = greedy(block, first, scores)
            if own[-1] < own[0]:
                # The codes of fewer stages are the first of those of more.
                last = torch.from_numpy(own).to(x.device)[:, None]
                block_codes *= torch.arange(len(first), device=x.device) < last
        else:
            block_codes = beam(block, own, first, width, scores)
        codes[start : start + rows, : len(first)] = block_codes
    if places is None:
        return codes
    return torch.empty_like(codes).index_copy_(0, places, codes)


def greedy(x: Float[Tensor, "R D"], stages: list[Stage], scores: Scores) -> Int[Tensor, "R n"]:
    """In each stage the entry nearest to what the stages before have left."""
    residual = lift(x)
    # What all entries' scores have in common need not be right, and is most precise if it is zero.
    residual[:, -1] = 0
    nearest = fused(x.device)
    codes = []
    for stage in stages:
        if nearest is None:
            codes.append(argmax_rows(scores(stage, residual)))
        else:
            u = stage.measured(residual[:, :-2])
            codes.append(nearest(u, stage.keys, stage.bias)[0])
        if len(codes) < len(stages):
            residual[:, :-2] -= stage.centroids.index_select(0, codes[-1])
    return torch.stack(codes, 1)


def beam(
    x: Float[Tensor, "R D"],
    counts: Int[np.ndarray, " R"],
    stages: list[Stage],
    width: int,
    scores: Scores,
) -> Int[Tensor, "R n"]:
    """Keeps, after each stage, the ``width`` best choices of entries so far.

    They are ranked by the squared length of what they leave of x, measured in that stage's space.
    Each vector has so many stages, never more than the one before it; behind them is 0.
    """
    codes = torch.zeros(len(x), len(stages), dtype=torch.int64, device=x.device)
    hypotheses = 1
    residual = lift(x)  # [R H, D + 2]
    steps = []
    for k, stage in enumerate(stages):
        rows = len(residual) // hypotheses
        going = int((counts > k + 1).sum())
        size = len(stage.centroids)
        num_kept = min(width, hypotheses * size) if going else 1
        stage_scores = scores(stage, residual).view(rows, hypotheses, -1)
        parent_RH, entry_RH, score_RH = _best(stage_scores, size, num_kept)
        steps.append((parent_RH, entry_RH))
        if going < rows:
            codes[going:rows, : k + 1] = _best_path(steps, slice(going, rows))
        if not going:
            break
        first_row = torch.arange(going, device=x.device)[:, None]
        parents = (parent_RH[:going] + first_row * hypotheses).view(-1)
        residual = residual.index_select(0, parents)
        residual[:, :-2] -= stage.centroids.index_select(0, entry_RH[:going].reshape(-1))
        # The distance to an entry is the length of what it leaves.
        residual[:, -1] = score_RH[:going].reshape(-1)
        hypotheses = num_kept
    return codes


def _best_path(steps: list[tuple[Tensor, Tensor]], rows: slice) -> Int[Tensor, "r k"]:
    """The entries that led some rows to their best hypothesis, which comes first."""
    hypothesis = torch.zeros_like(steps[-1][0][rows, :1])
    codes = []
    for parent_RH, entry_RH in reversed(steps):
        codes.append(entry_RH[rows].gather(1, hypothesis))
        hypothesis = parent_RH[rows].gather(1, hypothesis)
    return torch.cat(codes[::-1], 1)


def _best(
    scores_RHP: Float[Tensor, "R H P"], num_entries: int, kept: int
) -> tuple[Int[Tensor, "R kept"], Int[Tensor, "R kept"], Float[Tensor, "R kept"]]:
    """Hypotheses, entries and scores of the ``kept`` largest scores of each row, best first.

    The entries fall into groups (entry modulo `_GROUPS`). The best candidates lie in the groups
    with the best maxima, so only as many groups as candidates are opened.
    """
    rows, hypotheses, size = scores_RHP.shape
    maxima = scores_RHP.view(rows, hypotheses, -1, _GROUPS).amax(2)
    # Groups of nothing but padding are never opened.
    opened = min(kept, hypotheses * min(_GROUPS, num_entries))
    group = largest_in_rows(maxima.view(rows, -1), opened)
    # Where the members of each group are among the row's hypotheses * size scores.
    places = torch.arange(hypotheses * size, device=group.device).view(hypotheses, -1, _GROUPS)
    members = places.transpose(1, 2).reshape(hypotheses * _GROUPS, -1)
    members = members.index_select(0, group.view(-1)).view(rows, -1)
    scores = scores_RHP.view(rows, -1)
    best = members.gather(1, largest_in_rows(scores.gather(1, members), kept))
    parent = best // size
    return parent, best - parent * size, scores.gather(1, best)
