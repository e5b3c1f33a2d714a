"""A residual quantizer that faiss trains."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from tokenizer.errors import InputError
from tokenizer.quantizers.base import LatentSource, check_values
from tokenizer.quantizers.faiss_bridge import (
    as_training_set,
    bits_of,
    draw_seed,
    require_faiss,
    to_tensor,
)
from tokenizer.quantizers.residual import ResidualVectorQuantizer
from tokenizer.quantizers.sources import sample_frames


class FaissResidualQuantizer(ResidualVectorQuantizer):
    """`ResidualVectorQuantizer` without standardization, its codebooks trained by faiss.

    faiss fits each codebook to the residuals of several hypotheses (a beam) at once. It is here to
    compare with; it takes longer to fit than ours.

    Args:
        dim: D.
        num_codebooks: K.
        codebook_size: Entries of each codebook, a power of two.
        beam_width: Hypotheses kept, in training and in `encode`.
        max_points: `fit` draws at most so many frames.
        iterations: Of k-means, per stage.

    Raises:
        ValueError: If a number is out of range.
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
            dim,
            num_codebooks,
            codebook_size,
            beam_width=beam_width,
            max_points=max_points,
            iterations=iterations,
        )

    @torch.no_grad()
    def fit(
        self,
        latents: LatentSource,
        *,
        generator: torch.Generator,
        metric: Tensor | None = None,
        group: dist.ProcessGroup | None = None,
        progress: bool = False,
    ) -> FaissResidualQuantizer:
        """Trains with faiss on a sample of the latents.

        Raises:
            ImportError: If faiss is not installed.
            ValueError: If the latents are of another dimension, not finite, or fewer than a
                codebook has entries, or if a metric or a group of processes is given.
        """
        if metric is not None or group is not None:
            raise InputError(f"The {self.kind} quantizer takes no metric, and fits on one process.")
        faiss = require_faiss()
        self.check_source(latents)
        frames = sample_frames(latents, self.max_points, generator)
        check_values(frames)
        self.fitted.fill_(False)
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
