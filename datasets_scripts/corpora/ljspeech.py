"""LJ Speech: 24 hours of one speaker reading non-fiction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from datasets_scripts.sources.corpus import Clip, CorpusInfo, Download, Missing
from datasets_scripts.sources.download import locate_or_download
from datasets_scripts.sources.listing import Listing
from datasets_scripts.sources.tree import Tree, checked_name, find_tree
from tokenizer.errors import InputError

INFO = CorpusInfo(
    name="ljspeech",
    title="LJ Speech",
    homepage="https://keithito.com/LJ-Speech-Dataset/",
    licence="public domain",
    citation="""@misc{ljspeech17,
  author = {Keith Ito and Linda Johnson},
  title = {The LJ Speech Dataset},
  howpublished = {https://keithito.com/LJ-Speech-Dataset/},
  year = {2017},
}""",
    splits=("train",),
    caption_kind="transcript, numbers and abbreviations written out",
    sampling_rate=22_050,
    downloads=(
        Download(
            "https://data.keithito.com/data/speech/LJSpeech-1.1.tar.bz2",
            "LJSpeech-1.1.tar.bz2",
            # The author publishes none; this one is generally used (torchaudio, Homebrew).
            checksum="sha256:be1a30453f28eb8dd26af4101ae40cbf2c50413b1bb21936cbcdc6fae3de8aa5",
        ),
    ),
)
_META = "metadata.csv"


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
    """See `Corpus.prepare`; expects ``metadata.csv`` and ``wavs/*.wav``."""
    INFO.check_split(split)
    return _clips(_find(root))


def _find(root: str | Path) -> Tree:
    return find_tree(root, INFO, _META, ("LJSpeech-1.1",))


def _clips(tree: Tree) -> Iterator[Clip | Missing]:
    listing = Listing(tree)
    for number, line in enumerate(tree.lines(_META), start=1):
        # Not CSV: quotation marks are part of the text.
        cells = line.rstrip("\r\n").split("|")
        if cells == [""]:
            continue
        where = f"{_META}, line {number}"
        if len(cells) != 3:
            raise InputError(
                f"{tree}/{where}: expected ID|TRANSCRIPT|NORMALISED TRANSCRIPT, not"
                f" {line.strip()[:60]!r}."
            )
        name = checked_name(cells[0], f"{tree}/{where}")
        yield listing.clip(
            name,
            f"wavs/{name}.wav",
            where,
            caption=cells[2] or cells[1],
            metadata={"transcript": cells[1]},
        )
