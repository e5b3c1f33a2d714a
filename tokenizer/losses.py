"""Reconstruction losses, and the distances by which `tokenizer.metrics` judges."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tokenizer.spectral import mel_filters, stft_magnitude

# The seven scales of the Descript Audio Codec's mel loss (Kumar et al. 2023, and its published
# configuration).
MEL_WINDOWS = (32, 64, 128, 256, 512, 1024, 2048)
MEL_BINS = (5, 10, 20, 40, 80, 160, 320)


def log_mel(
    x: Float[Tensor, "*B N"], sampling_rate: int, window_length: int, n_mels: int, floor: float
) -> Float[Tensor, "*B frames n_mels"]:
    """Log10 of mel magnitudes, clamped from below at ``floor``; hop is a quarter of the window."""
    magnitude = stft_magnitude(x, window_length, window_length // 4).transpose(-1, -2)
    filters = mel_filters(sampling_rate, window_length, n_mels, x.device)
    return (magnitude @ filters).clamp(min=floor).log10()


class MelDistance(nn.Module):
    """Multi-scale mel distance of the Descript Audio Codec.

    The mean absolute difference of log10 mel magnitudes, clamped at 1e-5, summed over seven window
    lengths from 32 to 2048 samples with 5 to 320 mel bands (Kumar et al. 2023, "High-Fidelity
    Audio Compression with Improved RVQGAN").

    Args:
        sampling_rate: Hz of the audio compared.
        windows: Window lengths in samples.
        n_mels: Mel bands for each window length.
        floor: Magnitudes below count as this.
    """

    def __init__(
        self,
        sampling_rate: int,
        windows: tuple[int, ...] = MEL_WINDOWS,
        n_mels: tuple[int, ...] = MEL_BINS,
        floor: float = 1e-5,
    ) -> None:
        super().__init__()
        if len(windows) != len(n_mels):
            raise ValueError(f"{len(windows)} window lengths but {len(n_mels)} numbers of bands.")
        self.sampling_rate, self.floor = sampling_rate, floor
        self.scales = tuple(zip(windows, n_mels, strict=True))

    def forward(
        self,
        estimate: Float[Tensor, "B C N"],
        target: Float[Tensor, "B C N"],
        scales: list[int] | None = None,
    ) -> Float[Tensor, " B"]:
        """Distance of each item.

        Args:
            estimate: Reconstruction.
            target: What it should be.
            scales: Indices of the window lengths to use, for a cheaper unbiased estimate; the sum
                is scaled up as if all had been. Default: all.
        """
        chosen = list(range(len(self.scales))) if scales is None else scales
        total = estimate.new_zeros(len(estimate))
        for window, bands in (self.scales[i] for i in chosen):
            with torch.no_grad():
                wanted = log_mel(target, self.sampling_rate, window, bands, self.floor)
            got = log_mel(estimate, self.sampling_rate, window, bands, self.floor)
            total = total + (got - wanted).abs().flatten(1).mean(1)
        return total * (len(self.scales) / len(chosen))


def waveform_distortion(
    estimate: Float[Tensor, "B C N"], target: Float[Tensor, "B C N"]
) -> Float[Tensor, " B"]:
    """Noise-to-signal ratio in units of 10 dB: ``log10(|estimate - target|^2 / |target|^2)``.

    Its gradient does not depend on an item's loudness; a floor 40 dB down keeps it from chasing
    what cannot be heard.
    """
    noise = (estimate - target).flatten(1).square().mean(1)
    signal = target.flatten(1).square().mean(1)
    return torch.log10((noise + 1e-4 * signal + 1e-12) / (signal + 1e-12))
