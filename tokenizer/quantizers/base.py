"""What a quantizer is: fitted on latents, turns vectors into codes and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


@runtime_checkable
class LatentSource(Protocol):
    """Latent frames that can be read again and again, and need not fit in memory."""

    dim: int

    def __len__(self) -> int:
        """Number of latent frames."""
        ...

    def batches(self, batch_size: int) -> Iterator[Float[Tensor, "M D"]]:
        """Yields all frames in order, float32, at most ``batch_size`` at a time."""
        ...


class Quantizer(nn.Module, ABC):
    """Maps latent frames to one code per codebook, and codes to latent frames.

    Hyperparameters are constructor arguments; what `fit` learns is buffers, so it is saved and
    moved with the model. Everything is computed in float32, also under autocast. `fit` on an
    already fitted quantizer forgets the first fit.

    Attributes:
        kind: The name under which configs and checkpoints know this quantizer.
        dim: D.
        codebook_sizes: Entries of each codebook.
        fitted: Bool buffer of shape ``[]``.
        noise_levels: Float32 buffer ``[K]``: RMS error of the latents reconstructed from the first
            n codebooks over the latents' overall RMS deviation from their mean, measured by `fit`.
    """

    kind: ClassVar[str]
    dim: int
    codebook_sizes: tuple[int, ...]
    fitted: Tensor
    noise_levels: Tensor

    @property
    def num_codebooks(self) -> int:
        """K."""
        return len(self.codebook_sizes)

    @abstractmethod
    def fit(
        self, latents: LatentSource, *, generator: torch.Generator, progress: bool = False
    ) -> Quantizer:
        """Fits all parameters to the latents and returns ``self``."""

    @abstractmethod
    def encode(
        self, latents: Float[Tensor, "M D"], n_codebooks: int | None = None
    ) -> Int[Tensor, "M n"]:
        """Codes (int64) of the first ``n_codebooks`` codebooks (default: all) for each frame.

        The codes of a frame must not depend on the other frames of the call, not even in their
        last bits: chunks and batches rely on it.
        """

    @abstractmethod
    def decode(self, codes: Int[Tensor, "M n"]) -> Float[Tensor, "M D"]:
        """Latents from the codes of the first n codebooks, 1 <= n <= K."""

    @abstractmethod
    def to_config(self) -> dict[str, Any]:
        """What `from_config` needs to build the same quantizer, unfitted, as JSON values."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: dict[str, Any]) -> Quantizer:
        """Builds an unfitted quantizer from what `to_config` returned."""
