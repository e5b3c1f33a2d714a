"""Clips in, rows out, in order: what one process, several and a cluster have in common.

A row depends on its clip, the tokenizer and `RowOptions` alone (docs/exactness.md).
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from datasets_scripts.preparation.options import Resources, RowOptions
from datasets_scripts.preparation.read_ahead import ReadAhead
from datasets_scripts.preparation.reading import ClipReader, Piece
from datasets_scripts.sources.corpus import CorpusClip, Missing
from tokenizer import LatentTokenizer
from tokenizer.errors import StateError

PreparedRow = dict[str, Any]

# Batches from which one is chosen by length.
WINDOW_BATCHES = 4


@dataclass(frozen=True)
class NumberedClip:
    """A clip to prepare, or what is there instead, and its number in the split."""

    index: int
    item: CorpusClip | Missing


@dataclass(frozen=True)
class Encoded:
    """One event of `encode_clips`: a row of the clip of this index, or the end of the clip.

    ``error`` says at the end of a clip why it, or the rest of it, could not be encoded.
    """

    index: int
    clip_id: str
    row: PreparedRow | None = None
    error: str | None = None


def encode_clips(
    tokenizer: LatentTokenizer,
    clips: Iterable[NumberedClip],
    options: RowOptions,
    resources: Resources = Resources(),  # noqa: B008 - frozen.
) -> Generator[Encoded, None, None]:
    """Encodes clips, on the tokenizer's device, while the next ones are read in threads.

    Yields for each clip, in order, its rows and then its end. What ``clips`` raises is raised; of a
    clip that cannot be read, the end says so.
    """
    encoder = _Encoder(tokenizer, options)
    # With none at all, no event would ever be taken.
    batch = max(1, round(resources.batch_seconds * tokenizer.sampling_rate))
    window, rate = WINDOW_BATCHES * batch, tokenizer.sampling_rate
    segment = options.segment_length(rate, tokenizer.hop_length)
    reader = ClipReader(rate, segment, options.downmix, longest=window)

    def read(numbered: NumberedClip) -> Iterator[Piece]:
        return reader.pieces(numbered.item)

    # A window is encoded while the next one is read.
    with ReadAhead(clips, read, num_threads=resources.num_readers, limit=2 * window) as ahead:
        failed: dict[int, str] = {}
        while not ahead.finished:
            events = _take_window(ahead, window)
            pieces = {i: (t, e) for i, (t, e) in enumerate(events) if isinstance(e, Piece)}
            coded = encoder.encode(pieces, batch)
            ready: dict[int, PreparedRow | str] = {}
            for place, (numbered, event) in enumerate(events):
                if not isinstance(event, Piece):
                    error = failed.pop(numbered.index, None)
                    error = error if event is None else _reason(event)
                    yield Encoded(numbered.index, numbered.item.id, error=error)
                    continue
                while place not in ready:  # Batches are not in order; rows are.
                    ready.update(next(coded))
                row = ready.pop(place)
                if isinstance(row, str):
                    failed.setdefault(numbered.index, row)
                else:
                    yield Encoded(numbered.index, numbered.item.id, row)
                ahead.release(event.weight)


def _take_window(ahead: ReadAhead[NumberedClip], window: int) -> list[tuple[NumberedClip, Any]]:
    """Waits for one event, then takes what is ready: the encoder never waits for a full window."""
    events: list[tuple[NumberedClip, Any]] = []
    weight = 0
    while weight < window and (event := ahead.take(wait=not events)) is not None:
        numbered, what = event
        expected = (Piece, ValueError, OSError, RuntimeError)
        if what is not None and not isinstance(what, expected):
            raise what
        events.append((numbered, what))
        weight += what.weight if isinstance(what, Piece) else 0
    return events


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


class _Encoder:
    """Encodes pieces in batches of similar length."""

    def __init__(self, tokenizer: LatentTokenizer, options: RowOptions) -> None:
        self._tokenizer, self._options = tokenizer, options
        self._fingerprint = tokenizer.fingerprint
        # Samples of a batch that the device has memory for, as far as is known.
        self._most = math.inf

    def encode(
        self, pieces: Mapping[int, tuple[NumberedClip, Piece]], batch: int
    ) -> Iterator[dict[int, PreparedRow | str]]:
        """Yields batches of rows, or of reasons why there is none, under the keys of the pieces.

        A batch has at most this many samples, padding included.
        """
        places = list(pieces)
        for group in by_length([piece.num_samples for _, piece in pieces.values()], batch):
            chosen = [places[i] for i in group]
            coded = self._encode_batch([pieces[place][1] for place in chosen])
            yield {
                place: row if isinstance(row, str) else self._finish(row, *pieces[place])
                for place, row in zip(chosen, coded, strict=True)
            }

    def _encode_batch(self, pieces: list[Piece]) -> list[PreparedRow | str]:
        size = len(pieces) * max(piece.num_samples for piece in pieces)
        if size > self._most and len(pieces) > 1:
            half = len(pieces) // 2
            return self._encode_batch(pieces[:half]) + self._encode_batch(pieces[half:])
        try:
            return self._encode_all([piece.audio for piece in pieces])
        except torch.cuda.OutOfMemoryError as error:
            seconds = size / self._tokenizer.sampling_rate
            if len(pieces) == 1:
                raise StateError(
                    f"The GPU has no memory for a clip of {seconds:.0f} s: use --segment-seconds"
                    f" or --device cpu. {_reason(error)}"
                ) from None
            self._most = size / 2
            warnings.warn(
                f"The GPU has no memory for a batch of {seconds:.0f} s, from now on batches have at"
                f" most {seconds / 2:.0f} s: --batch-seconds begins with this.",
                stacklevel=2,
            )
            parts = [pieces]
        except (ValueError, OSError) as error:
            if len(pieces) == 1:
                return [_reason(error)]
            # One clip must not take the others with it.
            parts = [[piece] for piece in pieces]
        # Out here the error no longer holds what was on the device.
        return [row for part in parts for row in self._encode_batch(part)]

    def _encode_all(self, audio: list[Any]) -> list[PreparedRow | str]:
        o, tokenizer = self._options, self._tokenizer
        if o.latents:
            columns = tokenizer.encode_latents(audio, downmix=o.downmix)
        else:
            columns = tokenizer.encode_codes(audio, n_codebooks=o.n_codebooks, downmix=o.downmix)
        rows = [{name: column[i] for name, column in columns.items()} for i in range(len(audio))]
        if o.latents and o.codes:
            # The same codes as encode_codes' own, without encoding twice.
            for row in rows:
                row.update(tokenizer.latents_to_codes(row, n_codebooks=o.n_codebooks))
        return [*rows]

    def _finish(self, row: PreparedRow, numbered: NumberedClip, piece: Piece) -> PreparedRow | str:
        clip = numbered.item
        assert isinstance(clip, CorpusClip)
        latents = row.get("latents")
        if latents is not None:
            with np.errstate(over="ignore"):
                latents = latents.astype(np.float16)
            if not np.isfinite(latents).all():
                return "its latents exceed the range of float16 (65,504)"
        metadata = json.dumps(dict(clip.metadata), ensure_ascii=False, sort_keys=True)
        cut = self._options.segment_seconds is not None
        return {
            "id": f"{clip.id}@{piece.start}" if cut else clip.id,
            "source_id": clip.id,
            "start": piece.start,
            "codes": row.get("codes"),
            "latents": latents,
            "gain": row["gain"],
            "num_samples": row["num_samples"],
            "num_channels": row["num_channels"],
            "label": clip.label,
            "caption": clip.caption,
            "metadata": metadata if clip.metadata else None,
            "fingerprint": self._fingerprint,
        }


def by_length(lengths: Sequence[int], batch: int) -> Iterator[list[int]]:
    """Batches of indices of similar length, shortest first.

    The longest of a batch times their number is at most ``batch``; one that is longer comes alone.
    """
    group: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if group and (len(group) + 1) * lengths[i] > batch:
            yield group
            group = []
        group.append(i)
    if group:
        yield group
