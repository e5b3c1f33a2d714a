"""Networks over frames, computed block by block: a stream and a whole file give the same bits.

A network is cut into stages, and each stage computes blocks of one fixed shape on one fixed grid of
frames, however many frames arrive in a call (docs/exactness.md says why). Rows of a block do not
influence each other, so a block that is only partly known gives the right bits for that part.

Computing a full block for a few rows would be slow. On most machines smaller blocks round
identically. A stage tests this once, with noise at every place of the large block: the order of
summation does not depend on the numbers summed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

# Frames of a block. Weights are prepared for a product once a block, so large blocks are faster.
CPU_ROWS, GPU_ROWS = 512, 1024
# Sizes that partial blocks are computed in, each a multiple of the next.
SMALLER = (256, 128, 32)


class Stepper(ABC):
    """A network that is applied to one signal, piece by piece."""

    @abstractmethod
    def push(self, x: Tensor, *, final: bool = False, eager: bool = False) -> Tensor:
        """Takes the next piece and returns what can be computed now, which may be nothing.

        Args:
            x: Samples ``[n]`` or frames ``[n, D]``; n may be 0.
            final: Whether this is the last piece.
            eager: Whether to compute everything that can be computed, or only whole blocks.
        """


# Smaller block sizes that round identically, by stage name, device and settings.
Agreements = dict[tuple[Any, ...], tuple[int, ...]]


class BlockStage:
    """One stage of a network, computed block by block: n rows in, n rows out.

    Args:
        function: Maps a window ``[behind + rows + ahead, features]`` to ``[rows, features]``.
        name: Of the stage in `agreements`.
        widths: Features that come in and go out.
        context: ``(behind, ahead)``: how many rows before and after its own a row depends on. Rows
            before the first are zero.
        padded: Whether rows after the last are zero. If not, the last ``ahead`` rows have no
            result.
        device: Where the rows are.
        agreements: Where the stage records which smaller blocks round identically.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        name: str,
        widths: tuple[int, int],
        *,
        context: tuple[int, int] = (0, 0),
        padded: bool = True,
        device: torch.device,
        agreements: Agreements,
    ) -> None:
        behind, self._ahead = context
        self._context = sum(context)
        self._function, self._name, self._padded = function, name, padded
        self._width_in, self._width_out = widths
        self._rows = CPU_ROWS if device.type == "cpu" else GPU_ROWS
        self._agreements = agreements
        # From its offset on: the rows from `behind` before the current block on.
        self._buffer = torch.zeros(behind, self._width_in, device=device)
        self._offset = 0
        # Rows that arrived, rows whose results were returned, and the current block's first row.
        self._arrived = 0
        self._returned = 0
        self._first = 0

    def push(
        self, rows: Float[Tensor, "n F"], *, final: bool = False, eager: bool = False
    ) -> Float[Tensor, "m F2"]:
        """Takes any number of rows; see `Stepper.push`."""
        if len(rows):
            self._buffer = torch.cat([self._buffer[self._offset :], rows])
            self._offset = 0
            self._arrived += len(rows)
        limit = self._arrived if final and self._padded else self._arrived - self._ahead
        results = []
        while self._returned < limit:
            end = self._first + self._rows
            if limit < end and not (eager or final):
                break
            stop = min(limit, end)
            results += self._compute(self._returned - self._first, stop - self._first)
            self._returned = stop
            if stop == end:
                self._first = end
                self._offset += self._rows
        if not results:
            return self._buffer.new_zeros(0, self._width_out)
        return results[0] if len(results) == 1 else torch.cat(results)

    def _compute(self, start: int, stop: int) -> list[Tensor]:
        """Rows of the current block, in the smallest and fewest blocks that give its bits."""
        if _worthwhile(self._rows, stop - start) or not (sizes := self._smaller_sizes()):
            return [self._function(self._window(0, self._rows))[start:stop]]
        results = []
        place = start // sizes[-1] * sizes[-1]
        while place < stop:
            fitting = (n for n in sizes if place % n == 0 and _worthwhile(n, stop - place))
            size = next(fitting, sizes[-1])
            result = self._function(self._window(place, size))
            results.append(result[max(start - place, 0) : stop - place])
            place += size
        return results

    def _window(self, place: int, rows: int) -> Tensor:
        # Always a new tensor: the last bits of a product may depend on its address, too.
        first, size = self._offset + place, rows + self._context
        available = self._buffer[first : first + size]
        if len(available) == size:
            return available.clone(memory_format=torch.contiguous_format)
        window = available.new_zeros(size, self._width_in)
        window[: len(available)] = available
        return window

    def _smaller_sizes(self) -> tuple[int, ...]:
        """Sizes of smaller blocks that round as the full one does; tested once."""
        device = self._buffer.device
        if device.type != "cpu":
            return ()
        key = (self._name, device, torch.get_num_threads(), torch.is_autocast_enabled(device.type))
        if key not in self._agreements:
            self._agreements[key] = self._tested_sizes()
        return self._agreements[key]

    def _tested_sizes(self) -> tuple[int, ...]:
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(self._rows + self._context, self._width_in, generator=generator)
        whole = self._function(noise)

        def agrees(size: int) -> bool:
            parts = (
                self._function(noise[i : i + size + self._context].clone())
                for i in range(0, self._rows, size)
            )
            return all(map(torch.equal, parts, whole.split(size)))

        return tuple(size for size in SMALLER if size < self._rows and agrees(size))


def _worthwhile(size: int, needed: int) -> bool:
    """Whether to compute a block of this size of which only some rows are needed."""
    return needed > size - size // 4
