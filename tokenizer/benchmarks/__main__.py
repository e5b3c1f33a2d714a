"""Everything side by side in one run, as Markdown and JSON.

    python -m tokenizer.benchmarks --out benchmark [--threads 1 2] [--skip growth fit]

Codecs (ours, and DAC, EnCodec, Mimi, Oobleck at their published sizes), quantizers, fitting,
start-up and growth; on the CPU with each number of threads, and on a GPU if there is one. The
README's table comes from benchmark.md. Quality at equal rates has commands of its own:
``latok compare`` and ``python -m tokenizer.benchmarks.opus``.
"""

from __future__ import annotations

from typing import Any

import torch

from tokenizer.benchmarks import growth, speed
from tokenizer.benchmarks.command import benchmark_parser, in_process, table
from tokenizer.benchmarks.machine import describe
from tokenizer.benchmarks.peers import PEERS
from tokenizer.benchmarks.startup import startup_lines
from tokenizer.saving import write_json, write_text

PARTS = ("codecs", "encode", "kmeans", "fit", "startup", "growth")


def main() -> None:
    """Measures and writes."""
    parser = benchmark_parser(__doc__, "--seconds", "--repetitions", "--out")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="CPU threads")
    parser.add_argument("--train", type=int, default=1_000_000, help="vectors fitted to")
    parser.add_argument(
        "--peers", nargs="*", choices=sorted(PEERS), default=sorted(PEERS), help="other codecs"
    )
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
        codecs = [*speed.OURS, *options.peers]
        common = {"seconds": options.seconds, "repetitions": options.repetitions}
        for device in devices:
            for threads in options.threads if device == "cpu" else options.threads[:1]:
                where = f"{threads} threads" if device == "cpu" else describe(device)
                lines = speed.measure_all(codecs, threads, device=device, **common)
                if lines:
                    rate = max(line["matmul_gflops"] for line in lines)
                    name = f"codecs, {options.seconds:g} s, {where}, {rate:.0f} GFLOP/s at best"
                    add(name, lines, speed.table(lines))
    for part in ("encode", "kmeans", "fit"):
        if part not in options.skip:
            for threads in options.threads if part == "encode" else options.threads[-1:]:
                words = ("--parts", part, "--threads", threads, "--train", options.train)
                lines = in_process("vectors", *words)[part]
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
