"""Small trees of corpora's true layouts, and what their corpora make of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import soundfile

from datasets_scripts.corpora import CORPORA
from datasets_scripts.sources.corpus import Clip, Missing


def write_sound(path: Path, sampling_rate: int = 16_000, seconds: float = 0.05) -> None:
    """A tone of a pitch that depends on the file's name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(int(seconds * sampling_rate)) / sampling_rate
    pitch = 200 + sum(path.name.encode()) % 997
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * pitch * time), sampling_rate)


def write_tree(root: Path, files: Mapping[str, str | None]) -> Path:
    """Writes texts under their names, and sounds where there is None."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            write_sound(path)
        else:
            path.write_text(text, encoding="utf-8")
    return root


def prepared(corpus: str, root: str | Path, split: str, **options: str) -> list[Clip | Missing]:
    """All that a corpus yields; what should be there must be audio, and the order stable."""
    found = list(CORPORA[corpus].prepare(root, split, **options))
    assert found == list(CORPORA[corpus].prepare(root, split, **options))
    for item in found:
        if isinstance(item, Clip):
            with item.open() as stream:
                assert soundfile.info(stream).frames > 0
            assert item.read_bytes()
            assert str(root) not in item.id
        else:
            assert item.reason
            assert "\n" not in item.reason
    return found


def clips(items: list[Clip | Missing]) -> list[Clip]:
    """Those that are there."""
    return [item for item in items if isinstance(item, Clip)]


def missing(items: list[Clip | Missing]) -> dict[str, str]:
    """Reasons by id."""
    return {item.id: item.reason for item in items if isinstance(item, Missing)}
