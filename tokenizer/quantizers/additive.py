"""Additive quantization with local search (LSQ); trained by faiss, searched in torch.

Martinez, Zakhmi, Hoos, Little: LSQ++: Lower running time and higher recall in multi-codebook
quantization (2018).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from tokenizer.quantizers.base import LatentSource, Quantizer, check_at_least_one, check_values
from tokenizer.quantizers.blocks import in_blocks
from tokenizer.quantizers.faiss_bridge import (
    as_training_set,
    bits_of,
    draw_seed,
    require_faiss,
    to_tensor,
)
from tokenizer.quantizers.kmeans import argmax_rows, block_rows, half_squared_norms
from tokenizer.quantizers.sources import sample_frames

# Codes changed at once to leave a local optimum, as in faiss.
_PERTURBED = 4


class LocalSearchQuantizer(Quantizer):
    """K codebooks whose entries add up, learned together and searched together.

    Unlike residual codebooks they have no order: the codes of n < K codebooks are searched for
    among the first n only, and far from the best that n codebooks could be. Fit one for each rate.

    Training solves a dense system of K S unknowns in float64 in each iteration: for 16 codebooks of
    1,024 entries it has 2 GB.

    faiss perturbs codes at random, so what it finds for a frame depends on the frames before it.
    Here the perturbations are the same for all frames and calls.

    Args:
        dim: D.
        num_codebooks: K.
        codebook_size: Entries of each codebook, a power of two.
        search_rounds: Perturbations that `encode` tries, each followed by `descents`.
        descents: Passes over the codebooks, each choosing the best entry given all others.
        max_points: `fit` draws at most so many frames.
        iterations: Of training.

    Attributes:
        mean: Buffer ``[D]``.
        codebooks: Buffer ``[K, S, D]``.

    Raises:
        ValueError: If a number is out of range.
    """

    kind: ClassVar[str] = "lsq"
    mean: Tensor
    codebooks: Tensor

    def __init__(
        self,
        dim: int,
        num_codebooks: int,
        codebook_size: int,
        search_rounds: int = 16,
        descents: int = 4,
        max_points: int = 50_000,
        iterations: int = 10,
    ) -> None:
        super().__init__(dim, (codebook_size,) * num_codebooks)
        check_at_least_one(
            descents=descents,
            search_rounds=search_rounds,
            max_points=max_points,
            iterations=iterations,
        )
        bits_of(codebook_size)
        self.codebook_size = codebook_size
        self.search_rounds = search_rounds
        self.descents = descents
        self.max_points = max_points
        self.iterations = iterations
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("codebooks", torch.zeros(num_codebooks, codebook_size, dim))

    @property
    def prefix_codes(self) -> bool:
        """False: all codes are searched for together."""
        return False

    @torch.no_grad()
    def fit(
        self, latents: LatentSource, *, generator: torch.Generator, progress: bool = False
    ) -> LocalSearchQuantizer:
        """Trains with faiss on a sample of the latents.

        Raises:
            ImportError: If faiss is not installed.
            ValueError: If the latents are of another dimension, not finite, or fewer than a
                codebook has entries.
        """
        faiss = require_faiss()
        self.check_source(latents)
        frames = sample_frames(latents, self.max_points, generator)
        check_values(frames)
        self.fitted.fill_(False)
        mean = frames.mean(0)
        count, size, dim = self.codebooks.shape
        quantizer = faiss.LocalSearchQuantizer(dim, count, bits_of(size))
        quantizer.train_iters = self.iterations
        quantizer.random_seed = draw_seed(generator)
        quantizer.verbose = progress
        quantizer.train(as_training_set(frames - mean, size))
        self.mean.copy_(mean)
        self.codebooks.copy_(to_tensor(quantizer.codebooks, count, size, dim))
        return self.measure(latents, progress=progress)

    @torch.no_grad()
    def encode(
        self, latents: Float[Tensor, "M D"], n_codebooks: int | None = None
    ) -> Int[Tensor, "M n"]:
        """Codes of each frame; see `Quantizer.encode`. Raises as `Quantizer.checked_latents`."""
        x, n = self.checked_latents(latents, n_codebooks)
        rows = block_rows(self.codebook_size)
        search = _LocalSearch(list(self.codebooks[:n].float()), rows, self.descents)
        mean = self.mean.float()
        return in_blocks(lambda block: search(block - mean, self.search_rounds), x, rows)

    @torch.no_grad()
    def decode(self, codes: Int[Tensor, "M n"]) -> Float[Tensor, "M D"]:
        """Latents, as the mean and a sum of entries."""
        codes = self.checked_codes(codes)
        first = torch.arange(codes.shape[1], device=codes.device) * self.codebook_size
        table = self.codebooks[: codes.shape[1]].flatten(0, 1).float()
        return functional.embedding_bag(codes + first, table, mode="sum") + self.mean.float()


class _LocalSearch:
    """Iterated conditional modes from a greedy start, with perturbations."""

    def __init__(self, books: list[Tensor], rows: int, descents: int) -> None:
        self.books = books
        self.biases = [-half_squared_norms(book) for book in books]
        self.descents = descents
        self.scores = torch.empty(rows, len(books[0]), device=books[0].device)

    def __call__(self, x: Tensor, rounds: int) -> Tensor:
        residual = x
        codes = x.new_empty(len(x), len(self.books), dtype=torch.int64)
        for k, book in enumerate(self.books):
            codes[:, k] = self._nearest(k, residual)
            residual = residual - book.index_select(0, codes[:, k])
        codes, residual = self._descend(codes, residual)
        error = residual.square().sum(1)
        generator = torch.Generator().manual_seed(0)
        for _ in range(rounds):
            # No dependence on anything but the frame itself: the same shifts for all.
            where = torch.randperm(len(self.books), generator=generator)[:_PERTURBED].tolist()
            shift = torch.randint(1, len(self.books[0]), (len(where),), generator=generator)
            tried, left = codes.clone(), residual
            for k, by in zip(where, shift.tolist(), strict=True):
                left = left + self.books[k].index_select(0, codes[:, k])
                tried[:, k] = (codes[:, k] + by) % len(self.books[k])
                left = left - self.books[k].index_select(0, tried[:, k])
            tried, left = self._descend(tried, left)
            found = left.square().sum(1)
            better = (found < error)[:, None]
            codes = torch.where(better, tried, codes)
            residual = torch.where(better, left, residual)
            error = torch.minimum(error, found)
        return codes

    def _descend(self, codes: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        codes = codes.clone()
        for _ in range(self.descents):
            for k, book in enumerate(self.books):
                without = residual + book.index_select(0, codes[:, k])
                codes[:, k] = self._nearest(k, without)
                residual = without - book.index_select(0, codes[:, k])
        return codes, residual

    def _nearest(self, k: int, x: Tensor) -> Tensor:
        return argmax_rows(torch.addmm(self.biases[k], x, self.books[k].T, out=self.scores))
