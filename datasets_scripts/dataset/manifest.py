"""What a prepared dataset consists of, and how far its preparation has come.

While it is prepared, every shard that is whole has a record in ``progress/``, written after the
shard itself. When a split is whole its records are moved into ``manifest.json`` and
``statistics.json``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from datasets_scripts.dataset.schema import parse
from datasets_scripts.dataset.shards import DATA, RowFormat
from datasets_scripts.dataset.storage import Folder
from tokenizer.errors import InputError

FORMAT_VERSION = 1
MANIFEST, STATISTICS, PROGRESS = "manifest.json", "statistics.json", "progress"

# What may differ from run to run: it does not change the rows.
_FREE = ("root", "tokenizer", "complete", "splits", "shards", "failures", "format_version")


@dataclass(frozen=True)
class Failure:
    """A clip that is not in the dataset, or not wholly, and why.

    ``rows_kept`` are segments of it that came before the damage, and are in the dataset.
    """

    split: str
    id: str
    reason: str
    rows_kept: int = 0


@dataclass(frozen=True)
class ShardRecord:
    """A shard that is whole: its file, with checksum, and number in its split.

    ``clips`` of the corpus it stands for, failures included; ``clip_ids``, an `IdHash` of them,
    shows whether the corpus has changed.
    """

    file: str
    split: str
    index: int
    clips: int
    rows: int
    bytes: int
    sha256: str
    clip_ids: str
    failures: tuple[Failure, ...] = ()

    def __post_init__(self) -> None:
        check_shard_file(self.file)
        if min(self.index, self.clips, self.rows, self.bytes) < 0:
            raise InputError(
                f"{self.file} has index {self.index}, {self.clips} clips, {self.rows} rows and"
                f" {self.bytes} bytes; none can be negative."
            )


@dataclass(frozen=True)
class _Options:
    """The options that are read again; `Manifest.options` has all."""

    codes: bool
    latents: bool
    segment_seconds: float | None = None
    clips_per_shard: int = 500


@dataclass(frozen=True)
class Manifest:
    """``manifest.json``.

    Attributes:
        corpus: Name of the corpus.
        root: Where it was read from.
        tokenizer: Folder or hub id of the tokenizer; None for the bundled one.
        fingerprint: `LatentTokenizer.fingerprint`: everything, decoders included.
        codes_fingerprint: Of encoder and quantizer only, by which codes can be decoded; None
            without a quantizer.
        sampling_rate: Hz of ``num_samples`` and ``start``.
        hop_length: Samples per frame.
        frame_rate: Frames per second.
        latent_dim: D.
        channels_coded_jointly: 1, or 2 for stereo models.
        codebook_sizes: Entries of each codebook in use; empty without codes.
        options: The `RowOptions` that decide the rows.
        complete: Whether all splits that were asked for are whole.
        splits: Those that are whole.
        shards: Their shards, split by split, in order.
        failures: Clips that are not, or not wholly, in them.
        format_version: Of this file.
    """

    corpus: str
    root: str
    tokenizer: str | None
    fingerprint: str
    codes_fingerprint: str | None
    sampling_rate: int
    hop_length: int
    frame_rate: float
    latent_dim: int
    channels_coded_jointly: int
    codebook_sizes: tuple[int, ...]
    options: dict[str, Any]
    complete: bool = False
    splits: tuple[str, ...] = ()
    shards: tuple[ShardRecord, ...] = ()
    failures: tuple[Failure, ...] = ()
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        parse(_Options, self.options, "options")
        names = (
            "sampling_rate",
            "hop_length",
            "frame_rate",
            "latent_dim",
            "channels_coded_jointly",
        )
        sizes = {name: getattr(self, name) for name in names}
        sizes |= {f"codebook_sizes[{i}]": size for i, size in enumerate(self.codebook_sizes)}
        for name, size in sizes.items():
            if size <= 0:
                raise InputError(f"{name} is {size}; it must be positive.")
        if self.options["codes"] and not self.codebook_sizes:
            raise InputError("codebook_sizes is empty, but the rows have codes.")

    @property
    def code_dtype(self) -> str:
        """The smaller of int16 and int32 that holds the codes."""
        return "int16" if max(self.codebook_sizes, default=0) <= 2**15 else "int32"

    def row_format(self) -> RowFormat:
        """The columns of the rows."""
        return RowFormat(
            n_codebooks=len(self.codebook_sizes) if self.options["codes"] else None,
            code_dtype=self.code_dtype,
            latent_dim=self.latent_dim if self.options["latents"] else None,
        )

    def to_json(self) -> dict[str, Any]:
        """JSON values; failures are listed once, not with their shards too."""
        value = asdict(self)
        for shard in value["shards"]:
            shard["failures"] = len(shard["failures"])
        return value

    @classmethod
    def from_json(cls, value: Any, where: str = MANIFEST) -> Manifest:
        """The inverse of `to_json`; ``where`` is the file, for messages.

        Raises ValueError if a newer version of this library wrote it, or something else did.
        """
        version = value.get("format_version") if isinstance(value, Mapping) else None
        if type(version) is not int or not 0 < version <= FORMAT_VERSION:
            raise InputError(
                f"{where} has format version {version}; this library reads up to {FORMAT_VERSION}."
                " Update latent-tokenizer."
            )
        shards = value.get("shards")
        if not isinstance(shards, list) or not all(isinstance(one, Mapping) for one in shards):
            raise InputError(f"{where}: shards is no list of objects.")
        # Failures are listed once, not with their shards.
        return parse(cls, {**value, "shards": [{**one, "failures": []} for one in shards]}, where)

    def differences(self, other: Manifest) -> list[str]:
        """In what two preparations differ such that their rows cannot be mixed."""
        mine, theirs = (asdict(one) | one.options for one in (self, other))
        keys = [k for k in mine if k not in (*_FREE, "options") and mine[k] != theirs.get(k)]
        return [f"{key} {mine[key]!r}, not {theirs.get(key)!r}" for key in keys]


def check_shard_file(file: str) -> None:
    """Raises ValueError unless this is a shard's path in its dataset, and leads nowhere else."""
    if not re.fullmatch(rf"{DATA}/[\w.]+-\d+\.parquet", file) or ".." in file:
        raise InputError(f"{MANIFEST} names {file!r}; expected {DATA}/train-00000.parquet.")


def read_manifest(folder: Folder) -> Manifest | None:
    """The manifest of a prepared dataset, or None if there is none.

    Raises ValueError if there is one that cannot be understood.
    """
    if not folder.exists(MANIFEST):
        return None
    return Manifest.from_json(folder.read_json(MANIFEST), folder.path(MANIFEST))


def progress_name(split: str, index: int) -> str:
    """Path of a shard's record."""
    return f"{PROGRESS}/{split}-{index:05d}.json"


def write_progress(folder: Folder, record: ShardRecord, statistics: Mapping[str, Any]) -> None:
    """Notes that a shard is whole."""
    value = asdict(record) | {"statistics": dict(statistics)}
    folder.write_json(progress_name(record.split, record.index), value)


def read_progress(folder: Folder, split: str) -> Iterator[tuple[ShardRecord, dict[str, Any]]]:
    """Yields, in order, what `write_progress` was given for a split's shards that are whole."""
    names = progress_files(folder, split)
    written = set(folder.names(DATA)) if names else set()
    for name, content in folder.read_all(names):
        try:
            value = json.loads(content)
        except (ValueError, RecursionError):
            continue  # Half a file, where an upload broke off.
        record = parse(ShardRecord, value, folder.path(name))
        # The record follows the shard, but somebody may have removed that.
        if record.file.rpartition("/")[2] in written:
            yield record, value["statistics"]


def progress_files(folder: Folder, split: str) -> list[str]:
    """Names of the records of a split's shards."""
    names = folder.names(PROGRESS)
    return [f"{PROGRESS}/{name}" for name in names if name.rpartition("-")[0] == split]
