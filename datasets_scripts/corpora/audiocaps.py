"""AudioCaps: captions of 10 s excerpts from AudioSet; the audio is the user's to collect."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from datasets_scripts.corpora import read_info
from datasets_scripts.sources.corpus import CorpusClip, Missing
from datasets_scripts.sources.folder_corpus import FolderCorpus
from datasets_scripts.sources.tables import TableRow, read_csv
from datasets_scripts.sources.tree import Tree
from datasets_scripts.sources.videos import CHOICES, OPTIONS, check_video, find_videos, seconds

_SECONDS = 10

INFO = read_info(
    "audiocaps",
    options=OPTIONS
    | {
        "captions": "first (default): a clip has its first caption, all are in its metadata; each:"
        " a clip comes once for each caption"
    },
    choices=CHOICES | {"captions": ("first", "each")},
)


class AudioCaps(FolderCorpus):
    """Expects ``SPLIT.csv``, and audio named after the videos (`Videos`).

    Only the captions are downloaded, for there is no address of the audio.
    """

    INFO = INFO
    marker = tuple(f"{split}.csv" for split in INFO.splits)
    folders = ("audiocaps", "dataset")

    def split_place(self, split: str) -> str:
        """See `FolderCorpus.split_place`."""
        return f"{split}.csv"

    def clips(
        self, tree: Tree, split: str, captions: str = "first", **options: Any
    ) -> Iterator[CorpusClip | Missing]:
        """See `FolderCorpus.clips`."""
        groups = _grouped(tree, split)
        videos = find_videos(tree, **options)
        for group in groups:
            if isinstance(group, Missing):
                yield group
                continue
            video, start, rows = group
            metadata = {"youtube_id": video, "start_time": f"{start:g}"}
            if captions == "first":
                if len(rows) > 1:
                    texts = [row["caption"] for row in rows]
                    metadata["captions"] = json.dumps(texts, ensure_ascii=False)
                rows = rows[:1]
            for row in rows:
                number = f"#{row['audiocap_id']}" if captions == "each" else ""
                yield videos.clip(
                    f"{video}_{start:g}{number}",
                    video,
                    (start, start + _SECONDS),
                    split,
                    caption=row["caption"],
                    metadata=metadata | {"audiocap_id": row["audiocap_id"]},
                )


Group = tuple[str, float, list[TableRow]]


def _grouped(tree: Tree, split: str) -> list[Group | Missing]:
    """The captions of each clip, clips in the order of the file."""
    groups: dict[tuple[str, float], Group] = {}
    doubled: list[Missing] = []
    seen = set()
    columns = ("audiocap_id", "youtube_id", "start_time", "caption")
    for where, row in read_csv(tree, f"{split}.csv", columns):
        video = check_video(row["youtube_id"], f"{tree}/{where}")
        start = seconds(row["start_time"], f"{tree}/{where}")
        if row["audiocap_id"] in seen:
            reason = f"{where} lists the caption {row['audiocap_id']} a second time"
            doubled.append(Missing(f"{video}_{start:g}#{row['audiocap_id']}", reason))
            continue
        seen.add(row["audiocap_id"])
        groups.setdefault((video, start), (video, start, []))[2].append(row)
    return [*groups.values(), *doubled]


CORPUS = AudioCaps()
