"""Several processes that encode: clips are dealt to them in turn, rows come back in order.

Nothing waits in an unbounded queue: whoever is far ahead waits. A worker reads its clips itself, so
decoding and resampling are shared too.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from datasets_scripts.preparation.encoding import Encoded, Task, encode_tasks
from datasets_scripts.preparation.options import Resources, RowOptions
from tokenizer import LatentTokenizer, device_of
from tokenizer.errors import StateError

# Rows and ends of clips that a worker may be ahead of the others: a pipe alone holds a row or two,
# and then workers that batch by length wait for each other's turn at every batch.
MAX_AHEAD = 512


@dataclass(frozen=True)
class _Worker:
    process: BaseProcess
    tasks: Connection
    events: Connection


def available_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def encode_in_processes(
    tokenizer: LatentTokenizer,
    tasks: Iterable[Task],
    options: RowOptions,
    resources: Resources,
    num_proc: int,
    device: str = "cpu",
) -> Generator[Encoded, None, None]:
    """`encode_tasks` in several processes; the same events in the same order.

    The processes are spawned, not forked, so that CUDA and OpenMP work in them. Each computes with
    its share of the cores.

    Args:
        tokenizer: Is copied to each.
        tasks: What to encode; taken in a thread.
        options: What the rows hold.
        resources: Of each process.
        num_proc: How many.
        device: Where they encode; "cuda" stands for all GPUs in turn.

    Raises:
        RuntimeError: If a worker dies.
        Exception: What ``tasks`` raises.
    """
    threads = max(1, available_cores() // num_proc)
    devices = [_device(device, i) for i in range(num_proc)]
    with _workers(tokenizer, options, resources, devices, threads) as workers:
        feeder = _Feeder(tasks, workers)
        feeder.start()
        turn = 0
        while (index := feeder.wait_for(turn)) is not None:
            worker = workers[turn % num_proc]
            while (event := _receive(worker, index)).row is not None:
                yield event
            yield event
            turn += 1
        if feeder.error is not None:
            raise feeder.error


def _device(device: str, number: int) -> str:
    if device != "cuda":
        return device
    import torch

    return f"cuda:{number % max(torch.cuda.device_count(), 1)}"


class _Feeder(threading.Thread):
    """Deals tasks to workers in turn."""

    def __init__(self, tasks: Iterable[Task], workers: list[_Worker]) -> None:
        super().__init__(daemon=True, name="feeder")
        self._tasks, self._workers = tasks, workers
        self._indices: dict[int, int] = {}
        self._over = False
        self._changed = threading.Condition()
        self.error: BaseException | None = None

    def run(self) -> None:
        """Until there are no more, or a worker has gone."""
        try:
            for turn, task in enumerate(self._tasks):
                with self._changed:
                    self._indices[turn] = task.index
                    self._changed.notify_all()
                self._workers[turn % len(self._workers)].tasks.send(task)
            for worker in self._workers:
                worker.tasks.send(None)
        except (BrokenPipeError, ConnectionError):
            pass  # Whoever reads from that worker finds out.
        except BaseException as error:  # It is raised when all before is done.
            self.error = error
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def wait_for(self, turn: int) -> int | None:
        """The index of the task of a turn, as soon as it was dealt; None if there is none."""
        with self._changed:
            self._changed.wait_for(lambda: turn in self._indices or self._over)
            return self._indices.pop(turn, None)


def _receive(worker: _Worker, index: int) -> Encoded:
    wait([worker.events, worker.process.sentinel])
    try:
        found = worker.events.recv()
    except (EOFError, ConnectionError):
        raise _died(worker) from None
    if isinstance(found, BaseException):
        raise found
    assert isinstance(found, Encoded)
    assert found.index == index, (found.index, index)
    return found


def _died(worker: _Worker) -> RuntimeError:
    worker.process.join()
    return StateError(
        f"A worker process died (exit code {worker.process.exitcode}); was there enough memory?"
        " Start again: it goes on from the last whole shard."
    )


@contextmanager
def _workers(
    tokenizer: LatentTokenizer,
    options: RowOptions,
    resources: Resources,
    devices: list[str],
    threads: int,
) -> Iterator[list[_Worker]]:
    context = multiprocessing.get_context("spawn")
    workers: list[_Worker] = []
    try:
        for device in devices:
            theirs, tasks = context.Pipe(duplex=False)
            events, ours = context.Pipe(duplex=False)
            process = context.Process(
                target=_work,
                args=(theirs, ours, options, resources, device, threads),
                daemon=True,
            )
            process.start()
            # Only the worker's own ends stay open: when it dies, ours report it.
            theirs.close()
            ours.close()
            workers.append(_Worker(process, tasks, events))
        # Not among the arguments: what does not fit into a pipe, `multiprocessing` would write for
        # ever to a worker that was killed before it could read.
        for worker in workers:
            try:
                worker.tasks.send(tokenizer)
            except (BrokenPipeError, ConnectionError):
                raise _died(worker) from None
        yield workers
    finally:
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.process.join()
            worker.tasks.close()
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
            except (BrokenPipeError, ConnectionError):
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
    tasks: Connection,
    events: Connection,
    options: RowOptions,
    resources: Resources,
    device: str,
    threads: int,
) -> None:
    import torch

    torch.set_num_threads(threads)
    tokenizer: LatentTokenizer = tasks.recv()

    def received() -> Iterator[Task]:
        while (task := tasks.recv()) is not None:
            yield task

    sender = _Sender(events)
    sender.start()
    try:
        # In here: a worker that died of its device would not have said so.
        here: Any = tokenizer.to(device_of(device))  # pyright: ignore[reportArgumentType]
        for event in encode_tasks(here, received(), options, resources):
            sender.put(event)
    except (BrokenPipeError, EOFError, KeyboardInterrupt):
        return  # The parent has gone, or is about to end this.
    except Exception as error:  # Raised again in the parent.
        sender.put(RuntimeError(f"{type(error).__name__}: {error}"))
    sender.finish()
