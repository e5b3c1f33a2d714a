"""Discriminators: networks that learn to tell reconstructions from recordings.

Needed to train only. Each returns the feature maps of all its layers, the last one being its
scores, so that the same call serves the adversarial and the feature matching loss.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from tokenizer.errors import InputError

_SLOPE = 0.1

# Edges of the bands over half the sampling rate, as in the Descript Audio Codec.
BANDS = ((0.0, 0.1), (0.1, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0))


def _conv(
    inputs: int, outputs: int, kernel: tuple[int, int], stride: tuple[int, int] = (1, 1)
) -> nn.Module:
    padding = (kernel[0] // 2, kernel[1] // 2)
    return weight_norm(nn.Conv2d(inputs, outputs, kernel, stride, padding))


class PeriodDiscriminator(nn.Module):
    """Looks at every ``period``-th sample (Kong et al. 2020, "HiFi-GAN").

    Args:
        period: Samples folded onto the second axis.
        channels: Of the first layer; the last has 32 times as many.
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
        x = F.pad(audio, (0, missing), "reflect").unflatten(-1, (-1, self.period))
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), _SLOPE)
            features.append(x)
        return [*features, self.scores(x)]


class BandDiscriminator(nn.Module):
    """Looks at a complex spectrogram, each band with convolutions of its own.

    After Kumar et al. 2023, "High-Fidelity Audio Compression with Improved RVQGAN": phase is seen,
    and what happens in one band does not hide what happens in another.

    Args:
        window_length: Of the STFT, in samples; its hop is a quarter.
        channels: Of every layer.
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
                band = F.leaky_relu(layer(band), _SLOPE)
                features.append(band)
            ends.append(band)
        return [*features, self.scores(torch.cat(ends, dim=-1))]


class Discriminators(nn.Module):
    """A set of period and band discriminators; channels are looked at one by one.

    Args:
        periods: One `PeriodDiscriminator` each. Primes, so that their views hardly overlap.
        windows: One `BandDiscriminator` each, in samples.
        channels: Width of all of them.
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
