"""Pictures of generated clips: mel spectrograms, latents or codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from generative.protocol import TokenRow
from generative.training.run_log import new_figure, save_figure

MEL_BANDS = 96
# What is further beneath the loudest part than this looks black.
RANGE_DB = 80.0


def mel_spectrogram(audio: Float[np.ndarray, "C N"], sampling_rate: int) -> np.ndarray:
    """Mel power spectrogram of the mean of the channels, in dB, ``[bands, frames]``."""
    from transformers.audio_utils import mel_filter_bank

    window, hop = 1024, 256
    mono = torch.from_numpy(np.asarray(audio, dtype=np.float32).mean(0))
    mono = torch.nn.functional.pad(mono, (0, max(0, window - len(mono))))
    spectrum = torch.stft(
        mono, window, hop, window=torch.hann_window(window), return_complex=True, center=False
    )
    bands = min(MEL_BANDS, sampling_rate // 200)
    filters = mel_filter_bank(
        window // 2 + 1, bands, 0.0, sampling_rate / 2, sampling_rate, mel_scale="htk"
    )
    power = filters.T @ spectrum.abs().square().numpy()
    return 10 * np.log10(np.maximum(power, 1e-10))


def draw_clip(
    axes: Any, audio: Float[np.ndarray, "C N"], sampling_rate: int, title: str = ""
) -> None:
    """Draws a mel spectrogram into `matplotlib` axes."""
    mel = mel_spectrogram(audio, sampling_rate)
    seconds = audio.shape[-1] / sampling_rate
    top = float(mel.max())
    axes.imshow(
        mel,
        origin="lower",
        aspect="auto",
        cmap="magma",
        vmin=top - RANGE_DB,
        vmax=top,
        extent=(0.0, seconds, 0.0, float(len(mel))),
    )
    axes.set(xlabel="seconds", ylabel="mel band", title=title)


def draw_row(axes: Any, row: TokenRow) -> None:
    """Draws a row's codes or latents into `matplotlib` axes."""
    name = "codes" if "codes" in row else "latents"
    values = np.asarray(row[name]).T
    axes.imshow(values, aspect="auto", cmap="viridis", interpolation="nearest")
    axes.set(xlabel="frame", ylabel="codebook" if name == "codes" else "channel", title=name)


def save_picture(
    path: Path, audio: Float[np.ndarray, "C N"], sampling_rate: int, row: TokenRow | None = None
) -> np.ndarray:
    """Writes a PNG of a clip, and of its row beneath it.

    Returns:
        The picture, bytes ``[height, width, 3]``.
    """
    figure = new_figure(7, 4.5 if row is not None else 2.6)
    axes = figure.subplots(2 if row is not None else 1, squeeze=False)[:, 0]
    draw_clip(axes[0], audio, sampling_rate)
    if row is not None:
        draw_row(axes[1], row)
    save_figure(figure, path)
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
