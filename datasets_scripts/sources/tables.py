"""Metadata files as rows of strings: CSV, JSON lines, Parquet. Each error names file and line."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets_scripts.sources.tree import Tree
from tokenizer.errors import InputError, import_extra

TableRow = dict[str, str]
# Each with where it is, such as "metadata.csv, line 3".
TableRows = Iterator[tuple[str, TableRow]]

CAPTION_COLUMNS = ("caption", "text", "transcription", "transcript", "sentence")
# Options of corpora that people make themselves.
COLUMN_OPTIONS = {
    "label_column": "where the label is; default: label",
    "caption_column": f"where the caption is; default: {', '.join(CAPTION_COLUMNS)}",
}


@dataclass(frozen=True)
class TextColumns:
    """Which cells of a row are its label and its caption; the others are metadata.

    Without ``caption_column``, the first of `CAPTION_COLUMNS` that is not empty is the caption.
    """

    label_column: str = "label"
    caption_column: str | None = None

    def fields(self, row: TableRow, others: Iterable[str | None] = ()) -> dict[str, Any]:
        """``label``, ``caption`` and ``metadata`` of a clip; ``others`` are no metadata either."""
        columns = CAPTION_COLUMNS if self.caption_column is None else (self.caption_column,)
        caption = next((name for name in columns if row.get(name)), None)
        used = {caption, self.label_column, *others}
        return {
            "label": row.get(self.label_column) or None,
            "caption": None if caption is None else row[caption],
            "metadata": without_empty({key: row[key] for key in row if key not in used}),
        }


def own_columns(options: Mapping[str, str]) -> TextColumns:
    """The columns that the options of `COLUMN_OPTIONS` name."""
    return TextColumns(options.get("label_column", "label"), options.get("caption_column"))


def read_csv(
    tree: Tree, name: str, required: Sequence[str], *, columns: Sequence[str] | None = None
) -> TableRows:
    """The rows of a CSV file (RFC 4180): where each is, and its cells by column.

    ``required`` columns must be there; ``columns`` are those of a file that has no header.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is empty, or a column is missing, or a row is broken.
    """
    rows = csv_cells(tree, name)
    header = columns or next(rows, (0, None))[1]
    if not header:
        raise InputError(f"{tree.path(name)} is empty: expected columns {', '.join(required)}.")
    check_columns(header, required, tree.path(name))
    yield from named_cells(tree, name, header, rows)


def named_cells(
    tree: Tree, name: str, header: Sequence[str], rows: Iterator[tuple[int, list[str]]]
) -> TableRows:
    """What `read_csv` yields, of the rows below the header."""
    for line, cells in rows:
        if len(cells) != len(header):
            raise InputError(
                f"{tree.path(name)}, line {line}: {len(cells)} cells, but there are {len(header)}"
                " columns."
            )
        yield f"{name}, line {line}", dict(zip(header, cells, strict=True))


def csv_cells(tree: Tree, name: str) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV file as they are, without blank ones: number of the line, cells."""
    reader, path = csv.reader(tree.lines(name), strict=True), tree.path(name)
    while True:
        first = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(f"{path}, line {first}: {error}. Is it a CSV file?") from None
        if cells:  # A blank line has none.
            yield first, cells


def check_columns(header: Iterable[str], required: Sequence[str], path: str) -> None:
    """Raises ValueError if a column is missing, or there twice."""
    header = list(header)
    if missing := [name for name in required if name not in header]:
        raise InputError(
            f"{path} has no column {', '.join(missing)}. Its columns: {', '.join(header)}."
        )
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise InputError(f"{path} has the column {', '.join(twice)} twice.")


def read_jsonl(tree: Tree, name: str, required: Sequence[str]) -> TableRows:
    """The objects of a file of JSON lines, values as strings; otherwise as `read_csv`."""
    for number, line in enumerate(tree.lines(name), start=1):
        if not line.strip():
            continue
        where = f"{tree.path(name)}, line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where} is not JSON: {error}.") from None
        if not isinstance(value, dict):
            raise InputError(f"{where} is not a JSON object: {line.strip()[:60]}")
        check_columns(value, required, where)
        yield f"{name}, line {number}", as_row(value)


def read_parquet(tree: Tree, name: str, required: Sequence[str]) -> TableRows:
    """The rows of a Parquet file, values as strings, in bounded memory; otherwise as `read_csv`."""
    path, number = tree.path(name), 0
    pyarrow = import_extra("pyarrow", path, "datasets")
    parquet = import_extra("pyarrow.parquet", path, "datasets")
    damages = (pyarrow.ArrowException, OSError, TypeError, OverflowError)
    with tree.open(name) as stream:
        try:
            file = parquet.ParquetFile(stream)
            check_columns(file.schema_arrow.names, required, path)
        except damages as error:
            raise InputError(f"{path} is not a Parquet file: {error}") from None
        batches = file.iter_batches(batch_size=1024)
        while True:
            try:
                values = next(batches).to_pylist()
            except StopIteration:
                return
            except (*damages, ValueError) as error:
                raise InputError(f"{path} is damaged behind row {number}: {error}") from None
            for value in values:
                number += 1
                yield f"{name}, row {number}", as_row(value)


def as_row(value: Mapping[str, Any]) -> TableRow:
    """Values as strings: null and NaN are left out, numbers and lists are written as JSON."""
    row = {}
    for key, item in value.items():
        # pandas writes missing strings as NaN; JSON has no dates and the like.
        if isinstance(item, str):
            row[str(key)] = item
        elif item is not None and not (isinstance(item, float) and math.isnan(item)):
            row[str(key)] = json.dumps(item, ensure_ascii=False, default=str)
    return row


def pick(row: Mapping[str, str], columns: Iterable[str]) -> str | None:
    """The first of these cells that is there and not empty."""
    return next((row[name] for name in columns if row.get(name)), None)


def without_empty(row: Mapping[str, str]) -> TableRow:
    """The cells that say something."""
    return {key: value for key, value in row.items() if value}
