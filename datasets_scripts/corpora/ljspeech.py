"""LJ Speech: 24 hours of one speaker reading non-fiction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from datasets_scripts.sources.corpus import CorpusInfo, Download
from datasets_scripts.sources.folder_corpus import TableCorpus
from datasets_scripts.sources.tables import TableRow
from datasets_scripts.sources.tree import Tree
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


class LJSpeech(TableCorpus):
    """Expects ``metadata.csv`` and ``wavs/*.wav``."""

    INFO = INFO
    marker = table = "metadata.csv"
    folders = ("LJSpeech-1.1",)
    split = "train"
    id = "{name}"
    audio = "wavs/{id}.wav"
    captions = ("normalised", "transcript")
    metadata: ClassVar[Mapping[str, str]] = {"transcript": "transcript"}

    def rows(self, tree: Tree, *_: Any, **__: Any) -> Iterator[tuple[str, TableRow]]:
        """See `TableCorpus.rows`."""
        for number, line in enumerate(tree.lines(self.table), start=1):
            # Not CSV: quotation marks are part of the text.
            cells = line.rstrip("\r\n").split("|")
            if cells == [""]:
                continue
            where = f"{self.table}, line {number}"
            if len(cells) != 3:
                raise InputError(
                    f"{tree}/{where}: expected ID|TRANSCRIPT|NORMALISED TRANSCRIPT, not"
                    f" {line.strip()[:60]!r}."
                )
            yield where, dict(zip(("name", "transcript", "normalised"), cells, strict=True))


CORPUS = LJSpeech()
