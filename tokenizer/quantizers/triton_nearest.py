"""The nearest entry of a codebook in one GPU kernel: scores are never written to memory.

Imported only where triton is installed and a GPU is used; `tokenizer.quantizers.kmeans.fused` falls
back to a product and an argmax.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from jaxtyping import Float, Int
from torch import Tensor

# Vectors and entries of a tile, and the dimensions that are multiplied at once. Tiles stay small
# enough for registers and for the shared memory of any GPU, however many dimensions there are.
ROWS, ENTRIES, CHUNK = 64, 64, 16
NUM_WARPS = 8


@triton.jit
def nearest_kernel(  # noqa: ANN201 -- triton compiles it, and wants no annotations but its own
    x, keys, bias, codes, best, num_rows, num_entries, dim,  # noqa: ANN001
    ROWS: tl.constexpr, ENTRIES: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """A tile of rows against all entries, a tile of these at a time."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    largest = tl.full((ROWS,), float("-inf"), tl.float32)
    place = tl.zeros((ROWS,), tl.int32)
    for first in range(0, num_entries, ENTRIES):
        entry = first + tl.arange(0, ENTRIES)
        scores = tl.zeros((ROWS, ENTRIES), tl.float32)
        for start in range(0, dim, CHUNK):
            d = start + tl.arange(0, CHUNK)
            vectors = tl.load(
                x + row.to(tl.int64)[:, None] * dim + d[None, :],
                mask=(row[:, None] < num_rows) & (d[None, :] < dim),
                other=0.0,
            )
            block = tl.load(
                keys + entry[None, :] * dim + d[:, None],
                mask=(entry[None, :] < num_entries) & (d[:, None] < dim),
                other=0.0,
            )
            # "ieee": TF32 would choose other entries than float32 does.
            scores = tl.dot(vectors, block, scores, input_precision="ieee")
        scores += tl.load(bias + entry, mask=entry < num_entries, other=float("-inf"))[None, :]
        top = tl.max(scores, axis=1)
        where = first + tl.argmax(scores, axis=1)
        # Strictly: the first of equals stays.
        place = tl.where(top > largest, where, place)
        largest = tl.maximum(top, largest)
    tl.store(codes + row, place.to(tl.int64), mask=row < num_rows)
    tl.store(best + row, largest, mask=row < num_rows)


def nearest_fused(
    x: Float[Tensor, "M D"], keys: Float[Tensor, "S D"], bias: Float[Tensor, " S"]
) -> tuple[Int[Tensor, " M"], Float[Tensor, " M"]]:
    """Index and value of the largest ``x.k + bias`` in each row, float32; the first of equals."""
    codes = torch.empty(len(x), dtype=torch.int64, device=x.device)
    best = torch.empty(len(x), device=x.device)
    if len(x):
        launch: Any = nearest_kernel[(triton.cdiv(len(x), ROWS),)]  # pyright: ignore[reportIndexIssue]
        # triton launches on the current GPU, which need not be that of the tensors.
        with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
            launch(
                x.contiguous(), keys.contiguous(), bias.contiguous(), codes, best,
                len(x), len(keys), x.shape[1],
                ROWS=ROWS, ENTRIES=ENTRIES, CHUNK=CHUNK, num_warps=NUM_WARPS,
            )  # fmt: skip
    return codes, best
