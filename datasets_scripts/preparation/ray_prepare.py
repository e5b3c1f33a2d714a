"""The same preparation on a Ray cluster: one actor per device, a shard at a time.

A task goes through the corpus and hands out shards' worth of clips; actors encode and write them,
by the same code as on one machine.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from tqdm import tqdm

from datasets_scripts.dataset.manifest import Manifest, ShardRecord
from datasets_scripts.dataset.shards import DATA
from datasets_scripts.preparation.encoding import encode_clips
from datasets_scripts.preparation.job import Job, start_job
from datasets_scripts.preparation.options import Request, Resources
from datasets_scripts.preparation.prepare import prepare_splits, write_shard
from tokenizer import device_of
from tokenizer.errors import InputError, StateError, import_extra

# Another share of a core than the actors': Ray Data would else run both steps in the same actor.
_READER_CORES = 0.5

# What a row between the steps stands for: a shard to write, or that was written; that there are no
# more, with their number; what went wrong.
_SHARD, _END, _ERROR = "shard", "end", "error"


def _ray() -> Any:
    import_extra("ray.data", "Preparing on a cluster", "ray,datasets")
    import ray

    return ray


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

    Args:
        corpus: Name of the corpus.
        root: Where it is: the same path, or an fsspec address, on every machine.
        out: Folder that all machines share, or fsspec address.
        num_actors: How many. Default: one per GPU, or per ``cores_per_actor`` cores.
        cores_per_actor: Cores, and threads, of each.
        **request: The other attributes of `Request`; the tokenizer is sent to the actors, and
            ``device`` is "cpu", or "cuda" for a GPU an actor.

    Returns:
        The manifest.

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
    pool = num_actors or _devices(ray, device, cores_per_actor)
    settings = {"num_cpus": cores_per_actor, "num_gpus": 1 if device.startswith("cuda") else 0}

    def write(job: Job, split: str, done: dict[int, ShardRecord]) -> int:
        rows = _shards(ray, job, split, done, resources, device, pool, settings)
        num_shards = 0
        with closing(rows):  # Else the cluster would work on after an error.
            for row in rows:
                if row["kind"] == _ERROR:
                    raise StateError(row["text"])
                if row["kind"] == _END:
                    num_shards = row["shard"]
                if requested.strict and row["text"]:
                    raise StateError(f"--strict: {row['text']}")
                bar.update(row["clips"])
        job.folder.remove_partial(DATA)  # Of actors that died.
        return num_shards

    with tqdm(desc=f"prepare {corpus}", unit="clip", disable=not requested.progress) as bar:
        return prepare_splits(job, write, bar)


def _devices(ray: Any, device: str, cores_per_actor: int) -> int:
    found = ray.cluster_resources()
    if device.startswith("cuda"):
        number = int(found.get("GPU", 0))
    else:
        # Half a core is for whoever goes through the corpus.
        number = int((found.get("CPU", 0) - _READER_CORES) // cores_per_actor)
    if number < 1:
        raise InputError(
            f"The Ray cluster has no {'GPU' if device.startswith('cuda') else 'core'} for an actor:"
            f" it has {dict(found)}."
        )
    return number


def _plan(
    _: dict[str, Any], *, job: Any, split: str, done: dict[int, ShardRecord]
) -> Iterator[dict[str, Any]]:
    """Goes through a split and hands out the clips of one shard after another."""
    here: Job = _ray().get(job)
    per_shard = here.options.clips_per_shard
    try:
        todo = here.plan(split, done)
        for shard, clips in groupby(todo, key=lambda clip: clip.index // per_shard):
            yield {"shard": shard, "kind": _SHARD, "content": list(clips)}
    except (ValueError, OSError) as error:
        # As a row: Ray would wrap it in pages of its own.
        yield {"shard": -1, "kind": _ERROR, "content": f"{error}"}
        return
    yield {"shard": todo.num_shards, "kind": _END, "content": []}


class _ShardActor:
    """Encodes and writes shards; lives on one device."""

    def __init__(self, job: Any, split: str, resources: Resources, device: str, cores: int) -> None:
        import torch

        torch.set_num_threads(cores)
        found: Job = _ray().get(job)
        tokenizer: Any = found.tokenizer.to(device_of(device))  # pyright: ignore[reportArgumentType]
        self._job = replace(found, tokenizer=tokenizer)
        self._split, self._resources = split, resources

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Writes the shard of a batch of one row; says how it went."""
        (shard,), (content,), (kind,) = batch["shard"], batch["content"], batch["kind"]
        clips, text = 0, ""
        if kind == _SHARD:
            job = self._job
            events = encode_clips(job.tokenizer, content, job.options, self._resources)
            try:
                with closing(events):
                    record = write_shard(job, self._split, int(shard), events, strict=False)
                clips, first = record.clips, record.failures[:1]
                text = "".join(f"{failure.id}: {failure.reason}" for failure in first)
            except (ValueError, OSError) as error:
                kind, text = _ERROR, f"{type(error).__name__}: {error}"
        elif kind == _ERROR:
            text = content
        return {"shard": [int(shard)], "kind": [str(kind)], "clips": [clips], "text": [str(text)]}


@contextmanager
def _context(ray: Any) -> Iterator[None]:
    """Ray Data's settings as they are needed here, and then as they were."""
    context = ray.data.DataContext.get_current()
    settings = {
        # A block a shard, handed out as soon as it is known.
        "target_max_block_size": 1,
        # A shard of long clips may take hours.
        "execution_no_progress_timeout_s": -1,
        # There is one, of clips, in `prepare_with_ray`.
        "enable_progress_bars": False,
    }
    # Ray has not always had all of them.
    before = {name: getattr(context, name) for name in settings if hasattr(context, name)}
    for name in before:
        setattr(context, name, settings[name])
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)


def _shards(
    ray: Any,
    job: Job,
    split: str,
    done: dict[int, ShardRecord],
    resources: Resources,
    device: str,
    pool: int,
    settings: dict[str, Any],
) -> Generator[dict[str, Any], None, None]:
    """Has the shards of a split written; yields what `_ShardActor` says of each."""
    shared = ray.put(job)
    with _context(ray):
        rows = (
            ray.data.from_items([{"split": split}])
            .flat_map(partial(_plan, job=shared, split=split, done=done), num_cpus=_READER_CORES)
            .map_batches(
                _ShardActor,
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=pool, max_tasks_in_flight_per_actor=1),
                fn_constructor_args=(shared, split, resources, device, settings["num_cpus"]),
                **settings,
            )
        )
        yield from rows.iter_rows()
