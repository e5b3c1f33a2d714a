"""LJ Speech: 24 hours of one speaker reading non-fiction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from datasets_scripts.corpora import read_info
from datasets_scripts.sources.folder_corpus import TableCorpus
from datasets_scripts.sources.tables import TableRows
from datasets_scripts.sources.tree import Tree
from tokenizer.errors import InputError


class LJSpeech(TableCorpus):
    """Expects ``metadata.csv`` and ``wavs/*.wav``."""

    INFO = read_info("ljspeech")
    marker = table = "metadata.csv"
    folders = ("LJSpeech-1.1",)
    split = "train"
    id = "{name}"
    audio = "wavs/{id}.wav"
    captions = ("normalised", "transcript")
    metadata: ClassVar[Mapping[str, str]] = {"transcript": "transcript"}

    def rows(self, tree: Tree, *_: Any, **__: Any) -> TableRows:
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
