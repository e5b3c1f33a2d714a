"""Rows as Parquet shards with one fixed schema, which `load_dataset` reads back as it was."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets_scripts.dataset.storage import Folder
from tokenizer.errors import import_extra

DATA = "data"

# A row group is what streaming reads at once; it ends after so many rows, or so many bytes.
GROUP_ROWS, GROUP_BYTES = 1000, 16 * 2**20


@dataclass(frozen=True)
class RowFormat:
    """What of the schema depends on the tokenizer and on what was asked for.

    K of ``codes`` and D of ``latents``, None where there are none; "int16" or "int32".
    """

    n_codebooks: int | None
    code_dtype: str
    latent_dim: int | None

    def features(self) -> Any:
        """The columns as `datasets.Features`."""
        d = import_extra("datasets", "Preparing datasets", "datasets")
        text, number = d.Value("string"), d.Value("int64")

        def frames(width: int | None, kind: str) -> Any:
            return d.Value("null") if width is None else d.Array2D((None, width), kind)

        return d.Features(
            {
                "id": text,
                "source_id": text,
                "start": number,
                "codes": frames(self.n_codebooks, self.code_dtype),
                "latents": frames(self.latent_dim, "float16"),
                "gain": d.List(d.Value("float32")),
                "num_samples": number,
                "num_channels": number,
                "label": text,
                "caption": text,
                "metadata": text,
                "fingerprint": text,
            }
        )


def split_name(split: str) -> str:
    """A corpus' split under a name that `datasets` allows: "dev-clean" is "dev.clean"."""
    return re.sub(r"\W+", ".", split).strip(".") or "train"


def shard_name(split: str, index: int) -> str:
    """Path of a shard in the dataset's folder."""
    return f"{DATA}/{split}-{index:05d}.parquet"


class ShardWriter:
    """Writes rows to a Parquet file, a row group at a time; see `writing_shard`.

    ``num_bytes`` and ``sha256`` of the file are known when it is complete.
    """

    def __init__(self, path: Path, row_format: RowFormat) -> None:
        import pyarrow.parquet as pq

        # With the types of `datasets` in it: from their storage alone, `load_dataset` would make
        # lists of lists.
        self._schema = row_format.features().arrow_schema
        self._writer: Any = pq.ParquetWriter(
            path, self._schema, compression="zstd", **encodings(self._schema)
        )
        self._rows: list[Mapping[str, Any]] = []
        self._bytes = 0
        self.num_rows = self.num_bytes = 0
        self.sha256 = ""

    def write(self, row: Mapping[str, Any]) -> None:
        """Appends a row with every column of the schema."""
        self._rows.append(row)
        self._bytes += sum(getattr(row[name], "nbytes", 0) for name in ("codes", "latents"))
        self.num_rows += 1
        if len(self._rows) >= GROUP_ROWS or self._bytes >= GROUP_BYTES:
            self.end_group()

    def end_group(self) -> None:
        """Writes what has been appended since the last group."""
        import pyarrow as pa

        if self._rows:
            columns = [_column(field, self._rows) for field in self._schema]
            self._writer.write_table(pa.table(columns, schema=self._schema))
        self._rows, self._bytes = [], 0

    def close(self) -> None:
        """Ends the file."""
        self._writer.close()


def encodings(schema: Any) -> dict[str, Any]:
    """Options of the writer that fit the columns.

    Latents hardly ever repeat: a dictionary of them, and their least and greatest values, cost more
    time than all the rest. Their bytes compress better apart, exponents beside exponents.
    """
    if str(schema.field("latents").type) == "null":
        return {}
    # The path of the numbers in two lists, as Parquet names it.
    numbers = "latents.list.element.list.element"
    others = [field.name for field in schema if field.name != "latents"]
    return {
        "use_dictionary": [_leaf(schema.field(name)) for name in others],
        "column_encoding": {numbers: "BYTE_STREAM_SPLIT"},
        "write_statistics": [_leaf(schema.field(name)) for name in others],
    }


def _leaf(field: Any) -> str:
    """The path of a column's values, as Parquet names it."""
    import pyarrow as pa

    path, kind = field.name, field.type
    kind = kind.storage_type if isinstance(kind, pa.ExtensionType) else kind
    while pa.types.is_list(kind):
        path, kind = f"{path}.list.element", kind.value_type
    return path


def _column(field: Any, rows: Sequence[Mapping[str, Any]]) -> Any:
    import pyarrow as pa

    values = [row[field.name] for row in rows]
    if not isinstance(field.type, pa.ExtensionType):
        plain = [v.tolist() if isinstance(v, np.ndarray) else v for v in values]
        return pa.array(plain, field.type)
    # Frames of all rows one after the other, and where each row ends: without Python's lists.
    width = field.type.shape[1]
    flat = np.concatenate([np.asarray(v, field.type.value_type).reshape(-1) for v in values])
    frames = pa.ListArray.from_arrays(
        pa.array(np.arange(0, len(flat) + 1, width, dtype=np.int32)), pa.array(flat)
    )
    ends = np.cumsum([0, *(len(v) for v in values)], dtype=np.int32)
    return pa.ExtensionArray.from_storage(
        field.type, pa.ListArray.from_arrays(pa.array(ends), frames)
    )


def read_rows(batch: Any, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of a ``pyarrow.RecordBatch`` of a shard, with codes and latents as NumPy arrays."""
    values_by_column = {name: _values(batch.column(name)) for name in columns}
    for i in range(len(batch)):
        yield {name: values[i] for name, values in values_by_column.items()}


def _values(column: Any) -> list[Any]:
    import pyarrow as pa

    if not isinstance(column.type, pa.ExtensionType):
        return column.to_pylist()
    frames = column.storage
    flat = frames.flatten().flatten().to_numpy(zero_copy_only=False)
    ends = np.cumsum([0, *(length or 0 for length in frames.value_lengths().to_pylist())])
    table = np.array(flat).reshape(-1, column.type.shape[1])  # A copy: Arrow's is read-only.
    return [
        table[ends[i] : ends[i + 1]] if valid else None
        for i, valid in enumerate(frames.is_valid().to_pylist())
    ]


@contextmanager
def writing_shard(folder: Folder, name: str, row_format: RowFormat) -> Iterator[ShardWriter]:
    """Gives a writer; the file appears, as a whole, when the block ends without an error."""
    with folder.writing(name) as path:
        with closing(ShardWriter(path, row_format)) as writer:
            yield writer
            writer.end_group()
        with path.open("rb") as stream:
            writer.num_bytes, writer.sha256 = checksum(stream)


def checksum(stream: Any) -> tuple[int, str]:
    """Bytes and SHA-256 of what can still be read from a binary stream."""
    digest, size = hashlib.sha256(), 0
    while piece := stream.read(2**20):
        digest.update(piece)
        size += len(piece)
    return size, digest.hexdigest()
