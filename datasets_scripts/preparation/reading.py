"""Clips as pieces of audio in memory, at the tokenizer's rate, cut where that is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from datasets_scripts.sources.corpus import CorpusClip, Missing
from tokenizer import AudioSource, open_audio
from tokenizer.errors import InputError


@dataclass(frozen=True)
class Piece:
    """What becomes a row: audio as `LatentTokenizer.encode_codes` takes it.

    ``start`` is its place in the clip, and ``weight`` its samples in memory, of all channels.
    ``num_samples`` is a lower bound for audio that is not in memory.
    """

    start: int
    num_samples: int
    audio: Any
    weight: int


@dataclass(frozen=True)
class ClipReader:
    """Reads clips at ``target_rate``, whole or in segments of so many samples.

    A whole file of more than ``longest`` samples, of all channels, is not kept in memory: the
    encoder reads it again, block by block.
    """

    target_rate: int
    segment: int | None
    downmix: bool
    longest: int

    def pieces(self, item: CorpusClip | Missing) -> Iterator[Piece]:
        """Yields what becomes a row each.

        Raises ValueError if the clip is missing, no audio or damaged, OSError if it cannot be read.
        """
        if isinstance(item, Missing):
            raise InputError(item.reason)
        source, audio = self._open(item)
        whole_file = item.start is None and item.end is None
        first = round((item.start or 0) * self.target_rate)
        end = None if item.end is None else round(item.end * self.target_rate)
        blocks = trim(source.blocks(), first, end)
        kept: list[np.ndarray] = []
        weight = 0
        if self.segment is not None:
            for start, samples in cut(blocks, self.segment):
                weight += samples.size
                yield self._piece(start, samples)
        else:
            for block in blocks:
                kept.append(block)
                weight += block.size
                if weight > self.longest and whole_file:
                    yield Piece(0, self.longest + 1, audio, weight=0)
                    return
        if not weight:
            raise InputError(f"{item.audio} ends before the clip begins, at {item.start or 0:g} s.")
        if kept:
            yield self._piece(0, np.concatenate(kept, axis=-1))

    def _piece(self, start: int, samples: np.ndarray) -> Piece:
        audio = {"array": samples, "sampling_rate": self.target_rate}
        return Piece(start, samples.shape[-1], audio, weight=samples.size)

    def _open(self, clip: CorpusClip) -> tuple[AudioSource, Any]:
        options = {"target_rate": self.target_rate, "downmix": self.downmix}
        audio: Any = clip.audio
        if not isinstance(audio, Path):
            audio = {"bytes": audio.read_bytes(), "path": str(audio)}
        try:
            return open_audio(audio, **options), audio
        except ValueError:
            # What libsndfile does not know (AAC, say), torchcodec may.
            decoder = _torchcodec(audio)
            if decoder is None:
                raise
            return open_audio(decoder, **options), decoder


def trim(
    blocks: Iterable[Float32[np.ndarray, "C _"]], first: int, end: int | None
) -> Iterator[Float32[np.ndarray, "C _"]]:
    """Samples ``first`` to ``end`` (None: the last) of a signal; what follows is not read."""
    place = 0
    for block in blocks:
        start, stop = place, place + block.shape[-1]
        wanted = block[:, max(first - start, 0) : None if end is None else max(end - start, 0)]
        if wanted.shape[-1]:
            yield wanted
        place = stop
        if end is not None and place >= end:
            return


def cut(
    blocks: Iterable[Float32[np.ndarray, "C _"]], length: int
) -> Iterator[tuple[int, Float32[np.ndarray, "C n"]]]:
    """Cuts a signal that arrives in blocks of any size into segments of ``length`` samples.

    Yields the place of each one's first sample, and its samples; the last segment has what is left,
    down to a single sample, so that nothing is lost.
    """
    pending: list[np.ndarray] = []
    num_pending = start = 0
    for block in blocks:
        pending.append(block)
        num_pending += block.shape[-1]
        if num_pending < length:
            continue
        samples = np.concatenate(pending, axis=-1)
        while samples.shape[-1] >= length:
            yield start, np.ascontiguousarray(samples[:, :length])
            start += length
            samples = samples[:, length:]
        pending, num_pending = [samples], samples.shape[-1]
    if num_pending:
        yield start, np.ascontiguousarray(np.concatenate(pending, axis=-1))


def _torchcodec(audio: Path | dict[str, Any]) -> Any:
    """A decoder of torchcodec, by path or bytes; None if it is not installed or cannot either."""
    if find_spec("torchcodec") is None:
        return None
    try:
        from torchcodec.decoders import AudioDecoder  # pyright: ignore[reportMissingImports]

        return AudioDecoder(audio if isinstance(audio, Path) else audio["bytes"])
    except (ImportError, ValueError, RuntimeError, OSError):
        return None
