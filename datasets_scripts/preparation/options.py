"""What a preparation is asked for, and what it may use; nothing here needs torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizer.errors import InputError

if TYPE_CHECKING:
    from tokenizer import LatentTokenizer


@dataclass(frozen=True)
class RowOptions:
    """Everything besides corpus and tokenizer that decides the rows and how they are sharded.

    Attributes:
        codes: Whether rows have codes.
        latents: Whether rows have latents.
        n_codebooks: How many codebooks; None for all.
        bitrate: Instead of ``n_codebooks``: the most that fit into this many bit/s and channel.
        segment_seconds: Longer clips are cut into segments of this length, rounded to whole
            frames, a row each; None for a row a clip.
        downmix: Whether to average channels into one.
        clips_per_shard: Clips of the corpus, missing ones included, that a shard stands for.
    """

    codes: bool = True
    latents: bool = False
    n_codebooks: int | None = None
    bitrate: float | int | None = None
    segment_seconds: float | int | None = None
    downmix: bool = False
    clips_per_shard: int = 500

    def __post_init__(self) -> None:
        if not (self.codes or self.latents):
            raise InputError("Nothing to prepare: ask for codes, latents or both.")
        if self.clips_per_shard < 1:
            raise InputError(f"clips_per_shard={self.clips_per_shard}; it must be at least 1.")

    def resolved(self, tokenizer: LatentTokenizer) -> RowOptions:
        """The same with the number of codebooks spelt out; checks that the tokenizer has them."""
        n = tokenizer.resolve_codebooks(self.n_codebooks, self.bitrate) if self.codes else None
        self.segment_length(tokenizer.sampling_rate, tokenizer.hop_length)
        return replace(self, n_codebooks=n, bitrate=None)

    def segment_length(self, sampling_rate: int, hop_length: int) -> int | None:
        """Samples of a segment: whole latent frames, so that no frame is coded twice.

        Raises ValueError if that is less than a frame, or no finite number of them.
        """
        if self.segment_seconds is None:
            return None
        frames = self.segment_seconds * sampling_rate / hop_length
        if not math.isfinite(frames) or round(frames) < 1:
            raise InputError(
                f"segment_seconds={self.segment_seconds:g} must be finite, and at least a frame"
                f" ({hop_length / sampling_rate:g} s); leave it out for a row a clip."
            )
        return round(frames) * hop_length

    def to_json(self) -> dict[str, Any]:
        """The attributes by name; of a `resolved` one, whose bitrate is spelt out."""
        return {key: value for key, value in asdict(self).items() if key != "bitrate"}


@dataclass(frozen=True)
class Resources:
    """What encoding may use; it does not change the rows.

    Attributes:
        batch_seconds: Audio of a batch, padding included.
        num_readers: Threads that read and resample ahead of the encoder.
    """

    batch_seconds: float | int = 120.0
    num_readers: int = 2

    def __post_init__(self) -> None:
        if not 0 < self.batch_seconds < math.inf:
            raise InputError(
                f"batch_seconds={self.batch_seconds:g}; it must be positive and finite."
            )
        if self.num_readers < 1:
            raise InputError(f"num_readers={self.num_readers}; it must be at least 1.")


@dataclass(frozen=True)
class Request:
    """What to prepare, from what and with what; the number of processes or machines comes besides.

    Attributes:
        corpus: Name of the corpus.
        root: Where it is; for a cluster the same path, or an fsspec address, on every machine.
        out: Folder, or fsspec address, of the dataset.
        tokenizer: A tokenizer, its folder or hub id; None for the bundled one.
        splits: Which splits; None for all that the corpus has.
        options: What the rows hold; default: codes of all codebooks.
        corpus_options: Keyword arguments for the corpus (`CorpusInfo.options`).
        resources: Memory and threads of each process.
        device: Torch device to encode on; with several processes, "cuda" stands for all GPUs in
            turn.
        strict: Whether to stop at the first clip that cannot be read.
        progress: Whether to show a bar.
    """

    corpus: str
    root: str | Path
    out: str | Path
    tokenizer: str | Path | LatentTokenizer | None = None
    splits: Sequence[str] | None = None
    options: RowOptions | None = None
    corpus_options: Mapping[str, str] | None = None
    resources: Resources | None = None
    device: str = "cpu"
    strict: bool = False
    progress: bool = False
