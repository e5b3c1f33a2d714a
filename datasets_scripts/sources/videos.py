"""Audio of videos that a corpus only names: a folder that its user has collected."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from datasets_scripts.sources.corpus import CorpusClip, Missing
from datasets_scripts.sources.tree import Tree
from tokenizer.audio import is_audio
from tokenizer.errors import InputError, MissingFileError

# The options of a corpus of excerpts of videos.
OPTIONS = {
    "audio": "folder of the audio; default: the corpus' own folder",
    "files": "cut (default): VIDEO.wav is the excerpt alone; whole: it is all of the video, and the"
    " excerpt is taken from it",
}
CHOICES = {"files": ("cut", "whole")}


class Videos:
    """Finds excerpts of videos in a folder by the names that tools give them.

    For video ID from second 30 to 40 these are, with any suffix of audio, ``ID_30``, ``ID_30_40``,
    ``ID_30000_40000``, ``[ID]-[30-40]``, ``ID`` and ``YID``; the last two may, if ``whole``, be all
    of the video rather than the excerpt.
    """

    def __init__(self, tree: Tree, *, whole: bool) -> None:
        self._tree, self._whole = tree, whole
        self._files: dict[str, list[str]] = defaultdict(list)
        for name in tree.walk():
            if is_audio(name):
                self._files[PurePosixPath(name).stem].append(name)
        self._excerpts: dict[str, float | int] = {}

    def clip(
        self, clip_id: str, video: str, times: tuple[float, float], split: str, **fields: Any
    ) -> CorpusClip | Missing:
        """An excerpt from one second to another, or why there is none.

        Of files with the same name, those in a folder of the name of the split are preferred.
        """
        start, end = times
        for stem, cut in _stems(video, start, end):
            files = self._files.get(stem, [])
            if len(files) > 1:
                files = [name for name in files if split in name.split("/")] or files
            if len(files) > 1:
                return Missing(clip_id, f"several files have its name: {', '.join(files)}")
            if not files:
                continue
            audio = self._tree.audio(files[0])
            if self._whole and not cut:
                return CorpusClip(clip_id, audio, start=start, end=end, **fields)
            # A name without a time can be that of one excerpt only.
            if self._excerpts.setdefault(files[0], start) != start:
                other = f"the excerpt from {self._excerpts[files[0]]:g} s on"
                return Missing(clip_id, f"{files[0]} is taken for {other}: see the option files")
            return CorpusClip(clip_id, audio, **fields)
        return Missing(clip_id, f"there is no audio of video {video} from {start:g} s on")


def _stems(video: str, start: float | int, end: float | int) -> Iterator[tuple[str, bool]]:
    """Names without suffix, and whether such a file is surely cut."""
    yield f"{video}_{start:g}", True
    yield f"{video}_{start:g}_{end:g}", True
    yield f"{video}_{start * 1000:.0f}_{end * 1000:.0f}", True
    yield f"[{video}]-[{start:g}-{end:g}]", True
    yield video, False
    yield f"Y{video}", False  # AudioSet's collections put a Y before ids.


def find_videos(tree: Tree, audio: str | None = None, files: str = "cut", **_: Any) -> Videos:
    """`Videos` as the options of a corpus say; raises FileNotFoundError without a folder."""
    folder = tree if audio is None else Tree(audio)
    if not folder.is_folder():
        raise MissingFileError(f"No such folder of audio: {folder}")
    return Videos(folder, whole=files == "whole")


def seconds(text: str, where: str) -> float:
    """A time in a table; raises ValueError if it is not a number, or negative."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise InputError(f"{where}: {text!r} is not a time in seconds.")
    return value


def check_video(video: str, where: str) -> str:
    """The id of a video; raises ValueError if it could be a path instead."""
    if not video or not video.replace("-", "").replace("_", "").isalnum():
        raise InputError(f"{where}: {video!r} is not the id of a video.")
    return video
