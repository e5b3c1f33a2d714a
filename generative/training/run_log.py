"""The log of a training run: JSON lines, TensorBoard, and curves as CSV and picture."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np


class RunLog:
    """``log.jsonl``, ``tensorboard/``, ``curves.csv`` and ``curves.png`` of a run.

    Args:
        folder: Where to write; must exist.
        first_step: Lines after this step, left by a run that died after its last checkpoint, are
            dropped.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self.folder, self.path = folder, folder / "log.jsonl"
        if self.path.exists():
            kept = [line for line in self.lines() if line["step"] <= first_step]
            replace_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError:
            self.board = None
        else:
            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)

    def lines(self) -> list[dict[str, Any]]:
        """Everything logged so far; a last line that a kill cut short is left out."""
        found = []
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return found

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Adds one line."""
        line = {"step": step} | {name: float(f"{value:.6g}") for name, value in values.items()}
        with self.path.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)

    def add_samples(self, step: int, samples: list[tuple[str, np.ndarray, int]]) -> None:
        """Adds audio ``[C, N]`` with its name and rate to TensorBoard."""
        if self.board is None:
            return
        for name, audio, rate in samples:
            mono = audio.mean(0, keepdims=True).clip(-1, 1)
            self.board.add_audio(f"samples/{name}", mono, step, sample_rate=rate)

    def add_picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Adds a picture ``[height, width, 3]`` of bytes to TensorBoard."""
        if self.board is not None:
            self.board.add_image(name, picture, step, dataformats="HWC")

    def draw(self) -> None:
        """Writes the losses as ``curves.csv`` and ``curves.png``."""
        lines = self.lines()
        names = sorted(
            {k for line in lines for k in line if k.partition("/")[2].startswith("loss")}
        )
        if not names:
            return
        rows = [[line["step"], *(line.get(name, "") for name in names)] for line in lines]
        partial = self.folder / ".curves.csv.partial"
        with partial.open("w", newline="") as stream:
            csv.writer(stream).writerows([["step", *names], *rows])
        partial.replace(self.folder / "curves.csv")
        _draw_curves(lines, names, self.folder / "curves.png")

    def close(self) -> None:
        """Draws the curves and closes the event files."""
        self.draw()
        if self.board is not None:
            self.board.close()


def replace_text(path: Path, text: str) -> None:
    """Writes a file as a whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


def new_figure(width: float | int, height: float | int) -> Any:
    """A `matplotlib` figure that needs no display and no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: Path) -> None:
    """Writes a PNG as a whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    figure.savefig(partial, format="png", dpi=100)
    partial.replace(path)


def _draw_curves(lines: list[dict[str, Any]], names: list[str], path: Path) -> None:
    figure = new_figure(7, 4)
    axes = figure.subplots()
    for name in names:
        points = [(line["step"], line[name]) for line in lines if name in line]
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, marker="." if name.startswith("val/") else None, label=name)
    axes.set(xlabel="step", ylabel="loss")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)
