"""From a corpus to a dataset of tokens, on this machine.

    manifest = prepare_dataset("audiofolder", "my_audio", "my_tokens", options=RowOptions(...))

Killed at any moment and called again, it resumes after the last whole shard.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from tqdm import tqdm

from datasets_scripts.dataset.manifest import Manifest
from datasets_scripts.dataset.shards import split_name
from datasets_scripts.preparation.job import Job, Progress, clean_up, finish_split, start_job
from datasets_scripts.preparation.options import Request, Resources
from datasets_scripts.preparation.workers import write_in_processes
from datasets_scripts.preparation.writing import write_shards
from tokenizer.errors import InputError

# Writes what is left of a split and adds it to the progress; returns the number of all its shards.
Write = Callable[[Job, str, Progress], int]


def prepare_splits(job: Job, write: Write, bar: tqdm) -> Manifest:
    """Prepares what is left of a job, one split after another, and returns the manifest.

    The bar shows clips; ``write`` tells it of those that it prepares.
    """
    for split in job.splits:
        name = split_name(split)
        if name in job.header.splits:
            clean_up(job.folder, name)  # If it was killed in the middle of that.
            continue
        progress = Progress(job, split)
        bar.update(sum(record.clips for record in progress.records.values()))
        job = finish_split(job, split, write(job, split, progress), progress)
    return job.header


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

    def write(job: Job, split: str, progress: Progress) -> int:
        plan = job.plan(split, progress.records)
        how: Any = {"strict": requested.strict}
        if num_proc == 1:
            shards = write_shards(job, split, plan, resources, on_clip=bar.update, **how)
        else:
            how |= {"num_proc": num_proc, "device": requested.device}
            shards = write_in_processes(job, split, plan, resources, **how)
        # Closed here and now when something fails: its threads and processes must not live on.
        with closing(shards):
            for shard in shards:
                progress.add(shard)
                if num_proc > 1:
                    bar.update(shard.record.clips)
        return plan.num_shards

    with tqdm(desc=f"prepare {corpus}", unit="clip", disable=not requested.progress) as bar:
        return prepare_splits(job, write, bar)
