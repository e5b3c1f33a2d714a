"""Stages of a bottleneck: a codebook of vector-quantize-pytorch each, and what is around it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from tokenizer.errors import import_extra
from tokenizer.quantizers.factorized import (
    FactorizedQuantizer,
    ProjectedQuantizer,
    ProjectedScalarQuantizer,
)
from tokenizer.quantizers.kmeans import argmax_rows, half_squared_norms


def library() -> Any:
    """vector-quantize-pytorch."""
    return import_extra("vector_quantize_pytorch", "End-to-end training", "e2e")


# What codes stand for (zero where a stage is not used), codes (-1 where it is not used), and mean
# squared distances of what was looked up from what was found.
Coded: TypeAlias = tuple[Float[Tensor, "B T D"], Int[Tensor, "B T"], Float[Tensor, "B T"]]


class CodebookStage(nn.Module, ABC):
    """One codebook and what is around it."""

    @abstractmethod
    def forward(self, residual: Float[Tensor, "B T D"], used: Bool[Tensor, "B T"]) -> Coded:
        """Codes what the stages before have left, in the frames that use this stage."""

    def write_to(self, quantizer: Any, k: int) -> None:
        """Puts what was learnt into the k-th codebook of a quantizer; here ``entries``."""
        quantizer.codebooks[k].copy_(self.entries)
        # Without standardization there is nothing to fit, but a resumed run has not fitted it.
        quantizer.standardizers[k].fitted.fill_(True)


class EmaStage(CodebookStage):
    """Entries are running means of the residuals they code, as in SoundStream and EnCodec.

    Zeghidour et al., 2021, "SoundStream: An End-to-End Neural Audio Codec"; Défossez et al., 2022,
    "High Fidelity Neural Audio Compression".
    """

    def __init__(self, vq: Any) -> None:
        super().__init__()
        self.vq = vq

    def forward(self, residual: Float[Tensor, "B T D"], used: Bool[Tensor, "B T"]) -> Coded:
        """See `CodebookStage`."""
        entry, index, _ = self.vq(residual.detach(), mask=used)
        return entry, index, (residual - entry).square().mean(-1)

    @property
    def entries(self) -> Tensor:
        """What the library has learnt."""
        return self.vq._codebook.embed[0]


class FixedStage(CodebookStage):
    """Entries stay what they were fitted to; only the autoencoder learns to live with them."""

    entries: Tensor
    bias: Tensor

    def __init__(self, entries: Float[Tensor, "S D"]) -> None:
        super().__init__()
        self.register_buffer("entries", entries.clone())
        self.register_buffer("bias", -half_squared_norms(entries))

    def forward(self, residual: Float[Tensor, "B T D"], used: Bool[Tensor, "B T"]) -> Coded:
        """See `CodebookStage`."""
        x = residual.detach().flatten(0, 1)
        nearest = argmax_rows(torch.addmm(self.bias, x, self.entries.T)).view(used.shape)
        entry = self.entries[nearest] * used[..., None]
        return entry, torch.where(used, nearest, -1), (residual - entry).square().mean(-1)


class ProjectedStage(CodebookStage):
    """The affine maps around a lookup in few dimensions."""

    def __init__(self, quantizer: ProjectedQuantizer, k: int) -> None:
        super().__init__()
        self.into = nn.Linear(quantizer.dim, quantizer.codebook_dim)
        self.out = nn.Linear(quantizer.codebook_dim, quantizer.dim)
        with torch.no_grad():
            for theirs, ours in self._pairs(quantizer, k):
                ours.copy_(theirs)

    def write_to(self, quantizer: Any, k: int) -> None:
        """See `CodebookStage`."""
        for theirs, ours in self._pairs(quantizer, k):
            theirs.copy_(ours)

    def _pairs(self, quantizer: ProjectedQuantizer, k: int) -> tuple[tuple[Tensor, Tensor], ...]:
        return (
            (quantizer.in_weight[k], self.into.weight),
            (quantizer.in_bias[k], self.into.bias),
            (quantizer.out_weight[k], self.out.weight),
            (quantizer.out_bias[k], self.out.bias),
        )


class FactorizedStage(ProjectedStage):
    """Entries are directions, as in DAC (Kumar et al., 2023).

    The straight-through estimator spans the lookup, so that the projections before and after it get
    gradients. Other than there, entries are running means instead of parameters.
    """

    def __init__(self, quantizer: FactorizedQuantizer, k: int, vq: Any) -> None:
        super().__init__(quantizer, k)
        self.vq = vq

    def forward(self, residual: Float[Tensor, "B T D"], used: Bool[Tensor, "B T"]) -> Coded:
        """See `CodebookStage`."""
        u = functional.normalize(self.into(residual), dim=-1)
        entry, index, _ = self.vq(u.detach(), mask=used)
        quantized = self.out(u + (entry - u).detach()) * used[..., None]
        return quantized, index, (u - entry).square().mean(-1)

    def write_to(self, quantizer: Any, k: int) -> None:
        """See `CodebookStage`."""
        super().write_to(quantizer, k)
        quantizer.codebooks[k].copy_(self.vq._codebook.embed[0])


class ScalarStage(ProjectedStage):
    """Entries are points of a fixed grid; the gradient passes straight through the rounding."""

    def __init__(self, quantizer: ProjectedScalarQuantizer, k: int) -> None:
        super().__init__(quantizer, k)
        # Levels from -1 to 1, as the quantizer has them.
        self.fsq = library().FSQ(levels=list(quantizer.levels), preserve_symmetry=True)

    def forward(self, residual: Float[Tensor, "B T D"], used: Bool[Tensor, "B T"]) -> Coded:
        """See `CodebookStage`."""
        entry, index = self.fsq(self.into(residual))
        quantized = self.out(entry) * used[..., None]
        index = torch.where(used, index.long(), -1)
        return quantized, index, torch.zeros_like(residual[..., 0])
