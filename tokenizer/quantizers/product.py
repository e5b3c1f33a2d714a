"""Product quantization: the channels in groups, a codebook for each; trained by faiss.

Jégou, Douze, Schmid: Product Quantization for Nearest Neighbor Search (2011); Ge, He, Ke, Sun:
Optimized Product Quantization (2013).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenizer.errors import InputError
from tokenizer.quantizers.base import LatentSource, Quantizer, check_at_least_one
from tokenizer.quantizers.blocks import in_blocks
from tokenizer.quantizers.faiss_bridge import (
    as_training_set,
    bits_of,
    draw_seed,
    require_faiss,
    to_tensor,
)
from tokenizer.quantizers.kmeans import argmax_rows, block_rows, half_squared_norms, nearest

_DECODED_ROWS = 1024


class ProductQuantizer(Quantizer):
    """K groups of neighbouring channels, each with a codebook of its own.

    Where K does not divide D, some groups have one channel less, and a zero instead. Codebooks are
    put in order of how much squared error they remove, so that a prefix is worth the most; what the
    missing groups hold is decoded as the mean.

    Args:
        dim, num_codebooks, codebook_size, max_points, iterations: See `Quantizer`; the size is a
            power of two, and there are at most D codebooks.

    Attributes:
        mean: Buffer ``[D]``.
        rotation: Buffer ``[D, E]``, E = K ceil(D / K): maps latents minus mean to the groups, side
            by side; its transpose maps back.
        codebooks: Buffer ``[K, S, E / K]``.

    Raises:
        ValueError: If a number is out of range.
    """

    kind: ClassVar[str] = "pq"
    mean: Tensor
    rotation: Tensor
    codebooks: Tensor

    def __init__(
        self,
        dim: int,
        num_codebooks: int,
        codebook_size: int,
        max_points: int = 200_000,
        iterations: int = 25,
    ) -> None:
        super().__init__(dim, (codebook_size,) * num_codebooks)
        check_at_least_one(max_points=max_points, iterations=iterations)
        bits_of(codebook_size)
        if num_codebooks > dim:
            raise InputError(
                f"{num_codebooks} codebooks cannot share {dim} channels: each needs one at least."
            )
        self.codebook_size = codebook_size
        self.max_points = max_points
        self.iterations = iterations
        width = -(-dim // num_codebooks)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("rotation", torch.zeros(dim, num_codebooks * width))
        self.register_buffer("codebooks", torch.zeros(num_codebooks, codebook_size, width))

    @torch.no_grad()
    def fit(
        self, latents: LatentSource, *, generator: torch.Generator, progress: bool = False
    ) -> ProductQuantizer:
        """Trains with faiss; raises ImportError without it, ValueError for too few latents."""
        faiss = require_faiss()
        frames = self.training_sample(latents, self.max_points, generator).cpu()
        mean = frames.mean(0)
        centred = frames - mean
        rotation = self._learn_rotation(centred)
        y = centred @ rotation
        count, size, width = self.codebooks.shape
        product = faiss.ProductQuantizer(y.shape[1], count, bits_of(size))
        product.cp.niter = self.iterations
        product.cp.seed = draw_seed(generator)
        # Without this faiss complains on the standard output about few points.
        product.cp.min_points_per_centroid = 1
        product.train(as_training_set(y, size))
        books = to_tensor(product.centroids, count, size, width)
        order = _by_error_removed(y.view(-1, count, width), books)
        self.mean.copy_(mean)
        self.rotation.copy_(rotation.view(-1, count, width)[:, order].flatten(1))
        self.codebooks.copy_(books[order])
        return self.measure(latents, progress=progress)

    @torch.no_grad()
    def encode(
        self, latents: Float[Tensor, "M D"], n_codebooks: int | None = None
    ) -> Int[Tensor, "M n"]:
        """Codes of each frame; see `Quantizer.encode`."""
        x, n = self.checked_latents(latents, n_codebooks)
        rows = block_rows(self.codebook_size)
        books = list(self.codebooks[:n].float())
        biases = [-half_squared_norms(book) for book in books]
        scores = torch.empty(rows, self.codebook_size, device=x.device)
        mean, rotation = self.mean.float(), self.rotation.float()

        def search(block: Tensor) -> Tensor:
            y = ((block - mean) @ rotation).view(rows, self.num_codebooks, -1)
            codes = [
                argmax_rows(torch.addmm(bias, part.contiguous(), book.T, out=scores))
                for bias, part, book in zip(biases, y.unbind(1), books, strict=False)
            ]
            return torch.stack(codes, 1)

        return in_blocks(search, x, rows)

    @torch.no_grad()
    def decode(self, codes: Int[Tensor, "M n"]) -> Float[Tensor, "M D"]:
        """Latents; what the groups of missing codebooks hold is the mean."""
        codes = self.checked_codes(codes)
        books = self.codebooks.float()
        mean, back = self.mean.float(), self.rotation.float().T.contiguous()

        def combine(block: Tensor) -> Tensor:
            y = books.new_zeros(len(block), *books.shape[::2])
            for k, column in enumerate(block.T):
                y[:, k] = books[k].index_select(0, column)
            return y.flatten(1) @ back + mean

        return in_blocks(combine, codes, _DECODED_ROWS)

    def _learn_rotation(self, centred: Float[Tensor, "M D"]) -> Float[Tensor, "D E"]:
        """Which channel goes where: as they come, spread evenly over the groups."""
        del centred
        count, _, width = self.codebooks.shape
        rotation = torch.zeros(self.dim, count * width)
        channels = torch.arange(self.dim).tensor_split(count)
        for k, group in enumerate(channels):
            rotation[group, k * width + torch.arange(len(group))] = 1
        return rotation


class OptimizedProductQuantizer(ProductQuantizer):
    """Product quantization after a rotation that faiss learns: it shares variance among the groups.

    Arguments and attributes are those of `ProductQuantizer`.
    """

    kind: ClassVar[str] = "opq"

    def _learn_rotation(self, centred: Float[Tensor, "M D"]) -> Float[Tensor, "D E"]:
        # faiss draws the first rotation with a fixed seed.
        faiss = require_faiss()
        count, size, width = self.codebooks.shape
        matrix = faiss.OPQMatrix(self.dim, count, count * width)
        template = faiss.ProductQuantizer(count * width, count, bits_of(size))
        template.cp.min_points_per_centroid = 1
        matrix.pq = template
        matrix.train(as_training_set(centred, size))
        return to_tensor(matrix.A, count * width, self.dim).T


def _by_error_removed(y: Float[Tensor, "M K W"], books: Float[Tensor, "K S W"]) -> list[int]:
    removed = [
        float(part.square().sum(dtype=torch.float64))
        - float((part - book[nearest(part, book)]).square().sum(dtype=torch.float64))
        for part, book in zip(y.unbind(1), books, strict=True)
    ]
    return sorted(range(len(removed)), key=lambda k: -removed[k])
