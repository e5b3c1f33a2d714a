"""The log of a training run: JSON lines, TensorBoard, and curves as CSV and picture.

TensorBoard and the picture need packages that are optional, and are left out without them.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tokenizer.saving import write_text, writing


class RunLog:
    """``log.jsonl``, ``tensorboard/``, ``curves.csv`` and ``curves.png`` in the folder of a run.

    Lines after ``first_step``, left by a run that died after its last checkpoint, are dropped.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self.folder, self.path = folder, folder / "log.jsonl"
        if self.path.exists():
            lines = self.path.read_text().splitlines()
            valid = [line for line in lines if _step(line) <= first_step]
            write_text(self.path, "".join(line + "\n" for line in valid))
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError:
            self.board = None
        else:
            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)

    def lines(self) -> list[dict[str, Any]]:
        """All lines so far, without one that a kill or a full disk has cut short."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return [json.loads(line) for line in lines if _step(line) < math.inf]

    def write(self, step: int, values: Mapping[str, float | int]) -> None:
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
        with writing(self.folder / "curves.csv") as partial, partial.open("w", newline="") as file:
            csv.writer(file).writerows([["step", *names], *rows])
        _draw_curves(lines, names, self.folder / "curves.png")

    def close(self) -> None:
        """Draws the curves and closes the event files."""
        self.draw()
        if self.board is not None:
            self.board.close()


def _step(line: str) -> float:
    """The step of a line of the log; infinity for a line that is not whole."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _draw_curves(lines: list[dict[str, Any]], names: list[str], path: Path) -> None:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return
    # Without pyplot: no display and no global state.
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name in names:
        points = [(line["step"], line[name]) for line in lines if name in line]
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, marker="." if name.startswith("val/") else None, label=name)
    axes.set(xlabel="step", ylabel="loss")
    axes.grid(alpha=0.3)
    axes.legend()
    with writing(path) as partial:
        figure.savefig(partial, format="png", dpi=100)
