"""Everything side by side in one run, as Markdown and JSON.

    python -m tokenizer.benchmarks --out benchmark [--threads 1 2] [--skip growth fit]

Codecs (ours, and DAC, EnCodec, Mimi, Oobleck at their published sizes), quantizers, fitting,
start-up and growth; on the CPU with each number of threads, and on a GPU if there is one. The
README's table comes from benchmark.md. Quality at equal rates has commands of its own:
``latok compare`` and ``python -m tokenizer.benchmarks.opus``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from tokenizer.benchmarks import growth, speed
from tokenizer.benchmarks.command import benchmark_parser, table
from tokenizer.benchmarks.machine import describe
from tokenizer.benchmarks.peers import PEERS
from tokenizer.benchmarks.startup import startup_lines
from tokenizer.saving import write_json, write_text

PARTS = ("codecs", "encode", "kmeans", "fit", "startup", "growth")


def codecs(options: argparse.Namespace, device: str, threads: int) -> list[dict[str, Any]]:
    """Ours at each rate, in bfloat16 too, and the peers."""
    names = speed.names(options.peers)
    if options.bf16:
        names.insert(len(speed.OURS), "ours latents bf16")
    return speed.measure_all(
        names, threads, seconds=options.seconds, device=device, repetitions=options.repetitions
    )


def quantizing(part: str, options: argparse.Namespace, threads: int) -> list[dict[str, Any]]:
    """A part of `tokenizer.benchmarks.vectors`, in a process of its own."""
    result = options.out / f"{part}-{threads}.json"
    arguments = ["--parts", part, "--threads", str(threads), "--train", str(options.train)]
    arguments += ["--json", str(result)]
    subprocess.run(
        [sys.executable, "-m", "tokenizer.benchmarks.vectors", *arguments],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    lines = json.loads(result.read_text())[part]
    result.unlink()
    return lines


def main() -> None:
    """Measures and writes."""
    parser = benchmark_parser(__doc__, "--seconds", "--repetitions")
    parser.add_argument("--out", type=Path, default=Path("benchmark"), help="folder to write to")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="CPU threads")
    parser.add_argument("--train", type=int, default=1_000_000, help="vectors fitted to")
    parser.add_argument(
        "--peers", nargs="*", choices=sorted(PEERS), default=sorted(PEERS), help="other codecs"
    )
    parser.add_argument("--bf16", action="store_true", help="our networks in bfloat16 too")
    parser.add_argument("--skip", nargs="*", choices=PARTS, default=[], help="what to leave out")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"machine": describe("cpu")}
    text = [f"Measured on: {results['machine']}"]

    def add(name: str, lines: list[dict[str, Any]], table: str) -> None:
        results[name] = lines
        text.extend(["", f"**{name}**", "", table])
        print("\n".join(text[-4:]), flush=True)
        write_json(options.out / "benchmark.json", results)
        write_text(options.out / "benchmark.md", "\n".join(text) + "\n")

    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    if "codecs" not in options.skip:
        for device in devices:
            for threads in options.threads if device == "cpu" else options.threads[:1]:
                where = f"{threads} threads" if device == "cpu" else describe(device)
                lines = codecs(options, device, threads)
                if lines:
                    rate = max(line["matmul_gflops"] for line in lines)
                    name = f"codecs, {options.seconds:g} s, {where}, {rate:.0f} GFLOP/s at best"
                    add(name, lines, speed.table(lines))
    for part in ("encode", "kmeans", "fit"):
        if part not in options.skip:
            for threads in options.threads if part == "encode" else options.threads[-1:]:
                lines = quantizing(part, options, threads)
                add(f"{part}, {threads} threads", lines, table(lines))
    if "startup" not in options.skip:
        lines = startup_lines()
        add("start-up", lines, table(lines))
    if "growth" not in options.skip:
        growths = growth.run(options.out, options.threads[-1], list(growth.POINTS))
        lines = [{"grows with": kind} | point for kind, each in growths.items() for point in each]
        add("growth", lines, table(lines))
    print(f"\nWritten to {options.out}/benchmark.md and .json")


if __name__ == "__main__":
    main()
