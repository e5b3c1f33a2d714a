"""Codebooks that are best for given codes, all at once: joint least squares.

K-means fits each codebook as if it were the last. Given the codes, the best codebooks together
solve one linear least squares problem: Babenko, Lempitsky: Additive Quantization for Extreme Vector
Compression (2014).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

_CHUNK = 2_048
_ITERATIONS = 10
# Of the squared residual of the equations, in relation to the first.
_TOLERANCE = 1e-10


@torch.no_grad()
def refine(
    x: Float[Tensor, "M D"], codes: Int[Tensor, "M K"], codebooks: Float[Tensor, "K S D"]
) -> Float[Tensor, "K S D"]:
    """Better codebooks for the same codes; each prefix's relative squared error counts."""
    errors = []
    residual = x
    for book, code in zip(codebooks, codes.T, strict=True):
        residual = residual - book.index_select(0, code)
        errors.append(residual.square().mean(dtype=torch.float64).float())
    weights = 1 / torch.stack(errors).clamp(min=1e-12)
    # Numbers near one for the solver.
    return joint_least_squares(x, codes, codebooks, weights / weights.sum(), iterations=_ITERATIONS)


@torch.no_grad()
def joint_least_squares(
    x: Float[Tensor, "M D"],
    codes: Int[Tensor, "M K"],
    codebooks: Float[Tensor, "K S D"],
    weights: Float[Tensor, " K"],
    *,
    iterations: int = 20,
) -> Float[Tensor, "K S D"]:
    """Codebooks C that minimise ``sum_n weights[n] |x - sum_{k <= n} C_k[codes_k]|^2``.

    Solved by conjugate gradients, which need no matrix of the K S unknowns, only sums over codes.
    Entries that no vector uses stay as they are. Weights ``[0, ..., 0, 1]`` are the additive
    quantizer's objective, the error after all.
    """
    # suffix[k]: how much of the objective codebook k has a part in.
    suffix = weights.flip(0).cumsum(0).flip(0).tolist()
    columns = codes.T.contiguous()
    target = torch.zeros_like(codebooks)
    counts = codebooks.new_zeros(*codebooks.shape[:2], 1)
    for k, column in enumerate(columns):
        target[k].index_add_(0, column, x, alpha=suffix[k])
        counts[k, :, 0] = suffix[k] * torch.bincount(column, minlength=codebooks.shape[1])
    inverse = torch.where(counts > 0, 1 / counts, 0)
    solution = codebooks.clone()
    residual = target - _normal(columns, solution, suffix)
    step = inverse * residual
    size = (residual * step).sum((0, 1))
    solved = _TOLERANCE * size
    for _ in range(iterations):
        moved = _normal(columns, step, suffix)
        # Each channel is a system of its own, all with the same matrix. Those that are solved
        # stand still: what is left of them is rounding.
        curvature = (step * moved).sum((0, 1))
        active = (size > solved) & (curvature > 0)
        rate = torch.where(active, size / curvature, 0)
        solution += rate * step
        residual -= rate * moved
        conditioned = inverse * residual
        previous, size = size, (residual * conditioned).sum((0, 1))
        step = conditioned + torch.where(active, size / previous, 0) * step
    return solution


def _normal(
    columns: Int[Tensor, "K M"], codebooks: Float[Tensor, "K S D"], suffix: list[float]
) -> Float[Tensor, "K S D"]:
    """The normal equations' matrix times codebooks."""
    out = torch.zeros_like(codebooks)
    for view in columns.split(_CHUNK, dim=1):
        part = view.contiguous()
        # For a vector and codebook k: suffix[k] times all entries up to k, and those after it, each
        # times its own suffix.
        entries = [book.index_select(0, c) for book, c in zip(codebooks, part, strict=True)]
        before = torch.zeros_like(entries[0])
        after = torch.zeros_like(entries[0])
        for entry, weight in zip(entries, suffix, strict=True):
            after.add_(entry, alpha=weight)
        for k, (entry, weight) in enumerate(zip(entries, suffix, strict=True)):
            before += entry
            after.sub_(entry, alpha=weight)
            out[k].index_add_(0, part[k], torch.add(after, before, alpha=weight))
    return out
