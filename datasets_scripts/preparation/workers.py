"""Several processes that encode: clips are dealt to them in turn, rows come back in order.

Executors return a task's result as a whole; the rows of a clip of hours would not fit into memory,
so they are streamed through pipes here.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from datasets_scripts.preparation.encoding import Encoded, NumberedClip, encode_clips
from datasets_scripts.preparation.options import Resources, RowOptions
from tokenizer import LatentTokenizer, device_of
from tokenizer.errors import StateError

# Rows and ends of clips that a worker may be ahead of the others: a pipe alone holds a row or two,
# and then workers that batch by length wait for each other's turn at every batch.
MAX_AHEAD = 512


@dataclass(frozen=True)
class _Worker:
    process: BaseProcess
    clips: Connection
    events: Connection


def available_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def encode_in_processes(
    tokenizer: LatentTokenizer,
    clips: Iterable[NumberedClip],
    options: RowOptions,
    resources: Resources,
    num_proc: int,
    device: str = "cpu",
) -> Generator[Encoded, None, None]:
    """`encode_clips` in several processes; the same events in the same order.

    The processes are spawned, not forked, so that CUDA and OpenMP work in them. Each computes with
    its share of the cores. The device "cuda" stands for all GPUs in turn. Raises RuntimeError if a
    worker dies, and what ``clips`` raises.
    """
    threads = max(1, available_cores() // num_proc)
    devices = [_device(device, i) for i in range(num_proc)]
    with _workers(tokenizer, devices, options, resources, threads) as workers:
        dealt: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()
        threading.Thread(target=_deal, args=(clips, workers, dealt), daemon=True).start()
        for worker in cycle(workers):
            if (index := dealt.get()) is None:
                return
            if isinstance(index, BaseException):
                raise index
            while (event := _receive(worker, index)).row is not None:
                yield event
            yield event


def _device(device: str, number: int) -> str:
    if device != "cuda":
        return device
    import torch

    return f"cuda:{number % max(torch.cuda.device_count(), 1)}"


def _deal(
    clips: Iterable[NumberedClip],
    workers: list[_Worker],
    dealt: queue.SimpleQueue[int | BaseException | None],
) -> None:
    """Gives clips to the workers in turn; runs in a thread.

    ``dealt`` gets the index of each clip; then None, or the error of ``clips``.
    """
    try:
        for worker, clip in zip(cycle(workers), clips, strict=False):
            dealt.put(clip.index)
            if not _send(worker, clip):
                return  # The error is raised where the clip's rows are awaited.
    except BaseException as error:  # It is raised when all clips before are done.
        dealt.put(error)
        return
    for worker in workers:
        _send(worker, None)
    dealt.put(None)


def _send(worker: _Worker, clip: NumberedClip | None) -> bool:
    """Whether the worker still listens."""
    try:
        worker.clips.send(clip)
    except ConnectionError:
        return False
    return True


def _receive(worker: _Worker, index: int) -> Encoded:
    wait([worker.events, worker.process.sentinel])
    try:
        event = worker.events.recv()
    except (EOFError, ConnectionError):
        raise _died(worker) from None
    if isinstance(event, BaseException):
        raise event
    assert event.index == index, (event.index, index)
    return event


def _died(worker: _Worker) -> RuntimeError:
    worker.process.join()
    return StateError(
        f"A worker process died (exit code {worker.process.exitcode}); was there enough memory?"
        " Start again: it resumes after the last whole shard."
    )


@contextmanager
def _workers(
    tokenizer: LatentTokenizer, devices: list[str], *arguments: Any
) -> Iterator[list[_Worker]]:
    """Processes that do `_work`, one for each device, with these arguments."""
    context = multiprocessing.get_context("spawn")
    workers: list[_Worker] = []
    try:
        for device in devices:
            theirs, clips = context.Pipe(duplex=False)
            events, ours = context.Pipe(duplex=False)
            process = context.Process(
                target=_work, args=(theirs, ours, device, *arguments), daemon=True
            )
            process.start()
            # Only the worker's own ends stay open: when it dies, ours report it.
            theirs.close()
            ours.close()
            workers.append(_Worker(process, clips, events))
        # Not among the arguments: what does not fit into a pipe, `multiprocessing` would write for
        # ever to a worker that was killed before it could read.
        for worker in workers:
            try:
                worker.clips.send(tokenizer)
            except ConnectionError:
                raise _died(worker) from None
        yield workers
    finally:
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.process.join()
            worker.clips.close()
            worker.events.close()


class _Sender(threading.Thread):
    """Sends what a worker made while the worker makes more."""

    def __init__(self, events: Connection) -> None:
        super().__init__(daemon=True, name="sender")
        self._events = events
        self._waiting: queue.Queue[Encoded | Exception | None] = queue.Queue(MAX_AHEAD)
        self._broken = False

    def run(self) -> None:
        """Until `finish`; when nobody listens any more, what is left is dropped."""
        while (event := self._waiting.get()) is not None:
            try:
                if not self._broken:
                    self._events.send(event)
            except ConnectionError:
                self._broken = True

    def put(self, event: Encoded | Exception) -> None:
        """Waits while there is too much to send; raises BrokenPipeError if nobody listens."""
        if self._broken:
            raise BrokenPipeError
        self._waiting.put(event)

    def finish(self) -> None:
        """Waits until all has been sent."""
        self._waiting.put(None)
        self.join()


def _work(
    clips: Connection,
    events: Connection,
    device: str,
    options: RowOptions,
    resources: Resources,
    threads: int,
) -> None:
    import torch

    torch.set_num_threads(threads)
    tokenizer: LatentTokenizer = clips.recv()

    def received() -> Iterator[NumberedClip]:
        while (clip := clips.recv()) is not None:
            yield clip

    sender = _Sender(events)
    sender.start()
    try:
        # In here: a worker that died of its device would not have said so.
        local_tokenizer: Any = tokenizer.to(device_of(device))  # pyright: ignore[reportArgumentType]
        for event in encode_clips(local_tokenizer, received(), options, resources):
            sender.put(event)
    except (BrokenPipeError, EOFError, KeyboardInterrupt):
        return  # The parent has gone, or is about to end this.
    except Exception as error:  # Raised again in the parent.
        sender.put(RuntimeError(f"{type(error).__name__}: {error}"))
    sender.finish()
