"""VCTK 0.92: 110 English speakers of many accents, about 400 sentences each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from datasets_scripts.corpora import read_info
from datasets_scripts.sources.corpus import CorpusClip, Missing
from datasets_scripts.sources.folder_corpus import FolderCorpus
from datasets_scripts.sources.listing import Listing
from datasets_scripts.sources.tables import TableRow
from datasets_scripts.sources.tree import Tree

_AUDIO = "wav48_silence_trimmed"
_SPEAKERS = "speaker-info.txt"
_WITHOUT_MIC2 = ("p280", "p315")


class Vctk(FolderCorpus):
    """Expects ``wav48_silence_trimmed/pXXX/*.flac`` and ``txt/pXXX/*.txt``."""

    INFO = read_info(
        "vctk",
        options={"mic": "mic1 (default) or mic2, which p280 and p315 lack"},
        choices={"mic": ("mic1", "mic2")},
    )
    marker = _AUDIO
    folders = ("VCTK-Corpus-0.92",)

    def clips(
        self,
        tree: Tree,
        split: str,  # noqa: ARG002
        mic: str = "mic1",
        **_: Any,
    ) -> Iterator[CorpusClip | Missing]:
        """See `FolderCorpus.clips`."""
        listing = Listing(tree)
        about = _speakers(tree)
        ending = f"_{mic}.flac"
        for speaker in tree.list(_AUDIO)[0]:
            if mic == "mic2" and speaker in _WITHOUT_MIC2:
                continue
            folder, texts = f"{_AUDIO}/{speaker}", f"txt/{speaker}"
            files = [name for name in tree.list(folder)[1] if name.endswith(ending)]
            spoken = {name.removesuffix(ending) for name in files}
            written = set[str]()
            if tree.is_folder(texts):
                written = {name[:-4] for name in tree.list(texts)[1] if name.endswith(".txt")}
            for name in sorted(spoken | written):
                text = f"{texts}/{name}.txt"
                yield listing.clip(
                    f"{name}_{mic}",
                    f"{folder}/{name}{ending}",
                    text,
                    label=speaker,
                    caption=tree.text(text).strip() or None if name in written else None,
                    metadata={"speaker": speaker} | about.get(speaker, {}),
                )


def _speakers(tree: Tree) -> dict[str, TableRow]:
    # "p280  25  F    French  France   (mic2 files unavailable)", the last two as they please.
    if not tree.has(_SPEAKERS):
        return {}
    speakers = {}
    for line in list(tree.lines(_SPEAKERS))[1:]:
        cells = re.sub(r"\(.*", "", line).split(maxsplit=4)
        names = ("age", "gender", "accent", "region")
        if cells:
            speakers[cells[0]] = {k: v.strip() for k, v in zip(names, cells[1:], strict=False)}
    return speakers


CORPUS = Vctk()
