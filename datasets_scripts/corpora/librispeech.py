"""LibriSpeech: 1,000 hours of read English (audiobooks), with transcripts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from datasets_scripts.corpora import read_info
from datasets_scripts.sources.corpus import CorpusClip, Missing
from datasets_scripts.sources.folder_corpus import FolderCorpus
from datasets_scripts.sources.listing import Listing
from datasets_scripts.sources.tree import Tree
from tokenizer.errors import InputError

_SPEAKERS = "SPEAKERS.TXT"


class LibriSpeech(FolderCorpus):
    """Expects ``SPLIT/SPEAKER/CHAPTER/*.flac`` and transcripts."""

    INFO = read_info("librispeech")
    marker = INFO.splits
    folders = ("LibriSpeech",)

    def split_place(self, split: str) -> str:
        """See `FolderCorpus.split_place`."""
        return split

    def clips(self, tree: Tree, split: str, **_: Any) -> Iterator[CorpusClip | Missing]:
        """See `FolderCorpus.clips`."""
        listing = Listing(tree)
        sexes = _sexes(tree)
        for speaker in tree.list(split)[0]:
            for chapter in tree.list(f"{split}/{speaker}")[0]:
                folder = f"{split}/{speaker}/{chapter}"
                transcript = f"{folder}/{speaker}-{chapter}.trans.txt"
                texts = _texts(tree, transcript) if tree.has(transcript) else {}
                files = {name[:-5] for name in tree.list(folder)[1] if name.endswith(".flac")}
                metadata = {"speaker": speaker, "chapter": chapter}
                if speaker in sexes:
                    metadata["sex"] = sexes[speaker]
                for name in sorted(files | texts.keys()):
                    if name not in texts:
                        yield Missing(name, f"{transcript} has no line for it")
                        continue
                    yield listing.clip(
                        name,
                        f"{folder}/{name}.flac",
                        transcript,
                        label=speaker,
                        caption=texts[name],
                        metadata=metadata,
                    )


def _texts(tree: Tree, name: str) -> dict[str, str]:
    texts: dict[str, str] = {}
    for number, line in enumerate(tree.lines(name), start=1):
        utterance, _, text = line.strip().partition(" ")
        if not utterance:
            continue
        if utterance.count("-") != 2 or not text or utterance in texts:
            raise InputError(
                f"{tree.path(name)}, line {number}: expected an utterance that was not there before"
                f" and its text, not {line.strip()[:60]!r}."
            )
        texts[utterance] = text
    return texts


def _sexes(tree: Tree) -> dict[str, str]:
    # "14   | F | train-clean-360  | 25.03 | Kristin LeMoine". Copies of single splits often come
    # without this file.
    if not tree.has(_SPEAKERS):
        return {}
    lines = [line.split("|") for line in tree.lines(_SPEAKERS) if not line.startswith(";")]
    return {cells[0].strip(): cells[1].strip() for cells in lines if len(cells) >= 5}


CORPUS = LibriSpeech()
