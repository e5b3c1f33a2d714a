"""ESC-50: 2,000 environmental recordings of 5 s in 50 classes, in five folds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from datasets_scripts.sources.corpus import Clip, CorpusInfo, Download, Missing
from datasets_scripts.sources.download import locate_or_download
from datasets_scripts.sources.listing import Listing
from datasets_scripts.sources.tables import read_csv
from datasets_scripts.sources.tree import Tree, checked_name, find_tree
from tokenizer.errors import InputError

INFO = CorpusInfo(
    name="esc50",
    title="ESC-50",
    homepage="https://github.com/karolpiczak/ESC-50",
    licence="CC BY-NC 3.0 (its subset ESC-10: CC BY 3.0)",
    citation="""@inproceedings{piczak2015esc,
  title = {{ESC}: Dataset for Environmental Sound Classification},
  author = {Piczak, Karol J.},
  booktitle = {Proceedings of the 23rd ACM International Conference on Multimedia},
  pages = {1015--1018},
  year = {2015},
  doi = {10.1145/2733373.2806390},
}""",
    splits=("fold1", "fold2", "fold3", "fold4", "fold5"),
    label_kind="one of 50 classes of sound",
    sampling_rate=44_100,
    downloads=(
        # Packed anew by GitHub for each request: there is no checksum.
        Download("https://github.com/karolpiczak/ESC-50/archive/master.zip", "ESC-50-master.zip"),
    ),
)
_META = "meta/esc50.csv"


def describe(root: str | Path) -> CorpusInfo:
    """See `Corpus.describe`."""
    _find(root)
    return INFO


def download(
    root: str | Path, splits: Sequence[str] | None = None, *, progress: bool = False, **options: str
) -> Path:
    """See `Corpus.download`."""
    return locate_or_download(INFO, root, splits, partial(describe, **options), progress=progress)


def prepare(root: str | Path, split: str) -> Iterator[Clip | Missing]:
    """See `Corpus.prepare`; expects ``meta/esc50.csv`` and ``audio/*.wav``."""
    INFO.check_split(split)
    return _clips(_find(root), split)


def _find(root: str | Path) -> Tree:
    return find_tree(root, INFO, _META, ("ESC-50-master", "ESC-50"))


def _clips(tree: Tree, split: str) -> Iterator[Clip | Missing]:
    listing = Listing(tree)
    for where, row in read_csv(tree, _META, ("filename", "fold", "category", "esc10", "src_file")):
        if f"fold{row['fold']}" not in INFO.splits:
            raise InputError(f"{tree}/{where}: there is no fold {row['fold']!r}, only 1 to 5.")
        if f"fold{row['fold']}" != split:
            continue
        name = checked_name(row["filename"], f"{tree}/{where}")
        yield listing.clip(
            name.removesuffix(".wav"),
            f"audio/{name}",
            where,
            label=row["category"],
            metadata={"esc10": row["esc10"], "freesound_id": row["src_file"]},
        )
