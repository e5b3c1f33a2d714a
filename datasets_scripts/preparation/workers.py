"""Several processes on this machine: each encodes shards and writes them itself.

This process lists the corpus, hands out the clips of a shard at a time, and notes what is done.
"""

from __future__ import annotations

import multiprocessing
import queue
import tempfile
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from datasets_scripts.dataset.manifest import PROGRESS
from datasets_scripts.dataset.shards import DATA
from datasets_scripts.preparation.encoding import NumberedClip
from datasets_scripts.preparation.job import Job, ShardResult
from datasets_scripts.preparation.options import Resources
from datasets_scripts.preparation.writing import write_shards
from datasets_scripts.sources.corpus import AudioBytes, CorpusClip, SpooledAudio
from tokenizer import device_of
from tokenizer.devices import available_cores
from tokenizer.errors import StateError

# Shards that a worker has at a time: it reads the clips of the next one while it ends one.
SHARDS_AHEAD = 2


@dataclass(eq=False)
class _Worker:
    """A process; the files of audio that its shards need are removed when they are written."""

    process: BaseProcess
    shards: Connection
    results: Connection
    spools: deque[Path] = field(default_factory=deque)

    def send(self, value: Any) -> None:
        try:
            self.shards.send(value)
        except ConnectionError:
            raise self.died() from None

    def receive(self) -> ShardResult:
        try:
            result = self.results.recv()
        except (EOFError, ConnectionError):
            raise self.died() from None
        if isinstance(result, BaseException):
            raise result
        self.spools.popleft().unlink(missing_ok=True)
        return result

    def died(self) -> RuntimeError:
        self.process.join()
        return StateError(
            f"A worker process died (exit code {self.process.exitcode}); was there enough memory?"
            " Start again: it resumes after the shards that are whole."
        )


def write_in_processes(
    job: Job,
    split: str,
    clips: Iterable[NumberedClip],
    resources: Resources,
    *,
    num_proc: int,
    device: str,
    strict: bool,
) -> Generator[ShardResult, None, None]:
    """`write_shards` in several processes; shards come as they are finished.

    The processes are spawned, not forked, so that CUDA and OpenMP work in them. Each computes with
    its share of the cores. The device "cuda" stands for all GPUs in turn. Raises RuntimeError if a
    worker dies and, when the shards before it are written, what ``clips`` raises.
    """
    threads = max(1, available_cores() // num_proc)
    devices = [_device(device, i) for i in range(num_proc)]
    per_shard, errors = job.options.clips_per_shard, list[Exception]()
    with (
        _workers(job, devices, split, resources, threads, strict) as workers,
        tempfile.TemporaryDirectory(prefix="latok-") as folder,
    ):
        for number, shard in enumerate(_shards(clips, per_shard, Path(folder), errors)):
            spool = _spool(Path(folder), number)
            yield from _results(workers, timeout=0.0)
            while len((worker := min(workers, key=lambda w: len(w.spools))).spools) == SHARDS_AHEAD:
                yield from _results(workers)
            worker.spools.append(spool)
            worker.send(shard)
        for worker in workers:
            worker.send(None)  # A last shard with fewer clips than others ends with this.
        while any(worker.spools for worker in workers):
            yield from _results(workers)
        if errors:
            raise errors[0]


def _device(device: str, number: int) -> str:
    if device != "cuda":
        return device
    import torch

    return f"cuda:{number % max(torch.cuda.device_count(), 1)}"


def _spool(folder: Path, number: int) -> Path:
    return folder / f"{number}.audio"


def _shards(
    clips: Iterable[NumberedClip], per_shard: int, folder: Path, errors: list[Exception]
) -> Iterator[list[NumberedClip]]:
    """The clips of one shard after another, up to the error, if there is one.

    Audio in memory goes to files: shards that wait must not fill the memory.
    """
    try:
        groups = groupby(clips, key=lambda clip: clip.index // per_shard)
        for number, (_, group) in enumerate(groups):
            spool = _spool(folder, number)
            yield [_without_audio(clip, spool) for clip in group]
    except Exception as error:  # It is raised when all shards before it are written.
        errors.append(error)


def _without_audio(clip: NumberedClip, spool: Path) -> NumberedClip:
    item = clip.item
    if not isinstance(item, CorpusClip) or not isinstance(item.audio, AudioBytes):
        return clip
    content = item.audio.content
    with spool.open("ab") as stream:
        place = SpooledAudio(spool, stream.tell(), len(content), item.audio.name)
        stream.write(content)
    return NumberedClip(clip.index, replace(item, audio=place))


def _results(workers: list[_Worker], timeout: float | None = None) -> Iterator[ShardResult]:
    """Waits for at least one shard, or so many seconds; yields those that are whole by then."""
    working = {worker.results: worker for worker in workers if worker.spools}
    for connection in wait([*working], timeout):
        yield working[connection].receive()  # pyright: ignore[reportArgumentType]


@contextmanager
def _workers(job: Job, devices: list[str], *arguments: Any) -> Iterator[list[_Worker]]:
    """Processes that do `_work`, one for each device, with these arguments."""
    context = multiprocessing.get_context("spawn")
    workers: list[_Worker] = []
    try:
        for device in devices:
            theirs, shards = context.Pipe(duplex=False)
            results, ours = context.Pipe(duplex=False)
            process = context.Process(
                target=_work, args=(theirs, ours, device, *arguments), daemon=True
            )
            process.start()
            # Only the worker's own ends stay open: when it dies, ours report it.
            theirs.close()
            ours.close()
            workers.append(_Worker(process, shards, results))
        # Not among the arguments: what does not fit into a pipe, `multiprocessing` would write for
        # ever to a worker that was killed before it could read.
        for worker in workers:
            worker.send(job)
        yield workers
    finally:
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.process.join()
            worker.shards.close()
            worker.results.close()
        for place in (DATA, PROGRESS):  # What they were writing.
            job.folder.remove_partial(place)


def _work(
    shards: Connection,
    results: Connection,
    device: str,
    split: str,
    resources: Resources,
    threads: int,
    strict: bool,
) -> None:
    import torch

    torch.set_num_threads(threads)
    job: Job = shards.recv()

    received: queue.SimpleQueue[list[NumberedClip] | EOFError | None] = queue.SimpleQueue()

    def receive() -> None:
        # At once, also while clips are read: the parent has others to serve.
        try:
            while (shard := shards.recv()) is not None:
                received.put(shard)
            received.put(None)
        except (EOFError, ConnectionError):
            received.put(EOFError())  # The parent has gone.

    def clips() -> Iterator[NumberedClip]:
        while (shard := received.get()) is not None:
            if isinstance(shard, EOFError):
                raise shard
            yield from shard

    threading.Thread(target=receive, daemon=True).start()
    try:
        # In here: a worker that died of its device would not have said so.
        tokenizer: Any = job.tokenizer.to(device_of(device))  # pyright: ignore[reportArgumentType]
        job = replace(job, tokenizer=tokenizer)
        for result in write_shards(job, split, clips(), resources, strict=strict):
            results.send(result)
    except (BrokenPipeError, EOFError, KeyboardInterrupt):
        return  # The parent has gone, or is about to end this.
    except (StateError, OSError) as error:  # Raised again in the parent.
        results.send(error)
    except Exception as error:
        results.send(RuntimeError(f"{type(error).__name__}: {error}"))
