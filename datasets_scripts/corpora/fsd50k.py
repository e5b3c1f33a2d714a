"""FSD50K: 51,197 Freesound clips (0.3 to 30 s) with labels from 200 classes of AudioSet."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from datasets_scripts.sources.corpus import Clip, CorpusInfo, Download, Missing
from datasets_scripts.sources.download import locate_or_download
from datasets_scripts.sources.listing import Listing
from datasets_scripts.sources.tables import read_csv, without_empty
from datasets_scripts.sources.tree import Tree, checked_name, find_tree
from tokenizer.errors import InputError, MissingFileError

_DEV, _EVAL = ("train", "val"), ("eval",)

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
_TRUTH = "FSD50K.ground_truth"


def describe(root: str | Path) -> CorpusInfo:
    """See `Corpus.describe`."""
    tree = _find(root)
    there = tuple(split for split in INFO.splits if tree.is_folder(_audio_folder(split)))
    return replace(INFO, splits=there)


def download(
    root: str | Path, splits: Sequence[str] | None = None, *, progress: bool = False, **options: str
) -> Path:
    """See `Corpus.download`."""
    return locate_or_download(INFO, root, splits, partial(describe, **options), progress=progress)


def prepare(root: str | Path, split: str) -> Iterator[Clip | Missing]:
    """See `Corpus.prepare`; expects the folders that the archives unpack to."""
    INFO.check_split(split)
    tree = _find(root)
    if not tree.is_folder(_audio_folder(split)):
        raise MissingFileError(f"{tree} has no folder {_audio_folder(split)}: download it first.")
    return _clips(tree, split)


def _find(root: str | Path) -> Tree:
    return find_tree(root, INFO, _TRUTH, ("FSD50K",))


def _part(split: str) -> str:
    return "dev" if split in _DEV else "eval"


def _audio_folder(split: str) -> str:
    return f"FSD50K.{_part(split)}_audio"


def _clips(tree: Tree, split: str) -> Iterator[Clip | Missing]:
    part = _part(split)
    vocabulary = f"{_TRUTH}/vocabulary.csv"
    columns = ("index", "label", "mid")
    known = {row["label"] for _, row in read_csv(tree, vocabulary, columns, columns=columns)}
    about = _about(tree, part)
    listing = Listing(tree)
    needed = ("fname", "labels", "mids", *(("split",) if part == "dev" else ()))
    for where, row in read_csv(tree, f"{_TRUTH}/{part}.csv", needed):
        if row.get("split", "eval") not in INFO.splits:
            raise InputError(f"{tree}/{where}: there is no split {row['split']!r}.")
        if row.get("split", "eval") != split:
            continue
        labels = row["labels"].split(",")
        if unknown := [label for label in labels if label not in known]:
            raise InputError(f"{tree}/{where}: {unknown[0]!r} is not in {vocabulary}.")
        name = checked_name(row["fname"], f"{tree}/{where}")
        yield listing.clip(
            name,
            f"{_audio_folder(split)}/{name}.wav",
            where,
            label=labels[0],
            metadata={"labels": row["labels"], "mids": row["mids"]} | about.get(name, {}),
        )


def _about(tree: Tree, part: str) -> dict[str, dict[str, str]]:
    """Title, uploader and licence of each clip, if the archive of metadata is there."""
    name = f"FSD50K.metadata/{part}_clips_info_FSD50K.json"
    if not tree.has(name):
        return {}
    try:
        clips = json.loads(tree.text(name))
        return {
            clip_id: without_empty({key: str(clip.get(key, "")) for key in _ABOUT})
            for clip_id, clip in clips.items()
        }
    except (ValueError, AttributeError) as error:
        raise InputError(f"{tree.path(name)} is not what FSD50K has there: {error}") from None


_ABOUT = ("title", "uploader", "license")
