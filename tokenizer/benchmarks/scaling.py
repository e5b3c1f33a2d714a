"""How training scales over processes: crops a second, and whether the losses agree.

    python -m tokenizer.benchmarks.scaling [--processes 1 2] [--crops 8] [--steps 20]

``latok train`` on noise with as many crops a step, the same ones, however many processes share
them. On a CPU a process has one thread. The rate is that of the second half of the steps.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from tokenizer.benchmarks.command import benchmark_parser, table
from tokenizer.benchmarks.machine import describe

RATE = 44_100


def make_clips(folder: Path) -> None:
    """Ten clips of six seconds of noise."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(10):
        audio = rng.normal(0, 0.1, 6 * RATE) * np.hanning(6 * RATE)
        soundfile.write(folder / f"{i}.wav", audio, RATE)


def measure(clips: Path, out: Path, processes: int, options: argparse.Namespace) -> dict[str, Any]:
    """Crops a second, and the loss at the end."""
    half = options.steps // 2
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    launch = ["torch.distributed.run", "--nproc_per_node", processes, "--master_port", port]
    train = ["train", clips, "--out", out, "--preset", options.preset, "--steps", 2 * half]
    train += ["--batch-size", options.crops // processes, "--log-every", half]
    train += ["--mixed-precision", options.mixed_precision, "--num-workers", 0]
    words = [sys.executable, "-m", *launch, "-m", "tokenizer", *train]
    # Of the machine's GPUs each process takes one.
    on_cpu = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    environment = os.environ | (on_cpu if options.device == "cpu" else {})
    subprocess.run([str(w) for w in words], env=environment, check=True, capture_output=True)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    last = [line for line in lines if "train/loss" in line][-1]
    rate = last["train/steps_per_second"] * options.crops
    return {"processes": processes, "crops/s": rate, "loss": last["train/loss"]}


def main() -> None:
    """Measures and prints the table."""
    parser = benchmark_parser(__doc__)
    parser.add_argument(
        "--processes", type=int, nargs="+", default=[1, 2], help="numbers of processes"
    )
    parser.add_argument("--crops", type=int, default=8, help="of a step, in all processes together")
    parser.add_argument("--steps", type=int, default=20, help="training steps")
    parser.add_argument("--preset", default="base", help="of the model, as for latok train")
    parser.add_argument("--mixed-precision", default="no", help="as for latok train")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="torch device")
    options = parser.parse_args()
    if odd := [n for n in options.processes if options.crops % n]:
        parser.error(f"--crops {options.crops} cannot be shared by {odd[0]} processes")
    print(f"{options.crops} crops a step, {describe(options.device)}\n")
    with tempfile.TemporaryDirectory() as folder:
        clips = Path(folder) / "clips"
        make_clips(clips)
        lines = [measure(clips, Path(folder) / str(n), n, options) for n in options.processes]
    for line in lines:
        line |= {"x": line["crops/s"] / lines[0]["crops/s"], "loss": f"{line['loss']:.5f}"}
    print(table(lines))


if __name__ == "__main__":
    main()
