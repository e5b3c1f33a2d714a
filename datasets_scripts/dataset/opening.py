"""Prepared datasets are validated here, once, where they are opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets_scripts.dataset.manifest import (
    MANIFEST,
    STATISTICS,
    Manifest,
    ShardRecord,
    read_manifest,
)
from datasets_scripts.dataset.schema import parse
from datasets_scripts.dataset.storage import Folder
from datasets_scripts.dataset.summary import Sums
from tokenizer.errors import InputError, MissingFileError


@dataclass(frozen=True)
class _Summary:
    """What is read again of `Statistics.summary`."""

    rows: int
    hours: float
    frames: int
    bits_per_code: float | None
    latents_mean: tuple[float, ...] | None
    latents_std: tuple[float, ...] | None

    def __post_init__(self) -> None:
        if self.latents_std is not None and min(self.latents_std, default=0.0) < 0:
            raise InputError(f"latents_std has the value {min(self.latents_std)}, below zero.")


@dataclass(frozen=True)
class _SplitSummary(_Summary):
    sums: Sums


@dataclass(frozen=True)
class _AllSummaries(_Summary):
    splits: dict[str, _SplitSummary]


def require_manifest(folder: Folder) -> Manifest:
    """As `read_manifest`, but raises FileNotFoundError if there is none."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise MissingFileError(f"There is no {folder.path(MANIFEST)}: not a prepared dataset.")
    return manifest


def read_statistics(folder: Folder, manifest: Manifest) -> dict[str, Any] | None:
    """The content of ``statistics.json``, or None if there is no such file.

    Raises ValueError if it is damaged, or of other codebooks or dimensions than the manifest.
    """
    if not folder.has(STATISTICS):
        return None
    where = folder.path(STATISTICS)
    value = folder.read_json(STATISTICS)
    summaries: _AllSummaries = parse(_AllSummaries, value, where)
    dim = manifest.latent_dim if manifest.options["latents"] else 0
    for name, split in summaries.splits.items():
        sizes = tuple(map(len, split.sums.code_counts))
        if (sizes, len(split.sums.latents_sum)) != (manifest.codebook_sizes, dim):
            raise InputError(
                f"{where}: splits.{name}.sums are of codebooks {list(sizes)} and"
                f" {len(split.sums.latents_sum)} dimensions, those of {MANIFEST} are"
                f" {list(manifest.codebook_sizes)} and {dim}."
            )
    if summaries.latents_mean is not None and len(summaries.latents_mean) != dim:
        raise InputError(
            f"{where}: latents_mean has {len(summaries.latents_mean)} values, not {dim}."
        )
    return value


def open_prepared(address: str | Path) -> Manifest:
    """Validates a prepared dataset before its rows are read, and returns its manifest.

    That is manifest, statistics and columns; collators check codes and latents batch by batch.

    Raises:
        FileNotFoundError: If there is no manifest, or a shard is missing.
        ValueError: If something is damaged. Names the file, the key and the value.
    """
    folder = Folder(address)
    manifest = require_manifest(folder)
    read_statistics(folder, manifest)
    expected = manifest.row_format().features().arrow_schema
    for shard in manifest.shards:
        _check_columns(folder, shard, expected)
    return manifest


def _check_columns(folder: Folder, shard: ShardRecord, expected: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder.path(shard.file)
    try:
        with folder.open(shard.file) as stream:
            file = pq.ParquetFile(stream)
            schema, rows = file.schema_arrow, file.metadata.num_rows
    except FileNotFoundError:
        raise MissingFileError(f"There is no {path}, which {MANIFEST} lists.") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path} is no Parquet file that can be read: {error}") from None
    if rows != shard.rows:
        raise InputError(f"{path} has {rows} rows; {MANIFEST} says {shard.rows}.")
    for field in expected:
        if field.name not in schema.names:
            raise InputError(f"{path} has no column {field.name!r}, only {schema.names}.")
        actual = schema.field(field.name).type
        if actual != field.type:
            raise InputError(f"{path}: column {field.name!r} is {actual}; expected {field.type}.")
