"""Corpora that are distributed as archives of a fixed layout: finding, downloading, reading."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from datasets_scripts.sources.corpus import Corpus, CorpusClip, CorpusInfo, Download, Missing
from datasets_scripts.sources.download import locate_or_download
from datasets_scripts.sources.listing import Listing
from datasets_scripts.sources.tables import TableRows, pick, read_csv, without_empty
from datasets_scripts.sources.tree import Tree, checked_name, find_tree
from tokenizer.errors import InputError, MissingFileError


class FolderCorpus(Corpus):
    """A corpus in a folder; a subclass says how it is laid out and yields the clips.

    Attributes:
        marker: File or folder by which the corpus is recognised; several names if any will do.
        folders: Names that its archives unpack to, which are searched too.
    """

    marker: str | Sequence[str]
    folders: Sequence[str] = ()

    @abstractmethod
    def clips(self, tree: Tree, split: str, **options: Any) -> Iterator[CorpusClip | Missing]:
        """The clips of a split that is there."""

    def split_place(self, split: str) -> str:  # noqa: ARG002
        """File or folder that a split needs; "" if the marker stands for all splits."""
        return ""

    def find(self, root: str | Path, **_: Any) -> Tree:
        """The corpus' own folder in ``root``; raises FileNotFoundError if there is none."""
        return find_tree(root, self.INFO, self.marker, self.folders)

    def downloads(self, **_: Any) -> tuple[Download, ...]:
        """What ``download`` fetches from, under the options of the corpus."""
        return self.INFO.downloads

    def describe(self, root: str | Path, **options: str) -> CorpusInfo:
        """See `Corpus.describe`."""
        tree = self.find(root, **options)
        splits = (split for split in self.INFO.splits if tree.exists(self.split_place(split)))
        return replace(self.INFO, splits=tuple(splits))

    def download(
        self,
        root: str | Path,
        splits: Sequence[str] | None = None,
        *,
        progress: bool = False,
        **options: str,
    ) -> Path:
        """See `Corpus.download`."""
        self.INFO.check_options(options)
        info = replace(self.INFO, downloads=self.downloads(**options))
        describe = partial(self.describe, **options)
        return locate_or_download(info, root, splits, describe, progress=progress)

    def prepare(
        self, root: str | Path, split: str, **options: str
    ) -> Iterator[CorpusClip | Missing]:
        """See `Corpus.prepare`."""
        self.INFO.check_options(options)
        self.INFO.check_split(split)
        tree = self.find(root, **options)
        place = self.split_place(split)
        if not tree.exists(place):
            raise MissingFileError(f"{tree} has no {place}: download the split {split!r} first.")
        return self.clips(tree, split, **options)


class TableCorpus(FolderCorpus):
    """A corpus whose clips are the rows of a table.

    Patterns such as "audio/{id}.wav" name columns of the table; ``id`` is the clip's id.

    Attributes:
        table: Name of the CSV file.
        columns: Those that it must have.
        split: Pattern of the split.
        id: Pattern of the id; a path inside the corpus.
        audio: Pattern of the audio's name.
        label: Column of the label; None for no labels.
        captions: Columns of the caption; the first that is not empty counts.
        metadata: Names of the metadata, and their columns.
    """

    table: str
    columns: Sequence[str] = ()
    split: str
    id: str
    audio: str
    label: str | None = None
    captions: Sequence[str] = ()
    metadata: ClassVar[Mapping[str, str]] = {}

    def rows(self, tree: Tree, split: str, **_: Any) -> TableRows:  # noqa: ARG002
        """The rows, with their places in the table; those of other splits may be among them."""
        return read_csv(tree, self.table, self.columns)

    def clips(self, tree: Tree, split: str, **options: Any) -> Iterator[CorpusClip | Missing]:
        """See `FolderCorpus.clips`."""
        listing = Listing(tree)
        for where, row in self.rows(tree, split, **options):
            row_split = self.split.format_map(row)
            if row_split not in self.INFO.splits:
                raise InputError(f"{tree}/{where}: {self.INFO.title} has no split {row_split!r}.")
            if row_split != split:
                continue
            clip_id = checked_name(self.id.format_map(row), f"{tree}/{where}")
            yield listing.clip(
                clip_id,
                self.audio.format_map(row | {"id": clip_id}),
                where,
                label=pick(row, [self.label] if self.label else ()),
                caption=pick(row, self.captions),
                metadata=without_empty(
                    {name: row.get(column, "") for name, column in self.metadata.items()}
                ),
            )
