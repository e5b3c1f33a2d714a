"""How time and memory grow: with length, batch, codebooks, latents fitted and processes.

    python -m tokenizer.benchmarks.growth --out benchmark

Each point is a process of its own, so that its peak memory is its own. Writes growth.json and, one
picture for each, growth-*.png; the straight line is the first point's time, in proportion.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch

from tokenizer import load_tokenizer
from tokenizer.benchmarks.command import benchmark_parser, in_process, table, write_figures
from tokenizer.benchmarks.machine import peak_mib
from tokenizer.benchmarks.peers import clip
from tokenizer.benchmarks.quantizers import mixture
from tokenizer.benchmarks.vectors import fitted
from tokenizer.evaluation.coding import best_of, timed

# Of each kind, what a picture calls it, and its points.
POINTS: dict[str, tuple[str, tuple[float, ...]]] = {
    "length": ("seconds of audio", (1, 10, 60, 300)),
    "batch": ("clips of 10 s", (1, 2, 4, 8, 16)),
    "codebooks": ("codebooks, 10 s", (1, 4, 8, 16, 24)),
    "latents": ("latents fitted, 8 codebooks of 256", (16_384, 65_536, 262_144)),
    "processes": ("processes of 60 s each, one thread", (1, 2)),
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
    with torch.inference_mode():
        seconds = timed(work)[1] if kind == "latents" else best_of([work], 3)[0]
    return {"value": value, "seconds": seconds, "peak_mib": peak_mib()}


def grow(kind: str, threads: int) -> list[dict[str, float]]:
    """All points of a kind."""
    if kind != "processes":
        point = partial(in_process, "growth", "--threads", threads, "--one", kind)
        return [point(value) for value in POINTS[kind][1]]
    points = []
    for count in POINTS[kind][1]:
        one = partial(in_process, "growth", "--threads", 1, "--one", kind)
        with ThreadPoolExecutor(int(count)) as pool:
            at_once = list(pool.map(one, [1] * int(count)))
        # The slowest counts; their memory adds up.
        seconds = max(point["seconds"] for point in at_once)
        peak = sum(point["peak_mib"] for point in at_once)
        points.append({"value": count, "seconds": seconds, "peak_mib": peak})
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
        axes.set(xlabel=POINTS[kind][0], ylabel=label, xlim=(0, None), ylim=(0, None))
    figure.savefig(path, dpi=100)


def run(out: Path, threads: int, kinds: list[str]) -> dict[str, list[dict[str, float]]]:
    """Measures and draws."""
    out.mkdir(parents=True, exist_ok=True)
    results = {}
    for kind in kinds:
        results[kind] = grow(kind, threads)
        plot(kind, results[kind], out / f"growth-{kind}.png")
    write_figures(out / "growth.json", results)
    return results


def main() -> None:
    """Measures, draws and prints the tables."""
    parser = benchmark_parser(__doc__, "--threads", "--out", "--json")
    kinds = list(POINTS)
    parser.add_argument("--kinds", nargs="+", choices=kinds, default=kinds, help="what grows")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        torch.set_num_threads(options.threads)
        write_figures(options.json, measure(options.one[0], float(options.one[1])))
        return
    results = run(options.out, options.threads, options.kinds)
    for kind, points in results.items():
        print(f"{kind}\n\n{table(points)}\n")
    write_figures(options.json, results)


if __name__ == "__main__":
    main()
