"""Long audio in segments of equal length, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Float32

from tokenizer.errors import InputError


def segment_length(seconds: float | int, sampling_rate: int, hop_length: int) -> int:
    """Samples of a segment: whole latent frames, so that no frame is coded twice.

    Raises ValueError if that is less than a frame, or no finite number of them.
    """
    frames = seconds * sampling_rate / hop_length
    if not math.isfinite(frames):
        raise InputError(
            f"segment_seconds={seconds:g} is no finite time: leave it out for a row a clip."
        )
    if round(frames) < 1:
        raise InputError(
            f"segment_seconds={seconds:g} is less than one frame"
            f" ({hop_length / sampling_rate:g} s)."
        )
    return round(frames) * hop_length


def cut(
    blocks: Iterable[Float32[np.ndarray, "C _"]], length: int
) -> Iterator[tuple[int, Float32[np.ndarray, "C n"]]]:
    """Cuts a signal that arrives in blocks of any size into segments of ``length`` samples.

    Yields the place of each one's first sample, and its samples; the last segment has what is left,
    down to a single sample, so that nothing is lost.
    """
    held: list[np.ndarray] = []
    num_held = start = 0
    for block in blocks:
        held.append(block)
        num_held += block.shape[-1]
        if num_held < length:
            continue
        samples = np.concatenate(held, axis=-1)
        while samples.shape[-1] >= length:
            yield start, np.ascontiguousarray(samples[:, :length])
            start += length
            samples = samples[:, length:]
        held, num_held = [samples], samples.shape[-1]
    if num_held:
        yield start, np.ascontiguousarray(np.concatenate(held, axis=-1))
