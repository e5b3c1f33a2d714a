"""FSD50K: 51,197 Freesound clips (0.3 to 30 s) with labels from 200 classes of AudioSet."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from datasets_scripts.sources.corpus import CorpusInfo, Download
from datasets_scripts.sources.folder_corpus import TableCorpus
from datasets_scripts.sources.tables import TableRow, read_csv
from datasets_scripts.sources.tree import Tree
from tokenizer.errors import InputError

_DEV, _EVAL = ("train", "val"), ("eval",)
_ABOUT = ("title", "uploader", "license")

# https://zenodo.org/records/4060432
_FILES = (
    ("FSD50K.ground_truth.zip", (), "ca27382c195e37d2269c4c866dd73485"),
    ("FSD50K.metadata.zip", (), "b9ea0c829a411c1d42adb9da539ed237"),
    ("FSD50K.dev_audio.z01", _DEV, "faa7cf4cc076fc34a44a479a5ed862a3"),
    ("FSD50K.dev_audio.z02", _DEV, "8f9b66153e68571164fb1315d00bc7bc"),
    ("FSD50K.dev_audio.z03", _DEV, "1196ef47d267a993d30fa98af54b7159"),
    ("FSD50K.dev_audio.z04", _DEV, "d088ac4e11ba53daf9f7574c11cccac9"),
    ("FSD50K.dev_audio.z05", _DEV, "81356521aa159accd3c35de22da28c7f"),
    ("FSD50K.dev_audio.zip", _DEV, "c480d119b8f7a7e32fdb58f3ea4d6c5a"),
    ("FSD50K.eval_audio.z01", _EVAL, "3090670eaeecc013ca1ff84fe4442aeb"),
    ("FSD50K.eval_audio.zip", _EVAL, "6fa47636c3a3ad5c7dfeba99f2637982"),
)

INFO = CorpusInfo(
    name="fsd50k",
    title="FSD50K",
    homepage="https://zenodo.org/records/4060432",
    licence="CC BY 4.0; each clip its own: CC0, CC BY, CC BY-NC or CC Sampling+",
    citation="""@article{fonseca2022fsd50k,
  title = {{FSD50K}: An Open Dataset of Human-Labeled Sound Events},
  author = {Fonseca, Eduardo and Favory, Xavier and Pons, Jordi and Font, Frederic and
    Serra, Xavier},
  journal = {IEEE/ACM Transactions on Audio, Speech, and Language Processing},
  volume = {30},
  pages = {829--852},
  year = {2022},
  doi = {10.1109/TASLP.2021.3133208},
}""",
    splits=(*_DEV, *_EVAL),
    label_kind="the first of the clip's classes; all of them are in the metadata",
    sampling_rate=44_100,
    downloads=tuple(
        Download(f"https://zenodo.org/records/4060432/files/{name}", name, splits, f"md5:{md5}")
        for name, splits, md5 in _FILES
    ),
)


class FSD50K(TableCorpus):
    """Expects the folders that the archives unpack to."""

    INFO = INFO
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

    def rows(self, tree: Tree, split: str, **_: Any) -> Iterator[tuple[str, TableRow]]:
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
    return "dev" if split in _DEV else "eval"


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
