"""Residual search: which entry of each codebook, one codebook after another, greedily or by beam.

Shape suffixes: R vectors of a block, H hypotheses of a vector, D dimensions, P padded entries.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from tokenizer.quantizers.kmeans import argmax_rows, fused, half_squared_norms, largest_in_rows
from tokenizer.standardizer import Standardizer

# The beam looks for the best scores in two steps, by groups of which only the best are opened.
_GROUPS = 32
# Vectors of one product. On a CPU the scores stay in a core's cache; a GPU wants work worth the
# launch. A stream that has a single frame should not pay for many more.
_CPU_PRODUCT, _GPU_PRODUCT, _SMALL_PRODUCT = 128, 16_384, 32
# Products that are searched together, so that choosing costs few calls.
_CPU_PRODUCTS = 8


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

    def measured(self, residual: Float[Tensor, "R D"]) -> Float[Tensor, "R D"]:
        """Residuals in the space where distances are measured."""
        return residual if self.standardizer is None else self.standardizer.project(residual)


class Scores:
    """Scores of vectors against a codebook, in products of one fixed shape.

    The score of u and c is ``u.c - |c|^2 / 2``: half of ``|u|^2 - |u - c|^2``. Whatever comes in
    one call, each product has the same shape, the last one filled up with zeros: so the scores of a
    vector, and its codes, do not depend on how many others it comes with.
    """

    def __init__(self, vectors: int, size: int, device: torch.device, product: int) -> None:
        self.product = product
        rows = -(-vectors // self.product) * self.product
        # One buffer for all scores: to allocate it anew costs more than to choose among them.
        self._buffer = torch.empty(rows, size, device=device)

    def __call__(
        self, stage: Stage, residual: Float[Tensor, "R D"], *, norms: bool = False
    ) -> tuple[Float[Tensor, "R P"], Float[Tensor, " R"] | None, Float[Tensor, "R groups"] | None]:
        """Scores, and on demand half the vectors' squared norms and the groups' largest scores."""
        count, product, keys = len(residual), self.product, stage.keys.T
        squares, maxima = [], []
        for start in range(0, count, product):
            block = residual[start : start + product]
            u = stage.measured(block if len(block) == product else self.filled(block))
            scores = self._buffer[start : start + product]
            # A product with `out=` takes no part in autocast: it stays float32.
            torch.addmm(stage.bias, u, keys, out=scores)
            if norms:
                # Now, while the scores are in cache.
                maxima.append(scores.view(product, -1, _GROUPS).amax(1))
                if stage.standardizer is not None:
                    squares.append(u.square().sum(1))
        if not norms:
            return self._buffer[:count], None, None
        squared = torch.cat(squares)[:count] if squares else residual.square().sum(1)
        return self._buffer[:count], squared / 2, torch.cat(maxima)[:count]

    def filled(self, block: Float[Tensor, "R D"]) -> Float[Tensor, "product D"]:
        """Vectors and zeros, as many as a product has."""
        missing = self.product - len(block)
        return functional.pad(block, (0, 0, 0, missing)) if missing else block


@torch.no_grad()
def search(
    x: Float[Tensor, "M D"],
    stages: list[Stage],
    width: int = 1,
    common: Standardizer | None = None,
) -> Int[Tensor, "M n"]:
    """Codes of the given stages for each vector.

    Args:
        x: Vectors, float32.
        stages: The codebooks in order.
        width: Hypotheses kept; 1 is the greedy search.
        common: Maps the vectors to the space that the centroids of all stages are in; None where
            they are in it.

    Returns:
        int64 codes, which do not depend on what other vectors there are.
    """
    size, on_cpu = len(stages[0].keys), x.device.type == "cpu"
    product = _CPU_PRODUCT if on_cpu else _GPU_PRODUCT
    few = on_cpu and len(x) * width <= _SMALL_PRODUCT
    if few and common is None and all(stage.standardizer is None for stage in stages):
        product = _smaller_product(x.shape[1], size, torch.get_num_threads())
    together = product * (_CPU_PRODUCTS if on_cpu else 1)
    rows = min(max(together // width, 1), max(len(x), 1))
    scores = Scores(rows * width, size, x.device, product)
    codes = torch.empty(len(x), len(stages), dtype=torch.int64, device=x.device)
    for start in range(0, len(x), rows):
        block = x[start : start + rows]
        if common is not None:
            pieces = [common.project(scores.filled(piece)) for piece in block.split(product)]
            block = torch.cat(pieces)[: len(block)]
        found = greedy(block, stages, scores) if width == 1 else beam(block, stages, width, scores)
        codes[start : start + rows] = found
    return codes


@lru_cache(maxsize=64)
def _smaller_product(dim: int, size: int, threads: int) -> int:  # noqa: ARG001
    """The rows of the small product if they get the bits of the usual one, else of that.

    As in `tokenizer.stepping`: what is summed does not change the order of sums, so noise shows it.
    """
    g = torch.Generator().manual_seed(0)
    x, keys = torch.randn(_CPU_PRODUCT, dim, generator=g), torch.randn(size, dim, generator=g)
    bias = torch.randn(size, generator=g)
    whole = torch.addmm(bias, x, keys.T)
    parts = [torch.addmm(bias, part.clone(), keys.T) for part in x.split(_SMALL_PRODUCT)]
    return _SMALL_PRODUCT if torch.equal(torch.cat(parts), whole) else _CPU_PRODUCT


def greedy(x: Float[Tensor, "R D"], stages: list[Stage], scores: Scores) -> Int[Tensor, "R n"]:
    """In each stage the entry nearest to what the stages before have left."""
    residual = x
    nearest = fused(x.device)
    codes = []
    for stage in stages:
        if nearest is None:
            codes.append(argmax_rows(scores(stage, residual)[0]))
        else:
            codes.append(nearest(stage.measured(residual), stage.keys, stage.bias)[0])
        if len(codes) < len(stages):
            residual = residual - stage.centroids.index_select(0, codes[-1])
    return torch.stack(codes, 1)


def beam(
    x: Float[Tensor, "R D"], stages: list[Stage], width: int, scores: Scores
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
        found, before, maxima = scores(stage, residual, norms=True)
        assert before is not None
        assert maxima is not None
        size = len(stage.centroids)
        kept = min(width, hypotheses * size)
        parent_RH, entry_RH = _best(
            found.view(rows, hypotheses, -1),
            maxima.view(rows, hypotheses, -1),
            # Hypotheses differ in what they had left before, which the scores leave out.
            before.view(rows, hypotheses),
            size,
            kept,
        )
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
    scores_RHP: Float[Tensor, "R H P"],
    maxima_RHG: Float[Tensor, "R H G"],
    before_RH: Float[Tensor, "R H"],
    num_entries: int,
    kept: int,
) -> tuple[Int[Tensor, "R kept"], Int[Tensor, "R kept"]]:
    """Hypotheses and entries of the ``kept`` largest ``score - before`` of each row, best first.

    The entries fall into groups (entry modulo `_GROUPS`), whose largest scores are given. The best
    candidates lie in the groups with the best maxima, so only as many groups as candidates are
    opened: maxima are cheap, and ranking all candidates would cost as much as the matrix product.
    """
    rows, hypotheses, size = scores_RHP.shape
    maxima = maxima_RHG - before_RH[..., None]
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
