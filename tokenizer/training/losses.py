"""Reconstruction losses, and the distances by which `tokenizer.evaluation.metrics` judges."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import avg_pool1d

from tokenizer.errors import InputError
from tokenizer.networks.spectral import mel_filters, stft_magnitude
from tokenizer.precision import full_float32

# The seven scales of the Descript Audio Codec's mel loss (Kumar et al. 2023, and its published
# configuration).
MEL_WINDOWS = (32, 64, 128, 256, 512, 1024, 2048)
MEL_BINS = (5, 10, 20, 40, 80, 160, 320)

# `band_energy_distance`: window in samples, mel bands, frames averaged, and least power.
_ENERGY_WINDOW, _ENERGY_BANDS, _ENERGY_FRAMES, _ENERGY_FLOOR = 1024, 40, (4, 16), 1e-10

# `hop_repetition`: bands in Hz, of which the second ends at half the rate. Shorter audio, in hops,
# has too few periods to tell a pattern from noise. A band is empty where its power is lower than
# this share of the whole, and audio is silent where its mean square is lower than this.
_REPETITION_BANDS = ((5_000, 12_000), (12_000, math.inf))
REPETITION_MIN_HOPS = 20
_BAND_CONTENT, _SILENCE = 1e-7, 1e-10


def log_mel(
    x: Float[Tensor, "*B N"],
    sampling_rate: int,
    window_length: int,
    n_mels: int,
    floor: float,
    overlap: int = 4,
) -> Float[Tensor, "*B frames n_mels"]:
    """Log10 of mel magnitudes, clamped from below at ``floor``; ``overlap`` hops make a window."""
    magnitude = stft_magnitude(x, window_length, window_length // overlap).transpose(-1, -2)
    filters = mel_filters(sampling_rate, window_length, n_mels, x.device)
    with full_float32():
        mel = magnitude @ filters
    return mel.clamp(min=floor).log10()


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
        overlap: Hops of a window: 4 to measure; 2 estimates the same mean from half the frames.
    """

    def __init__(
        self,
        sampling_rate: int,
        windows: tuple[int, ...] = MEL_WINDOWS,
        n_mels: tuple[int, ...] = MEL_BINS,
        floor: float = 1e-5,
        overlap: int = 4,
    ) -> None:
        super().__init__()
        if len(windows) != len(n_mels):
            raise InputError(f"{len(windows)} window lengths but {len(n_mels)} numbers of bands.")
        self.sampling_rate, self.floor, self.overlap = sampling_rate, floor, overlap
        self.scales = tuple(zip(windows, n_mels, strict=True))

    def forward(
        self,
        estimate: Float[Tensor, "B C N"],
        target: Float[Tensor, "B C N"],
        scales: list[int] | None = None,
    ) -> Float[Tensor, " B"]:
        """Distance of each item.

        Only some ``scales``, as indices of the window lengths, give a cheaper unbiased estimate.
        """
        chosen = list(range(len(self.scales))) if scales is None else scales
        total = estimate.new_zeros(len(estimate))
        for window, bands in (self.scales[i] for i in chosen):
            how = (self.sampling_rate, window, bands, self.floor, self.overlap)
            difference = log_mel(estimate, *how) - log_mel(target.detach(), *how)
            total = total + difference.abs().flatten(1).mean(1)
        return total * (len(self.scales) / len(chosen))


def band_energy_distance(
    estimate: Float[Tensor, "B C N"], target: Float[Tensor, "B C N"], sampling_rate: int
) -> Float[Tensor, " B"]:
    """How far off the energy of auditory bands is, in decades of amplitude.

    The mean absolute difference of log10 band energies, each averaged over 23 or 93 ms at 44.1 kHz,
    summed over the two. The mel distance, which compares magnitudes bin by bin, is least for noise
    whose energy is too low: half of its bins above the estimate, half below, and nothing asks for
    the peaks. Averaged before the logarithm, energies have to be right.
    """

    def energy(x: Tensor) -> Tensor:
        power = stft_magnitude(x, _ENERGY_WINDOW, _ENERGY_WINDOW // 4).square()
        filters = mel_filters(sampling_rate, _ENERGY_WINDOW, _ENERGY_BANDS, x.device)
        with full_float32():
            bands = power.transpose(-1, -2) @ filters
        return bands.transpose(-1, -2).flatten(0, -3)

    energies = energy(estimate), energy(target.detach())
    total = estimate.new_zeros(len(estimate))
    for most in _ENERGY_FRAMES:
        frames = min(most, energies[0].shape[-1])
        pair = (avg_pool1d(x, frames, max(frames // 2, 1)) for x in energies)
        # Half the logarithm of a power is that of an amplitude.
        levels = [x.clamp(min=_ENERGY_FLOOR).log10() / 2 for x in pair]
        difference = (levels[0] - levels[1]).abs()
        total = total + difference.unflatten(0, (len(estimate), -1)).flatten(1).mean(1)
    return total


def hop_repetition(
    audio: Float[Tensor, "*B N"], sampling_rate: int, hop_length: float | int
) -> Float[Tensor, "*B bands"]:
    """How much bands of high frequencies repeat at a codec's hop: 0.03 for noise, 1 for a buzz.

    The largest absolute value of the normalised autocorrelation within 3 samples of one, two and
    three hops. NaN for bands without content, for bands above half the sampling rate, and if the
    audio is shorter than `REPETITION_MIN_HOPS` hops.
    """
    found = [audio.new_full(audio.shape[:-1], math.nan) for _ in _REPETITION_BANDS]
    if audio.shape[-1] < REPETITION_MIN_HOPS * hop_length:
        return torch.stack(found, -1)
    power = audio.square().mean(-1)
    spectrum = torch.fft.rfft(audio)
    frequencies = torch.linspace(0, sampling_rate / 2, spectrum.shape[-1], device=audio.device)
    lags = [round(m * hop_length) + offset for m in (1, 2, 3) for offset in range(-3, 4)]
    for i, (low, upper) in enumerate(_REPETITION_BANDS):
        high = min(upper, 0.98 * sampling_rate / 2)
        if high < low + 1000:
            continue
        # Edges of 500 Hz: steep ones would ring, and correlate what is noise.
        gain = (0.5 + torch.minimum(frequencies - low, high - frequencies) / 500).clamp(0, 1)
        band = torch.fft.irfft(spectrum * gain, audio.shape[-1])
        energy = band.square().sum(-1)
        full = (energy / audio.shape[-1] > _BAND_CONTENT * power) & (power > _SILENCE)
        products = [(band[..., :-lag] * band[..., lag:]).sum(-1).abs() for lag in lags]
        peak = torch.stack(products).amax(0) / energy.clamp(min=1e-30)
        found[i] = torch.where(full, peak, found[i])
    return torch.stack(found, -1)


def repetition_excess(
    estimate: Float[Tensor, "B C N"],
    target: Float[Tensor, "B C N"],
    sampling_rate: int,
    hop_length: float | int,
) -> Float[Tensor, " B"]:
    """By how much the estimate's `hop_repetition` is above the target's, averaged over bands."""
    ours, own = (hop_repetition(x, sampling_rate, hop_length) for x in (estimate, target))
    # An estimate without content in a band, or a target without, has nothing to compare.
    excess = torch.where((ours - own).isnan(), 0, ours - own.detach()).relu()
    return excess.flatten(1).mean(1)


def emphasize(x: Float[Tensor, "*B N"], emphasis: float) -> Float[Tensor, "*B N"]:
    """Pre-emphasis ``x[n] - emphasis x[n - 1]``, which raises high frequencies; 0 changes nothing.

    The waveform's energy is mostly below 500 Hz, and its distortion would be lowest with most bits
    spent there, though speech is understood by what is from 500 Hz to 4 kHz.
    """
    return x - emphasis * torch.nn.functional.pad(x, (1, 0))[..., :-1] if emphasis else x


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
