"""Vectors in blocks of one fixed shape, so that no result depends on a vector's company."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Shaped
from torch import Tensor

from tokenizer.precision import full_float32


@torch.no_grad()
def in_blocks(
    function: Callable[[Tensor], Tensor], x: Shaped[Tensor, "M D"], rows: int
) -> Shaped[Tensor, "M ..."]:
    """Applies a row-wise function to blocks of ``rows`` rows, the last one filled up with zeros.

    Matrix products of other shapes may round otherwise. Here all have the same shape and start at
    an aligned address, and they are computed in full float32.
    """
    results = []
    with full_float32():
        for start in range(0, max(len(x), 1), rows):
            piece = x[start : start + rows]
            block = x.new_zeros(rows, x.shape[1])
            block[: len(piece)] = piece
            results.append(function(block)[: len(piece)])
    return torch.cat(results)
