"""Reading a prepared dataset: which splits to train and validate on, and its rows."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from datasets_scripts import SPLIT_WORDS, Folder, open_prepared
from tokenizer.errors import InputError, MissingFileError, import_extra
from tokenizer.saving import dataset_errors

# Columns that are read besides codes or latents.
COLUMNS = ("id", "source_id", "start", "num_samples", "num_channels", "gain", "label")


@dataclass(frozen=True)
class PreparedData:
    """Rows to train on, rows held out (both a `datasets.Dataset`), and their description.

    Attributes:
        column: "codes" or "latents".
        train: Rows to train on.
        held_out: Rows of other sources.
        labels: Names of the classes in ``train``, sorted.
        splits: Names of the dataset's splits in ``train``, and of those in ``held_out``; the latter
            are none if sources of the former were held out.
        manifest: The dataset's ``manifest.json``; empty if it has none.
    """

    column: str
    train: Any
    held_out: Any
    labels: tuple[str, ...]
    splits: tuple[tuple[str, ...], tuple[str, ...]]
    manifest: dict[str, Any]


def load_prepared(
    folder: str | Path, column: str, held_out: float = 0.05, *, captions: bool = False
) -> PreparedData:
    """Opens a prepared dataset, ``data/<split>-*.parquet``; `choose_splits` chooses its splits.

    ``folder`` is a path, or any address that fsspec knows: `datasets` then fetches what is read,
    and keeps it in its cache.

    Without a split to validate on, the share ``held_out`` of the sources is held out, each with all
    of its segments. The choice depends on the names of the sources only.
    """
    root = Folder(folder)
    # Other programs write no manifest.
    manifest = open_prepared(folder).to_json() if root.has("manifest.json") else {}
    shards, splits = _shards(root), training_splits(folder)
    train, rest = (
        _open_all([shards[name] for name in names], column, root, captions) for names in splits
    )
    if rest is None:
        train, rest = hold_out(train, held_out)
    labels = sorted({label for label in _values(train, "label") if label})
    return PreparedData(column, train, rest, tuple(labels), splits, manifest)


def training_splits(folder: str | Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the splits to train on, and of those to validate on; see `choose_splits`."""
    return choose_splits(_shards(Folder(folder)))


def choose_splits(names: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Splits to train on and splits to validate on, sorted, by the first words of their names.

    Training uses ``train`` and its synonyms. Without any, it uses all splits that are not named
    for validation or test. Validation uses ``validation`` and its synonyms, else ``test`` and its,
    else none.

    Raises:
        ValueError: If there is no split to train on.
    """
    # Corpora have names such as train.clean.100, dev.other and eval.
    words = {name: re.split(r"[._-]", name)[0].lower() for name in sorted(names)}
    train, validation, test = (
        tuple(name for name, word in words.items() if word in SPLIT_WORDS[split])
        for split in ("train", "validation", "test")
    )
    train = train or tuple(name for name in words if name not in validation + test)
    if not train:
        raise InputError(
            f"No split to train on, only {', '.join(words)}: prepare another with --split."
        )
    return train, validation or test


def _values(dataset: Any, column: str) -> list[Any]:
    """A column as Python values, empty if it is missing; other columns are not read."""
    if column not in dataset.column_names:
        return []
    return list(dataset.select_columns([column]).with_format(None)[column])


def _shards(root: Folder) -> dict[str, list[str]]:
    """Names of the Parquet files by split."""
    shards: dict[str, list[str]] = {}
    for name in root.names("data"):
        # Names of splits have no "-"; train-00000-of-00002, as other programs write it, has two.
        if name.endswith(".parquet"):
            shards.setdefault(name.partition("-")[0].removesuffix(".parquet"), []).append(
                f"data/{name}"
            )
    if not shards:
        raise MissingFileError(
            f"No prepared dataset in {root} (data/<split>-*.parquet). Make one:"
            f" python -m datasets_scripts prepare ... --out {root}"
        )
    return shards


def _open_all(splits: Sequence[list[str]], column: str, root: Folder, captions: bool) -> Any:
    """The rows of several splits, None for no split."""
    # One by one: sources of two splits may have the same name.
    parts = [_open(files, column, root, captions) for files in splits]
    if not parts:
        return None
    import datasets

    return datasets.concatenate_datasets(parts)


def _open(files: list[str], column: str, root: Folder, captions: bool) -> Any:
    datasets = import_extra("datasets", "Training", "generative")
    parquet = import_extra("pyarrow.parquet", "Training", "generative")
    with root.open(files[0]) as stream:
        schema = parquet.read_schema(stream)
    present = [field.name for field in schema if str(field.type) != "null"]
    if column not in present:
        raise InputError(
            f"The dataset in {root} has no {column}, only {present}. Prepare it with --{column}."
        )
    others = (*COLUMNS, "caption") if captions else COLUMNS
    columns = [column, *(name for name in others if name in present)]
    addresses = [root.path(name) for name in files]
    with dataset_errors(root.path()):
        rows = datasets.load_dataset(
            "parquet", data_files={"rows": addresses}, split="rows", columns=columns
        )
    rows = rows.add_column("last", _last_segments(rows))
    # NumPy for the arrays only: missing strings stay None.
    return rows.with_format("numpy", columns=[column], output_all_columns=True)


def _last_segments(rows: Any) -> list[bool]:
    """Whether each row is the last segment of its source, which collators need."""
    starts = _values(rows, "start")
    if not starts:
        return [True] * len(rows)
    segments = list(zip(_values(rows, "source_id"), starts, strict=True))
    ends = dict(sorted(segments, key=lambda segment: segment[1]))
    return [start == ends[source] for source, start in segments]


def median_gains(data: PreparedData) -> dict[str, float]:
    """Median root mean square level of the training rows of each class, and under "" of all."""
    gains = _values(data.train, "gain")
    labels = _values(data.train, "label") or [None] * len(gains)
    groups: dict[str, list[float]] = {}
    for label, gain in zip(labels, gains, strict=True):
        for name in {"", label or ""}:
            groups.setdefault(name, []).append(sum(gain) / len(gain))
    return {name: float(f"{median(values):.4g}") for name, values in sorted(groups.items())}


def hold_out(dataset: Any, share: float) -> tuple[Any, Any]:
    """Splits a dataset by source into (train, held out), with at least one source in each."""
    if not 0 < share < 1:
        raise InputError(f"The share to hold out must lie between 0 and 1, got {share:g}.")
    sources = list(map(str, _values(dataset, "source_id") or _values(dataset, "id")))
    ranked = sorted(set(sources), key=lambda s: hashlib.blake2b(s.encode()).digest())
    if len(ranked) < 2:
        raise InputError(f"The dataset has {len(ranked)} source(s); holding some out needs two.")
    count = min(max(1, round(share * len(ranked))), len(ranked) - 1)
    chosen = set(ranked[:count])
    train = [i for i, source in enumerate(sources) if source not in chosen]
    rest = [i for i, source in enumerate(sources) if source in chosen]
    return dataset.select(train), dataset.select(rest)
