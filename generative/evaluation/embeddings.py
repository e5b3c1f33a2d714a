"""Embeddings of rows for the comparison of sets of clips; they need no download.

Published Fréchet audio distances use networks (VGGish, PANNs, CLAP) whose weights must be
downloaded. Here ``latents`` are statistics of the tokenizer's normalised latents, and ``mel`` those
of the log mel spectrogram of the decoded audio, which do not depend on the tokenizer's encoder:
mean and deviation of every channel over a segment, and the root mean square of its change from
frame to frame. They describe timbre, dynamics and speed, but no longer structure, so figures
compare models on the same data, and not with published distances.

Levels are removed: every clip is decoded at gain 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import soxr
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokenizer import LatentTokenizer
from tokenizer.errors import InputError

N_MELS, WINDOW_SECONDS, MEL_FLOOR = 64, 0.04, 1e-5


@dataclass(frozen=True)
class EmbeddedSet:
    """Segments of clips: points ``[M, E]`` by embedding; index and class of each one's clip."""

    points: dict[str, Float[np.ndarray, "M E"]]
    clips: Int[np.ndarray, " M"]
    labels: list[str | None]

    def __len__(self) -> int:
        return len(self.clips)


def statistics(frames: Float[Tensor, "T E"]) -> Float[Tensor, " 3*E"]:
    """Mean, deviation and root mean square change of each channel."""
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
    """Latents of a row of latents or codes, for each of its G groups of channels."""
    column = "latents" if row.get("latents") is not None else "codes"
    frames = torch.from_numpy(np.asarray(row[column]).astype(np.float32))
    groups = -(-int(row.get("num_channels", 1)) // tokenizer.autoencoder.num_channels)
    grouped = frames.reshape(groups, -1, frames.shape[-1])
    if column == "latents":
        return grouped
    return tokenizer.dequantize(grouped.transpose(1, 2).long()).transpose(1, 2).cpu()


def embed_rows(
    rows: Iterable[Mapping[str, Any]],
    tokenizer: LatentTokenizer,
    segment_seconds: float | int = 2.0,
) -> EmbeddedSet:
    """Embeds rows of codes or latents, segment by segment; latents take precedence over codes.

    A remainder shorter than half a segment is left out, unless it is the whole clip.
    """
    points: dict[str, list[Tensor]] = {"latents": [], "mel": []}
    clips: list[int] = []
    labels: list[str | None] = []
    rate = tokenizer.sampling_rate
    for clip, row in enumerate(rows):
        for latents in row_latents(row, tokenizer):
            batch = latents.T[None].to(tokenizer.device)
            normalized = tokenizer.normalize_latents(batch)[0].T.cpu()
            pieces = list(_segments(normalized, round(segment_seconds * tokenizer.frame_rate)))
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


def embed_audio(
    clips: Iterable[Float[np.ndarray, "_ _"]],
    sampling_rate: int,
    common_rate: int,
    segment_seconds: float | int = 2.0,
) -> Float[np.ndarray, "M E"]:
    """The ``mel`` embeddings of recordings, at a rate that all sets to compare have in common.

    Channels are averaged. Every clip is brought to a root mean square of 1, and silent ones are
    left out.
    """
    points = []
    for clip in clips:
        audio = clip.mean(0)
        level = float(np.sqrt(np.square(audio, dtype=np.float64).mean()))
        if level < MEL_FLOOR:
            continue
        audio = soxr.resample(audio / level, sampling_rate, common_rate).astype(np.float32)
        waves = _segments(torch.from_numpy(audio), round(segment_seconds * common_rate))
        points += [statistics(log_mel(wave, common_rate)) for wave in waves]
    if not points:
        raise InputError("There is no sound to embed: all clips are silent.")
    return torch.stack(points).double().numpy()


def _decode(
    latents: Float[Tensor, "T D"], row: Mapping[str, Any], tokenizer: LatentTokenizer
) -> Float[Tensor, " N"]:
    """Decodes a group of channels at gain 1 with the matching decoder; channels are averaged."""
    from_codes = row.get("latents") is None
    audio = tokenizer.decode(
        latents.T[None].to(tokenizer.device),
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
    """Coordinates of embeddings: standardised, then the principal components of real points.

    There are at most a quarter as many as points: a Fréchet distance in as many dimensions as there
    are points is not meaningful.
    """

    mean: Float[np.ndarray, " E"]
    scale: Float[np.ndarray, " E"]
    axes: Float[np.ndarray, "E P"]

    @classmethod
    def fit(cls, points: Float[np.ndarray, "M E"], dimensions: int = 64) -> EmbeddingSpace:
        """Fits the coordinates to real points."""
        mean, scale = points.mean(0), points.std(0)
        # Constant channels have no scale and are left out.
        scale = np.where(scale > 1e-6 * max(scale.max(), 1e-12), scale, np.inf)
        standardized = (points - mean) / scale
        count = max(1, min(dimensions, len(points) // 4, points.shape[1]))
        _, _, axes = np.linalg.svd(standardized, full_matrices=False)
        return cls(mean, scale, axes[:count].T.copy())

    def __call__(self, points: Float[np.ndarray, "M E"]) -> Float[np.ndarray, "M P"]:
        """Maps points to the coordinates."""
        return (points - self.mean) / self.scale @ self.axes
