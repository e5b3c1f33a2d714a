"""Which files of a folder are audio, the same for all commands."""

from __future__ import annotations

import os
from pathlib import Path

from tokenizer.audio.signals import AUDIO_SUFFIXES


def list_audio(root: str | Path) -> list[Path]:
    """The files in a folder, and in those below it, that have a suffix of audio; sorted.

    Links to folders are followed, once. Hidden files are left out: systems keep other things under
    names such as ``._a.wav``.
    """
    found, seen = [], set[str]()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = () if real in seen else [name for name in folders if name[0] != "."]
        if real not in seen:
            found += [Path(folder, name) for name in files if name[0] != "."]
        seen.add(real)
    return sorted(
        path for path in found if path.suffix.lower() in AUDIO_SUFFIXES and path.is_file()
    )
