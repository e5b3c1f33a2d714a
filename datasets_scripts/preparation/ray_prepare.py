"""The same preparation on a Ray cluster: one actor per device, a shard at a time.

This process goes through the corpus and hands out shards' worth of clips; actors encode and write
them, by the same code as on one machine. One that dies is started again with the shard it had.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from tqdm import tqdm

from datasets_scripts.dataset.manifest import Manifest
from datasets_scripts.dataset.shards import DATA
from datasets_scripts.preparation.encoding import NumberedClip, encode_clips
from datasets_scripts.preparation.job import Job, Progress, ShardResult, start_job
from datasets_scripts.preparation.options import Request, Resources
from datasets_scripts.preparation.prepare import prepare_splits
from datasets_scripts.preparation.writing import write_shard
from tokenizer import device_of
from tokenizer.errors import InputError, StateError, import_extra


def _ray() -> Any:
    return import_extra("ray", "Preparing on a cluster", "ray,datasets")


def connect(address: str) -> None:
    """Connects to a Ray cluster.

    "local" starts one on this machine; "auto" finds the one this machine belongs to; others are
    "HOST:PORT" or "ray://HOST:PORT". Raises ConnectionError if there is no such cluster.
    """
    ray = _ray()
    ray.init(address, ignore_reinit_error=True, log_to_driver=False)


def prepare_with_ray(
    corpus: str,
    root: str | Path,
    out: str | Path,
    *,
    num_actors: int | None = None,
    cores_per_actor: int = 1,
    **request: Any,
) -> Manifest:
    """`prepare_dataset` on the Ray cluster that is connected, or on a local one.

    ``root`` and ``out`` are the same paths, or fsspec addresses, on every machine. There are
    ``num_actors``, by default one per GPU or per ``cores_per_actor`` cores, which are also its
    threads. ``request`` has the other attributes of `Request`: the tokenizer is sent to the actors,
    and ``device`` is "cpu", or "cuda" for a GPU an actor.

    Raises:
        ImportError: If Ray is not installed.
        ValueError: As `prepare_dataset`; also if the cluster has no device for an actor.
        RuntimeError: As `prepare_dataset`.
    """
    if num_actors is not None and num_actors < 1:
        raise InputError(f"num_actors={num_actors}; it must be at least 1.")
    requested = Request(corpus, root, out, **request)
    device, resources = requested.device, requested.resources or Resources()
    if not device.startswith("cuda"):  # GPUs are the actors', and seldom this machine's.
        device_of(device)
    ray = _ray()
    job = start_job(requested)
    if not ray.is_initialized():
        connect("local")
    count = num_actors or _devices(ray, device, cores_per_actor)
    actor_class = ray.remote(
        num_cpus=cores_per_actor,
        num_gpus=1 if device.startswith("cuda") else 0,
        max_restarts=-1,
        max_task_retries=-1,
    )(_ShardActor)
    shared = ray.put(job)
    actors = [actor_class.remote(shared, resources, device, cores_per_actor) for _ in range(count)]

    def write(job: Job, split: str, progress: Progress) -> int:
        plan = job.plan(split, progress.records)
        groups = groupby(plan, key=lambda clip: clip.index // job.options.clips_per_shard)
        shards = ((split, shard, list(clips), requested.strict) for shard, clips in groups)
        for result in _write_shards(ray, actors, shards):
            progress.add(result)
            bar.update(result.record.clips)
        job.folder.remove_partial(DATA)  # Of actors that died.
        return plan.num_shards

    try:
        with tqdm(desc=f"prepare {corpus}", unit="clip", disable=not requested.progress) as bar:
            return prepare_splits(job, write, bar)
    except ray.exceptions.RayTaskError as error:
        if not isinstance(error.cause, (ValueError, OSError, StateError)):
            raise
        # Ray's own message is pages long.
        raise StateError(str(error.cause)) from error
    finally:
        for actor in actors:
            ray.kill(actor)


def _devices(ray: Any, device: str, cores_per_actor: int) -> int:
    resources = ray.cluster_resources()
    cuda = device.startswith("cuda")
    number = resources.get("GPU", 0) if cuda else resources.get("CPU", 0) // cores_per_actor
    if number < 1:
        raise InputError(
            f"The Ray cluster has no {'GPU' if cuda else 'core'} for an actor: it has"
            f" {dict(resources)}."
        )
    return int(number)


class _ShardActor:
    """Encodes and writes shards; lives on one device."""

    def __init__(self, job: Job, resources: Resources, device: str, cores: int) -> None:
        import torch

        torch.set_num_threads(cores)
        tokenizer: Any = job.tokenizer.to(device_of(device))  # pyright: ignore[reportArgumentType]
        self._job, self._resources = replace(job, tokenizer=tokenizer), resources

    def ready(self) -> None:
        """Returns once the cluster has a place for the actor."""

    def write(self, split: str, shard: int, clips: list[NumberedClip], strict: bool) -> ShardResult:
        """Writes a shard, and then the record of it."""
        job = self._job
        with closing(encode_clips(job.tokenizer, clips, job.options, self._resources)) as events:
            return write_shard(job, split, shard, events, strict=strict)


def _write_shards(ray: Any, actors: list[Any], shards: Iterable[Any]) -> Iterator[ShardResult]:
    """Calls `_ShardActor.write` with each of these arguments, on whichever actor is free."""
    starting = {actor.ready.remote(): actor for actor in actors}
    writing: dict[Any, Any] = {}
    for arguments in shards:
        (done,), _ = ray.wait([*starting, *writing])
        if done in writing:
            yield ray.get(done)
        actor = starting.pop(done, None) or writing.pop(done)
        writing[actor.write.remote(*arguments)] = actor
    while writing:
        (done,), _ = ray.wait([*writing])
        del writing[done]
        yield ray.get(done)
