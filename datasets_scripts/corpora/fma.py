"""FMA: 106,574 tracks of the Free Music Archive, whole or 30 s of each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from datasets_scripts.corpora import read_info
from datasets_scripts.sources.corpus import Download
from datasets_scripts.sources.folder_corpus import TableCorpus
from datasets_scripts.sources.tables import TableRows, check_columns, csv_cells, named_cells
from datasets_scripts.sources.tree import Tree
from tokenizer.errors import InputError, MissingFileError

_SUBSETS = ("small", "medium", "large", "full")

INFO = read_info(
    "fma",
    options={"subset": "small, medium, large or full; default: the one that is there"},
    choices={"subset": _SUBSETS},
)


class Fma(TableCorpus):
    """Expects ``fma_metadata/tracks.csv`` and ``fma_SUBSET/000/*.mp3``."""

    INFO = INFO
    marker = table = "fma_metadata/tracks.csv"
    folders = ("fma",)
    columns = ("set.split", "set.subset", "track.genre_top", "track.title", "track.license")
    split = "{split}"
    id = "{name}"
    audio = "{folder}/{id:.3}/{id}.mp3"
    label = "track.genre_top"
    metadata: ClassVar[Mapping[str, str]] = {
        "title": "track.title",
        "artist": "artist.name",
        "license": "track.license",
        "subset": "set.subset",
    }

    def download(self, *args: Any, subset: str = "small", **options: Any) -> Path:
        """See `Corpus.download`; a subset comes with all its splits."""
        return super().download(*args, subset=subset, **options)

    def downloads(self, subset: str = "small", **_: Any) -> tuple[Download, ...]:
        """See `FolderCorpus.downloads`."""
        needed = ("fma_metadata.zip", f"fma_{subset}.zip")
        return tuple(one for one in self.INFO.downloads if one.name in needed)

    def find(self, root: str | Path, subset: str | None = None, **_: Any) -> Tree:
        """See `FolderCorpus.find`; also checks that there is one subset, or the requested one."""
        tree = super().find(root)
        _subset(tree, subset)
        return tree

    def rows(self, tree: Tree, split: str, subset: str | None = None, **_: Any) -> TableRows:
        """See `TableCorpus.rows`."""
        subset = _subset(tree, subset)
        # Large and full have all tracks; only the length of the audio is different.
        subsets = _SUBSETS[: _SUBSETS.index(subset) + 1]
        for where, row in self._tracks(tree):
            if row["set.split"] not in self.INFO.splits or row["set.subset"] not in _SUBSETS:
                raise InputError(
                    f"{tree}/{where}: split {row['set.split']!r} of subset {row['set.subset']!r}"
                    " is not one of FMA's."
                )
            if row["set.split"] != split or row["set.subset"] not in subsets:
                continue
            if not row["track_id"].isdecimal():
                raise InputError(
                    f"{tree}/{where}: {row['track_id']!r} is not the number of a track."
                )
            place = {"name": f"{int(row['track_id']):06d}", "folder": f"fma_{subset}"}
            yield where, row | place | {"split": split}

    def _tracks(self, tree: Tree) -> TableRows:
        """The rows of tracks.csv, whose columns have names of two levels in three lines."""
        rows = csv_cells(tree, self.table)
        heads = [next(rows, (0, [""]))[1] for _ in range(3)]
        if len({len(head) for head in heads}) != 1 or heads[2][0] != "track_id":
            raise InputError(
                f"{tree.path(self.table)} does not begin with FMA's three lines of names."
            )
        names = zip(heads[0][1:], heads[1][1:], strict=True)
        header = ["track_id", *(f"{upper}.{lower}" for upper, lower in names)]
        check_columns(header, self.columns, tree.path(self.table))
        return named_cells(tree, self.table, header, rows)


def _subset(tree: Tree, subset: str | None) -> str:
    """The subset to read: the requested one, or the only one that is there."""
    present = [name for name in _SUBSETS if tree.is_folder(f"fma_{name}")]
    if subset is not None:
        if subset not in present:
            raise MissingFileError(f"{tree} has no folder fma_{subset}: download it first.")
        return subset
    if not present:
        raise MissingFileError(f"{tree} has no folder fma_small (or medium, large, full).")
    if len(present) > 1:
        raise InputError(f"{tree} has {', '.join(present)}: say which with the option subset.")
    return present[0]


CORPUS = Fma()
