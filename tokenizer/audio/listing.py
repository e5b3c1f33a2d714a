"""Which files of a folder are audio, the same for all commands."""

from __future__ import annotations

import os
from pathlib import Path

from tokenizer.audio.signals import AUDIO_SUFFIXES


def is_audio(path: str | Path) -> bool:
    """Whether a name has a suffix of audio; hidden files are left out.

    Systems keep other things under names such as ``._a.wav``.
    """
    path = Path(path)
    return path.suffix.lower() in AUDIO_SUFFIXES and not path.name.startswith(".")


class Folders:
    """The folders in a folder, each once: links to folders are followed, but not in circles.

    A folder that can be reached in several ways keeps the name by which it was listed first.
    """

    def __init__(self, root: str | Path) -> None:
        self._names = {os.path.realpath(root): os.fspath(root)}

    def list(self, folder: str | Path) -> tuple[list[str], list[str]]:
        """The names of the folders and files in a folder, sorted, without hidden ones.

        A link that leads nowhere is listed as a file, which then cannot be read; pipes and devices
        are left out.
        """
        folders, files = [], []
        for path in sorted(Path(folder).iterdir()):
            if path.name.startswith("."):
                continue
            if path.is_dir():
                name = os.fspath(path)
                if self._names.setdefault(os.path.realpath(path), name) == name:
                    folders.append(path.name)
            elif path.is_file() or (path.is_symlink() and not path.exists()):
                files.append(path.name)
        return folders, files


def list_files(root: str | Path) -> list[Path]:
    """The files in a folder, and in those below it, sorted; see `Folders`."""
    folders, found, left = Folders(root), [], [Path(root)]
    while left:
        folder = left.pop()
        inner, files = folders.list(folder)
        found += [folder / name for name in files]
        left += [folder / name for name in reversed(inner)]
    return sorted(found)


def list_audio(root: str | Path) -> list[Path]:
    """Those of `list_files` that have a suffix of audio."""
    return list(filter(is_audio, list_files(root)))
