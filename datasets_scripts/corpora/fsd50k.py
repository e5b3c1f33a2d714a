"""FSD50K: 51,197 Freesound clips (0.3 to 30 s) with labels from 200 classes of AudioSet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from datasets_scripts.corpora import read_info
from datasets_scripts.sources.folder_corpus import TableCorpus
from datasets_scripts.sources.tables import TableRow, TableRows, read_csv
from datasets_scripts.sources.tree import Tree
from tokenizer.errors import InputError

_ABOUT = ("title", "uploader", "license")


class FSD50K(TableCorpus):
    """Expects the folders that the archives unpack to."""

    INFO = read_info("fsd50k")
    marker = "FSD50K.ground_truth"
    folders = ("FSD50K",)
    split = "{split}"
    id = "{fname}"
    audio = "FSD50K.{part}_audio/{id}.wav"
    label = "label"
    metadata: ClassVar[Mapping[str, str]] = {name: name for name in ("labels", "mids", *_ABOUT)}

    def split_place(self, split: str) -> str:
        """See `FolderCorpus.split_place`."""
        return f"FSD50K.{_part(split)}_audio"

    def rows(self, tree: Tree, split: str, **_: Any) -> TableRows:
        """See `TableCorpus.rows`."""
        part = _part(split)
        vocabulary = f"{self.marker}/vocabulary.csv"
        columns = ("index", "label", "mid")
        classes = {row["label"] for _, row in read_csv(tree, vocabulary, columns, columns=columns)}
        about = _about(tree, part)
        needed = ("fname", "labels", "mids", *(("split",) if part == "dev" else ()))
        for where, row in read_csv(tree, f"{self.marker}/{part}.csv", needed):
            labels = row["labels"].split(",")
            if unknown := [label for label in labels if label not in classes]:
                raise InputError(f"{tree}/{where}: {unknown[0]!r} is not in {vocabulary}.")
            more = {"split": row.get("split", "eval"), "part": part, "label": labels[0]}
            yield where, row | more | about.get(row["fname"], {})


def _part(split: str) -> str:
    return "eval" if split == "eval" else "dev"


def _about(tree: Tree, part: str) -> dict[str, TableRow]:
    """Title, uploader and licence of each clip, if the archive of metadata is there."""
    name = f"FSD50K.metadata/{part}_clips_info_FSD50K.json"
    if not tree.has(name):
        return {}
    try:
        clips = json.loads(tree.text(name))
        return {
            clip_id: {key: str(clip.get(key, "")) for key in _ABOUT}
            for clip_id, clip in clips.items()
        }
    except (ValueError, AttributeError) as error:
        raise InputError(f"{tree.path(name)} is not what FSD50K has there: {error}") from None


CORPUS = FSD50K()
