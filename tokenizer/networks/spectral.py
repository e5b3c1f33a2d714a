"""Spectral transforms: the MDCT, its inverse, mel filters and STFT magnitudes.

Bases are computed on first use for each size and device,
in float64, and never stored in checkpoints.
"""

from __future__ import annotations

import warnings
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tokenizer.precision import full_float32


# The caches are filled outside inference mode: autograd refuses tensors made inside it.
@lru_cache(maxsize=32)
@torch.inference_mode(mode=False)
def _mdct_basis(hop_length: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """What the MDCT is made of: window halves ``[M]``, and the cosines ``[M, M]`` of the fold.

    A lapped frame has 2 M samples, but its M coefficients see them only folded at a quarter and at
    three quarters of the frame: half the multiplications.
    """
    n = torch.arange(2 * hop_length, dtype=torch.float64)
    window = torch.sin(torch.pi / (2 * hop_length) * (n + 0.5)) * (2 / hop_length) ** 0.5
    # Of an odd number of samples one lies on the fold itself.
    place = torch.arange(hop_length, dtype=torch.float64) + (0 if hop_length % 2 else 0.5)
    k = torch.arange(hop_length, dtype=torch.float64) + 0.5
    cosines = torch.cos(torch.pi / hop_length * place[:, None] * k)
    rising, falling = window.split(hop_length)
    first, second, basis = (x.to(device, torch.float32) for x in (rising, falling, cosines))
    return first, second, basis


def mdct(x: Float[Tensor, "*B N"], hop_length: int) -> Float[Tensor, "*B T M"]:
    """Modified discrete cosine transform with a sine window (Princen and Bradley, 1986).

    Frame ``t`` covers the samples from ``(t - 1) * hop_length`` to ``(t + 1) * hop_length``; beyond
    the signal they are zero. The transform is orthonormal: it keeps the energy.

    Returns:
        ``T = ceil(N / hop_length) + 1`` frames of ``M = hop_length`` coefficients, float32.
    """
    return mdct_blocks(lapped_blocks(x, hop_length))


def lapped_blocks(x: Float[Tensor, "*B N"], hop_length: int) -> Float[Tensor, "*B blocks M"]:
    """Signals as the blocks that `mdct` laps over: zeros before the first and after the last."""
    # Not -(-N // M): exported to ONNX, division rounds towards zero.
    num_blocks = (x.shape[-1] + hop_length - 1) // hop_length
    padded = F.pad(x.float(), (hop_length, (num_blocks + 1) * hop_length - x.shape[-1]))
    return padded.unflatten(-1, (-1, hop_length))


def mdct_blocks(blocks: Float[Tensor, "*B T1 M"]) -> Float[Tensor, "*B T M"]:
    """The frames of `mdct` over each two of ``T + 1`` consecutive blocks of M samples."""
    hop_length = blocks.shape[-1]
    half, odd = divmod(hop_length, 2)
    rising, falling, basis = _mdct_basis(hop_length, blocks.device)
    p, q = blocks[..., :-1, :] * rising, blocks[..., 1:, :] * falling
    low = -q[..., :half].flip(-1) - q[..., half + odd :]
    high = p[..., :half] - p[..., half + odd :].flip(-1)
    folded = torch.cat([-q[..., half : half + odd], low, high], dim=-1)
    with full_float32():
        return folded @ basis


def imdct(coefficients: Float[Tensor, "*B T M"]) -> Float[Tensor, "*B N"]:
    """Inverse of `mdct`: ``(T - 1) * M`` samples, float32, of which the last may be padding."""
    return overlap_add(imdct_folded(coefficients)).flatten(-2)


def imdct_folded(coefficients: Float[Tensor, "*B T M"]) -> Float[Tensor, "*B T M"]:
    """The frames of `imdct` as `mdct_blocks` folds them, before they overlap."""
    basis = _mdct_basis(coefficients.shape[-1], coefficients.device)[2]
    with full_float32():
        return coefficients.float() @ basis.T


def overlap_add(folded: Float[Tensor, "*B T M"]) -> Float[Tensor, "*B blocks M"]:
    """The ``T - 1`` blocks of samples that T frames of `imdct_folded` cover twice."""
    hop_length = folded.shape[-1]
    half, odd = divmod(hop_length, 2)
    rising, falling, _ = _mdct_basis(hop_length, folded.device)
    middle, low, high = folded.split([odd, half, half], dim=-1)
    # Each block of samples is the second half of one frame plus the first half of the next.
    ending = -torch.cat([low.flip(-1), middle, low], dim=-1)[..., :-1, :]
    beginning = torch.cat([high, torch.zeros_like(middle), -high.flip(-1)], dim=-1)[..., 1:, :]
    return ending * falling + beginning * rising


@lru_cache(maxsize=64)
@torch.inference_mode(mode=False)
def mel_filters(
    sampling_rate: int, window_length: int, n_mels: int, device: torch.device
) -> Float[Tensor, "F n_mels"]:
    """Triangular mel filters of unit area from 0 Hz to half the sampling rate (in Hz), float32.

    After Slaney's Auditory Toolbox. Magnitudes of an FFT, ``F = window_length // 2 + 1``, are
    multiplied with them. Narrow filters between two of its bins are all zero, as in librosa.
    """
    from transformers.audio_utils import mel_filter_bank

    bins, top = window_length // 2 + 1, sampling_rate / 2
    with warnings.catch_warnings(action="ignore"):
        filters = mel_filter_bank(
            bins, n_mels, 0.0, top, sampling_rate, norm="slaney", mel_scale="slaney"
        )
    return torch.from_numpy(filters).to(device, torch.float32)


def stft_magnitude(
    x: Float[Tensor, "*B N"], window_length: int, hop_length: int
) -> Float[Tensor, "*B F frames"]:
    """Magnitudes of a centred short-time Fourier transform, Hann window, reflected edges.

    Signals too short to be reflected are padded with zeros at their end first.
    """
    shortage = window_length // 2 + 1 - x.shape[-1]
    if shortage > 0:
        x = F.pad(x, (0, shortage))
    window = torch.hann_window(window_length, device=x.device, dtype=torch.float32)
    spectrum = torch.stft(
        x.float().reshape(-1, x.shape[-1]),
        window_length,
        hop_length,
        window=window,
        center=True,
        pad_mode="reflect",
        return_complex=True,
    )
    # abs() has a NaN gradient at exact zero, which digital silence reaches: keep a tiny floor.
    magnitude = torch.view_as_real(spectrum).square().sum(-1).clamp(min=1e-18).sqrt()
    return magnitude.reshape(*x.shape[:-1], *magnitude.shape[-2:])
