"""Quantizers that train together with an autoencoder, on top of vector-quantize-pytorch.

A bottleneck begins and ends as a quantizer, so only training needs that library (extra ``e2e``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from tokenizer.errors import InputError
from tokenizer.precision import full_float32
from tokenizer.quantizers.base import Quantizer
from tokenizer.quantizers.factorized import (
    FactorizedQuantizer,
    ProjectedScalarQuantizer,
    scalar_levels,
)
from tokenizer.quantizers.measure import code_entropy
from tokenizer.quantizers.residual import ResidualVectorQuantizer
from tokenizer.training.codebook_stages import (
    CodebookStage,
    EmaStage,
    FactorizedStage,
    FixedStage,
    ScalarStage,
    library,
)
from tokenizer.training.config import check_fields

BOTTLENECKS = ("rvq", "factorized", "rfsq")
# Decay per step of the running noise levels and of the counts behind the perplexity.
_DECAY = 0.99
# The fit that training starts from.
_INITIAL_POINTS, _INITIAL_ITERATIONS = 20_000, 6


@dataclass(frozen=True)
class BottleneckConfig:
    """A bottleneck and how it is trained.

    Attributes:
        codebooks: Number of codebooks.
        codebook_size: Entries of a codebook.
        codebook_dim: Dimensions of an entry; "factorized" only.
        commitment_weight: Weight of the commitment losses, which are summed over codebooks; "rfsq"
            has none.
        codebook_decay: Decay per step of the running means that entries are; "rfsq" has no entries.
            At 1 they stay as they are ("rvq" only), for an autoencoder that is trained further
            with a quantizer that was fitted to it.
        dead_share: Share of the average use below which an entry is moved to a random vector of the
            batch.
        codebook_dropout: Probability that a crop is coded with fewer codebooks than all, a number
            drawn log-uniformly.
        min_codebooks: Smallest number of codebooks that a crop is coded with.
        exact_share: Probability that a crop passes the bottleneck unchanged, so that the decoder
            serves exact latents too and the encoder keeps what only they can carry.
    """

    codebooks: int = 24
    codebook_size: int = 1024
    codebook_dim: int = 8
    commitment_weight: float = 0.25
    codebook_decay: float = 0.99
    dead_share: float = 0.1
    codebook_dropout: float = 0.5
    min_codebooks: int = 2
    exact_share: float = 0.0

    def __post_init__(self) -> None:
        check_fields(
            self,
            commitment_weight=(0, math.inf),
            codebook_decay=(0, 1),
            dead_share=(0, math.nextafter(1, 0)),
            codebook_dropout=(0, 1),
            min_codebooks=(1, self.codebooks),
        )
        if not 0 <= self.exact_share <= 1 - self.codebook_dropout:
            raise InputError(
                f"exact_share must be 0 to {1 - self.codebook_dropout:g}, what codebook_dropout "
                f"leaves, got {self.exact_share}."
            )

    def counts(self, draw: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
        """Numbers of codebooks from numbers drawn uniformly from 0 to 1; 0 is exact latents.

        The first item always gets all codebooks. So each of them always has something to learn
        from, and several processes always update the same ones together.
        """
        u = draw / max(self.codebook_dropout, 1e-9)
        low, high = self.min_codebooks, self.codebooks
        few = (low * (high / low) ** u.clamp(max=1)).round().long()
        counts = torch.where(u < 1, few, high).where(draw < 1 - self.exact_share, 0)
        counts[0] = high
        return counts

    def shares(self) -> list[float]:
        """Which share of the crops each codebook codes."""
        counts = self.counts((torch.arange(1000) + 0.5) / 1000)
        return [float((counts > k).float().mean()) for k in range(self.codebooks)]


def make_quantizer(kind: str, dim: int, config: BottleneckConfig) -> Quantizer:
    """The quantizer of a kind of `BOTTLENECKS`, not fitted yet, that a bottleneck starts from."""
    count, size = config.codebooks, config.codebook_size
    quick = {"max_points": _INITIAL_POINTS, "iterations": _INITIAL_ITERATIONS}
    if kind == "rvq":
        return ResidualVectorQuantizer(dim, count, size, standardization="none", **quick)
    if kind == "factorized":
        return FactorizedQuantizer(dim, count, size, config.codebook_dim, **quick)
    if kind == "rfsq":
        return ProjectedScalarQuantizer(dim, count, scalar_levels(size), _INITIAL_POINTS)
    raise InputError(f"Unknown bottleneck {kind!r}; known: {', '.join(BOTTLENECKS)}.")


def make_bottleneck(
    quantizer: Quantizer, config: BottleneckConfig, *, frames: int, synchronize: bool = False
) -> Bottleneck:
    """Makes a quantizer of `make_quantizer` trainable, for so many latent frames per step.

    Several processes ``synchronize`` their codebooks' statistics; ``frames`` are those of all.
    """
    if isinstance(quantizer, ProjectedScalarQuantizer):
        scalar = [ScalarStage(quantizer, k) for k in range(quantizer.num_codebooks)]
        return Bottleneck(quantizer, scalar)
    if isinstance(quantizer, FactorizedQuantizer):
        if config.codebook_decay == 1:
            raise InputError('codebook_decay must be below 1 for "factorized": its entries learn.')
        codebooks = _codebooks(quantizer.codebooks, config, frames, synchronize, angles=True)
        stages = [FactorizedStage(quantizer, k, vq) for k, vq in enumerate(codebooks)]
        return Bottleneck(quantizer, stages)
    if isinstance(quantizer, ResidualVectorQuantizer):
        if config.codebook_decay == 1:
            fixed = [FixedStage(entries) for entries in quantizer.codebooks]
            return Bottleneck(quantizer, fixed, straight_through=True)
        codebooks = _codebooks(quantizer.codebooks, config, frames, synchronize, angles=False)
        return Bottleneck(quantizer, [EmaStage(vq) for vq in codebooks], straight_through=True)
    raise InputError(f"{type(quantizer).__name__} cannot be trained end to end.")


@dataclass(frozen=True)
class Quantized:
    """What a bottleneck returns.

    Attributes:
        latents: With a gradient to those that went in.
        noise_level: The running relative RMS error of so many codebooks, for the decoder.
        commitment: Mean squared distances of residuals from their entries, summed over codebooks.
        codes: int64, n the most codebooks that an item uses; -1 where one uses less.
    """

    latents: Float[Tensor, "B D T"]
    noise_level: Float[Tensor, " B"]
    commitment: Float[Tensor, ""]
    codes: Int[Tensor, "B n T"]


class Bottleneck(nn.Module):
    """Stages in a row, each coding what the ones before have left.

    All is computed in float32, also under autocast.

    If one ``straight_through`` estimator spans all stages, which pass no gradient themselves, the
    gradient reaches the encoder once, and every stage's commitment loss does too.

    Attributes:
        noise_levels: Buffer ``[K]``: as `Quantizer.noise_levels`, but a running mean over training.
        usage: Buffer ``[K, S]``: running counts of the codes.
    """

    noise_levels: Tensor
    usage: Tensor

    def __init__(
        self, quantizer: Quantizer, stages: Sequence[CodebookStage], straight_through: bool = False
    ) -> None:
        super().__init__()
        self.stages, self.straight_through = nn.ModuleList(stages), straight_through
        self.register_buffer("noise_levels", quantizer.noise_levels.clone())
        sizes = quantizer.codebook_sizes
        self.register_buffer("usage", torch.zeros(len(sizes), max(sizes)))

    @torch.no_grad()
    def write_to(self, quantizer: Quantizer) -> None:
        """Puts what was learnt into the quantizer it came from, which is yet to be measured."""
        for k, stage in enumerate(self.stages):
            assert isinstance(stage, CodebookStage)
            stage.write_to(quantizer, k)

    def forward(
        self, latents: Float[Tensor, "B D T"], counts: Int[Tensor, " B"], seed: int = 0
    ) -> Quantized:
        """Quantizes each item with its own number of codebooks.

        In training mode, codebooks and running means are updated. Frames that are not finite take
        no part in that and come out as they went in, so that the loop sees them and skips the step.

        A count of 0 stands for exact latents; in training mode some item must use all K codebooks.
        The seed decides where dead entries go.
        """
        device = latents.device
        with full_float32(), _seeded(seed, device):
            return self._quantize(latents.float().transpose(1, 2), counts)

    def _quantize(self, x: Tensor, counts: Tensor) -> Quantized:
        finite = x.isfinite().all(-1)
        clean = torch.where(finite[..., None], x, 0.0)
        variation = (clean - clean.mean((0, 1))).detach().square().sum(-1)
        residual, total = clean, torch.zeros_like(clean)
        commitment = clean.new_zeros(())
        codes = [x.new_empty(0, *x.shape[:2], dtype=torch.int64)]
        for k, stage in enumerate(self.stages[: int(counts.max())]):
            used = finite & (counts > k)[:, None]
            quantized, index, distance = stage(residual, used)
            total, residual = total + quantized, residual - quantized
            commitment = commitment + (distance * used).mean()
            codes.append(index[None])
            if self.training:
                self._observe(k, index, used, residual.detach(), variation)
        if self.straight_through:
            total = clean + (total - clean).detach()
        coded = finite & (counts > 0)[:, None]
        latents = torch.where(coded[..., None], total, x)
        level = functional.pad(self.noise_levels, (1, 0))[counts]
        return Quantized(
            latents.transpose(1, 2), level, commitment, torch.cat(codes).transpose(0, 1)
        )

    @torch.no_grad()
    def _observe(
        self, k: int, index: Tensor, used: Tensor, residual: Tensor, variation: Tensor
    ) -> None:
        error = (residual.square().sum(-1) * used).sum()
        level = (error / (variation * used).sum().clamp(min=1e-12)).sqrt()
        self.noise_levels[k].lerp_(level, 1 - _DECAY)
        seen = torch.bincount(index[used], minlength=self.usage.shape[1])
        self.usage[k].mul_(_DECAY).add_(seen)

    @torch.no_grad()
    def perplexity(self) -> Float[Tensor, " K"]:
        """Two to the entropy in bits of each codebook's recent codes."""
        return code_entropy(self.usage).exp2()


def _codebooks(
    codebooks: Float[Tensor, "K S d"],
    config: BottleneckConfig,
    frames: int,
    synchronize: bool,
    *,
    angles: bool,
) -> list[nn.Module]:
    """The library's quantizers, one for each codebook, starting from these entries."""
    quantizers = []
    for entries, share in zip(codebooks, config.shares(), strict=True):
        # What an entry would get per step if all were used alike.
        fair = share * frames / len(entries)
        vq = library().VectorQuantize(
            dim=entries.shape[1],
            codebook_size=len(entries),
            decay=config.codebook_decay,
            threshold_ema_dead_code=config.dead_share * fair,
            use_cosine_sim=angles,
            # Losses and gradients are ours: with a mask, the library's fit neither its cosine
            # similarity nor one estimator for all stages.
            commitment_weight=0.0,
            rotation_trick=False,
            sync_codebook=synchronize,
        )
        codebook = vq._codebook
        codebook.embed[0].copy_(entries)
        codebook.embed_avg[0].copy_(entries * fair)
        codebook.cluster_size.fill_(fair)
        # By default an entry would be given up one step after it was moved.
        codebook.reset_cluster_size = fair
        quantizers.append(vq)
    return quantizers


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """The library draws from the global generators."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
