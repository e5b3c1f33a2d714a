"""How fast a corpus is prepared, beside the tokenizer's own encode speed on the same batches.

    python -m datasets_scripts.benchmarks.throughput [--num-proc 2] [--minutes 20] [--device cpu]

Makes a corpus of noise clips (48 kHz FLAC, 3 to 15 s; speed does not depend on what is heard). Then
as many processes encode it twice: once from memory, read and resampled beforehand, in batches by
length; and once by `prepare_dataset`, from the files to the shards. Neither time has the start of
processes in it: that of preparing a single clip is subtracted. The ratio is what reading,
resampling and writing cost.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from datasets_scripts.preparation.encoding import by_length
from datasets_scripts.preparation.options import Resources, RowOptions
from datasets_scripts.preparation.prepare import prepare_dataset
from tokenizer import LatentTokenizer, device_of, load_tokenizer, open_audio
from tokenizer.devices import available_cores

_RATE = 48_000


def make_corpus(folder: Path, minutes: float | int) -> list[Path]:
    """Writes clips of so many minutes in all."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    paths, seconds = [], 0.0
    while seconds < 60 * minutes:
        length = rng.uniform(3, 15)
        audio = rng.normal(0, 0.1, round(length * _RATE)).cumsum()
        audio = np.diff(audio, prepend=0.0) * np.hanning(len(audio))
        paths.append(folder / f"{len(paths):05d}.flac")
        soundfile.write(paths[-1], audio, _RATE)
        seconds += length
    return paths


def _seconds(path: Path) -> float:
    return soundfile.info(path).duration


def _encode_share(
    tokenizer: LatentTokenizer, paths: list[Path], options: Any, barrier: Any, results: Any
) -> None:
    import torch

    torch.set_num_threads(options.threads)
    model: Any = tokenizer.to(options.device)  # pyright: ignore[reportArgumentType]
    rate = model.sampling_rate
    clips = [open_audio(path, target_rate=rate).read() for path in paths]
    lengths = [clip.shape[-1] for clip in clips]
    batches = list(by_length(lengths, round(Resources.batch_seconds * rate)))
    audio = [{"array": clip, "sampling_rate": rate} for clip in clips]
    model.encode_codes(audio[:2], n_codebooks=options.n_codebooks)
    barrier.wait()
    start, used = time.perf_counter(), time.process_time()
    for batch in batches:
        model.encode_codes([audio[i] for i in batch], n_codebooks=options.n_codebooks)
    results.put((time.perf_counter() - start, time.process_time() - used))


def encode_seconds(tokenizer: LatentTokenizer, paths: list[Path], options: Any) -> np.ndarray:
    """Wall and CPU time to encode from memory, in ``num_proc`` processes at once."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(options.num_proc), context.Queue()
    processes = [
        context.Process(
            target=_encode_share,
            args=(tokenizer, paths[i :: options.num_proc], options, barrier, results),
        )
        for i in range(options.num_proc)
    ]
    for process in processes:
        process.start()
    timings = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return np.array([max(wall for wall, _ in timings), sum(used for _, used in timings)])


def _cpu_seconds() -> float:
    ours, theirs = (resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return ours.ru_utime + ours.ru_stime + theirs.ru_utime + theirs.ru_stime


def prepare_seconds(tokenizer: LatentTokenizer, audio: Path, out: Path, options: Any) -> np.ndarray:
    """Wall and CPU time of `prepare_dataset`."""
    rows = RowOptions(n_codebooks=options.n_codebooks, clips_per_shard=50)
    how = {"num_proc": options.num_proc, "device": options.device, "strict": True}
    start, used = time.perf_counter(), _cpu_seconds()
    prepare_dataset("audiofolder", audio, out, tokenizer=tokenizer, options=rows, **how)
    return np.array([time.perf_counter() - start, _cpu_seconds() - used])


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description="Speed of preparation beside that of encoding.")
    parser.add_argument("--model", help="tokenizer; default: the bundled one")
    parser.add_argument("--minutes", type=float, default=20.0, help="of audio; default: 20")
    parser.add_argument("--num-proc", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--n-codebooks", type=int, help="default: all")
    parser.add_argument("--repetitions", type=int, default=1, help="the best counts")
    parser.add_argument("--hours", type=float, default=100_000.0, help="of the corpus to estimate")
    parser.add_argument("--price", type=float, default=0.04, help="of a core (or GPU) and hour")
    options = parser.parse_args()
    device_of(options.device)  # Processes that died of it would be waited for in vain.
    options.threads = max(1, available_cores() // options.num_proc)
    tokenizer = load_tokenizer(options.model)
    speeds = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = make_corpus(folder / "audio", options.minutes)
        # A clip a process shows how long it takes to start.
        few = make_corpus(folder / "few", 0.001 * options.num_proc)
        seconds = sum(map(_seconds, paths))
        more = seconds - sum(map(_seconds, few))
        for i in range(options.repetitions):
            encoding = encode_seconds(tokenizer, paths, options)
            start = prepare_seconds(tokenizer, folder / "few", folder / f"few{i}", options)
            total = prepare_seconds(tokenizer, folder / "audio", folder / f"all{i}", options)
            speeds.append([seconds / encoding, more / (total - start)])
    # By wall time and by CPU time.
    (alone, alone_cpu), (whole, whole_cpu) = np.max(speeds, axis=0)
    devices = available_cores() if options.device == "cpu" else options.num_proc
    kind = "core" if options.device == "cpu" else "GPU"
    print(
        f"{options.minutes:g} minutes in {len(paths)} clips, {options.num_proc} processes of"
        f" {options.threads} threads, {options.device}, {available_cores()} cores"
    )
    for name, speed in (("encode from memory", alone), ("prepare", whole)):
        print(f"{name.ljust(20)} {speed:8.1f} x real time, {24 * speed:9.0f} hours a day")
    needed = options.hours / (whole / devices)
    print(f"ratio                {whole / alone:8.3f}")
    # Where other work disturbs the machine, this says more.
    print(f"ratio by CPU time    {whole_cpu / alone_cpu:8.3f}")
    print(f"one {kind}             {whole / devices:8.1f} x real time")
    print(
        f"{options.hours:g} hours: {needed:.0f} {kind} hours, {options.price * needed:.0f} at"
        f" {options.price:g} each"
    )


if __name__ == "__main__":
    main()
