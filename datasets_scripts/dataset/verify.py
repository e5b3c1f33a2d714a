"""Checks a prepared dataset against its manifest: every byte, every row, every code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from datasets_scripts.dataset.manifest import MANIFEST, STATISTICS, Manifest, ShardRecord
from datasets_scripts.dataset.opening import read_statistics, require_manifest
from datasets_scripts.dataset.shards import DATA, checksum, read_rows
from datasets_scripts.dataset.storage import Folder
from datasets_scripts.dataset.summary import Statistics
from datasets_scripts.sources.ids import SeenIds
from tokenizer.errors import InputError

_REQUIRED = ("id", "num_samples", "num_channels", "gain", "fingerprint")
_COLUMNS = ("codes", "latents", *_REQUIRED)


def verify_dataset(address: str | Path, *, progress: bool = False) -> list[str]:
    """Reads a prepared dataset, at an fsspec address too, and compares it with its manifest.

    Returns:
        What is wrong, a line each; empty if nothing is. Damaged files do not end the search.

    Raises:
        FileNotFoundError: If there is no manifest.
        ValueError: If the manifest cannot be understood.
    """
    folder = Folder(address)
    manifest = require_manifest(folder)
    problems: list[str] = []
    if not manifest.complete:
        problems.append("the preparation is not complete: run it again, it goes on where it was")
    listed = {shard.file.rpartition("/")[2] for shard in manifest.shards}
    problems += [
        f"{DATA}/{name} is not in {MANIFEST}"
        for name in folder.names(DATA)
        if manifest.complete and name not in listed
    ]
    try:
        statistics = read_statistics(folder, manifest) or {"splits": {}}
    except InputError as error:
        statistics = {"splits": {}}
        problems.append(str(error))
    with tqdm(total=len(manifest.shards), unit="shard", disable=not progress) as bar:
        for split in manifest.splits:
            check = _Split(folder, manifest)
            for shard in manifest.shards:
                if shard.split == split:
                    problems += check.shard(shard)
                    bar.update()
            problems += check.statistics(split, statistics)
    return problems


class _Split:
    """Goes through the shards of one split."""

    def __init__(self, folder: Folder, manifest: Manifest) -> None:
        self._folder, self._manifest = folder, manifest
        self._ids = SeenIds()
        latents = manifest.latent_dim if manifest.options["latents"] else 0
        self._sums = Statistics(manifest.codebook_sizes, latents)
        self._whole = True
        self._schema = manifest.row_format().features().arrow_schema

    def shard(self, record: ShardRecord) -> list[str]:
        """What is wrong with a shard."""
        problems = list(self._shard(record))
        self._whole = self._whole and not problems
        return [f"{record.file}: {problem}" for problem in problems]

    def _shard(self, record: ShardRecord) -> Iterator[str]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with self._folder.open(record.file) as stream:
                size, digest = checksum(stream)
        except OSError as error:
            yield f"cannot be read ({error})"
            return
        if (size, digest) != (record.bytes, record.sha256):
            ours, theirs = digest[:16], record.sha256[:16]
            yield f"has {size} bytes and SHA-256 {ours}..., not {record.bytes} and {theirs}..."
        try:
            with self._folder.open(record.file) as stream:
                file = pq.ParquetFile(stream)
                if file.schema_arrow != self._schema:
                    yield "has other columns or types than the manifest says"
                    return
                rows = 0
                for batch in file.iter_batches(batch_size=100):
                    rows += len(batch)
                    for row in read_rows(batch, _COLUMNS):
                        yield from self._row(row)
        except (pa.ArrowException, OSError, ValueError) as error:
            yield f"is no Parquet file that can be read ({error})"
            return
        if rows != record.rows:
            yield f"has {rows} rows, not {record.rows}"

    def _row(self, row: dict[str, Any]) -> Iterator[str]:
        name = f"row {row['id']!r}"
        if empty := [key for key in _REQUIRED if row[key] is None]:
            yield f"{name}: {', '.join(empty)} is null"
            return
        for key in ("num_samples", "num_channels"):
            if row[key] < 1:
                yield f"{name}: {key} is {row[key]}"
                return
        if not all(gain is not None and 0 <= gain < float("inf") for gain in row["gain"]):
            yield f"{name}: gain is {row['gain']}"
        if self._ids.add(str(row["id"])):
            yield f"{name}: the id occurs twice"
        if row["fingerprint"] != self._manifest.fingerprint:
            yield f"{name}: made by the tokenizer {row['fingerprint']}"
        sizes = np.array(self._manifest.codebook_sizes)
        codes, latents = row["codes"], row["latents"]
        if codes is not None and bool(((codes < 0) | (codes >= sizes)).any()):
            yield f"{name}: a code is out of range"
            return
        if latents is not None and not np.isfinite(latents.astype(np.float32)).all():
            yield f"{name}: latents that are not finite"
        for key, values in (("codes", codes), ("latents", latents)):
            if (values is not None) != self._manifest.options[key]:
                yield f"{name}: {key} are {'missing' if values is None else 'present'}"
                return
        groups = -(-row["num_channels"] // self._manifest.channels_coded_jointly)
        for values in (codes, latents):
            if values is not None and (len(values) == 0 or len(values) % groups):
                yield f"{name}: {len(values)} frames for {row['num_channels']} channels"
        if len(row["gain"]) != row["num_channels"]:
            yield f"{name}: {len(row['gain'])} gains for {row['num_channels']} channels"
        self._sums.add_row({"codes": codes, "latents": latents, "num_samples": row["num_samples"]})

    def statistics(self, split: str, statistics: dict[str, Any]) -> Iterator[str]:
        """What is wrong with a split's statistics."""
        part = statistics["splits"].get(split)
        if part is None:
            yield f"{STATISTICS} has no split {split!r}"
        elif self._whole:
            sums = self._sums.to_json()
            theirs = {key: _flat(part["sums"][key]) for key in sums}
            close = {key: np.allclose(_flat(sums[key]), theirs[key], rtol=1e-9) for key in sums}
            if wrong := [key for key in sums if not close[key]]:
                yield f"{STATISTICS}: {', '.join(wrong)} of {split!r} are not those of the rows"


def _flat(value: Any) -> np.ndarray:
    """A number, or a list of numbers or of lists, as one array, which begins with a zero."""
    return np.hstack([0.0, *(value if isinstance(value, list) else [value])])
