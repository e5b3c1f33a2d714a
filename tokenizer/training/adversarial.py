"""Discriminators, and adversarial and feature matching losses balanced against reconstruction.

Discriminators return the feature maps of all their layers, the last one being their scores, so that
the same call serves both losses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from tokenizer.errors import InputError
from tokenizer.training.config import check_fields

_SLOPE = 0.1

# Periods and windows of the discriminators: those of the Descript Audio Codec with their
# least-squares loss, and one spectrogram with a hinge loss, which two CPU cores can pay for.
SETS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "full": ((2, 3, 5, 7, 11), (2048, 1024, 512)),
    "spectral": ((), (1024,)),
}

# Edges of the bands over half the sampling rate, as in the Descript Audio Codec.
BANDS = ((0.0, 0.1), (0.1, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0))


@dataclass(frozen=True)
class AdversarialConfig:
    """How much weight discriminators have.

    Weights are shares of the gradient, not factors of losses: at the reconstruction, each term's
    gradient is rescaled to ``weight`` times the norm of the reconstruction losses' gradient. So
    no term can drown the others, whatever its scale (the idea of the balancer of Défossez et al.
    2022, "High Fidelity Neural Audio Compression").

    Attributes:
        adversarial_weight: Weight of the adversarial loss; 0 trains without discriminators.
        feature_weight: Weight of the feature matching loss.
        adversarial_start: Steps before the discriminators are used.
        adversarial_every: The discriminators are used in each such step: 2 halves their cost.
        adversarial_seconds: Length of the piece of each crop that they see; 0 shows them all.
        discriminators: "full", those of the Descript Audio Codec, or "spectral", one spectrogram
            with a hinge loss, for training without a GPU.
        discriminator_channels: Width of the discriminators; 32 is the published size (about 43
            million parameters).
        discriminator_rate: Learning rate of the discriminators over the model's.
    """

    adversarial_weight: float = 0.0
    feature_weight: float = 0.0
    adversarial_start: int = 0
    adversarial_every: int = 1
    adversarial_seconds: float = 0.0
    discriminators: str = "full"
    discriminator_channels: int = 32
    discriminator_rate: float = 0.5

    def __post_init__(self) -> None:
        not_negative = ("adversarial_weight", "feature_weight", "adversarial_start")
        not_negative += ("adversarial_seconds",)
        bounds = dict.fromkeys(not_negative, (0, math.inf)) | {"adversarial_every": (1, math.inf)}
        check_fields(self, positive=("discriminator_channels", "discriminator_rate"), **bounds)
        if self.discriminators not in SETS:
            raise InputError(
                f"discriminators={self.discriminators!r} is not one of {', '.join(SETS)}."
            )
        if self.feature_weight and not self.adversarial_weight:
            raise InputError("feature_weight needs discriminators: adversarial_weight > 0.")


def _conv(
    inputs: int, outputs: int, kernel: tuple[int, int], stride: tuple[int, int] = (1, 1)
) -> nn.Module:
    padding = (kernel[0] // 2, kernel[1] // 2)
    return weight_norm(nn.Conv2d(inputs, outputs, kernel, stride, padding))


class PeriodDiscriminator(nn.Module):
    """Looks at every ``period``-th sample (Kong et al. 2020, "HiFi-GAN").

    ``channels`` are those of the first layer; the last has 32 times as many.
    """

    def __init__(self, period: int, channels: int) -> None:
        super().__init__()
        self.period = period
        widths = [1, channels, 4 * channels, 16 * channels, 32 * channels]
        self.layers = nn.ModuleList(_conv(a, b, (5, 1), (3, 1)) for a, b in pairwise(widths))
        self.layers.append(_conv(widths[-1], widths[-1], (5, 1)))
        self.scores = _conv(widths[-1], 1, (3, 1))

    def forward(self, audio: Float[Tensor, "B 1 N"]) -> list[Tensor]:
        """Feature maps ``[B, channels, time, period]``, the scores last."""
        missing = -audio.shape[-1] % self.period
        x = functional.pad(audio, (0, missing), "reflect").unflatten(-1, (-1, self.period))
        features = []
        for layer in self.layers:
            x = functional.leaky_relu(layer(x), _SLOPE)
            features.append(x)
        return [*features, self.scores(x)]


class BandDiscriminator(nn.Module):
    """Looks at a complex spectrogram, each band with convolutions of its own.

    After Kumar et al. 2023, "High-Fidelity Audio Compression with Improved RVQGAN": phase is seen,
    and what happens in one band does not hide what happens in another.
    """

    def __init__(self, window_length: int, channels: int) -> None:
        super().__init__()
        self.window_length = window_length
        bins = window_length // 2 + 1
        self.edges = [(int(low * bins), int(high * bins)) for low, high in BANDS]
        self.bands = nn.ModuleList()
        for _ in BANDS:
            layers = [_conv(2, channels, (3, 9))]
            layers += [_conv(channels, channels, (3, 9), (1, 2)) for _ in range(3)]
            self.bands.append(nn.ModuleList([*layers, _conv(channels, channels, (3, 3))]))
        self.scores = _conv(channels, 1, (3, 3))

    def forward(self, audio: Float[Tensor, "B 1 N"]) -> list[Tensor]:
        """Feature maps ``[B, channels, frames, bins]``, the scores last."""
        # Half precision would lose what is quiet beside what is loud.
        with torch.autocast(audio.device.type, enabled=False):
            spectrum = torch.stft(
                audio[:, 0].float(),
                self.window_length,
                self.window_length // 4,
                window=torch.hann_window(self.window_length, device=audio.device),
                return_complex=True,
            )
            x = torch.view_as_real(spectrum).permute(0, 3, 2, 1) / self.window_length**0.5
        features, ends = [], []
        for (low, high), layers in zip(self.edges, self.bands, strict=True):
            assert isinstance(layers, nn.ModuleList)
            band = x[..., low:high]
            for layer in layers:
                band = functional.leaky_relu(layer(band), _SLOPE)
                features.append(band)
            ends.append(band)
        return [*features, self.scores(torch.cat(ends, dim=-1))]


class Discriminators(nn.Module):
    """A set of period and band discriminators; channels are looked at one by one.

    The periods are primes, so that their views hardly overlap; windows are in samples.
    """

    def __init__(
        self,
        periods: tuple[int, ...] = (2, 3, 5, 7, 11),
        windows: tuple[int, ...] = (2048, 1024, 512),
        channels: int = 32,
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(
            [PeriodDiscriminator(period, channels) for period in periods]
            + [BandDiscriminator(window, channels) for window in windows]
        )
        self.min_samples = max([*periods, *(window // 2 + 1 for window in windows)])

    def forward(self, audio: Float[Tensor, "B C N"]) -> list[list[Tensor]]:
        """Feature maps of every member."""
        if audio.shape[-1] < self.min_samples:
            raise InputError(
                f"Discriminators need crops of at least {self.min_samples} samples, got "
                f"{audio.shape[-1]}: raise crop_seconds."
            )
        mono = audio.flatten(0, 1)[:, None]
        return [member(mono) for member in self.members]


def discriminator_loss(
    real: list[list[Tensor]], fake: list[list[Tensor]], *, hinge: bool = False
) -> Tensor:
    """Least-squares loss of the discriminators (Mao et al. 2017), averaged over them.

    Or the ``hinge`` loss (Lim and Ye 2017), which leaves alone what is told apart already.
    """
    terms = []
    for r, f in zip(real, fake, strict=True):
        wrong = 1 - r[-1].float(), (1 if hinge else 0) + f[-1].float()
        one, other = (x.relu() if hinge else x.square() for x in wrong)
        terms.append(one.mean() + other.mean())
    return torch.stack(terms).mean()


def adversarial_loss(fake: list[list[Tensor]], *, hinge: bool = False) -> Tensor:
    """The loss of what the discriminators judge that belongs to `discriminator_loss`."""
    scores = [f[-1].float() for f in fake]
    return torch.stack([(-s if hinge else (1 - s).square()).mean() for s in scores]).mean()


def feature_loss(real: list[list[Tensor]], fake: list[list[Tensor]]) -> Tensor:
    """Relative L1 distance of all feature maps but the scores (Kumar et al. 2019, "MelGAN").

    Each map's distance is divided by the map's mean magnitude, so that wide layers do not rule.
    """
    terms = [
        (a.float() - b.float()).abs().mean() / a.float().abs().mean().clamp(min=1e-5)
        for r, f in zip(real, fake, strict=True)
        for a, b in zip(r[:-1], f[:-1], strict=True)
    ]
    return torch.stack(terms).mean()


def balance(
    output: Tensor, reference: Tensor, terms: dict[str, Tensor], weights: dict[str, float]
) -> Tensor:
    """One loss whose gradient at ``output`` mixes those of several in given shares.

    Args:
        output: What all losses are functions of.
        reference: The loss whose value is returned and whose gradient keeps its scale.
        terms: Losses that are rescaled; those whose gradient is zero or not finite are left out.
        weights: For each term, the norm of its gradient over that of the reference.
    """
    (total,) = torch.autograd.grad(reference, output, retain_graph=True)
    scale = total.norm()
    for name, term in terms.items():
        (gradient,) = torch.autograd.grad(term, output, retain_graph=True)
        norm = gradient.norm()
        # Decided on the device, as to read the norm would be to wait for it.
        counts = torch.isfinite(norm) & (norm > 0)
        total = total + torch.where(counts, weights[name] * scale / norm * gradient, 0.0)
    mixed = (output * total).sum()
    return mixed + (reference - mixed).detach()


class Adversary(nn.Module):
    """Discriminators, and the losses that come from them, in float32 or ("bf16") bfloat16."""

    def __init__(self, config: AdversarialConfig, mixed_precision: str, sampling_rate: int) -> None:
        super().__init__()
        if mixed_precision == "fp16":
            raise InputError(
                "Adversarial training needs mixed_precision 'no' or 'bf16': one loss scale of "
                "fp16 cannot serve two optimizers."
            )
        self.config, self.mixed = config, mixed_precision == "bf16"
        self.hinge = config.discriminators == "spectral"
        self.length = round(config.adversarial_seconds * sampling_rate)
        periods, windows = SETS[config.discriminators]
        self.discriminators = Discriminators(periods, windows, config.discriminator_channels)
        # Of the run; the trainer sets it.
        self.step = 0

    def add(
        self,
        losses: dict[str, Tensor],
        estimate: Float[Tensor, "B C N"],
        target: Float[Tensor, "B C N"],
    ) -> dict[str, Tensor]:
        """Replaces ``"loss"`` by the balanced one, and adds ``"discriminator"`` and the terms.

        Only the discriminators minimise ``"discriminator"``. Audio is at unit loudness; ``"loss"``
        is a function of ``estimate``, which has its graph.
        """
        step = self.step
        if step < self.config.adversarial_start or step % self.config.adversarial_every:
            return losses
        whole = estimate
        if 0 < self.length < estimate.shape[-1]:
            # Another place in every step, the same on all processes.
            start = step * 7919 % (estimate.shape[-1] - self.length + 1)
            estimate, target = (x[..., start : start + self.length] for x in (estimate, target))
        with torch.autocast(estimate.device.type, torch.bfloat16, enabled=self.mixed):
            real = self.discriminators(target)
            fake = self.discriminators(estimate.detach())
            judge = discriminator_loss(real, fake, hinge=self.hinge)
            # Their own weights get no gradient from what they judge.
            self.discriminators.requires_grad_(False)
            seen = self.discriminators(estimate)
            self.discriminators.requires_grad_(True)
            terms = {"adversarial": adversarial_loss(seen, hinge=self.hinge)}
            if self.config.feature_weight:
                known = [[feature.detach() for feature in features] for features in real]
                terms["features"] = feature_loss(known, seen)
        config = self.config
        weights = {"adversarial": config.adversarial_weight, "features": config.feature_weight}
        total = balance(whole, losses["loss"], terms, weights)
        return losses | terms | {"loss": total, "discriminator": judge}


def make_adversary(
    config: AdversarialConfig | None, mixed_precision: str, sampling_rate: int, seed: int
) -> Adversary | None:
    """The discriminators of a run, the same on every process; None if it trains without."""
    if config is None or not config.adversarial_weight:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 7)
        return Adversary(config, mixed_precision, sampling_rate)
