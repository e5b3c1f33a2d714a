"""The end of a split: its records become the manifest, the statistics and the card."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from datasets_scripts.dataset.card import CARD, make_card
from datasets_scripts.dataset.manifest import (
    MANIFEST,
    PROGRESS,
    STATISTICS,
    read_progress,
    read_shard_statistics,
)
from datasets_scripts.dataset.opening import read_statistics
from datasets_scripts.dataset.shards import split_name
from datasets_scripts.dataset.storage import Folder
from datasets_scripts.dataset.summary import Statistics, total
from datasets_scripts.preparation.job import Job
from tokenizer.errors import StateError


def finish_split(job: Job, split: str, num_shards: int) -> Job:
    """Moves the records of a split that is whole into the manifest, with statistics and card.

    Returns the job with the new manifest. Raises RuntimeError if a shard is not there, or the split
    has no rows at all.
    """
    name = split_name(split)
    found = read_progress(job.folder, name)
    if missing := sorted(set(range(num_shards)) - set(found)):
        raise StateError(f"Shards {missing} of {split!r} were not written: run it again.")
    records = [found[index] for index in range(num_shards)]
    failures = tuple(failure for record in records for failure in record.failures)
    if not sum(record.rows for record in records):
        first = f" The first: {failures[0].id}: {failures[0].reason}" if failures else ""
        raise StateError(
            f"No clip of {job.info.name}'s split {split!r} in {job.root} could be prepared.{first}"
            f" Remove {job.folder} before you try again."
        )
    parts = (Statistics.from_json(read_shard_statistics(job.folder, record)) for record in records)
    sums = total(parts, job.no_statistics())
    header = replace(
        job.header,
        splits=(*job.header.splits, name),
        shards=(*job.header.shards, *records),
        failures=(*job.header.failures, *failures),
    )
    header = replace(header, complete=set(map(split_name, job.splits)) <= set(header.splits))
    statistics = add_split(read_statistics(job.folder, header), name, sums, header.sampling_rate)
    job.folder.write_json(STATISTICS, statistics)
    job.folder.write(CARD, make_card(job.info, header, statistics))
    # What makes the split count comes last, and then nothing is left to do but to clean up.
    job.folder.write_json(MANIFEST, header.to_json())
    clean_up(job.folder, name)
    return replace(job, header=header)


def add_split(
    existing: dict[str, Any] | None, split: str, sums: Statistics, sampling_rate: int
) -> dict[str, Any]:
    """The content of ``statistics.json`` with one split more.

    `Statistics.summary` over all splits, and under ``splits`` for each its summary and sums.
    """
    splits = dict((existing or {}).get("splits", {}))
    splits[split] = sums.summary(sampling_rate) | {"sums": sums.to_json()}
    parts = (Statistics.from_json(part["sums"]) for part in splits.values())
    everything = total(parts, Statistics(sums.codebook_sizes, sums.latent_dim))
    return everything.summary(sampling_rate) | {"splits": splits}


def clean_up(folder: Folder, split: str) -> None:
    """Removes the records of a split that the manifest has."""
    for name in folder.names(PROGRESS):
        if name.rpartition("-")[0] == split:
            folder.remove(f"{PROGRESS}/{name}")
    if not folder.names(PROGRESS):
        folder.remove_folder(PROGRESS)
