"""ESC-50: 2,000 environmental recordings of 5 s in 50 classes, in five folds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from datasets_scripts.corpora import read_info
from datasets_scripts.sources.folder_corpus import TableCorpus
from datasets_scripts.sources.tables import TableRows
from datasets_scripts.sources.tree import Tree


class Esc50(TableCorpus):
    """Expects ``meta/esc50.csv`` and ``audio/*.wav``."""

    INFO = read_info("esc50")
    marker = table = "meta/esc50.csv"
    folders = ("ESC-50-master", "ESC-50")
    columns = ("filename", "fold", "category", "esc10", "src_file")
    split = "fold{fold}"
    id = "{name}"
    audio = "audio/{id}.wav"
    label = "category"
    metadata: ClassVar[Mapping[str, str]] = {"esc10": "esc10", "freesound_id": "src_file"}

    def rows(self, tree: Tree, split: str, **_: Any) -> TableRows:
        """See `TableCorpus.rows`."""
        for where, row in super().rows(tree, split):
            yield where, row | {"name": row["filename"].removesuffix(".wav")}


CORPUS = Esc50()
