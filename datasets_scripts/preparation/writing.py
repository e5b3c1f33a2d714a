"""Clips in, shards out: the process or machine that encodes clips also writes their shards."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from itertools import chain

from datasets_scripts.dataset.manifest import Failure, ShardRecord, write_progress
from datasets_scripts.dataset.shards import shard_name, split_name, writing_shard
from datasets_scripts.preparation.encoding import Encoded, NumberedClip, encode_clips
from datasets_scripts.preparation.job import Job, ShardResult
from datasets_scripts.preparation.options import Resources
from datasets_scripts.sources.ids import IdHash
from tokenizer.errors import StateError


def write_shards(
    job: Job,
    split: str,
    clips: Iterable[NumberedClip],
    resources: Resources,
    *,
    strict: bool,
    on_clip: Callable[[], object] = lambda: None,
) -> Generator[ShardResult, None, None]:
    """Encodes clips and writes their shards, which it yields when they are whole.

    Of each shard it gets all clips, one after another. ``on_clip`` is called after each clip.
    """
    per_shard = job.options.clips_per_shard

    def of_shard(events: Iterable[Encoded]) -> Iterator[Encoded]:
        # The last shard of a split may have fewer clips: it ends with them.
        for event in events:
            yield event
            if event.row is None:
                on_clip()
                if (event.index + 1) % per_shard == 0:
                    return

    with closing(encode_clips(job.tokenizer, clips, job.options, resources)) as events:
        for first in events:
            shard = of_shard(chain((first,), events))
            yield write_shard(job, split, first.index // per_shard, shard, strict=strict)


def write_shard(
    job: Job, split: str, index: int, events: Iterable[Encoded], *, strict: bool
) -> ShardResult:
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
    return ShardResult(record, statistics)
