"""Rows as points: embeddings that need no download, to compare sets of clips with.

Published Fréchet audio distances use networks (VGGish, PANNs, CLAP) whose weights have to be
fetched; no package on PyPI that we know of carries one. Two embeddings are available anywhere:

* ``latents``: statistics of the tokenizer's own normalised latents;
* ``mel``: statistics of the log mel spectrogram of the decoded audio, which the tokenizer's encoder
  has no part in.

Statistics are the mean and the deviation of every channel over a segment and the deviation of its
change from frame to frame. So they see timbre, dynamics and speed, but no order beyond a frame:
figures compare models with each other on the same data, not with published distances.

Levels are taken out: every clip is decoded at the gain 1 that it was coded with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenizer import LatentTokenizer
from tokenizer.errors import InputError

N_MELS, WINDOW_SECONDS, MEL_FLOOR = 64, 0.04, 1e-5


@dataclass(frozen=True)
class EmbeddedSet:
    """Embedded segments of some clips.

    Attributes:
        points: By kind of embedding: ``[M, E]``.
        clips: Which clip each segment is from.
        labels: Class of each segment's clip, or None.
    """

    points: dict[str, Float[np.ndarray, "M E"]]
    clips: Int[np.ndarray, " M"]
    labels: list[str | None]

    def __len__(self) -> int:
        return len(self.clips)


def statistics(frames: Float[Tensor, "T E"]) -> Float[Tensor, " 3*E"]:
    """Mean, deviation, and deviation of the change, of each channel."""
    changes = frames.diff(dim=0) if len(frames) > 1 else torch.zeros_like(frames)
    parts = [frames.mean(0), frames.std(0, correction=0), changes.square().mean(0).sqrt()]
    return torch.cat(parts)


def log_mel(audio: Float[Tensor, " N"], sampling_rate: int) -> Float[Tensor, "T 64"]:
    """Log mel spectrogram: 64 bands, windows of 40 ms, half overlapped."""
    size = 2 * round(WINDOW_SECONDS * sampling_rate / 2)
    padded = torch.nn.functional.pad(audio, (0, max(0, size - len(audio))))
    window = torch.hann_window(size)
    spectrum = torch.stft(padded, size, size // 2, window=window, center=False, return_complex=True)
    bands = spectrum.abs().T @ _filters(size, sampling_rate)
    return bands.clamp(min=MEL_FLOOR).log10()


@lru_cache(maxsize=8)
def _filters(size: int, sampling_rate: int) -> Tensor:
    from transformers.audio_utils import mel_filter_bank

    top = sampling_rate / 2
    bank = mel_filter_bank(size // 2 + 1, N_MELS, 0.0, top, sampling_rate, norm="slaney")
    return torch.from_numpy(bank).float()


def row_latents(row: Mapping[str, Any], tokenizer: LatentTokenizer) -> Float[Tensor, "G T D"]:
    """Normalised latents of a row of latents or codes; a group of channels at a time."""
    column = "latents" if row.get("latents") is not None else "codes"
    frames = torch.from_numpy(np.asarray(row[column]).astype(np.float32))
    groups = -(-int(row.get("num_channels", 1)) // tokenizer.autoencoder.num_channels)
    grouped = frames.reshape(groups, -1, frames.shape[-1]).transpose(1, 2)
    latents = grouped if column == "latents" else tokenizer.dequantize(grouped.long())
    return tokenizer.normalize_latents(latents.to(tokenizer.device)).transpose(1, 2).cpu()


def embed_rows(
    rows: Iterable[Mapping[str, Any]],
    tokenizer: LatentTokenizer,
    segment_seconds: float | int = 2.0,
) -> EmbeddedSet:
    """Embeds rows of codes or latents, segment by segment.

    Args:
        rows: Rows that the tokenizer decodes; those with latents are taken as latents.
        tokenizer: Decodes.
        segment_seconds: Length of the segments; a remainder shorter than half of it is left out,
            unless it is all there is.

    Raises:
        ValueError: If there are no rows.
    """
    points: dict[str, list[Tensor]] = {"latents": [], "mel": []}
    clips: list[int] = []
    labels: list[str | None] = []
    rate = tokenizer.sampling_rate
    for clip, row in enumerate(rows):
        for latents in row_latents(row, tokenizer):
            pieces = list(_segments(latents, round(segment_seconds * tokenizer.frame_rate)))
            points["latents"] += [statistics(piece) for piece in pieces]
            waves = _segments(_decode(latents, row, tokenizer), round(segment_seconds * rate))
            # Frames and samples of a short remainder may round differently.
            mels = [statistics(log_mel(wave, rate)) for wave in waves]
            mels = (mels + [mels[-1]] * len(pieces))[: len(pieces)]
            points["mel"] += mels
            clips += [clip] * len(pieces)
            labels += [row.get("label")] * len(pieces)
    if not clips:
        raise InputError("There are no rows to embed.")
    stacked = {name: torch.stack(values).double().numpy() for name, values in points.items()}
    return EmbeddedSet(stacked, np.array(clips), labels)


def _decode(
    latents: Float[Tensor, "T D"], row: Mapping[str, Any], tokenizer: LatentTokenizer
) -> Float[Tensor, " N"]:
    """Audio of a group of channels at gain 1, its channels averaged, by the matching decoder."""
    from_codes = row.get("latents") is None
    z = tokenizer.denormalize_latents(latents.T[None].to(tokenizer.device))
    audio = tokenizer.decode(
        z,
        decoder=tokenizer.codes_decoder if from_codes else "continuous",
        n_codebooks=np.shape(row["codes"])[-1] if from_codes else None,
        gain=torch.ones(1),
    )
    return audio[0].mean(0)[: int(row.get("num_samples", audio.shape[-1]))].cpu()


def _segments(x: Tensor, size: int) -> Iterator[Tensor]:
    size = max(size, 1)
    for first in range(0, max(len(x), 1), size):
        if first == 0 or len(x) - first >= size / 2:
            yield x[first : first + size]


@dataclass(frozen=True)
class EmbeddingSpace:
    """Coordinates that real points define: standardised, then their principal components.

    A Fréchet distance in as many dimensions as there are points says little, so no more than a
    quarter as many are kept.

    Attributes:
        mean: ``[E]``.
        scale: ``[E]``.
        axes: ``[E, P]``.
    """

    mean: Float[np.ndarray, " E"]
    scale: Float[np.ndarray, " E"]
    axes: Float[np.ndarray, "E P"]

    @classmethod
    def fit(cls, points: Float[np.ndarray, "M E"], dimensions: int = 64) -> EmbeddingSpace:
        """Learns the coordinates from real points."""
        mean, scale = points.mean(0), points.std(0)
        # Channels that never change say nothing about a generated one that does.
        scale = np.where(scale > 1e-6 * max(scale.max(), 1e-12), scale, np.inf)
        standardized = (points - mean) / scale
        count = max(1, min(dimensions, len(points) // 4, points.shape[1]))
        _, _, axes = np.linalg.svd(standardized, full_matrices=False)
        return cls(mean, scale, axes[:count].T.copy())

    def __call__(self, points: Float[np.ndarray, "M E"]) -> Float[np.ndarray, "M P"]:
        """The coordinates of points."""
        return (points - self.mean) / self.scale @ self.axes
