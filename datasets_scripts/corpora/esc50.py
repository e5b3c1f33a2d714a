"""ESC-50: 2,000 environmental recordings of 5 s in 50 classes, in five folds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from datasets_scripts.sources.corpus import CorpusInfo, Download
from datasets_scripts.sources.folder_corpus import TableCorpus
from datasets_scripts.sources.tables import TableRow
from datasets_scripts.sources.tree import Tree

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


class Esc50(TableCorpus):
    """Expects ``meta/esc50.csv`` and ``audio/*.wav``."""

    INFO = INFO
    marker = table = "meta/esc50.csv"
    folders = ("ESC-50-master", "ESC-50")
    columns = ("filename", "fold", "category", "esc10", "src_file")
    split = "fold{fold}"
    id = "{name}"
    audio = "audio/{id}.wav"
    label = "category"
    metadata: ClassVar[Mapping[str, str]] = {"esc10": "esc10", "freesound_id": "src_file"}

    def rows(self, tree: Tree, split: str, **_: Any) -> Iterator[tuple[str, TableRow]]:
        """See `TableCorpus.rows`."""
        for where, row in super().rows(tree, split):
            yield where, row | {"name": row["filename"].removesuffix(".wav")}


CORPUS = Esc50()
