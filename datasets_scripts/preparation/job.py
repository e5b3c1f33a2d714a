"""A preparation, from the checks before anything is written to the manifest of a whole split."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets_scripts.corpora import describe_corpus, find_corpus
from datasets_scripts.dataset.card import CARD, make_card
from datasets_scripts.dataset.manifest import (
    MANIFEST,
    PROGRESS,
    STATISTICS,
    Manifest,
    ShardRecord,
    progress_files,
    read_manifest,
    read_progress,
)
from datasets_scripts.dataset.opening import read_statistics
from datasets_scripts.dataset.shards import DATA, split_name
from datasets_scripts.dataset.storage import Folder
from datasets_scripts.dataset.summary import ShardSums, Statistics, total
from datasets_scripts.preparation.options import Request, RowOptions
from datasets_scripts.preparation.planning import Plan
from datasets_scripts.sources.corpus import CorpusInfo
from tokenizer import LatentTokenizer, device_of, load_tokenizer
from tokenizer.errors import InputError, StateError


@dataclass(frozen=True)
class ShardResult:
    """A shard that was written: its record, and the statistics of its rows."""

    record: ShardRecord
    statistics: Statistics


class Progress:
    """The shards of a split that are whole: ``records`` by index, and sums of their statistics."""

    def __init__(self, job: Job, split: str) -> None:
        self.records: dict[int, ShardRecord] = {}
        self.sums = ShardSums(job.no_statistics())
        for record, statistics in read_progress(job.folder, split_name(split)):
            self.add(ShardResult(record, Statistics.from_json(statistics)))

    def add(self, shard: ShardResult) -> None:
        """Adds a shard."""
        self.records[shard.record.index] = shard.record
        self.sums.add(shard.record.index, shard.statistics)


@dataclass(frozen=True)
class Job:
    """A preparation: what is read, what is made of it, where it goes.

    ``header`` is the manifest; the shards of unfinished splits are not in it.
    """

    info: CorpusInfo
    root: str
    splits: tuple[str, ...]
    options: RowOptions
    corpus_options: dict[str, str]
    tokenizer: LatentTokenizer
    folder: Folder
    header: Manifest

    def plan(self, split: str, done: dict[int, ShardRecord]) -> Plan:
        """The clips of a split that are still to do."""
        known = {index: (record.clips, record.clip_ids) for index, record in done.items()}
        items = find_corpus(self.info.name).prepare(self.root, split, **self.corpus_options)
        return Plan(split, items, self.options.clips_per_shard, known)

    def check_finished(self) -> None:
        """Raises ValueError if a split that is whole has other clips in the corpus by now."""
        for split in self.splits:
            name = split_name(split)
            if name in self.header.splits:
                shards = (shard for shard in self.header.shards if shard.split == name)
                self.plan(split, {shard.index: shard for shard in shards}).check_whole()

    def no_statistics(self) -> Statistics:
        """Sums over no rows, of the right sizes."""
        return Statistics(self.header.codebook_sizes, self.header.row_format().latent_dim or 0)


def start_job(request: Request, device: str = "cpu") -> Job:
    """Checks a request, also against what is in its folder already, and begins a manifest there.

    Raises:
        FileNotFoundError: If there is nothing of the corpus at ``root``.
        ValueError: If there is no such corpus or split, the tokenizer cannot do what is requested,
            or ``out`` was prepared with something else, or the corpus has changed since.
    """
    corpus_options = dict(request.corpus_options or {})
    info = describe_corpus(request.corpus, request.root, corpus_options)
    splits = tuple(dict.fromkeys(info.splits if request.splits is None else request.splits))
    for split in splits:
        info.check_split(split)
    tokenizer, name = _load(request.tokenizer)
    tokenizer = tokenizer.to(device_of(device))  # pyright: ignore[reportArgumentType]
    options = (request.options or RowOptions()).resolved(tokenizer)
    sizes = tokenizer.codebook_sizes[: options.n_codebooks] if options.codes else ()
    header = Manifest(
        corpus=request.corpus,
        root=str(request.root),
        tokenizer=name,
        fingerprint=tokenizer.fingerprint,
        codes_fingerprint=tokenizer.codes_fingerprint if options.codes else None,
        sampling_rate=tokenizer.sampling_rate,
        hop_length=tokenizer.hop_length,
        frame_rate=tokenizer.frame_rate,
        latent_dim=tokenizer.latent_dim,
        channels_coded_jointly=tokenizer.autoencoder.num_channels,
        codebook_sizes=tuple(sizes),
        options=options.to_json() | {"corpus_options": corpus_options},
    )
    folder = Folder(request.out)
    existing = read_manifest(folder)
    if existing is not None and (differences := header.differences(existing)):
        raise InputError(
            f"{folder} was begun with other settings ({'; '.join(differences)}). Use another --out,"
            " or the same settings."
        )
    if existing is None and folder.names(DATA):
        raise InputError(f"{folder.path(DATA)} holds files of something else: use another --out.")
    header = existing or header
    job = Job(info, str(request.root), splits, options, corpus_options, tokenizer, folder, header)
    # Before anything is written: a dataset that was complete stays so if its corpus is refused.
    job.check_finished()
    if not set(map(split_name, splits)) <= set(header.splits):
        job = replace(job, header=replace(header, complete=False))
        folder.write_json(MANIFEST, job.header.to_json())
    for place in ("", DATA, PROGRESS):
        folder.remove_partial(place)
    return job


def _load(tokenizer: str | Path | LatentTokenizer | None) -> tuple[LatentTokenizer, str | None]:
    """A tokenizer, and its name in the manifest."""
    if isinstance(tokenizer, LatentTokenizer):
        return tokenizer, str(tokenizer.name_or_path) or "unnamed"
    return load_tokenizer(tokenizer), None if tokenizer is None else str(tokenizer)


def finish_split(job: Job, split: str, num_shards: int, progress: Progress) -> Job:
    """Moves the records of a split that is whole into the manifest, with statistics and card.

    Returns the job with the new manifest. Raises RuntimeError if a shard is not there, or the split
    has no rows at all.
    """
    name = split_name(split)
    records_by_index = progress.records
    if missing := sorted(set(range(num_shards)) - set(records_by_index)):
        raise StateError(f"Shards {missing} of {split!r} were not written: run it again.")
    records = [records_by_index[index] for index in range(num_shards)]
    failures = tuple(failure for record in records for failure in record.failures)
    if not sum(record.rows for record in records):
        first = f" The first: {failures[0].id}: {failures[0].reason}" if failures else ""
        raise StateError(
            f"No clip of {job.info.name}'s split {split!r} in {job.root} could be prepared.{first}"
            f" Remove {job.folder} before you try again."
        )
    header = replace(
        job.header,
        splits=(*job.header.splits, name),
        shards=(*job.header.shards, *records),
        failures=(*job.header.failures, *failures),
    )
    header = replace(header, complete=set(map(split_name, job.splits)) <= set(header.splits))
    sums = progress.sums.total()
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
    folder.remove_all(progress_files(folder, split))
    if not folder.names(PROGRESS):
        folder.remove_folder(PROGRESS)
