"""Pictures of a report: spectrograms, and how often each codebook entry is used."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float

from tokenizer.evaluation.comparison.plots import Theme, themed_axes
from tokenizer.networks.spectral import stft_magnitude

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

WIDTH, HEIGHT = 480, 176
RANGE_DB = 80.0
# Steps of 1.6 dB: fewer colours make smaller files.
_LEVELS = 51
_WINDOW = 2048


def spectrogram_db(
    audio: Float[np.ndarray, "C N"], sampling_rate: int
) -> Float[np.ndarray, "height width"]:
    """Magnitudes in dB of the first channel: `HEIGHT` mel-spaced frequencies at `WIDTH` times."""
    x = torch.from_numpy(np.ascontiguousarray(audio[0]))
    frames = stft_magnitude(x, _WINDOW, max(1, len(x) // WIDTH)).numpy()
    magnitude = frames[:, np.linspace(0, frames.shape[1] - 1, WIDTH).round().astype(int)]
    top = np.log1p(sampling_rate / 2 / 700)
    edges = 700 * np.expm1(np.linspace(0, top, HEIGHT + 1)) / (sampling_rate / 2)
    edges *= len(magnitude) - 1
    # The loudest bin of each band: a tone between two rows would be lost to interpolation.
    bands = [magnitude[int(low) : int(np.ceil(high)) + 1].max(0) for low, high in pairwise(edges)]
    return 20 * np.log10(np.maximum(np.stack(bands), 1e-7))


def draw_spectrogram(
    audio: Float[np.ndarray, "C N"], sampling_rate: int, path: Path, loudest: float | None = None
) -> None:
    """Writes the spectrogram of the first channel as PNG, without axes; as `plot_spectrogram`."""
    from matplotlib import colormaps
    from PIL import Image

    decibels = spectrogram_db(audio, sampling_rate)
    loudest = float(decibels.max()) if loudest is None else loudest
    share = np.clip((decibels[::-1] - loudest) / RANGE_DB + 1, 0, 1)
    levels = np.rint(share * (_LEVELS - 1)).astype(np.uint8)
    image = Image.fromarray(levels)
    colours = colormaps["magma"](np.linspace(0, 1, _LEVELS))[:, :3]
    image.putpalette((255 * colours).astype(np.uint8).tobytes())
    image.save(path, format="PNG", optimize=True)


def plot_spectrogram(
    axes: Axes,
    audio: Float[np.ndarray, "C N"],
    sampling_rate: int,
    loudest: float | None = None,
    title: str = "",
) -> AxesImage:
    """Draws the spectrogram of the first channel into `matplotlib` axes.

    ``loudest`` is the level in dB of the brightest colour, by default that of the loudest point;
    the darkest is `RANGE_DB` lower.
    """
    decibels = spectrogram_db(audio, sampling_rate)
    top = float(decibels.max()) if loudest is None else loudest
    image = axes.imshow(
        decibels,
        origin="lower",
        aspect="auto",
        cmap="magma",
        vmin=top - RANGE_DB,
        vmax=top,
        extent=(0, audio.shape[-1] / sampling_rate, 0, 1),
    )
    half = sampling_rate / 2
    kilohertz = [f for f in (0, 0.5, 1, 2, 4, 8, 16) if 1000 * f < half]
    places = [float(np.log1p(f / 0.7) / np.log1p(half / 700)) for f in kilohertz]
    axes.set_yticks(places, [f"{f:g}" for f in kilohertz])
    axes.set(xlabel="seconds", ylabel="kHz")
    axes.set_title(title, loc="left", fontsize=9)
    return image


def draw_code_use(counts: list[list[int]], path: Path, theme: Theme) -> None:
    """Draws how often each entry of each codebook occurred, the most frequent first, as SVG.

    A colour says how many times as often as if all entries were used alike. Codebooks of different
    sizes are stretched to one width.
    """
    from matplotlib.ticker import MaxNLocator

    columns = min(256, max(len(book) for book in counts))
    rows = []
    for book in counts:
        ordered = np.sort(np.asarray(book, dtype=np.float64))[::-1]
        relative = ordered * len(ordered) / max(ordered.sum(), 1)
        edges = np.linspace(0, len(ordered), columns + 1)
        # The mean over each column's share of the entries, however unevenly they divide.
        total = np.concatenate([[0], np.cumsum(relative)])
        rows.append(np.diff(np.interp(edges, np.arange(len(total)), total)) / np.diff(edges))
    table = np.log2(np.maximum(np.stack(rows), 2.0**-6))
    size = (5.6, 1.2 + 0.12 * max(len(counts), 8))
    with themed_axes(path, theme, size, "code use") as axes:
        image = axes.imshow(
            table,
            aspect="auto",
            cmap="magma",
            vmin=-6,
            vmax=6,
            extent=(0, 100, len(counts) + 0.5, 0.5),
            interpolation="nearest",
        )
        axes.set(xlabel="entries, most frequent first, %", ylabel="codebook")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        bar = axes.figure.colorbar(image, ax=axes, ticks=[-6, -3, 0, 3, 6])
        bar.ax.set_yticklabels(["≤ 1/64", "1/8", "1", "8", "≥ 64"])
        bar.set_label("times as often as\nif all were alike")
        bar.outline.set_edgecolor(theme.grid)  # pyright: ignore[reportCallIssue]
