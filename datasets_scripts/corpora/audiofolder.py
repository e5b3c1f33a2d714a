"""Any folder of audio, laid out as Hugging Face's ``audiofolder`` has it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from datasets_scripts.corpora import read_info
from datasets_scripts.sources.corpus import (
    SPLIT_WORDS,
    Corpus,
    CorpusClip,
    CorpusInfo,
    Missing,
    split_of,
)
from datasets_scripts.sources.listing import MAX_TEXT, Listing, decode_text, not_text
from datasets_scripts.sources.tables import (
    COLUMN_OPTIONS,
    TableRow,
    TextColumns,
    own_columns,
    read_csv,
    read_jsonl,
    read_parquet,
)
from datasets_scripts.sources.tree import Tree, checked_name
from tokenizer.audio import is_audio
from tokenizer.errors import InputError, MissingFileError

_METADATA = {
    "metadata.csv": read_csv,
    "metadata.jsonl": read_jsonl,
    "metadata.parquet": read_parquet,
}

INFO = read_info(
    "audiofolder",
    options={
        "labels": "auto (default): names of folders where there is no metadata; folder: always;"
        " none: never",
        "splits": "auto (default): folders named train, validation, test (and the like) are splits;"
        " none: everything is train",
    }
    | COLUMN_OPTIONS,
    choices={"labels": ("auto", "folder", "none"), "splits": ("auto", "none")},
)


class AudioFolder(Corpus):
    """A ``metadata.csv``, ``.jsonl`` or ``.parquet`` holds for all files in and below its folder.

    It names them in its column ``file_name``; audio that it does not name comes as `Missing`. A
    caption that is in no metadata may be in ``a.txt`` beside ``a.wav``.
    """

    INFO = INFO

    def describe(self, root: str | Path, splits: str = "auto", **_: str) -> CorpusInfo:
        """See `Corpus.describe`.

        Raises ValueError if there is audio beside the folders of splits, or two folders are one
        split.
        """
        return replace(INFO, splits=tuple(_split_folders(_find(root), splits)))

    def prepare(
        self, root: str | Path, split: str, **options: str
    ) -> Iterator[CorpusClip | Missing]:
        """See `Corpus.prepare`."""
        INFO.check_options(options)
        tree = _find(root)
        folders = _split_folders(tree, options.get("splits", "auto"))
        replace(INFO, splits=tuple(folders)).check_split(split)
        labels = options.get("labels", "auto")
        return _Reader(tree, labels, own_columns(options)).clips(folders[split])


def _find(root: str | Path) -> Tree:
    tree = Tree(root)
    if not tree.is_folder():
        raise MissingFileError(f"No such folder: {root}. Name a folder of audio.")
    return tree


def _split_folders(tree: Tree, splits: str) -> dict[str, str]:
    """Splits to the folders that they are in."""
    folders, files = tree.list()
    split_folders: dict[str, str] = {}
    for folder in folders if splits == "auto" else ():
        split = split_of(folder)
        if split is None:
            continue
        if split in split_folders:
            raise InputError(
                f"{tree} has {split_folders[split]} and {folder}, which are both {split}."
            )
        split_folders[split] = folder
    if not split_folders:
        return {"train": ""}
    others = (folder for folder in folders if folder not in split_folders.values())
    beside = [name for name in files if is_audio(name)] or [
        name for folder in others for name in _first_audio(tree, folder)
    ]
    if beside:
        raise InputError(
            f"{tree} has the splits {', '.join(split_folders.values())}, and beside them"
            f" {beside[0]}: move it, or use the option splits=none."
        )
    return {split: split_folders[split] for split in SPLIT_WORDS if split in split_folders}


def _first_audio(tree: Tree, folder: str) -> list[str]:
    return [name for name in [next(filter(is_audio, tree.walk(folder)), None)] if name is not None]


@dataclass(frozen=True)
class _Reader:
    """Reads the clips of a split; ``labels`` is the option."""

    tree: Tree
    labels: str
    columns: TextColumns

    def clips(self, folder: str) -> Iterator[CorpusClip | Missing]:
        """All clips of a split's folder; raises ValueError if there are none."""
        empty = True
        for item in self._items(folder):
            empty = False
            yield item
        if empty:
            raise InputError(f"There is no audio in {self.tree.path(folder)}.")

    def _items(self, folder: str) -> Iterator[CorpusClip | Missing]:
        # Metadata in the root may describe the folders of splits.
        for place in dict.fromkeys((folder, "")):
            if (name := self._metadata(place)) is not None:
                return self._listed(place, name, folder)
        return self._unlisted(folder, folder)

    def _metadata(self, folder: str) -> str | None:
        names = [name for name in self.tree.list(folder)[1] if name in _METADATA]
        if len(names) > 1:
            raise InputError(f"{self.tree.path(folder)} has {' and '.join(names)}: leave one.")
        return names[0] if names else None

    def _unlisted(self, folder: str, top: str) -> Iterator[CorpusClip | Missing]:
        """The files in a folder without metadata, then those in its folders, which may have it."""
        folders, files = self.tree.list(folder)
        prefix = f"{folder}/" if folder else ""
        listing = Listing(self.tree)
        for file in filter(is_audio, files):
            yield self._clip(listing, prefix + file, top, folder, {})
        for inner in (prefix + name for name in folders):
            if (metadata := self._metadata(inner)) is not None:
                yield from self._listed(inner, metadata, inner)
            else:
                yield from self._unlisted(inner, top)

    def _listed(self, place: str, metadata: str, folder: str) -> Iterator[CorpusClip | Missing]:
        """The files in ``folder`` that the metadata in ``place`` lists, then all others."""
        listing, listed = Listing(self.tree), set[str]()
        prefix = f"{place}/" if place else ""
        inside = f"{folder}/" if folder else ""
        for where, row in _METADATA[metadata](self.tree, prefix + metadata, ("file_name",)):
            name = prefix + checked_name(row.get("file_name", ""), f"{self.tree}/{where}")
            if name.startswith(inside):
                listed.add(name)
                yield self._clip(listing, name, folder, where, row)
        for name in self.tree.walk(folder):
            if is_audio(name) and name not in listed:
                yield not_text(name) or Missing(name, f"{prefix}{metadata} does not list it")

    def _clip(
        self, listing: Listing, name: str, top: str, where: str, row: TableRow
    ) -> CorpusClip | Missing:
        fields = self.columns.fields(row, ("file_name",))
        folder = name.rpartition("/")[0]
        if self.labels == "none":
            fields["label"] = None
        elif self.labels == "folder" or not row:
            fields["label"] = None if folder == top else folder.rpartition("/")[2]
        try:
            fields["caption"] = fields["caption"] or self._text_beside(name)
        except ValueError as error:
            return Missing(name, str(error))
        return listing.clip(name, name, where, **fields)

    def _text_beside(self, name: str) -> str | None:
        """The caption in ``a.txt`` beside ``a.wav``."""
        for ending in (".txt", ".TXT"):
            text = name[: -len(PurePosixPath(name).suffix)] + ending
            if self.tree.has(text):
                with self.tree.open(text) as stream:
                    return decode_text(stream.read(MAX_TEXT + 1), ending) or None
        return None


CORPUS = AudioFolder()
