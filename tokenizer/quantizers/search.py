"""Residual search: which entry of each codebook, one codebook after another, greedily or by beam.

Shape suffixes: R vectors of a block, H hypotheses of a vector, D dimensions, P padded entries.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from tokenizer.quantizers.kmeans import (
    argmax_rows,
    block_rows,
    half_squared_norms,
    largest_in_rows,
)
from tokenizer.standardizer import Standardizer

# The beam looks for the best scores in two steps, by groups of which only the best are opened.
_GROUPS = 32


@dataclass(frozen=True)
class Stage:
    """What the search needs of one codebook.

    Attributes:
        centroids: ``[S, D]``, as they are subtracted from the residual.
        keys: ``[P, D]``, the same in the space where distances are measured, and zeros up to a
            multiple of `_GROUPS`.
        bias: ``[P]``, minus half the squared norms of the keys; minus infinity for the padding,
            which therefore never wins.
        standardizer: Maps residuals to that space; None where it is the residuals' own.
    """

    centroids: Tensor
    keys: Tensor
    bias: Tensor
    standardizer: Standardizer | None

    @classmethod
    def build(cls, centroids: Float[Tensor, "S D"], standardizer: Standardizer | None) -> Stage:
        """Prepares a codebook."""
        keys = centroids if standardizer is None else standardizer.project(centroids)
        missing = -len(keys) % _GROUPS
        bias = functional.pad(-half_squared_norms(keys), (0, missing), value=-torch.inf)
        return cls(centroids, functional.pad(keys, (0, 0, 0, missing)), bias, standardizer)

    def score(self, residual: Float[Tensor, "R D"], out: Tensor) -> tuple[Tensor, Tensor]:
        """Scores ``[R, P]``, in ``out``, and the residuals ``[R, D]`` where they were measured.

        The score of u and c is ``u.c - |c|^2 / 2``: half of ``|u|^2 - |u - c|^2``.
        """
        u = residual if self.standardizer is None else self.standardizer.project(residual)
        # A product with `out=` takes no part in autocast: it stays float32.
        return torch.addmm(self.bias, u, self.keys.T, out=out[: len(u)]), u


@torch.no_grad()
def search(
    x: Float[Tensor, "M D"],
    stages: list[Stage],
    width: int = 1,
    common: Standardizer | None = None,
) -> Int[Tensor, "M n"]:
    """Codes of the given stages for each vector.

    The vectors are taken in blocks of one fixed shape, the last one filled up with zeros: all
    products have the same shape, so the codes of a vector do not depend on how many others it comes
    with.

    Args:
        x: Vectors, float32.
        stages: The codebooks in order.
        width: Hypotheses kept; 1 is the greedy search.
        common: Maps the vectors to the space that the centroids of all stages are in; None where
            they are in it.

    Returns:
        int64 codes.
    """
    greedily = width == 1
    rows = block_rows(len(stages[0].keys)) // (1 if greedily else 2)
    # One buffer for all scores: to allocate it anew costs more than to choose among them.
    buffer = torch.empty(rows * width, len(stages[0].keys), device=x.device)
    codes = torch.empty(len(x), len(stages), dtype=torch.int64, device=x.device)
    for start in range(0, len(x), rows):
        block = x[start : start + rows]
        missing = rows - len(block)
        if missing:
            block = functional.pad(block, (0, 0, 0, missing))
        if common is not None:
            block = common.project(block)
        found = greedy(block, stages, buffer) if greedily else beam(block, stages, width, buffer)
        codes[start : start + rows] = found[: rows - missing]
    return codes


def greedy(x: Float[Tensor, "R D"], stages: list[Stage], buffer: Tensor) -> Int[Tensor, "R n"]:
    """In each stage the entry nearest to what the stages before have left."""
    residual = x
    codes = []
    for stage in stages:
        scores, _ = stage.score(residual, buffer)
        codes.append(argmax_rows(scores))
        if len(codes) < len(stages):
            residual = residual - stage.centroids.index_select(0, codes[-1])
    return torch.stack(codes, 1)


def beam(
    x: Float[Tensor, "R D"], stages: list[Stage], width: int, buffer: Tensor
) -> Int[Tensor, "R n"]:
    """Keeps, after each stage, the ``width`` best choices of entries so far.

    They are ranked by the squared length of what they leave of x, measured in that stage's space.
    """
    rows = len(x)
    first_row = torch.arange(rows, device=x.device)[:, None]
    hypotheses = 1
    residual = x  # [R H, D]
    steps = []
    for stage in stages:
        scores, u = stage.score(residual, buffer)
        # Hypotheses differ in what they had left before, which the scores leave out.
        before_RH = (u.square().sum(1) / 2).view(rows, hypotheses)
        size = len(stage.centroids)
        kept = min(width, hypotheses * size)
        parent_RH, entry_RH = _best(scores.view(rows, hypotheses, -1), before_RH, size, kept)
        steps.append((parent_RH, entry_RH))
        parents = (parent_RH + first_row * hypotheses).view(-1)
        residual = residual.index_select(0, parents)
        residual -= stage.centroids.index_select(0, entry_RH.view(-1))
        hypotheses = kept
    # Back from the best hypothesis, which comes first.
    hypothesis = torch.zeros_like(first_row)
    codes = []
    for parent_RH, entry_RH in reversed(steps):
        codes.append(entry_RH.gather(1, hypothesis))
        hypothesis = parent_RH.gather(1, hypothesis)
    return torch.cat(codes[::-1], 1)


def _best(
    scores_RHP: Float[Tensor, "R H P"], before_RH: Float[Tensor, "R H"], num_entries: int, kept: int
) -> tuple[Int[Tensor, "R kept"], Int[Tensor, "R kept"]]:
    """Hypotheses and entries of the ``kept`` largest ``score - before`` of each row, best first.

    The entries fall into groups (entry modulo `_GROUPS`). The best candidates lie in the groups
    with the best maxima, so only as many groups as candidates are opened: maxima are cheap, and
    ranking all candidates would cost as much as the matrix product.
    """
    rows, hypotheses, size = scores_RHP.shape
    maxima = scores_RHP.view(rows, hypotheses, -1, _GROUPS).amax(2)
    maxima -= before_RH[..., None]
    # Groups of nothing but padding are never opened.
    opened = min(kept, hypotheses * min(_GROUPS, num_entries))
    group = largest_in_rows(maxima.view(rows, -1), opened)
    parent = group // _GROUPS
    lane = torch.arange(0, size, _GROUPS, device=group.device)
    # Where the members of the opened groups are among the row's hypotheses * size scores.
    members = ((group + parent * (size - _GROUPS))[..., None] + lane).view(rows, -1)
    candidates = scores_RHP.view(rows, -1).gather(1, members)
    candidates.view(rows, opened, -1).sub_(before_RH.gather(1, parent)[..., None])
    best = members.gather(1, largest_in_rows(candidates, kept))
    parent = best // size
    return parent, best - parent * size
