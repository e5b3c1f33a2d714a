"""How preparation scales: several processes beside one, and latents beside Parquet's defaults.

    python -m datasets_scripts.benchmarks.scaling [--num-proc 2] [--minutes 10]

Prepares one corpus of noise with one process on one core, and with several on as many; the time
that processes take to start is subtracted. Then it writes the latents of a clip, again and again,
as `prepare` does and as Parquet's writer would by itself. Each time is the best of some.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from datasets_scripts.benchmarks.throughput import make_corpus
from datasets_scripts.dataset.shards import RowFormat, encodings, writing_shard
from datasets_scripts.dataset.storage import Folder
from datasets_scripts.preparation.options import RowOptions
from datasets_scripts.preparation.prepare import prepare_dataset
from tokenizer import LatentTokenizer, load_tokenizer
from tokenizer.devices import available_cores


@contextmanager
def _on_cores(count: int) -> Iterator[None]:
    """This process and those that it starts, on so many cores."""
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, sorted(cores)[:count])
    torch.set_num_threads(count)
    yield
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(threads)


def prepare_seconds(model: LatentTokenizer, audio: Path, num_proc: int, codebooks: int) -> float:
    """Seconds to prepare a folder with so many processes, each on a core."""
    rows = RowOptions(n_codebooks=codebooks, clips_per_shard=10)
    with tempfile.TemporaryDirectory() as out, _on_cores(num_proc):
        start = time.perf_counter()
        how: Any = {"options": rows, "num_proc": num_proc, "strict": True}
        prepare_dataset("audiofolder", audio, Path(out) / "o", tokenizer=model, **how)
        return time.perf_counter() - start


def latents_table(model: LatentTokenizer, minutes: float, folder: Path) -> Any:
    """A table of rows with latents, so many minutes in all, as a shard has it."""
    row = model.encode_latents(str(files("tokenizer") / "assets" / "example.flac"))
    latents = row["latents"].astype(np.float16)
    count = max(1, round(60 * minutes * model.frame_rate / len(latents)))
    empty = dict.fromkeys(("codes", "label", "caption", "metadata"))
    with writing_shard(Folder(folder), "rows", RowFormat(None, "int16", model.latent_dim)) as shard:
        for i in range(count):
            name = {"id": str(i), "source_id": str(i), "start": 0, "fingerprint": ""}
            shard.write(row | empty | name | {"latents": np.roll(latents, 7919 * i, axis=0)})
    return pq.read_table(folder / "rows")


def write_seconds(table: Any, path: Path, options: dict[str, Any]) -> tuple[float, int]:
    """Seconds to write a table, and the bytes of the file."""
    start = time.perf_counter()
    pq.write_table(table, path, compression="zstd", row_group_size=50, **options)
    return time.perf_counter() - start, path.stat().st_size


def main() -> None:
    """Measures and prints both ratios."""
    parser = argparse.ArgumentParser(description="How preparation scales.")
    parser.add_argument("--model", help="tokenizer; default: the bundled one")
    parser.add_argument("--minutes", type=float, default=10.0, help="of audio; default: 10")
    parser.add_argument("--num-proc", type=int, default=2, help="processes; default: 2")
    parser.add_argument("--n-codebooks", type=int, default=10, help="default: 10")
    parser.add_argument("--repetitions", type=int, default=2, help="the best counts; default: 2")
    options = parser.parse_args()
    if options.num_proc > available_cores():
        parser.error(f"--num-proc {options.num_proc}, but there are {available_cores()} cores")
    model = load_tokenizer(options.model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_corpus(folder / "audio", options.minutes)
        make_corpus(folder / "few", 0.001)
        best: dict[int, float] = {}
        for _ in range(options.repetitions):
            for count in (1, options.num_proc):
                whole, start = (
                    prepare_seconds(model, folder / part, count, options.n_codebooks)
                    for part in ("audio", "few")
                )
                best[count] = min(best.get(count, np.inf), whole - start)
        rates = {count: 60 * options.minutes / seconds for count, seconds in best.items()}
        for count, rate in rates.items():
            print(f"prepare, {count} processes {rate:8.1f} x real time")
        print(f"ratio                {rates[options.num_proc] / rates[1]:8.2f}")

        table = latents_table(model, options.minutes, folder)
        ways = {"Parquet's defaults": {}, "as prepare does": encodings(table.schema)}
        times = {way: np.inf for way in ways}
        sizes = {}
        for _ in range(max(options.repetitions, 3)):
            for way, how in ways.items():
                seconds, sizes[way] = write_seconds(table, folder / "table", how)
                times[way] = min(times[way], seconds)
        for way, seconds in times.items():
            rate = 60 * options.minutes / seconds
            print(f"write latents, {way.ljust(18)} {rate:8.0f} x real time, {sizes[way]:,} bytes")
        slow, fast = times.values()
        print(f"ratio                {slow / fast:8.2f}")


if __name__ == "__main__":
    main()
