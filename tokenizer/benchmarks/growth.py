"""How time and memory grow: with length, batch, codebooks, latents fitted and processes.

    python -m tokenizer.benchmarks.growth --out benchmark

Each point is a process of its own, so that its peak memory is its own. Writes growth.json and, one
picture for each, growth-*.png; the straight line is the first point's time, in proportion.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from tokenizer import load_tokenizer
from tokenizer.benchmarks.command import benchmark_parser
from tokenizer.benchmarks.machine import best_of, peak_mib
from tokenizer.benchmarks.peers import clip
from tokenizer.benchmarks.quantizers import mixture
from tokenizer.benchmarks.vectors import fitted

POINTS: dict[str, tuple[float, ...]] = {
    "length": (1, 10, 60, 300),  # seconds
    "batch": (1, 2, 4, 8, 16),  # clips of 10 s
    "codebooks": (1, 4, 8, 16, 24),
    "latents": (16_384, 65_536, 262_144),  # fitted to, 8 codebooks of 256
    "processes": (1, 2),  # each encodes 60 s with one thread
}
LABELS = {
    "length": "seconds of audio",
    "batch": "clips of 10 s",
    "codebooks": "codebooks, 10 s",
    "latents": "latents fitted",
    "processes": "processes of 60 s each",
}


def _work(kind: str, value: float) -> Callable[[], object]:
    if kind == "latents":
        x = mixture(int(value), 64, 1)
        return lambda: fitted(x, 8, 256, max_points=len(x))
    tok = load_tokenizer()
    seconds = {"length": value, "processes": 60.0}.get(kind, 10.0)
    n = int(value) if kind == "codebooks" else 8
    one = {"array": clip(seconds, tok.sampling_rate), "sampling_rate": tok.sampling_rate}
    audio = [one] * int(value) if kind == "batch" else one
    return lambda: tok.encode_codes(audio, n_codebooks=n)


def measure(kind: str, value: float) -> dict[str, float]:
    """One point, in this process."""
    work = _work(kind, value)
    repetitions = 1 if kind == "latents" else 3
    with torch.inference_mode():
        if kind == "latents":
            start = time.perf_counter()
            work()
            seconds = time.perf_counter() - start
        else:
            seconds = best_of([work], repetitions)[0]
    return {"value": value, "seconds": seconds, "peak_mib": peak_mib()}


def _in_process(kind: str, value: float, threads: int) -> dict[str, float]:
    arguments = ["--one", kind, str(value), "--threads", str(threads)]
    done = subprocess.run(
        [sys.executable, "-m", "tokenizer.benchmarks.growth", *arguments],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def grow(kind: str, threads: int) -> list[dict[str, float]]:
    """All points of a kind."""
    if kind != "processes":
        return [_in_process(kind, value, threads) for value in POINTS[kind]]
    points = []
    for count in POINTS[kind]:
        with ThreadPoolExecutor(int(count)) as pool:
            at_once = list(pool.map(lambda _: _in_process(kind, 1, 1), range(int(count))))
        # The slowest counts; their memory adds up.
        points.append(
            {
                "value": count,
                "seconds": max(point["seconds"] for point in at_once),
                "peak_mib": sum(point["peak_mib"] for point in at_once),
            }
        )
    return points


def plot(kind: str, points: list[dict[str, float]], path: Path) -> None:
    """Time and memory over the value."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    x = [point["value"] for point in points]
    seconds = [point["seconds"] for point in points]
    left.plot(x, seconds, "o-")
    if kind != "processes":
        left.plot(x, [seconds[0] * v / x[0] for v in x], "k:", linewidth=1)
    right.plot(x, [point["peak_mib"] for point in points], "o-")
    for axes, label in ((left, "seconds"), (right, "peak MiB")):
        axes.set(xlabel=LABELS[kind], ylabel=label, xlim=(0, None), ylim=(0, None))
    figure.savefig(path, dpi=100)


def run(out: Path, threads: int, kinds: list[str]) -> dict[str, list[dict[str, float]]]:
    """Measures and draws."""
    out.mkdir(parents=True, exist_ok=True)
    results = {}
    for kind in kinds:
        results[kind] = grow(kind, threads)
        plot(kind, results[kind], out / f"growth-{kind}.png")
    (out / "growth.json").write_text(json.dumps(results, indent=1))
    return results


def main() -> None:
    """Parses the command line."""
    parser = benchmark_parser(__doc__, "--threads")
    parser.add_argument("--out", type=Path, default=Path("benchmark"), help="folder to write to")
    parser.add_argument(
        "--kinds", nargs="+", choices=list(POINTS), default=list(POINTS), help="what grows"
    )
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        torch.set_num_threads(options.threads)
        print(json.dumps(measure(options.one[0], float(options.one[1]))))
        return
    for kind, points in run(options.out, options.threads, options.kinds).items():
        print(kind)
        for point in points:
            print(f"  {point['value']:g}: {point['seconds']:.3f} s, {point['peak_mib']:.0f} MiB")


if __name__ == "__main__":
    main()
