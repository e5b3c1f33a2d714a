"""Vectors in blocks of one fixed shape, so that no result depends on what else is in a call."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn import functional


@torch.no_grad()
def in_blocks(
    function: Callable[[Tensor], Tensor], x: Shaped[Tensor, "M D"], rows: int
) -> Shaped[Tensor, "M ..."]:
    """Applies a row-wise function to blocks of ``rows`` rows, the last one padded with zeros.

    Matrix products of different shapes may round differently. Here all have the same shape and
    start at an aligned address, and they stay in float32 under autocast.
    """
    results = []
    with torch.autocast(x.device.type, enabled=False):
        for start in range(0, max(len(x), 1), rows):
            piece = x[start : start + rows]
            block = x.new_zeros(rows, x.shape[1])
            block[: len(piece)] = piece
            results.append(function(block)[: len(piece)])
    return torch.cat(results)


@torch.no_grad()
def sum_of_entries(
    codes: Int[Tensor, "M n"], table: Float[Tensor, "entries D"], sizes: Sequence[int]
) -> Float[Tensor, "M D"]:
    """For each frame the sum of one entry of each codebook, float32.

    Args:
        codes: Of the first n codebooks.
        table: Their entries, one codebook after another: one fused sum of rows serves them all.
        sizes: Entries of each codebook.
    """
    first = torch.tensor([0, *sizes], device=codes.device).cumsum(0)[: codes.shape[1]]
    return functional.embedding_bag(codes + first, table.float(), mode="sum")
