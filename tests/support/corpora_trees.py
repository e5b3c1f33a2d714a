"""Small trees of corpora's true layouts, and what their corpora make of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import soundfile

from datasets_scripts.corpora import CORPORA
from datasets_scripts.sources.corpus import CorpusClip, Missing


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


def prepared(
    corpus: str, root: str | Path, split: str, **options: str
) -> list[CorpusClip | Missing]:
    """All that a corpus yields; what should be there must be audio, and the order stable."""
    found = list(CORPORA[corpus].prepare(root, split, **options))
    assert found == list(CORPORA[corpus].prepare(root, split, **options))
    for item in found:
        if isinstance(item, CorpusClip):
            with item.open() as stream:
                assert soundfile.info(stream).frames > 0
            assert item.read_bytes()
            assert str(root) not in item.id
        else:
            assert item.reason
            assert "\n" not in item.reason
    return found


def clips(items: list[CorpusClip | Missing]) -> list[CorpusClip]:
    """Those that are there."""
    return [item for item in items if isinstance(item, CorpusClip)]


def missing(items: list[CorpusClip | Missing]) -> dict[str, str]:
    """Reasons by id."""
    return {item.id: item.reason for item in items if isinstance(item, Missing)}


# What FMA has in its table.
TRACKS = """,album,artist,set,set,track,track,track
,title,name,split,subset,genre_top,license,title
track_id,,,,,,,
2,AWOL,AWOL,training,small,Hip-Hop,Attribution-NonCommercial 3.0,Food
3,"A, \"\"quoted\"\"
album",AWOL,training,medium,Rock,CC BY,Electric Ave
5,AWOL,AWOL,validation,small,Hip-Hop,CC BY,This World
134,AWOL,AWOL,training,large,,CC BY,Street Music
145,AWOL,AWOL,training,small,Rock,CC BY,Gone
""".replace('\\"', '"')

ESC = "filename,fold,target,category,esc10,src_file,take\n"


def esc50(root: Path) -> Path:
    rows = "1-100032-A-0.wav,1,0,dog,True,100032,A\n2-100-B-1.wav,2,1,rooster,False,100,B\n"
    audio = {"audio/1-100032-A-0.wav": None, "audio/2-100-B-1.wav": None}
    return write_tree(root, {"meta/esc50.csv": ESC + rows} | audio)


def librispeech(root: Path) -> Path:
    chapter = "LibriSpeech/dev-clean/84/121123"
    return write_tree(
        root,
        {
            "LibriSpeech/SPEAKERS.TXT": "; ID  |SEX| SUBSET |MINUTES| NAME\n"
            "84   | F | dev-clean        |  8.02 | Christie Nowak\n",
            f"{chapter}/84-121123.trans.txt": "84-121123-0000 GO DO YOU HEAR\n"
            "84-121123-0001 BUT IN LESS THAN FIVE MINUTES\n",
            f"{chapter}/84-121123-0000.flac": None,
            f"{chapter}/84-121123-0001.flac": None,
            "LibriSpeech/dev-clean/174/50561/174-50561.trans.txt": "174-50561-0000 FORGOTTEN TOO\n",
            "LibriSpeech/dev-clean/174/50561/174-50561-0000.flac": None,
        },
    )
