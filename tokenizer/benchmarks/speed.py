"""Encode and decode speed beside other codecs, in one run on this machine.

    python -m tokenizer.benchmarks.speed [--seconds 10] [--threads 2] [--peers dac encodec mimi]

Each codec runs in a process of its own, which gives its peak memory; each figure is the best of
several repetitions. "/ floor" is the time over that of the call's multiply-adds at the rate of the
best matrix product measured in the same process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

import torch

from tokenizer.benchmarks.command import benchmark_parser, write_figures
from tokenizer.benchmarks.machine import (
    best_of,
    describe,
    matmul_rate,
    multiply_adds,
    peak_mib,
)
from tokenizer.benchmarks.peers import PEERS, ours
from tokenizer.evaluation.evaluate import as_table

# The peers search greedily: theirs is the task of those rows.
OURS = ("latents", "3", "10", "16", "24", "3 greedy", "10 greedy", "16 greedy", "24 greedy")
HEADER = [
    "", "kbit/s", "encode x real time", "decode x real time", "first audio ms", "of it waiting ms",
    "peak MiB", "encode / floor", "decode / floor",
]  # fmt: skip


def names(peers: list[str], rates: tuple[str, ...] = OURS) -> list[str]:
    """Ours at each rate, and the peers."""
    return [*(f"ours {rate}" for rate in rates), *peers]


def measure(
    name: str, seconds: float, device: str, repetitions: int, model: str | None
) -> dict[str, Any]:
    """One codec, in this process."""
    torch.manual_seed(0)
    # Not inference mode: the counter cannot look into some modules there.
    with torch.no_grad():
        kind, _, rate = name.partition(" ")
        if kind == "ours":
            rate, *how = rate.split()
            kbps = None if rate == "latents" else float(rate)
            options = {option: option in how for option in ("bf16", "greedy")}
            codec = ours(kbps, seconds, device, model, **options)
        else:
            codec = PEERS[kind](seconds, device)
        rate_at_best = matmul_rate(device)
        with torch.inference_mode():
            encode, decode = best_of([codec.encode, codec.decode], repetitions, device)
            first = min(codec.first() for _ in range(repetitions + 1))
        peak = peak_mib(device)  # before the counter, which holds on to what it sees
        floors = [multiply_adds(call) / rate_at_best for call in (codec.encode, codec.decode)]
    return {
        "codec": name,
        "kbps": codec.kbps,
        "encode": seconds / encode,
        "decode": seconds / decode,
        "first_ms": 1000 * (first + codec.waits),
        "waits_ms": 1000 * codec.waits,
        "peak_mib": peak,
        "encode_over_floor": encode / floors[0] if floors[0] else None,
        "decode_over_floor": decode / floors[1] if floors[1] else None,
        "matmul_gflops": 2e-9 * rate_at_best,
    }


def measure_all(
    codecs: list[str], threads: int, *, seconds: float, device: str, repetitions: int,
    model: str | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Each codec in a process of its own; a peer whose library is missing is left out."""
    lines = []
    for name in codecs:
        arguments = ["--one", name, "--seconds", str(seconds), "--threads", str(threads)]
        arguments += ["--device", device, "--repetitions", str(repetitions)]
        arguments += [] if model is None else ["--model", model]
        done = subprocess.run(
            [sys.executable, "-m", "tokenizer.benchmarks.speed", *arguments],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            print(f"{name}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            continue
        lines.append(json.loads(done.stdout.splitlines()[-1]) | {"threads": threads})
    return lines


def table(lines: list[dict[str, Any]]) -> str:
    """Markdown."""

    def number(value: float | None, digits: int = 1) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    rows = [
        [
            line["codec"],
            "" if line["kbps"] is None else f"{line['kbps']:g}",
            number(line["encode"]),
            number(line["decode"]),
            number(line["first_ms"], 0),
            number(line["waits_ms"], 0),
            number(line["peak_mib"], 0),
            number(line["encode_over_floor"], 2),
            number(line["decode_over_floor"], 2),
        ]
        for line in lines
    ]
    text = as_table(rows, HEADER)
    base = next((line for line in lines if line["codec"] == "dac"), None)
    if base is None:
        return text
    ratios = [
        [line["codec"], *(f"{line[x] / base[x]:.0f}" for x in ("encode", "decode"))]
        for line in lines
        if line is not base
    ]
    return text + "\n\n" + as_table(ratios, ["", "encode / DAC", "decode / DAC"])


def main() -> None:
    """Measures and prints the table."""
    shared = ("--seconds", "--threads", "--repetitions", "--device", "--model", "--json")
    parser = benchmark_parser(__doc__, *shared)
    parser.add_argument(
        "--peers", nargs="*", choices=sorted(PEERS), default=["dac"], help="other codecs"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    common = {key: getattr(options, key) for key in ("seconds", "device", "repetitions", "model")}
    if options.one:
        torch.set_num_threads(options.threads)
        print(json.dumps(measure(options.one, **common)))
        return
    lines = measure_all(names(options.peers), options.threads, **common)
    rate = max((line["matmul_gflops"] for line in lines), default=0.0)
    print(f"{options.seconds:g} s, {options.threads} CPU threads, {describe(options.device)}")
    print(f"best matrix product: {rate:.0f} GFLOP/s\n")
    print(table(lines))
    write_figures(options.json, lines)


if __name__ == "__main__":
    main()
