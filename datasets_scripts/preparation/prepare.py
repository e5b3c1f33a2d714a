"""From a corpus to a dataset of tokens: `prepare_dataset` and what it consists of.

    manifest = prepare_dataset("audiofolder", "my_audio", "my_tokens", segment_seconds=10)

Killed at any moment and called again, it goes on from the last whole shard.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from tqdm import tqdm

from datasets_scripts.corpora import describe_corpus, find_corpus
from datasets_scripts.dataset.card import write_card
from datasets_scripts.dataset.manifest import (
    MANIFEST,
    PROGRESS,
    STATISTICS,
    Failure,
    Manifest,
    ShardRecord,
    read_manifest,
    read_progress,
    read_shard_statistics,
    write_progress,
)
from datasets_scripts.dataset.shards import DATA, shard_name, split_name, writing_shard
from datasets_scripts.dataset.storage import Folder
from datasets_scripts.dataset.summary import Statistics, total
from datasets_scripts.preparation.encoding import Encoded, Task, encode_tasks
from datasets_scripts.preparation.options import Resources, RowOptions
from datasets_scripts.preparation.planning import Plan, check_same
from datasets_scripts.preparation.workers import encode_in_processes
from datasets_scripts.sources.corpus import CorpusClip, CorpusInfo, Missing
from datasets_scripts.sources.ids import IdHash
from tokenizer import LatentTokenizer, device_of, load_tokenizer
from tokenizer.errors import InputError, StateError


@dataclass(frozen=True)
class Job:
    """A preparation: what is read, what is made of it, where it goes.

    Attributes:
        info: What the corpus says of itself.
        root: Folder or address that the corpus is read from.
        splits: Those to prepare.
        options: What the rows hold.
        corpus_options: Keyword arguments for the corpus (`CorpusInfo.options`).
        tokenizer: Makes the rows.
        folder: Where the dataset goes.
        header: The manifest without shards.
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
        return Plan(split, self._items(split), self.options.clips_per_shard, known)

    def check_finished(self) -> None:
        """Raises ValueError if a split that is whole has other clips in the corpus by now."""
        for split in self.splits:
            name = split_name(split)
            if name in self.header.splits:
                records = (record for record in self.header.shards if record.split == name)
                then = [(record.clips, record.clip_ids) for record in records]
                check_same(split, self._items(split), self.options.clips_per_shard, then)

    def _items(self, split: str) -> Iterator[CorpusClip | Missing]:
        corpus = find_corpus(self.info.name)
        return corpus.prepare(self.root, split, **self.corpus_options)

    def no_statistics(self) -> Statistics:
        """Sums over no rows, of the right sizes."""
        return Statistics(self.header.codebook_sizes, self.header.row_format().latent_dim or 0)


def start_job(
    corpus: str,
    root: str | Path,
    out: str | Path,
    *,
    tokenizer: str | Path | LatentTokenizer | None = None,
    splits: Sequence[str] | None = None,
    options: RowOptions | None = None,
    corpus_options: Mapping[str, str] | None = None,
    device: str = "cpu",
) -> Job:
    """Checks what was asked for, against what is in ``out`` already, and begins a manifest there.

    Args:
        corpus: Name of the corpus.
        root: Where it is.
        out: Folder, or fsspec address, of the dataset.
        tokenizer: A tokenizer, its folder or hub id; None for the bundled one.
        splits: Which splits; None for all that the corpus has.
        options: What the rows hold; default: codes of all codebooks.
        corpus_options: Keyword arguments for the corpus (`CorpusInfo.options`).
        device: Torch device to encode on.

    Raises:
        FileNotFoundError: If there is nothing of the corpus at ``root``.
        ValueError: If there is no such corpus or split, the tokenizer cannot do what is asked for,
            or ``out`` was prepared with something else, or the corpus has changed since.
    """
    theirs = dict(corpus_options or {})
    info = describe_corpus(corpus, root, theirs)
    wanted = tuple(dict.fromkeys(info.splits if splits is None else splits))
    for split in wanted:
        info.check_split(split)
    made = tokenizer if isinstance(tokenizer, LatentTokenizer) else load_tokenizer(tokenizer)
    made = made.to(device_of(device))  # pyright: ignore[reportArgumentType]
    options = (options or RowOptions()).resolved(made)
    if isinstance(tokenizer, LatentTokenizer):
        name = str(made.name_or_path) or "unnamed"
    else:
        name = None if tokenizer is None else str(tokenizer)
    sizes = made.codebook_sizes[: options.n_codebooks] if options.codes else ()
    header = Manifest(
        corpus=corpus,
        root=str(root),
        tokenizer=name,
        fingerprint=made.fingerprint,
        codes_fingerprint=made.codes_fingerprint if options.codes else None,
        sampling_rate=made.sampling_rate,
        hop_length=made.hop_length,
        frame_rate=made.frame_rate,
        latent_dim=made.latent_dim,
        channels_coded_jointly=made.autoencoder.num_channels,
        codebook_sizes=tuple(sizes),
        options=options.to_json() | {"corpus_options": theirs},
    )
    folder = Folder(out)
    existing = read_manifest(folder)
    if existing is not None and (differences := header.differences(existing)):
        raise InputError(
            f"{folder} was begun with other settings ({'; '.join(differences)}). Use another --out,"
            " or the same settings."
        )
    if existing is None and folder.names(DATA):
        raise InputError(f"{folder.path(DATA)} holds files of something else: use another --out.")
    header = existing or header
    job = Job(info, str(root), wanted, options, theirs, made, folder, header)
    # Before anything is written: a dataset that was complete stays so if its corpus is refused.
    job.check_finished()
    if not set(map(split_name, wanted)) <= set(header.splits):
        job = replace(job, header=replace(header, complete=False))
        folder.write_json(MANIFEST, job.header.to_json())
    for place in ("", DATA, PROGRESS):
        folder.remove_partial(place)
    return job


def write_shard(
    job: Job, split: str, index: int, events: Iterable[Encoded], *, strict: bool
) -> ShardRecord:
    """Writes one shard and then the record of it.

    Args:
        job: The preparation.
        split: The corpus' split.
        index: Number of the shard.
        events: Of its clips, in order; all of them.
        strict: Whether to stop at the first failure.

    Returns:
        The record.

    Raises:
        RuntimeError: At the first clip that could not be encoded, if ``strict``.
    """
    name = split_name(split)
    file = shard_name(name, index)
    ids, failures = IdHash(), []
    clips = rows_of_clip = 0
    statistics = job.no_statistics()
    with writing_shard(job.folder, file, job.header.row_format()) as writer:
        for event in events:
            if event.row is not None:
                writer.write(event.row)
                statistics.add_row(event.row)
                rows_of_clip += 1
                continue
            ids.add(event.clip_id)
            clips += 1
            if event.error is not None:
                if strict:
                    raise StateError(f"--strict: {event.clip_id}: {event.error}")
                failures.append(Failure(name, event.clip_id, event.error, rows_of_clip))
            rows_of_clip = 0
    record = ShardRecord(
        file=file,
        split=name,
        index=index,
        clips=clips,
        rows=writer.num_rows,
        bytes=writer.num_bytes,
        sha256=writer.sha256,
        clip_ids=ids.hexdigest(),
        failures=tuple(failures),
    )
    write_progress(job.folder, record, statistics.to_json())
    return record


def finish_split(job: Job, split: str, num_shards: int) -> Job:
    """Moves the records of a split that is whole into the manifest, with statistics and card.

    Returns:
        The job with the new manifest.

    Raises:
        RuntimeError: If a shard is not there, or the split has no rows at all.
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
    zero = job.no_statistics()
    sums = total(parts, zero.codebook_sizes, zero.latent_dim)
    header = replace(
        job.header,
        splits=(*job.header.splits, name),
        shards=(*job.header.shards, *records),
        failures=(*job.header.failures, *failures),
    )
    header = replace(header, complete=set(map(split_name, job.splits)) <= set(header.splits))
    statistics = add_split(job.folder.read_json(STATISTICS), name, sums, header.sampling_rate)
    job.folder.write_json(STATISTICS, statistics)
    write_card(job.folder, job.info, header, statistics)
    # What makes the split count comes last, and then nothing is left to do but to clean up.
    job.folder.write_json(MANIFEST, header.to_json())
    _clean_up(job.folder, name)
    return replace(job, header=header)


def add_split(
    existing: dict[str, Any] | None, split: str, sums: Statistics, sampling_rate: int
) -> dict[str, Any]:
    """The content of ``statistics.json`` with one split more.

    Returns:
        `Statistics.summary` over all splits, and under ``splits`` for each its summary and sums.
    """
    splits = dict((existing or {}).get("splits", {}))
    splits[split] = sums.summary(sampling_rate) | {"sums": sums.to_json()}
    parts = (Statistics.from_json(part["sums"]) for part in splits.values())
    everything = total(parts, sums.codebook_sizes, sums.latent_dim)
    return everything.summary(sampling_rate) | {"splits": splits}


def _clean_up(folder: Folder, split: str) -> None:
    for name in folder.names(PROGRESS):
        if name.rpartition("-")[0] == split:
            folder.remove(f"{PROGRESS}/{name}")
    if not folder.names(PROGRESS):
        folder.remove_folder(PROGRESS)


# Writes what is left of a split, given the records of its shards that are there; returns the number
# of all its shards.
Write = Callable[[Job, str, dict[int, ShardRecord]], int]


def prepare_splits(job: Job, write: Write, bar: tqdm) -> Manifest:
    """Prepares what is left of a job, one split after another.

    Args:
        job: The preparation.
        write: Writes shards, and tells the bar of their clips.
        bar: Shows clips; it is told of those that earlier runs prepared.

    Returns:
        The manifest.
    """
    for split in job.splits:
        name = split_name(split)
        if name in job.header.splits:
            _clean_up(job.folder, name)  # If it was killed in the middle of that.
            continue
        done = read_progress(job.folder, name)
        bar.update(sum(record.clips for record in done.values()))
        job = finish_split(job, split, write(job, split, done))
    return job.header


def _counted(events: Iterable[Encoded], bar: tqdm) -> Iterator[Encoded]:
    for event in events:
        if event.row is None:
            bar.update()
        yield event


def prepare_dataset(
    corpus: str,
    root: str | Path,
    out: str | Path,
    *,
    tokenizer: str | Path | LatentTokenizer | None = None,
    splits: Sequence[str] | None = None,
    options: RowOptions | None = None,
    corpus_options: Mapping[str, str] | None = None,
    resources: Resources | None = None,
    device: str = "cpu",
    num_proc: int = 1,
    strict: bool = False,
    progress: bool = False,
) -> Manifest:
    """Prepares a corpus on this machine; goes on where an earlier call was stopped.

    Args:
        corpus: Name of the corpus.
        root: Where it is.
        out: Folder, or fsspec address, of the dataset.
        tokenizer: A tokenizer, its folder or hub id; None for the bundled one.
        splits: Which splits; None for all that the corpus has.
        options: What the rows hold; default: codes of all codebooks.
        corpus_options: Keyword arguments for the corpus (`CorpusInfo.options`).
        resources: Memory and threads of each process.
        device: Torch device to encode on; with ``num_proc``, "cuda" stands for all GPUs in turn.
        num_proc: Processes that encode. The rows are the same for any number.
        strict: Whether to stop at the first clip that cannot be read.
        progress: Whether to show a bar.

    Returns:
        The manifest; its ``failures`` lists what could not be prepared.

    Raises:
        ValueError: If there is no such corpus or split, or ``out`` was prepared with something
            else, or the corpus has changed since.
        RuntimeError: With ``strict``, at the first failure; or if nothing at all could be prepared.
    """
    if num_proc < 1:
        raise InputError(f"num_proc={num_proc}; it must be at least 1.")
    job = start_job(
        corpus,
        root,
        out,
        tokenizer=tokenizer,
        splits=splits,
        options=options,
        corpus_options=corpus_options,
        device=device if num_proc == 1 else "cpu",
    )
    used = resources or Resources()

    def encode(tasks: Iterable[Task]) -> Generator[Encoded, None, None]:
        if num_proc == 1:
            return encode_tasks(job.tokenizer, tasks, job.options, used)
        return encode_in_processes(job.tokenizer, tasks, job.options, used, num_proc, device)

    def write(job: Job, split: str, done: dict[int, ShardRecord]) -> int:
        plan = job.plan(split, done)
        per_shard = job.options.clips_per_shard
        # Closed here and now when something fails: its threads and processes must not live on.
        with closing(encode(plan)) as events:
            for shard, its in groupby(events, key=lambda event: event.index // per_shard):
                write_shard(job, split, shard, _counted(its, bar), strict=strict)
        return plan.num_shards

    with tqdm(desc=f"prepare {corpus}", unit="clip", disable=not progress) as bar:
        return prepare_splits(job, write, bar)
