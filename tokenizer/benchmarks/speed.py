"""Encode and decode speed beside other codecs, in one run on this machine.

    python -m tokenizer.benchmarks.speed [--seconds 10] [--threads 2] [--peers dac encodec mimi]

Each codec runs in a process of its own, which gives its peak memory; each figure is the best of
several repetitions. Encode and decode are times real time. "over floor" is the time over that of
the call's multiply-adds at the rate of the best matrix product measured in the same process.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from typing import Any

import torch

from tokenizer.benchmarks import command
from tokenizer.benchmarks.machine import describe, matmul_rate, multiply_adds, peak_mib
from tokenizer.benchmarks.peers import PEERS, ours
from tokenizer.evaluation.coding import best_of

# The peers search greedily: theirs is the task of those rows.
RATES = ("latents", "3", "10", "16", "24", "3 greedy", "10 greedy", "16 greedy", "24 greedy")
OURS = tuple(f"ours {rate}" for rate in RATES)


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
            codec = ours(kbps, seconds, device, model, greedy="greedy" in how)
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


def measure_all(codecs: list[str], threads: int, **options: Any) -> list[dict[str, Any]]:
    """Each codec in a process of its own; a peer whose library is missing is left out.

    The options are those of `measure`.
    """
    words = [f"--{key}={value}" for key, value in options.items() if value is not None]
    lines = []
    for name in codecs:
        try:
            line = command.in_process("speed", "--one", name, "--threads", threads, *words)
        except subprocess.CalledProcessError as error:
            print(f"{name}: {error.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            continue
        lines.append(line | {"threads": threads})
    return lines


def table(lines: list[dict[str, Any]]) -> str:
    """The figures of all codecs, and their speed over the DAC's where it was measured."""
    rest = ("matmul_gflops", "threads")
    text = command.table([{k: v for k, v in line.items() if k not in rest} for line in lines])
    base = next((line for line in lines if line["codec"] == "dac"), None)
    if base is None:
        return text
    ratios = [
        {"codec": line["codec"]} | {f"{x} / DAC": line[x] / base[x] for x in ("encode", "decode")}
        for line in lines
    ]
    return text + "\n\n" + command.table(ratios)


def main() -> None:
    """Measures and prints the table."""
    shared = ("--seconds", "--threads", "--repetitions", "--device", "--model", "--json")
    parser = command.benchmark_parser(__doc__, *shared)
    parser.add_argument(
        "--peers", nargs="*", choices=sorted(PEERS), default=["dac"], help="other codecs"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    common = {key: getattr(options, key) for key in ("seconds", "device", "repetitions", "model")}
    if options.one:
        torch.set_num_threads(options.threads)
        command.write_figures(options.json, measure(options.one, **common))
        return
    lines = measure_all([*OURS, *options.peers], options.threads, **common)
    rate = max((line["matmul_gflops"] for line in lines), default=0.0)
    print(f"{options.seconds:g} s, {options.threads} CPU threads, {describe(options.device)}")
    print(f"best matrix product: {rate:.0f} GFLOP/s\n")
    print(table(lines))
    command.write_figures(options.json, lines)


if __name__ == "__main__":
    main()
