"""Corpora made on the spot, and prepared datasets as lists of rows, for several test files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import soundfile
from models import RATE, tone

from datasets_scripts import Resources, RowOptions
from datasets_scripts.dataset.shards import read_rows
from datasets_scripts.sources.corpus import Corpus, CorpusClip, CorpusInfo, Missing

COLUMNS = (
    "id", "source_id", "start", "codes", "latents", "gain", "num_samples", "num_channels", "label",
    "caption", "metadata", "fingerprint",
)  # fmt: skip

BOTH = RowOptions(codes=True, latents=True, clips_per_shard=4)
SHARDS_OF_TWO = RowOptions(codes=True, latents=True, segment_seconds=1, clips_per_shard=2)
# So short that clips of different lengths do not go together, and many windows are needed.
SMALL = Resources(batch_seconds=0.5, num_readers=3)


class StandIn(Corpus):
    """A corpus that yields what a test says; errors are raised."""

    def __init__(
        self, *items: CorpusClip | Missing | Exception, splits: tuple = ("train",)
    ) -> None:
        self.INFO = CorpusInfo("x", "Stand-in", "nowhere", "CC0", splits=splits)
        self.items = items

    def describe(self, *_: Any, **__: Any) -> CorpusInfo:
        return self.INFO

    def prepare(self, *_: Any, **__: Any) -> Iterator[CorpusClip | Missing]:
        for item in self.items:
            if isinstance(item, Exception):
                raise item
            yield item


def write(path: Path, seconds: float = 0.5) -> Path:
    """A tone as a file."""
    soundfile.write(path, tone(seconds).T, RATE)
    return Path(path)


def make_folder(root: Path, clips: int, *, seed: int = 0, longest: float = 2.0) -> list[str]:
    """Writes short clips of several rates and channels; returns their names in order."""
    rng = np.random.default_rng(seed)
    names = []
    for i in range(clips):
        rate, channels = (RATE, 2 * RATE, 11_025)[i % 3], 1 + (i % 4 == 3)
        name = f"{'ab'[i % 2]}/clip{i:03d}.wav"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        audio = tone(rng.uniform(0.1, longest), rate, channels, seed=i)
        soundfile.write(root / name, audio.T, rate)
        names.append(name)
    return sorted(names)


def rows_of(folder: Path, split: str = "train") -> list[dict[str, Any]]:
    """The rows of a split, shard by shard."""
    files = sorted((folder / "data").glob(f"{split}-*.parquet"))
    return [
        row
        for file in files
        for batch in pq.ParquetFile(file).iter_batches()
        for row in read_rows(batch, COLUMNS)
    ]


def assert_same_rows(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    """Fails unless two lists of rows are equal in every bit of every column."""
    assert [row["id"] for row in ours] == [row["id"] for row in theirs]
    for a, b in zip(ours, theirs, strict=True):
        for name in COLUMNS:
            if isinstance(a[name], np.ndarray):
                assert a[name].dtype == b[name].dtype
                np.testing.assert_array_equal(a[name], b[name])
            else:
                assert a[name] == b[name], name


def files_of(folder: Path) -> dict[str, bytes]:
    """All files of a prepared dataset, hidden ones too, by their names."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
