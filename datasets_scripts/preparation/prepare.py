"""From a corpus to a dataset of tokens, on this machine.

    manifest = prepare_dataset("audiofolder", "my_audio", "my_tokens", options=RowOptions(...))

Killed at any moment and called again, it resumes after the last whole shard.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import Any

from tqdm import tqdm

from datasets_scripts.dataset.manifest import (
    Failure,
    Manifest,
    ShardRecord,
    read_progress,
    write_progress,
)
from datasets_scripts.dataset.shards import shard_name, split_name, writing_shard
from datasets_scripts.preparation.encoding import Encoded, NumberedClip, encode_clips
from datasets_scripts.preparation.job import Job, clean_up, finish_split, start_job
from datasets_scripts.preparation.options import Request, Resources
from datasets_scripts.preparation.workers import encode_in_processes
from datasets_scripts.sources.ids import IdHash
from tokenizer.errors import InputError, StateError


def write_shard(
    job: Job, split: str, index: int, events: Iterable[Encoded], *, strict: bool
) -> ShardRecord:
    """Writes one shard, of all events of its clips in order, and then the record of it.

    Raises RuntimeError at the first clip that could not be encoded, if ``strict``.
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


# Writes what is left of a split, given the records of its shards that are there; returns the number
# of all its shards.
Write = Callable[[Job, str, dict[int, ShardRecord]], int]


def prepare_splits(job: Job, write: Write, bar: tqdm) -> Manifest:
    """Prepares what is left of a job, one split after another, and returns the manifest.

    The bar shows clips; ``write`` tells it of those that it prepares.
    """
    for split in job.splits:
        name = split_name(split)
        if name in job.header.splits:
            clean_up(job.folder, name)  # If it was killed in the middle of that.
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
    corpus: str, root: str | Path, out: str | Path, *, num_proc: int = 1, **request: Any
) -> Manifest:
    """Prepares a corpus on this machine; resumes where an earlier call was stopped.

    Args:
        corpus: Name of the corpus.
        root: Where it is.
        out: Folder, or fsspec address, of the dataset.
        num_proc: Processes that encode. The rows are the same for any number.
        **request: The other attributes of `Request`: ``tokenizer``, ``splits``, ``options``,
            ``corpus_options``, ``resources``, ``device``, ``strict``, ``progress``.

    Returns:
        The manifest; its ``failures`` lists what could not be prepared.

    Raises:
        ValueError: If there is no such corpus or split, or ``out`` was prepared with something
            else, or the corpus has changed since.
        RuntimeError: With ``strict``, at the first failure; or if nothing at all could be prepared.
    """
    if num_proc < 1:
        raise InputError(f"num_proc={num_proc}; it must be at least 1.")
    requested = Request(corpus, root, out, **request)
    resources = requested.resources or Resources()
    job = start_job(requested, requested.device if num_proc == 1 else "cpu")

    def encode(clips: Iterable[NumberedClip]) -> Generator[Encoded, None, None]:
        if num_proc == 1:
            return encode_clips(job.tokenizer, clips, job.options, resources)
        return encode_in_processes(
            job.tokenizer, clips, job.options, resources, num_proc, requested.device
        )

    def write(job: Job, split: str, done: dict[int, ShardRecord]) -> int:
        plan = job.plan(split, done)
        per_shard = job.options.clips_per_shard
        # Closed here and now when something fails: its threads and processes must not live on.
        with closing(encode(plan)) as events:
            for shard, group in groupby(events, key=lambda event: event.index // per_shard):
                write_shard(job, split, shard, _counted(group, bar), strict=requested.strict)
        return plan.num_shards

    with tqdm(desc=f"prepare {corpus}", unit="clip", disable=not requested.progress) as bar:
        return prepare_splits(job, write, bar)
