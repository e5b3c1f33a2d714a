"""FMA: 106,574 tracks of the Free Music Archive, whole or 30 s of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from datasets_scripts.sources.corpus import Clip, CorpusInfo, Download, Missing
from datasets_scripts.sources.download import locate_or_download
from datasets_scripts.sources.listing import Listing
from datasets_scripts.sources.tables import check_columns, csv_cells, without_empty
from datasets_scripts.sources.tree import Tree, find_tree
from tokenizer.errors import InputError, MissingFileError

_SUBSETS = ("small", "medium", "large", "full")
_HOST = "https://os.unil.cloud.switch.ch/fma"

INFO = CorpusInfo(
    name="fma",
    title="FMA: A Dataset for Music Analysis",
    homepage="https://github.com/mdeff/fma",
    licence="of each track its own, see the metadata; metadata CC BY 4.0",
    citation="""@inproceedings{fma_dataset,
  title = {{FMA}: A Dataset for Music Analysis},
  author = {Defferrard, Micha\\"el and Benzi, Kirell and Vandergheynst, Pierre and
    Bresson, Xavier},
  booktitle = {18th International Society for Music Information Retrieval Conference},
  year = {2017},
  eprint = {1612.01840},
  archiveprefix = {arXiv},
}""",
    splits=("training", "validation", "test"),
    label_kind="genre; many tracks outside of small and medium have none",
    downloads=(
        Download(
            f"{_HOST}/fma_metadata.zip",
            "fma_metadata.zip",
            checksum="sha1:f0df49ffe5f2a6008d7dc83c6915b31835dfe733",
        ),
        Download(
            f"{_HOST}/fma_small.zip",
            "fma_small.zip",
            checksum="sha1:ade154f733639d52e35e32f5593efe5be76c6d70",
        ),
        Download(
            f"{_HOST}/fma_medium.zip",
            "fma_medium.zip",
            checksum="sha1:c67b69ea232021025fca9231fc1c7c1a063ab50b",
        ),
        Download(
            f"{_HOST}/fma_large.zip",
            "fma_large.zip",
            checksum="sha1:497109f4dd721066b5ce5e5f250ec604dc78939e",
        ),
        Download(
            f"{_HOST}/fma_full.zip",
            "fma_full.zip",
            checksum="sha1:0f0ace23fbe9ba30ecb7e95f763e435ea802b8ab",
        ),
    ),
    options={"subset": "small, medium, large or full; default: the one that is there"},
)
_TRACKS = "fma_metadata/tracks.csv"
_COLUMNS = ("set.split", "set.subset", "track.genre_top", "track.title", "track.license")


def describe(root: str | Path, subset: str | None = None) -> CorpusInfo:
    """See `Corpus.describe`."""
    _find(root, subset)
    return INFO


def download(
    root: str | Path,
    splits: Sequence[str] | None = None,
    *,
    progress: bool = False,
    subset: str = "small",
) -> Path:
    """See `Corpus.download`; a subset comes with all its splits."""
    _check_subset(subset)
    needed = {"fma_metadata.zip", f"fma_{subset}.zip"}
    part = replace(INFO, downloads=tuple(one for one in INFO.downloads if one.name in needed))
    return locate_or_download(
        part, root, splits, partial(describe, subset=subset), progress=progress
    )


def prepare(root: str | Path, split: str, subset: str | None = None) -> Iterator[Clip | Missing]:
    """See `Corpus.prepare`; expects ``fma_metadata/tracks.csv`` and ``fma_SUBSET/000/*.mp3``."""
    INFO.check_split(split)
    tree, found = _find(root, subset)
    return _clips(tree, split, found)


def _check_subset(subset: str) -> None:
    if subset not in _SUBSETS:
        raise InputError(f"subset={subset!r}; expected one of {', '.join(_SUBSETS)}.")


def _find(root: str | Path, subset: str | None) -> tuple[Tree, str]:
    tree = find_tree(root, INFO, _TRACKS, ("fma",))
    there = [name for name in _SUBSETS if tree.is_folder(f"fma_{name}")]
    if subset is not None:
        _check_subset(subset)
        if subset not in there:
            raise MissingFileError(f"{tree} has no folder fma_{subset}: download it first.")
        return tree, subset
    if not there:
        raise MissingFileError(f"{tree} has no folder fma_small (or medium, large, full).")
    if len(there) > 1:
        raise InputError(f"{tree} has {', '.join(there)}: say which with the option subset.")
    return tree, there[0]


def _clips(tree: Tree, split: str, subset: str) -> Iterator[Clip | Missing]:
    listing = Listing(tree)
    # Large and full have all tracks; only the length of the audio is different.
    subsets = _SUBSETS[: _SUBSETS.index(subset) + 1]
    for where, row in _tracks(tree):
        if row["set.split"] not in INFO.splits or row["set.subset"] not in _SUBSETS:
            raise InputError(
                f"{tree}/{where}: split {row['set.split']!r} of subset {row['set.subset']!r} is"
                " not one of FMA's."
            )
        if row["set.split"] != split or row["set.subset"] not in subsets:
            continue
        number = row["track_id"]
        if not number.isdecimal():
            raise InputError(f"{tree}/{where}: {number!r} is not the number of a track.")
        name = f"{int(number):06d}"
        about = {
            "title": row["track.title"],
            "artist": row.get("artist.name", ""),
            "license": row["track.license"],
            "subset": row["set.subset"],
        }
        yield listing.clip(
            name,
            f"fma_{subset}/{name[:3]}/{name}.mp3",
            where,
            label=row["track.genre_top"] or None,
            metadata=without_empty(about),
        )


def _tracks(tree: Tree) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of tracks.csv, whose columns have names of two levels in three lines."""
    path, rows = tree.path(_TRACKS), csv_cells(tree, _TRACKS)
    heads = [next(rows, (0, [""]))[1] for _ in range(3)]
    if len({len(head) for head in heads}) != 1 or heads[2][0] != "track_id":
        raise InputError(f"{path} does not begin with FMA's three lines of names.")
    header = ["track_id", *(f"{a}.{b}" for a, b in zip(heads[0][1:], heads[1][1:], strict=True))]
    check_columns(header, _COLUMNS, path)
    for line, cells in rows:
        if len(cells) != len(header):
            raise InputError(f"{path}, line {line}: {len(cells)} cells, not {len(header)}.")
        yield f"{_TRACKS}, line {line}", dict(zip(header, cells, strict=True))
