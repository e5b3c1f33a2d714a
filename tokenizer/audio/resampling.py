"""Resampling of signals that arrive in blocks, to an exact length."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import soxr
from jaxtyping import Float32

from tokenizer.errors import InputError

# soxr's 20-bit setting (errors below -120 dB), the one that training data is resampled with. VHQ
# takes twice the time.
RESAMPLING_QUALITY = "HQ"

# One block of input becomes at most this many blocks of output, so memory stays bounded even where
# a file's header is nonsense (1 Hz, say).
MAX_RATIO = 256


def check_rate(value: Any, what: str = "sampling rate") -> int:
    """A sampling rate as an int; ValueError if it is not a positive whole number of Hz."""
    try:
        rate = int(value)
    except (TypeError, ValueError, OverflowError):
        rate = 0
    if rate <= 0 or rate != value or isinstance(value, bool):
        raise InputError(f"The {what} is {value!r}; it must be a positive whole number of Hz.")
    return rate


def resampled_length(num_samples: int, source_rate: int, target_rate: int) -> int:
    """Samples after resampling: ``round(num_samples * target_rate / source_rate)``, exactly."""
    return round(Fraction(num_samples * target_rate, source_rate))


class Resampler:
    """Resamples one signal that arrives in blocks.

    soxr rounds halves up and might be off by one at the end; the last block is cut or padded with
    zeros, so that the length is `resampled_length` exactly. Equal rates pass through untouched.
    """

    def __init__(self, source_rate: int, target_rate: int, num_channels: int) -> None:
        ratio = max(source_rate, target_rate) / min(source_rate, target_rate)
        if ratio > MAX_RATIO:
            raise InputError(
                f"Cannot resample from {source_rate} Hz to {target_rate} Hz: the rates differ by "
                f"more than a factor of {MAX_RATIO}. Is one of them wrong?"
            )
        self._rates = source_rate, target_rate
        self._num_in = self._num_out = 0
        self._empty = np.zeros((0, num_channels), dtype=np.float32)
        self._stream = None
        if source_rate != target_rate:
            self._stream = soxr.ResampleStream(
                source_rate, target_rate, num_channels, dtype="float32", quality=RESAMPLING_QUALITY
            )

    def push(self, block: Float32[np.ndarray, "C n"]) -> Float32[np.ndarray, "C m"]:
        """Takes a block and returns the samples that are complete; there may be none yet."""
        if self._stream is None:
            return block
        out = self._stream.resample_chunk(np.ascontiguousarray(block.T))
        self._num_in += block.shape[-1]
        self._num_out += len(out)
        return np.ascontiguousarray(out.T)

    def finish(self) -> Float32[np.ndarray, "C m"]:
        """Returns the remaining samples; call it once, after the last block."""
        if self._stream is None:
            return np.ascontiguousarray(self._empty.T)
        out = self._stream.resample_chunk(self._empty, last=True)
        missing = resampled_length(self._num_in, *self._rates) - self._num_out
        if len(out) < missing:
            out = np.pad(out, ((0, missing - len(out)), (0, 0)))
        return np.ascontiguousarray(out[:missing].T)
