"""What the quantizers that `faiss` trains share. Only `fit` needs faiss."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tokenizer.errors import InputError, MissingPackageError
from tokenizer.quantizers.base import LatentSource, Quantizer, check_at_least_one


class FaissQuantizer(Quantizer):
    """Codebooks of equal size around the latents' mean; subclasses implement `learn`.

    Args:
        dim: D.
        num_codebooks: K.
        codebook_size: Entries of each codebook, a power of two.
        max_points: `fit` draws at most so many frames.
        iterations: Of training.

    Attributes:
        mean: Buffer ``[D]``.
        codebooks: Buffer that subclasses register.

    Raises:
        ValueError: If a number is out of range.
    """

    mean: Tensor
    codebooks: Tensor

    def __init__(
        self, dim: int, num_codebooks: int, codebook_size: int, max_points: int, iterations: int
    ) -> None:
        super().__init__(dim, (codebook_size,) * num_codebooks)
        check_at_least_one(max_points=max_points, iterations=iterations)
        bits_of(codebook_size)
        self.codebook_size = codebook_size
        self.max_points = max_points
        self.iterations = iterations
        self.register_buffer("mean", torch.zeros(dim))

    @abstractmethod
    def learn(
        self, faiss: Any, centred: Float[Tensor, "M D"], generator: torch.Generator, progress: bool
    ) -> None:
        """Fits all buffers but the mean.

        Args:
            faiss: The module.
            centred: Latents less their mean, on the CPU.
            generator: Source of randomness.
            progress: Whether faiss may print.
        """

    @torch.no_grad()
    def fit(
        self, latents: LatentSource, *, generator: torch.Generator, progress: bool = False
    ) -> Quantizer:
        """Trains with faiss on a sample of the latents.

        Raises:
            ImportError: If faiss is not installed.
            ValueError: If the latents are of another dimension, not finite, or fewer than a
                codebook has entries.
        """
        faiss = require_faiss()
        frames = self.draw_sample(latents, self.max_points, generator).cpu()
        mean = frames.mean(0)
        self.learn(faiss, frames - mean, generator, progress)
        self.mean.copy_(mean)
        return self.measure(latents, progress=progress)


def require_faiss() -> Any:
    """The module `faiss`.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise MissingPackageError(
            'Fitting this quantizer needs faiss: pip install "latent-tokenizer[faiss]". '
            "Encoding and decoding do not need it."
        ) from None
    return faiss


def bits_of(codebook_size: int) -> int:
    """Bits of a code; ValueError unless the size is a power of two, as faiss requires."""
    bits = codebook_size.bit_length() - 1
    if codebook_size != 1 << bits or not 1 <= bits <= 16:
        raise InputError(
            f"codebook_size is {codebook_size}; faiss needs a power of two from 2 to 65,536."
        )
    return bits


def as_training_set(frames: Float[Tensor, "M D"], codebook_size: int) -> np.ndarray:
    """Vectors as faiss takes them.

    Raises:
        ValueError: If there are fewer vectors than centroids, which faiss cannot cluster.
    """
    if len(frames) < codebook_size:
        raise InputError(
            f"{len(frames)} latents cannot train codebooks of {codebook_size} entries with faiss: "
            "it needs at least as many."
        )
    return np.ascontiguousarray(frames.cpu().numpy(), dtype=np.float32)


def draw_seed(generator: torch.Generator) -> int:
    """A seed for faiss, which takes no generators."""
    return int(torch.randint(2**31 - 1, (), generator=generator, device=generator.device))


def set_clustering(parameters: Any, iterations: int, generator: torch.Generator) -> None:
    """Fills in faiss's ``ClusteringParameters``."""
    parameters.niter = iterations
    parameters.seed = draw_seed(generator)
    # Otherwise faiss prints warnings about few points.
    parameters.min_points_per_centroid = 1


def learn_codebooks(
    quantizer: Any, frames: Float[Tensor, "M D"], shape: Sequence[int]
) -> Float[Tensor, "K S D"]:
    """Trains an additive or residual quantizer of faiss and returns its codebooks."""
    quantizer.train(as_training_set(frames, shape[1]))
    return to_tensor(quantizer.codebooks, *shape)


def to_tensor(vector: Any, *shape: int) -> Tensor:
    """A copy of a faiss vector of floats in the given shape."""
    array = require_faiss().vector_to_array(vector)
    return torch.from_numpy(array.reshape(shape).astype(np.float32))
