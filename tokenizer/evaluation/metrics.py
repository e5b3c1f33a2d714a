"""How close a reconstruction is (audio ``[C, N]`` in, a float out), and how codes are used."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenizer.errors import InputError
from tokenizer.networks.spectral import stft_magnitude
from tokenizer.training.losses import MelDistance

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


def mel_distance(
    estimate: Float[Tensor, "C N"], target: Float[Tensor, "C N"], sampling_rate: int
) -> float:
    """The Descript Audio Codec's mel distance (`MelDistance`); lower is better."""
    return float(MelDistance(sampling_rate)(estimate[None], target[None]))


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


def quality(estimate: np.ndarray, target: np.ndarray, sampling_rate: int) -> dict[str, float]:
    """All reconstruction metrics of one clip.

    Args:
        estimate: Float32 ``[C, N]``.
        target: The same shape.
        sampling_rate: Hz.

    Returns:
        ``si_sdr`` (dB), ``mel``, ``stft`` and ``lsd`` (dB).
    """
    if estimate.shape != target.shape:
        raise InputError(f"The estimate has shape {estimate.shape}, the target {target.shape}.")
    e, t = torch.from_numpy(estimate), torch.from_numpy(target)
    measures: dict[str, Callable[[], float]] = {
        "si_sdr": lambda: si_sdr(e, t),
        "mel": lambda: mel_distance(e, t, sampling_rate),
        "stft": lambda: stft_distance(e, t),
        "lsd": lambda: log_spectral_distance(e, t),
    }
    return {name: measure() for name, measure in measures.items()}


def code_use(codes: Int[np.ndarray, "T K"], codebook_sizes: tuple[int, ...]) -> dict[str, float]:
    """How well codebooks are used, averaged over them.

    Returns:
        ``utilization``: share of the entries that occur; ``entropy``: bits per code;
            ``perplexity``: ``2 ** entropy``.
    """
    used, entropies = [], []
    for k, size in enumerate(codebook_sizes[: codes.shape[1]]):
        counts = np.bincount(codes[:, k], minlength=size)
        share = counts[counts > 0] / max(counts.sum(), 1)
        used.append(np.count_nonzero(counts) / size)
        entropies.append(float(-(share * np.log2(share)).sum()))
    return {
        "utilization": float(np.mean(used)),
        "entropy": float(np.mean(entropies)),
        "perplexity": float(np.mean(np.exp2(entropies))),
    }
