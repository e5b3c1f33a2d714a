"""How close a reconstruction is (audio ``[C, N]`` in, a float out), and how codes are used."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenizer.errors import InputError
from tokenizer.networks.spectral import stft_magnitude
from tokenizer.quantizers.measure import code_entropy
from tokenizer.training.losses import MEL_BINS, MEL_WINDOWS, hop_repetition, log_mel

_EPS = 1e-12


def si_sdr(estimate: Float[Tensor, "C N"], target: Float[Tensor, "C N"]) -> float:
    """Scale-invariant signal-to-distortion ratio in dB, averaged over channels; higher is better.

    Le Roux et al. 2019, "SDR - half-baked or well done?", without removal of the mean. A silent
    target, for which the ratio is undefined, counts as 0 dB.
    """
    e, t = estimate.double(), target.double()
    energy = t.square().sum(-1)
    projected = ((e * t).sum(-1) / energy.clamp(min=_EPS))[:, None] * t
    ratio = projected.square().sum(-1) / (e - projected).square().sum(-1).clamp(min=_EPS)
    decibels = 10 * torch.log10(ratio.clamp(min=_EPS))
    return float(torch.where(energy > _EPS, decibels, 0.0).mean())


def mid_and_side(estimate: Float[Tensor, "C N"], target: Float[Tensor, "C N"]) -> dict[str, float]:
    """``si_sdr_mid`` and ``si_sdr_side`` of stereo: of half the sum and half the difference.

    The mean over channels hides a side signal that is lost: mid is louder in most recordings. A
    silent target has no ratio, so that it is left out, as are clips of other than two channels.
    """
    values = {}
    for name, sign in (("mid", 1), ("side", -1)) if len(target) == 2 else ():
        parts = [(x[:1] + sign * x[1:]) / 2 for x in (estimate, target)]
        if float(parts[1].square().mean()) > _EPS:
            values[f"si_sdr_{name}"] = si_sdr(*parts)
    return values


class MelReference:
    """`mel_distance` to one signal, whose features are computed only once."""

    def __init__(self, target: Float[Tensor, "C N"], sampling_rate: int) -> None:
        self.sampling_rate = sampling_rate
        self._features = list(self._compute(target))

    def _compute(self, audio: Tensor) -> Iterator[Tensor]:
        for window, bands in zip(MEL_WINDOWS, MEL_BINS, strict=True):
            yield log_mel(audio, self.sampling_rate, window, bands, 1e-5)

    def distance(self, estimate: Float[Tensor, "C N"]) -> float:
        """The distance of another signal of the same shape."""
        pairs = zip(self._compute(estimate), self._features, strict=True)
        return sum(float((e - t).abs().mean()) for e, t in pairs)


def mel_distance(
    estimate: Float[Tensor, "C N"], target: Float[Tensor, "C N"], sampling_rate: int
) -> float:
    """The Descript Audio Codec's mel distance (seven scales); lower is better."""
    return MelReference(target, sampling_rate).distance(estimate)


def stft_distance(estimate: Float[Tensor, "C N"], target: Float[Tensor, "C N"]) -> float:
    """The Descript Audio Codec's multi-scale STFT distance; lower is better.

    For windows of 2048 and 512 samples, the mean absolute difference of magnitudes plus that of
    the log10 of their squares, clamped at 1e-5 before squaring, summed over the two.
    """
    total = 0.0
    for window in (2048, 512):
        e = stft_magnitude(estimate, window, window // 4)
        t = stft_magnitude(target, window, window // 4)
        total += float((e - t).abs().mean())
        total += float(2 * (e.clamp(min=1e-5).log10() - t.clamp(min=1e-5).log10()).abs().mean())
    return total


def log_spectral_distance(estimate: Float[Tensor, "C N"], target: Float[Tensor, "C N"]) -> float:
    """Log-spectral distance in dB; lower is better.

    The root mean square over frequency of the difference of power spectra in dB (2048-sample Hann
    windows, hop 512, magnitudes clamped at 1e-5), averaged over frames.
    """
    e = stft_magnitude(estimate, 2048, 512).clamp(min=1e-5)
    t = stft_magnitude(target, 2048, 512).clamp(min=1e-5)
    difference = 20 * (e.log10() - t.log10())
    return float(difference.square().mean(-2).sqrt().mean())


def buzz(audio: Float[Tensor, "C N"], sampling_rate: int, hop_length: float | int) -> float:
    """How much the high frequencies repeat at a codec's hop: 0.03 for noise, 1 for a buzz.

    A decoder that fills high bands with the same waveform in every frame sounds like a buzz with
    the frame rate as its pitch, which SI-SDR and the mel distance hardly notice. This is
    `hop_repetition` in the worse of its bands, averaged over channels.

    Sounds may have such a period of their own (a voice of 100 Hz does at a hop of 10 ms), so
    compare the value with that of the original.

    Returns:
        0 to 1; NaN if no channel has content in such a band, as in silence and in audio of
        12 kHz and less, or if the clip is shorter than `REPETITION_MIN_HOPS` hops.
    """
    bands = hop_repetition(audio, sampling_rate, hop_length)
    worse = torch.where(bands.isnan().all(-1), math.nan, bands.nan_to_num(0).amax(-1))
    return float(worse.nanmean())


def quality(
    estimate: np.ndarray,
    target: np.ndarray,
    sampling_rate: int,
    *,
    hop_length: float | int | None = None,
) -> dict[str, float]:
    """All reconstruction metrics of one clip.

    Args:
        estimate: Float32 ``[C, N]``.
        target: The same shape.
        sampling_rate: Hz.
        hop_length: Samples from frame to frame of the codec, for `buzz`.

    Returns:
        ``si_sdr`` (dB), ``mel``, ``stft``, ``lsd`` (dB), of stereo `mid_and_side` and, where it is
        defined, ``buzz`` of the estimate and ``buzz_excess``, by how much it is larger than the
        target's own.
    """
    if estimate.shape != target.shape:
        raise InputError(f"The estimate has shape {estimate.shape}, the target {target.shape}.")
    e, t = torch.from_numpy(estimate), torch.from_numpy(target)
    values = {
        "si_sdr": si_sdr(e, t),
        "mel": mel_distance(e, t, sampling_rate),
        "stft": stft_distance(e, t),
        "lsd": log_spectral_distance(e, t),
        **mid_and_side(e, t),
    }
    if hop_length is not None:
        plain, own = (buzz(x, sampling_rate, hop_length) for x in (e, t))
        if not math.isnan(plain):
            # An original without content up there has no period of its own.
            values |= {"buzz": plain, "buzz_excess": plain - (0 if math.isnan(own) else own)}
    return values


def code_counts(codes: Int[np.ndarray, "T K"], codebook_sizes: tuple[int, ...]) -> list[list[int]]:
    """How often each entry of each codebook occurs."""
    pairs = zip(codes.T, codebook_sizes, strict=False)
    return [np.bincount(column, minlength=size).tolist() for column, size in pairs]


def code_use(codes: Int[np.ndarray, "T K"], codebook_sizes: tuple[int, ...]) -> dict[str, float]:
    """How well codebooks are used, averaged over them.

    Returns:
        ``utilization``: share of the entries that occur; ``entropy``: bits per code;
            ``perplexity``: ``2 ** entropy``.
    """
    sizes = codebook_sizes[: codes.shape[1]]
    counts = np.stack([np.bincount(column, minlength=max(sizes)) for column in codes.T])
    entropy = code_entropy(torch.from_numpy(counts).double()).numpy()
    return {
        "utilization": float(np.mean(np.count_nonzero(counts, axis=1) / np.array(sizes))),
        "entropy": float(entropy.mean()),
        "perplexity": float(np.exp2(entropy).mean()),
    }
