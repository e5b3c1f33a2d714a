"""AudioCaps: captions of 10 s excerpts from AudioSet; the audio is the user's to collect."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from datasets_scripts.sources.corpus import Clip, CorpusInfo, Download, Missing
from datasets_scripts.sources.download import locate_or_download
from datasets_scripts.sources.tables import Row, read_csv
from datasets_scripts.sources.tree import Tree, find_tree
from datasets_scripts.sources.videos import OPTIONS, Videos, check_video, find_videos, seconds
from tokenizer.errors import InputError, MissingFileError

_SPLITS = ("train", "val", "test")
_SECONDS = 10

INFO = CorpusInfo(
    name="audiocaps",
    title="AudioCaps",
    homepage="https://audiocaps.github.io",
    licence="captions MIT; the audio belongs to the authors of the videos",
    citation="""@inproceedings{kim2019audiocaps,
  title = {{AudioCaps}: Generating Captions for Audios in The Wild},
  author = {Kim, Chris Dongjoo and Kim, Byeongchang and Lee, Hyunmin and Kim, Gunhee},
  booktitle = {Proceedings of NAACL-HLT},
  pages = {119--132},
  year = {2019},
}""",
    splits=_SPLITS,
    caption_kind="description; five of each clip in val and test",
    downloads=tuple(
        Download(
            f"https://raw.githubusercontent.com/cdjkim/audiocaps/master/dataset/{split}.csv",
            f"{split}.csv",
            (split,),
        )
        for split in _SPLITS
    ),
    options=OPTIONS
    | {
        "captions": "first (default): a clip has its first caption, all are in its metadata; each:"
        " a clip comes once for each caption"
    },
)


def describe(root: str | Path, **_: str) -> CorpusInfo:
    """See `Corpus.describe`."""
    tree = _find(root)
    return replace(INFO, splits=tuple(split for split in _SPLITS if tree.has(f"{split}.csv")))


def download(
    root: str | Path, splits: Sequence[str] | None = None, *, progress: bool = False, **options: str
) -> Path:
    """See `Corpus.download`; fetches the captions, for there is no address of the audio."""
    return locate_or_download(INFO, root, splits, partial(describe, **options), progress=progress)


def prepare(
    root: str | Path,
    split: str,
    audio: str | None = None,
    files: str = "cut",
    captions: str = "first",
) -> Iterator[Clip | Missing]:
    """See `Corpus.prepare`; expects ``SPLIT.csv``, and audio named after the videos (`Videos`)."""
    INFO.check_split(split)
    if captions not in ("first", "each"):
        raise InputError(f"captions={captions!r}; expected first or each.")
    tree = _find(root)
    if not tree.has(f"{split}.csv"):
        raise MissingFileError(f"{tree} has no {split}.csv: download it first.")
    clips = _grouped(tree, split)
    return _clips(clips, find_videos(tree, audio, files), split, each=captions == "each")


def _find(root: str | Path) -> Tree:
    return find_tree(root, INFO, [f"{split}.csv" for split in _SPLITS], ("audiocaps", "dataset"))


Group = tuple[str, float, list[Row]]


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


def _clips(
    groups: list[Group | Missing], videos: Videos, split: str, *, each: bool
) -> Iterator[Clip | Missing]:
    for group in groups:
        if isinstance(group, Missing):
            yield group
            continue
        video, start, rows = group
        captions = [row["caption"] for row in rows]
        metadata = {"youtube_id": video, "start_time": f"{start:g}"}
        if not each:
            if len(captions) > 1:
                metadata["captions"] = json.dumps(captions, ensure_ascii=False)
            rows = rows[:1]
        for row in rows:
            yield videos.clip(
                f"{video}_{start:g}" + (f"#{row['audiocap_id']}" if each else ""),
                video,
                start,
                start + _SECONDS,
                split,
                caption=row["caption"],
                metadata=metadata | {"audiocap_id": row["audiocap_id"]},
            )
