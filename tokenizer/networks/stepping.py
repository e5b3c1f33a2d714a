"""Networks over frames, a block at a time: a stream and a whole file give the same bits.

A matrix product's last bits may depend on its shape, and a code can hang on a last bit. So a
network over frames is cut into stages, and each stage computes blocks of one fixed shape on one
fixed grid of frames, whatever arrives in one call. Rows of a block do not change each other, so a
block of which only a part is known, in a stream or at a signal's end, gives the bits of that part.

That alone would be slow where few rows are known. On most machines smaller blocks give the same
bits as the rows of large ones. A stage finds out by computing noise in both, at every place of the
large block; that sums do not depend on what is summed makes this a proof, not a sample. Where all
bits agree, parts are computed in small blocks, elsewhere not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

# Frames of a block: weights are prepared for a product once a block, so large ones are faster; and
# those of the smaller blocks that parts are computed in, each a multiple of the next.
CPU_ROWS, GPU_ROWS = 512, 1024
SMALLER = (256, 128, 32)


def block_frames(device: torch.device) -> int:
    """Frames of a block on this kind of device."""
    return CPU_ROWS if device.type == "cpu" else GPU_ROWS


class Stepper(ABC):
    """A network on its way through one signal."""

    @abstractmethod
    def push(self, x: Tensor, *, final: bool = False, eager: bool = False) -> Tensor:
        """Takes what comes next and returns what can be computed now; that may be nothing.

        Args:
            x: Samples ``[n]`` or frames ``[n, D]``; any number, none too.
            final: Whether nothing comes after them.
            eager: Whether to compute all that can be computed, or only whole blocks.
        """


# Sizes of smaller blocks, by stage, device and settings.
Agreements = dict[tuple[Any, ...], tuple[int, ...]]


class Stage:
    """One stage of a network: rows of features in, rows out, one for one.

    Args:
        function: Maps a window ``[behind + rows + ahead, features]`` to ``[rows, features]``.
        widths: Features that come in and go out.
        rows: Of a block.
        device: Where they are.
        context: ``(behind, ahead)``: a row depends on so many rows before and after its own. Before
            the first there are zeros.
        padded: Whether zeros follow the last row of all. If not, the last ``ahead`` rows have no
            result.
        agreed: Where it is written down which smaller blocks agree, under a name for the stage.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        widths: tuple[int, int],
        rows: int,
        *,
        device: torch.device,
        context: tuple[int, int] = (0, 0),
        padded: bool = True,
        agreed: tuple[Agreements, str],
    ) -> None:
        behind, ahead = context
        self._context, self._agreed, self._name = behind + ahead, *agreed
        self._function, self._rows, self._ahead, self._padded = function, rows, ahead, padded
        self._shape, self._width = (behind + rows + ahead, widths[0]), widths[1]
        # From its offset on: rows from `behind` before the current block on.
        self._buffer, self._offset = torch.zeros(behind, widths[0], device=device), 0
        self._known = self._done = self._first = 0

    def push(
        self, rows: Float[Tensor, "n F"], *, final: bool = False, eager: bool = False
    ) -> Float[Tensor, "m F2"]:
        """Takes the next rows; returns those results that are complete.

        Args:
            rows: Any number of rows.
            final: Whether these are the last.
            eager: Whether to compute blocks of which only a part is known.
        """
        if len(rows):
            self._buffer = torch.cat([self._buffer[self._offset :], rows])
            self._offset = 0
            self._known += len(rows)
        limit = self._known if final and self._padded else self._known - self._ahead
        found = []
        while self._done < limit:
            end = self._first + self._rows
            if limit < end and not (eager or final):
                break
            stop = min(limit, end)
            found += self._some(self._done - self._first, stop - self._first)
            self._done = stop
            if stop == end:
                self._first = end
                self._offset += self._rows
        if not found:
            return self._buffer.new_zeros(0, self._width)
        return found[0] if len(found) == 1 else torch.cat(found)

    def _some(self, start: int, stop: int) -> list[Tensor]:
        """Rows of the current block, in as few and as small blocks as give its bits."""
        if _worthwhile(self._rows, stop - start) or not (sizes := self._smaller()):
            return [self._function(self._window(0, self._rows))[start:stop]]
        found = []
        place = start // sizes[-1] * sizes[-1]
        while place < stop:
            fitting = (n for n in sizes if place % n == 0 and _worthwhile(n, stop - place))
            size = next(fitting, sizes[-1])
            result = self._function(self._window(place, size))
            found.append(result[max(start - place, 0) : stop - place])
            place += size
        return found

    def _window(self, place: int, rows: int) -> Tensor:
        # Always a tensor of its own: a product's last bits may depend on an address, too.
        first, size = self._offset + place, rows + self._context
        known = self._buffer[first : first + size]
        if len(known) == size:
            return known.clone(memory_format=torch.contiguous_format)
        window = known.new_zeros(size, self._shape[1])
        window[: len(known)] = known
        return window

    def _smaller(self) -> tuple[int, ...]:
        """Sizes of smaller blocks that give the bits of this one; tried once."""
        device = self._buffer.device
        key = (self._name, device, torch.get_num_threads(), torch.is_autocast_enabled(device.type))
        if key not in self._agreed:
            noise = torch.randn(self._shape, generator=torch.Generator().manual_seed(0)).to(device)
            whole = self._function(noise)
            self._agreed[key] = tuple(
                size
                for size in SMALLER
                if device.type == "cpu"
                and size < self._rows
                and all(
                    torch.equal(
                        self._function(noise[i : i + size + self._context].clone()),
                        whole[i : i + size],
                    )
                    for i in range(0, self._rows, size)
                )
            )
        return self._agreed[key]


def _worthwhile(size: int, wanted: int) -> bool:
    """Whether to compute so many rows at once for the sake of some of them."""
    return wanted > size - size // 4


def run(
    stages: Sequence[Stage], rows: Float[Tensor, "n F"], *, final: bool, eager: bool
) -> Float[Tensor, "m F2"]:
    """Takes rows through stages, one after another; see `Stage.push`."""
    for stage in stages:
        rows = stage.push(rows, final=final, eager=eager)
    return rows


class Queue:
    """Rows that wait for what is made of them elsewhere."""

    def __init__(self) -> None:
        self._rows: Tensor | None = None

    def push(self, rows: Float[Tensor, "n F"]) -> None:
        """Takes rows."""
        self._rows = rows if self._rows is None else torch.cat([self._rows, rows])

    def pop(self, count: int) -> Float[Tensor, "n F"]:
        """Gives the first ``count`` rows back."""
        assert self._rows is not None
        rows, self._rows = self._rows[:count], self._rows[count:]
        return rows
