"""Any folder of audio, laid out as Hugging Face's ``audiofolder`` has it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from datasets_scripts.sources.corpus import Clip, CorpusInfo, Missing
from datasets_scripts.sources.download import locate
from datasets_scripts.sources.listing import Listing, not_text
from datasets_scripts.sources.tables import (
    Row,
    pick,
    read_csv,
    read_jsonl,
    read_parquet,
    without_empty,
)
from datasets_scripts.sources.tree import Tree, checked_name, is_audio
from tokenizer.errors import InputError, MissingFileError

# The words by which `datasets` knows splits, under the names that it gives them.
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
CAPTION_COLUMNS = ("caption", "text", "transcription", "transcript", "sentence")
_METADATA = {
    "metadata.csv": read_csv,
    "metadata.jsonl": read_jsonl,
    "metadata.parquet": read_parquet,
}

INFO = CorpusInfo(
    name="audiofolder",
    title="A folder of audio",
    homepage="https://huggingface.co/docs/datasets/audio_dataset",
    licence="as its owner says",
    label_kind="the column label, or the name of the file's folder",
    caption_kind=f"the first of the columns {', '.join(CAPTION_COLUMNS)}",
    options={
        "labels": "auto (default): names of folders where there is no metadata; folder: always;"
        " none: never",
        "label_column": "column of the metadata; default: label",
        "caption_column": f"column of the metadata; default: {', '.join(CAPTION_COLUMNS)}",
        "splits": "auto (default): folders named train, validation, test (and the like) are splits;"
        " none: everything is train",
    },
)


@dataclass(frozen=True)
class _Options:
    labels: str
    label_column: str
    caption_columns: tuple[str, ...]


def describe(
    root: str | Path,
    splits: str = "auto",
    **_: str,
) -> CorpusInfo:
    """See `Corpus.describe`.

    Raises:
        ValueError: If there is audio beside the folders of splits, or two folders are one split.
    """
    return replace(INFO, splits=tuple(_split_folders(_find(root), splits)))


def download(
    root: str | Path,
    splits: Sequence[str] | None = None,
    *,
    progress: bool = False,  # noqa: ARG001
    **options: str,
) -> Path:
    """See `Corpus.download`; there is nothing to fetch."""
    return locate(root, splits, partial(describe, **options))


def prepare(
    root: str | Path,
    split: str,
    labels: str = "auto",
    label_column: str = "label",
    caption_column: str | None = None,
    splits: str = "auto",
) -> Iterator[Clip | Missing]:
    """See `Corpus.prepare`.

    A ``metadata.csv``, ``.jsonl`` or ``.parquet`` holds for all files in and below its folder. It
    names them in its column ``file_name``; audio that it does not name comes as `Missing`.
    """
    if labels not in ("auto", "folder", "none"):
        raise InputError(f"labels={labels!r}; expected auto, folder or none.")
    tree = _find(root)
    folders = _split_folders(tree, splits)
    replace(INFO, splits=tuple(folders)).check_split(split)
    captions = CAPTION_COLUMNS if caption_column is None else (caption_column,)
    return _clips(tree, folders[split], _Options(labels, label_column, captions))


def _find(root: str | Path) -> Tree:
    tree = Tree(root)
    if not tree.is_folder():
        raise MissingFileError(f"No such folder: {root}. Name a folder of audio.")
    return tree


def _split_folders(tree: Tree, splits: str) -> dict[str, str]:
    """Splits to the folders that they are in."""
    if splits not in ("auto", "none"):
        raise InputError(f"splits={splits!r}; expected auto or none.")
    folders, files = tree.list()
    words = {word: split for split, its_words in SPLITS.items() for word in its_words}
    found: dict[str, str] = {}
    for folder in folders if splits == "auto" else ():
        split = words.get(folder.lower())
        if split is None:
            continue
        if split in found:
            raise InputError(f"{tree} has {found[split]} and {folder}, which are both {split}.")
        found[split] = folder
    if not found:
        return {"train": ""}
    others = (folder for folder in folders if folder not in found.values())
    beside = [name for name in files if is_audio(name)] or [
        name for folder in others for name in _first_audio(tree, folder)
    ]
    if beside:
        raise InputError(
            f"{tree} has the splits {', '.join(found.values())}, and beside them {beside[0]}: move"
            " it, or use the option splits=none."
        )
    return {split: found[split] for split in SPLITS if split in found}


def _first_audio(tree: Tree, folder: str) -> list[str]:
    return [name for name in [next(filter(is_audio, tree.walk(folder)), None)] if name is not None]


def _clips(tree: Tree, folder: str, options: _Options) -> Iterator[Clip | Missing]:
    some = False
    for item in _governed(tree, folder, options):
        some = True
        yield item
    if not some:
        raise InputError(f"There is no audio in {tree.path(folder)}.")


def _governed(tree: Tree, folder: str, options: _Options) -> Iterator[Clip | Missing]:
    # Metadata in the root may speak of the folders of splits.
    for place in dict.fromkeys((folder, "")):
        if (name := _metadata(tree, place)) is not None:
            yield from _listed(tree, place, name, folder, options)
            return
    yield from _unlisted(tree, folder, folder, options)


def _metadata(tree: Tree, folder: str) -> str | None:
    found = [name for name in tree.list(folder)[1] if name in _METADATA]
    if len(found) > 1:
        raise InputError(f"{tree.path(folder)} has {' and '.join(found)}: leave one.")
    return found[0] if found else None


def _unlisted(tree: Tree, folder: str, top: str, options: _Options) -> Iterator[Clip | Missing]:
    """The files in a folder without metadata, then those in its folders, which may have some."""
    folders, files = tree.list(folder)
    prefix = f"{folder}/" if folder else ""
    for name in filter(is_audio, files):
        label = None if options.labels == "none" else _folder_label(folder, top)
        yield not_text(prefix + name) or Clip(prefix + name, tree.audio(prefix + name), label=label)
    for name in folders:
        inner = prefix + name
        if (metadata := _metadata(tree, inner)) is not None:
            yield from _listed(tree, inner, metadata, inner, options)
        else:
            yield from _unlisted(tree, inner, top, options)


def _folder_label(folder: str, top: str) -> str | None:
    return None if folder == top else folder.rpartition("/")[2]


def _listed(
    tree: Tree, place: str, metadata: str, folder: str, options: _Options
) -> Iterator[Clip | Missing]:
    """The files in ``folder`` as the metadata in ``place`` lists them, then those it does not."""
    listing, listed = Listing(tree), set[str]()
    prefix = f"{place}/" if place else ""
    inside = f"{folder}/" if folder else ""
    for where, row in _METADATA[metadata](tree, prefix + metadata, ("file_name",)):
        name = prefix + checked_name(row.get("file_name", ""), f"{tree}/{where}")
        if not name.startswith(inside):
            continue
        listed.add(name)
        yield listing.clip(name, name, where, **_fields(row, name, folder, options))
    for name in tree.walk(folder):
        if is_audio(name) and name not in listed:
            yield not_text(name) or Missing(name, f"{prefix}{metadata} does not list it")


def _fields(row: Row, name: str, folder: str, options: _Options) -> dict[str, object]:
    label = None
    if options.labels != "none":
        label = pick(row, (options.label_column,))
    if options.labels == "folder":
        label = _folder_label(name.rpartition("/")[0], folder)
    caption_column = next((key for key in options.caption_columns if row.get(key)), None)
    used = {"file_name", caption_column, options.label_column}
    return {
        "label": label,
        "caption": row.get(caption_column) if caption_column else None,
        "metadata": without_empty({key: row[key] for key in row if key not in used}),
    }
