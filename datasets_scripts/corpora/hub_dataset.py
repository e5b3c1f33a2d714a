"""Any dataset that `datasets` loads: by its name on the hub, or from a folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets_scripts.corpora import read_info
from datasets_scripts.sources.corpus import (
    AudioBytes,
    ClipAudio,
    Corpus,
    CorpusClip,
    CorpusInfo,
    Missing,
    RemoteFile,
)
from datasets_scripts.sources.listing import not_text
from datasets_scripts.sources.tables import COLUMN_OPTIONS, TextColumns, as_row, own_columns
from datasets_scripts.sources.tree import is_address
from tokenizer.errors import InputError, MissingPackageError, import_extra
from tokenizer.saving import dataset_errors

INFO = read_info(
    "hub_dataset",
    options={
        "config": "name of the dataset's configuration",
        "revision": "commit, branch or tag; give a commit to get the same rows for ever",
        "streaming": "true: read it over the network, without a copy; default: false",
        "audio_column": "default: the first column of audio",
        "id_column": "default: the number of the row",
    }
    | COLUMN_OPTIONS,
    choices={"streaming": ("true", "false")},
)


class HubDataset(Corpus):
    """Any dataset that `datasets` loads; title, licence and citation are its own.

    ``root`` is the name of a dataset on the hub, a folder that `datasets.load_dataset` takes, or
    one that ``save_to_disk`` has written. `datasets` downloads what it reads, and keeps it.
    """

    INFO = INFO

    def describe(
        self, root: str | Path, config: str | None = None, revision: str | None = None, **_: str
    ) -> CorpusInfo:
        """See `Corpus.describe`."""
        saved = _saved(root)
        if saved is not None:
            return _info(root, tuple(saved), next(iter(saved.values())).info)
        builder = _datasets().load_dataset_builder(str(root), config, revision=revision)
        return _info(root, _split_names(root, config, revision), builder.info)

    def prepare(
        self,
        root: str | Path,
        split: str,
        config: str | None = None,
        revision: str | None = None,
        **options: str,
    ) -> Iterator[CorpusClip | Missing]:
        """See `Corpus.prepare`."""
        INFO.check_options(options)
        saved = _saved(root)
        splits = _split_names(root, config, revision) if saved is None else tuple(saved)
        replace(INFO, title=str(root), splits=splits).check_split(split)
        if saved is not None:
            dataset = saved[split]
        else:
            streaming = options.get("streaming") == "true"
            dataset = _load(str(root), config, split, revision, streaming=streaming)
        audio = _audio_column(dataset, options.get("audio_column"))
        named = [options[name] for name in ("caption_column", "id_column") if name in options]
        _check_columns(dataset, named)
        return _clips(dataset, audio, options.get("id_column"), own_columns(options))


def _datasets() -> Any:
    return import_extra("datasets", "hub_dataset", "datasets")


def _split_names(root: str | Path, config: str | None, revision: str | None) -> tuple[str, ...]:
    return tuple(_datasets().get_dataset_split_names(str(root), config, revision=revision))


def _load(
    name: str, config: str | None, split: str, revision: str | None, *, streaming: bool
) -> Any:
    datasets = _datasets()
    with dataset_errors(name):
        try:
            return datasets.load_dataset(
                name, config, split=split, revision=revision, streaming=streaming
            )
        except datasets.exceptions.DatasetGenerationError as error:
            if isinstance(error.__cause__, ImportError):
                raise MissingPackageError(
                    f"`datasets` cannot store {name}: {error.__cause__} Or use the option"
                    " streaming=true."
                ) from error
            raise


def _encoded(dataset: Any, column: str) -> Any:
    """The dataset with audio as it is: to decode it would need torchcodec, and mix channels."""
    datasets = _datasets()
    if isinstance(dataset, datasets.Dataset):
        return dataset.cast_column(column, datasets.Audio(decode=False))

    class Encoded(datasets.Audio):
        """Audio whose encoding does not import torchcodec, which paths and bytes do not need."""

        def encode_example(self, value: Any) -> dict[str, Any]:
            if isinstance(value, (str, Path)):
                return {"bytes": None, "path": str(value)}
            if isinstance(value, bytes):
                return {"bytes": value, "path": None}
            return {"bytes": value.get("bytes"), "path": value.get("path")}

    return dataset.cast_column(column, Encoded(decode=False))


def _saved(root: str | Path) -> dict[str, Any] | None:
    """The splits of a folder that ``save_to_disk`` has written; None for anything else."""
    folder = Path(root)
    if not any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return None
    dataset = _datasets().load_from_disk(str(folder))
    return dict(dataset) if isinstance(dataset, dict) else {str(dataset.split or "train"): dataset}


def _info(root: str | Path, splits: tuple[str, ...], info: Any) -> CorpusInfo:
    name = str(root)
    on_hub = not Path(name).exists()
    return replace(
        INFO,
        title=name if on_hub else Path(name).name,
        homepage=info.homepage or (f"{INFO.homepage}/{name}" if on_hub else INFO.homepage),
        licence=info.license or INFO.licence,
        citation=info.citation or "",
        splits=splits,
    )


def _audio_column(dataset: Any, requested: str | None) -> str:
    if requested is not None:
        _check_columns(dataset, [requested])
        return requested
    features = dataset.features or {}
    audio_columns = [name for name, kind in features.items() if type(kind).__name__ == "Audio"]
    if not audio_columns and "audio" in (dataset.column_names or []):
        audio_columns = ["audio"]
    if not audio_columns:
        raise InputError(
            f"The dataset has no column of audio, only {dataset.column_names}: use the option"
            " audio_column."
        )
    return audio_columns[0]


def _check_columns(dataset: Any, names: list[str]) -> None:
    for name in names:
        if name not in (dataset.column_names or [name]):
            raise InputError(f"The dataset has no column {name!r}, only {dataset.column_names}.")


def _clips(
    dataset: Any, audio_column: str, id_column: str | None, columns: TextColumns
) -> Iterator[CorpusClip | Missing]:
    datasets = _datasets()
    dataset = _encoded(dataset, audio_column)
    features = dataset.features or {}
    # Pictures, videos and arrays are no metadata.
    plain = [
        name
        for name, kind in features.items()
        if isinstance(kind, (datasets.Value, datasets.ClassLabel)) and "binary" not in kind.dtype
    ]
    if features:
        dataset = dataset.select_columns([audio_column, *plain])
    seen = set[str]()
    for number, values in enumerate(dataset):
        audio = values.pop(audio_column)
        row = as_row({name: _named(value, features.get(name)) for name, value in values.items()})
        clip_id = f"{number:09d}" if id_column is None else row.get(id_column, "")
        if id_column is not None:
            if not clip_id or clip_id in seen:
                problem = "a second time" if clip_id else "empty"
                yield Missing(f"{number:09d}", f"its {id_column} {clip_id!r} is there {problem}")
                continue
            seen.add(clip_id)
        content = _content(audio, clip_id)
        if content is None:
            yield Missing(clip_id, f"row {number} has no audio")
            continue
        fields = columns.fields(row, (id_column,))
        yield not_text(clip_id, fields) or CorpusClip(clip_id, content, **fields)


def _named(value: Any, kind: Any) -> Any:
    """The name of a class instead of its number; -1 stands for none."""
    if type(kind).__name__ != "ClassLabel" or not isinstance(value, int):
        return value
    return kind.int2str(value) if value >= 0 else None


def _content(audio: Any, clip_id: str) -> ClipAudio | None:
    audio = audio or {}
    path = audio.get("path")
    if audio.get("bytes") is not None:
        return AudioBytes(audio["bytes"], str(path or clip_id))
    if not path:
        return None
    return RemoteFile(path) if is_address(path) else Path(path)


CORPUS = HubDataset()
