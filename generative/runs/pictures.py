"""Pictures of generated clips: spectrograms, latents or codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from generative.protocol import TokenRow
from tokenizer.evaluation.report.pictures import plot_spectrogram
from tokenizer.saving import writing


def new_figure(width: float | int, height: float | int) -> Any:
    """A `matplotlib` figure that needs no display and no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


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
    plot_spectrogram(axes[0], audio, sampling_rate)
    if row is not None:
        draw_row(axes[1], row)
    with writing(path) as partial:
        figure.savefig(partial, format="png", dpi=100)
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
