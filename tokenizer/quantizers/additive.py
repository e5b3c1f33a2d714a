"""Additive and residual quantization trained by faiss, searched in torch.

Martinez, Zakhmi, Hoos, Little: LSQ++: Lower running time and higher recall in multi-codebook
quantization (2018).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

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
from tokenizer.quantizers.kmeans import argmax_rows, block_rows, half_squared_norms
from tokenizer.quantizers.residual import ResidualVectorQuantizer

# Codes changed at once to leave a local optimum, as in faiss.
_PERTURBED = 4


class LocalSearchQuantizer(Quantizer):
    """K codebooks whose entries add up, learned together and searched together.

    Unlike residual codebooks they have no order: the codes of n < K codebooks are searched for
    among the first n only, and far from the best that n codebooks could be. Fit one for each rate.

    Training solves a dense system of K S unknowns in float64 in each iteration: for 16 codebooks of
    1,024 entries it has 2 GB. Unlike faiss's, the perturbations of the search are the same for all
    frames and calls.

    Args:
        dim, num_codebooks, codebook_size, max_points, iterations: See `Quantizer`; the size is a
            power of two.
        search_rounds: Perturbations that `encode` tries, each followed by `descents`.
        descents: Passes over the codebooks, each choosing the best entry given all others.

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
        """Trains with faiss; raises ImportError without it, ValueError for too few latents."""
        faiss = require_faiss()
        frames = self.training_sample(latents, self.max_points, generator).cpu()
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
        """Codes of each frame; see `Quantizer.encode`."""
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
            places = torch.randperm(len(self.books), generator=generator)[:_PERTURBED].tolist()
            shift = torch.randint(1, len(self.books[0]), (len(places),), generator=generator)
            candidates, remainder = codes.clone(), residual
            for k, step in zip(places, shift.tolist(), strict=True):
                remainder = remainder + self.books[k].index_select(0, codes[:, k])
                candidates[:, k] = (codes[:, k] + step) % len(self.books[k])
                remainder = remainder - self.books[k].index_select(0, candidates[:, k])
            candidates, remainder = self._descend(candidates, remainder)
            new_error = remainder.square().sum(1)
            better = (new_error < error)[:, None]
            codes = torch.where(better, candidates, codes)
            residual = torch.where(better, remainder, residual)
            error = torch.minimum(error, new_error)
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


class FaissResidualQuantizer(ResidualVectorQuantizer):
    """`ResidualVectorQuantizer` without standardization, its codebooks trained by faiss.

    faiss fits each codebook to the residuals of several hypotheses (a beam) at once. It is here to
    compare with; it takes longer to fit than ours. Arguments are those of its base class; the
    codebook size is a power of two, and the beam serves in training, too.
    """

    kind: ClassVar[str] = "rq-faiss"

    def __init__(
        self,
        dim: int,
        num_codebooks: int,
        codebook_size: int,
        beam_width: int = 1,
        max_points: int = 50_000,
        iterations: int = 10,
    ) -> None:
        bits_of(codebook_size)
        super().__init__(
            dim, num_codebooks, codebook_size, "none", beam_width, max_points, iterations
        )

    @torch.no_grad()
    def fit(
        self,
        latents: LatentSource,
        *,
        generator: torch.Generator,
        progress: bool = False,
        **more: Any,
    ) -> FaissResidualQuantizer:
        """Trains with faiss; raises ImportError without it, ValueError for too few latents."""
        if any(value is not None for value in more.values()):
            raise InputError(f"The {self.kind} quantizer takes no metric, and fits on one process.")
        faiss = require_faiss()
        frames = self.training_sample(latents, self.max_points, generator).cpu()
        mean = frames.mean(0)
        count, size, dim = self.codebooks.shape
        quantizer = faiss.ResidualQuantizer(dim, count, bits_of(size))
        quantizer.max_beam_size = self.beam_width
        quantizer.cp.niter = self.iterations
        quantizer.cp.seed = draw_seed(generator)
        quantizer.cp.min_points_per_centroid = 1
        quantizer.verbose = progress
        quantizer.train(as_training_set(frames - mean, size))
        self.codebooks.copy_(to_tensor(quantizer.codebooks, count, size, dim))
        self.codebooks[0] += mean.to(self.codebooks.device)
        for standardizer in self.standardizers:
            standardizer.fit(frames)  # pyright: ignore[reportCallIssue]
        return self.measure(latents, progress=progress)
