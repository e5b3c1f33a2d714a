"""MusicCaps: musicians' captions of 10 s of music; the audio is the user's to collect.

Any table with its columns ``ytid``, ``start_s``, ``end_s`` and ``caption`` can be read so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets_scripts.corpora import read_info
from datasets_scripts.sources.corpus import CorpusClip, CorpusInfo, Missing
from datasets_scripts.sources.folder_corpus import FolderCorpus
from datasets_scripts.sources.tables import TableRow, read_csv, without_empty
from datasets_scripts.sources.tree import Tree, checked_name, find_tree
from datasets_scripts.sources.videos import CHOICES, OPTIONS, check_video, find_videos, seconds
from tokenizer.errors import InputError

_TABLE = "musiccaps-public.csv"

_NEEDED = ("ytid", "start_s", "end_s", "caption")
_ABOUT = ("aspect_list", "audioset_positive_labels", "author_id", "is_balanced_subset")


class MusicCaps(FolderCorpus):
    """Expects the table, and audio named after the videos (`Videos`).

    Only the captions are downloaded, for there is no address of the audio. The split "eval" is that
    of AudioSet (``is_audioset_eval``); without this column all is "train".
    """

    INFO = read_info(
        "musiccaps",
        options=OPTIONS | {"table": f"name of the table in the folder; default: {_TABLE}"},
        choices=CHOICES,
    )

    def find(self, root: str | Path, table: str = _TABLE, **_: Any) -> Tree:
        """See `FolderCorpus.find`."""
        return find_tree(root, self.INFO, checked_name(table, "The option table"), ("musiccaps",))

    def describe(self, root: str | Path, table: str = _TABLE, **_: str) -> CorpusInfo:
        """See `Corpus.describe`."""
        first = next(read_csv(self.find(root, table), table, _NEEDED), ("", {}))[1]
        return self.INFO if "is_audioset_eval" in first else replace(self.INFO, splits=("train",))

    def clips(
        self, tree: Tree, split: str, table: str = _TABLE, **options: Any
    ) -> Iterator[CorpusClip | Missing]:
        """See `FolderCorpus.clips`."""
        videos, seen = find_videos(tree, **options), set()
        for where, row in read_csv(tree, table, _NEEDED):
            if _split(row, f"{tree}/{where}") != split:
                continue
            video = check_video(row["ytid"], f"{tree}/{where}")
            start, end = (seconds(row[name], f"{tree}/{where}") for name in ("start_s", "end_s"))
            if end <= start:
                raise InputError(f"{tree}/{where}: the clip ends at {end:g} s, before it begins.")
            clip_id = f"{video}_{start:g}"
            if clip_id in seen:
                yield Missing(clip_id, f"{where} lists it a second time")
                continue
            seen.add(clip_id)
            about = without_empty({name: row.get(name, "") for name in _ABOUT})
            metadata = {"youtube_id": video, "start_s": f"{start:g}", "end_s": f"{end:g}"} | about
            yield videos.clip(
                clip_id, video, (start, end), split, caption=row["caption"], metadata=metadata
            )


def _split(row: TableRow, where: str) -> str:
    value = row.get("is_audioset_eval", "False").lower()
    if value not in ("true", "false", "1", "0"):
        raise InputError(f"{where}: is_audioset_eval is {value!r}, neither True nor False.")
    return "eval" if value in ("true", "1") else "train"


CORPUS = MusicCaps()
