"""Audio as blocks of samples at the rate that is asked for, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float32

from tokenizer.audio.resampling import Resampler, check_rate, resampled_length
from tokenizer.audio.signals import Signal
from tokenizer.errors import InputError

# What is resampled at once is cut further where so many samples, of all channels, would come out.
MAX_RESAMPLED = 2**24


class AudioSource:
    """Audio that can be read again and again, block by block, at the rate that is asked for.

    `tokenizer.open_audio` makes one from any form of input, and documents the arguments.

    Attributes:
        name: For messages, such as the path.
        source_rate: Hz of the file or array.
        sampling_rate: Hz of what `blocks` yields.
        num_channels: C of what `blocks` yields.
    """

    def __init__(self, signal: Signal, *, target_rate: int, downmix: bool = False) -> None:
        self._signal, self._downmix = signal, downmix
        self.name = signal.name
        self.source_rate, num_channels, _ = signal.info()
        self.sampling_rate = check_rate(target_rate, "target sampling rate")
        self.num_channels = 1 if downmix else num_channels
        self._num_samples: int | None = None
        self._resampler()  # Finds impossible rates now rather than when reading begins.

    @property
    def num_samples(self) -> int:
        """N at `sampling_rate`; before `blocks` has run to its end this decodes all, to count."""
        if self._num_samples is None:
            total = sum(block.shape[-1] for block in self._signal.blocks())
            self._num_samples = resampled_length(total, self.source_rate, self.sampling_rate)
        return self._num_samples

    def blocks(self) -> Iterator[Float32[np.ndarray, "C n"]]:
        """Yields the whole signal in consecutive blocks that the caller may keep and change.

        Raises:
            ValueError: If there are no samples, or one is not finite, or the file is damaged.
        """
        resampler = self._resampler()
        # Few channels at usual rates are never cut, so that blocks stay as they are.
        growth = max(1, self.sampling_rate / self.source_rate)
        size = max(1, int(MAX_RESAMPLED / growth) // self.num_channels)
        num_in = num_out = 0
        for block in self._signal.blocks():
            if not np.isfinite(block).all():
                place = num_in + int(np.flatnonzero(~np.isfinite(block).all(axis=0))[0])
                raise InputError(
                    f"{self.name} has a NaN or infinite sample at {place / self.source_rate:.3f} s "
                    f"(sample {place}): repair or leave out the clip."
                )
            num_in += block.shape[-1]
            mixed = block.mean(axis=0, keepdims=True, dtype=np.float64) if self._downmix else block
            for start in range(0, mixed.shape[-1], size):
                piece = np.array(mixed[:, start : start + size], dtype=np.float32, order="C")
                out = resampler.push(piece)
                num_out += out.shape[-1]
                if out.shape[-1]:
                    yield out
        tail = resampler.finish()
        num_out += tail.shape[-1]
        if tail.shape[-1]:
            yield tail
        self._num_samples = num_out
        if num_out == 0:
            raise InputError(
                f"{self.name} is too short: {num_in} samples at {self.source_rate} Hz are none at "
                f"{self.sampling_rate} Hz."
            )

    def read(self) -> Float32[np.ndarray, "C N"]:
        """Returns the whole signal as one array; errors as in `blocks`."""
        return np.concatenate(list(self.blocks()), axis=-1)

    def _resampler(self) -> Resampler:
        return Resampler(self.source_rate, self.sampling_rate, self.num_channels)


def read_beginning(source: AudioSource, seconds: float | int) -> tuple[np.ndarray, bool]:
    """Up to so many seconds of a source, and whether there is more; reads little beyond them."""
    length = round(seconds * source.sampling_rate)
    blocks, num_read = [], 0
    for block in source.blocks():
        blocks.append(block)
        num_read += block.shape[-1]
        if num_read > length:
            break
    wave = np.concatenate(blocks, axis=-1)
    return wave[:, :length], num_read > length
