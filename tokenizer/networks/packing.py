"""Many signals through a network over frames at once: laid end to end, cut into windows of a shape.

A device (a GPU) is waited for less the fewer and larger the operations are. So the rows of all
signals follow one another, with some rows of zeros between them, and that line is cut into windows
which overlap by as much context as the network sees:

    signal 1 . signal 2 . . . signal 3                rows; dots are gaps
    [ window 0  ]                                     `Windows.frames` results each
             [ window 1  ]
                      [ window 2  ]

Before every layer the rows of gaps are set to zero again, as a layer sees them at the ends of a
signal alone. All windows have one shape, and a pass has one number of them, whatever the batch is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Windows:
    """The shape of what a device computes at once.

    Attributes:
        frames: Results of a window.
        count: Windows of a pass.
    """

    frames: int = 1024
    count: int = 16

    @property
    def rows(self) -> int:
        """Results of a pass."""
        return self.frames * self.count


@dataclass(frozen=True)
class PackedNetwork:
    """A network that takes windows of rows.

    Attributes:
        function: Maps windows ``[P, before + frames + after, F]``, and which of their rows are of a
            signal, ``[P, before + frames + after]``, to ``[P, frames, F2]``.
        reach: ``(before, after)``: how many rows before and after its own a result depends on.
        gap: Rows of zeros that keep signals apart: as many as one layer sees.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    reach: tuple[int, int]
    gap: int

    def __call__(
        self, rows: Float[Tensor, "R F"], inside: Bool[Tensor, " R"], windows: Windows
    ) -> Float[Tensor, "R2 F2"]:
        """Results of rows of whole passes with the context around them; see `with_context`."""
        before, after = self.reach
        size = before + windows.frames + after
        parts = rows.unfold(0, size, windows.frames).transpose(1, 2).split(windows.count)
        masks = inside.unfold(0, size, windows.frames).split(windows.count)
        results = [
            self.function(part, mask).flatten(0, 1) for part, mask in zip(parts, masks, strict=True)
        ]
        return results[0] if len(results) == 1 else torch.cat(results)

    def with_context(
        self, rows: Shaped[Tensor, "R ..."], windows: Windows
    ) -> Shaped[Tensor, "R2 ..."]:
        """Rows with zeros around them: the context, and what a last pass lacks."""
        before, after = self.reach
        missing = -len(rows) % windows.rows
        edges = (0, 0) * (rows.ndim - 1)
        return functional.pad(rows, (*edges, before, missing + after))


def passes(
    rows: Iterable[Float[np.ndarray, "n F"]], network: PackedNetwork, windows: Windows
) -> Iterator[tuple[Float[np.ndarray, "R F"], int]]:
    """Rows that arrive on the host, pass by pass, each with its context.

    Yields:
        Rows, of which the last pass may lack some, and how many results they have.
    """
    before, after = network.reach
    size = before + windows.rows + after
    line: np.ndarray | None = None
    for piece in rows:
        if line is None:  # The first pass begins with context that is not there.
            line = np.zeros((before, piece.shape[1]), piece.dtype)
        line = np.concatenate([line, piece])
        start = 0
        while len(line) - start >= size:
            yield line[start : start + size], windows.rows
            start += windows.rows
        line = line[start:]
    while line is not None and len(line) > before:
        yield line[:size], min(len(line) - before, windows.rows)
        line = line[windows.rows :]


def unpacked(
    results: Iterable[Shaped[np.ndarray, "R F"]], lengths: Iterable[tuple[int, int]]
) -> Iterator[Shaped[np.ndarray, "n F"]]:
    """The rows of each signal, of what passes have returned.

    ``lengths`` are the rows of each signal, and those after it that are of none.
    """
    line = _Line(results)
    for count, gap in lengths:
        yield line.take(count)
        line.take(gap)


class _Line:
    """Arrays of rows that follow one another, to be taken in other lengths."""

    def __init__(self, arrays: Iterable[np.ndarray]) -> None:
        self._arrays, self._rest = iter(arrays), np.zeros((0, 0))

    def take(self, count: int) -> np.ndarray:
        """The next rows, fewer where there are no more."""
        parts = []
        while count > 0:
            if not len(self._rest):
                following = next(self._arrays, None)
                if following is None:
                    break
                self._rest = following
            parts.append(self._rest[:count])
            count, self._rest = count - len(parts[-1]), self._rest[count:]
        return np.concatenate(parts) if parts else self._rest[:0]
