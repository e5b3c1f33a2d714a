"""Prepared datasets for others: on the Hugging Face hub, or as `datasets` saves them to disk."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from datasets_scripts.dataset.manifest import MANIFEST, PROGRESS, read_manifest
from datasets_scripts.dataset.storage import Folder
from tokenizer.errors import FileError, InputError


def push_dataset(folder: str | Path, repo: str, *, private: bool = False) -> str:
    """Uploads a prepared dataset of this machine, as it is, to the hub as "user/name".

    Log in first: ``hf auth login``. What the hub has already is not uploaded again. ``private``
    counts if the repository is made now. Returns its address.

    Raises:
        ValueError: If there is no complete dataset in the folder.
    """
    from huggingface_hub import HfApi

    _require_complete(folder)
    api = HfApi()
    address = api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
    api.upload_folder(
        repo_id=repo,
        repo_type="dataset",
        folder_path=str(folder),
        ignore_patterns=[f"{PROGRESS}/*", ".*", "**/.*"],
        commit_message="Prepared by latent-tokenizer",
    )
    return str(address)


def save_to_disk(folder: str | Path, out: str | Path) -> None:
    """Writes a prepared dataset as `datasets.load_from_disk` reads it (a `DatasetDict`).

    The dataset may be at an fsspec address; ``out`` is a folder that does not exist.

    Raises:
        ValueError: If there is no complete dataset in the folder, or ``out`` exists.
    """
    import datasets
    from datasets.exceptions import DatasetGenerationError

    splits = _require_complete(folder)
    if Path(out).exists():
        raise InputError(f"{out} exists already: name a folder that does not.")
    source = Folder(folder)
    files = {split: [source.path(shard) for shard in shards] for split, shards in splits.items()}
    parent = Path(out).absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    # The cache would hold everything a second time, and longer than it is needed. That it cannot be
    # removed changes nothing of what was written.
    shared: Any = {"dir": parent, "prefix": ".saving-", "ignore_cleanup_errors": True}
    with tempfile.TemporaryDirectory(**shared) as partial:
        try:
            dataset: Any = datasets.load_dataset(
                "parquet", data_files=files, cache_dir=f"{partial}/cache"
            )
        except DatasetGenerationError as error:
            raise FileError(f"Cannot write {out}: {error.__cause__ or error}.") from error
        dataset.save_to_disk(f"{partial}/saved")
        Path(f"{partial}/saved").replace(out)


def _require_complete(folder: str | Path) -> dict[str, list[str]]:
    manifest = read_manifest(Folder(folder))
    if manifest is None or not manifest.complete:
        raise InputError(
            f"{folder} holds no {MANIFEST} of a complete dataset: run `prepare` to its end first."
        )
    return {
        split: [shard.file for shard in manifest.shards if shard.split == split]
        for split in manifest.splits
    }
