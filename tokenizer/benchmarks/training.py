"""What training costs on a CPU thread: steps of stages 1 and 3, crops, validation.

    python -m tokenizer.benchmarks.training [--beside CLONE] [--repetitions 5]

With another clone of this repository, at an earlier commit, say, the two take turns, and the ratio
of their times is printed. Times are CPU time of one thread, the best of some repetitions, so that a
busy machine disturbs them little. Models are the base preset and the bundled tokenizer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tokenizer import load_tokenizer
from tokenizer.benchmarks.command import benchmark_parser, table, write_figures
from tokenizer.benchmarks.machine import describe
from tokenizer.benchmarks.scaling import make_clips

PARTS = ("crop", "stage 1, step", "stage 1, validation", "stage 3, step", "stage 3, validation")


def calls(folder: Path, batch_size: int) -> dict[str, Callable[[], object]]:
    """A call of each of `PARTS`."""
    from tokenizer.autoencoders.lapped import LappedAutoencoder, LappedConfig
    from tokenizer.cli.starting import PRESETS
    from tokenizer.training import CropTrainingConfig, Trainer, reconstruction
    from tokenizer.training.augmentation import Augmentation
    from tokenizer.training.autoencoder import AutoencoderTask
    from tokenizer.training.clips import scan
    from tokenizer.training.decoder import DecoderTask, FinetuneConfig

    loop = CropTrainingConfig(steps=10**6, batch_size=batch_size, num_workers=0)
    losses = reconstruction.ReconstructionConfig()
    run = reconstruction.CropRun(scan(folder), folder, loop, losses, Augmentation(), progress=False)
    torch.manual_seed(0)
    tokenizer: Any = load_tokenizer().add_finetuned_decoder()
    tasks = {
        "stage 1": AutoencoderTask(LappedAutoencoder(LappedConfig(**PRESETS["base"])), run),
        "stage 3": DecoderTask(tokenizer, tokenizer.finetuned_decoder, FinetuneConfig(), run),
    }
    crops = iter(range(10**6))
    made: dict[str, Callable[[], object]] = {"crop": lambda: tasks["stage 1"].crops[next(crops)]}
    for name, task in tasks.items():
        # As many as are validated at once, not all: the ratio is the same.
        task.held_out.length = batch_size
        trainer = Trainer(task, loop, folder / name, description={}, progress=False)
        trainer.module.train()
        batches = task.batches(0, 0, 1)
        made[f"{name}, step"] = lambda trainer=trainer, batches=batches: trainer.step(batches)
        made[f"{name}, validation"] = lambda task=task: _validate(task)
    return made


@torch.no_grad()
def _validate(task: Any) -> None:
    task.module.eval()
    task.validate(task.module)
    task.module.train()


def serve(batch_size: int) -> None:
    """Times the part that each line of the input names; prints its seconds."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "clips"
        make_clips(folder)
        parts = calls(folder, batch_size)
        for part in map(str.strip, sys.stdin):
            start = time.process_time()
            parts[part]()
            print(json.dumps(time.process_time() - start), flush=True)


class _Tree:
    """This benchmark in a process of its own, on the packages of a clone."""

    def __init__(self, clone: Path, batch_size: int) -> None:
        # Safe path: the modules beside this file have common names.
        command = [sys.executable, "-P", __file__, "--serve", "--batch-size", str(batch_size)]
        environment = {"PYTHONPATH": str(clone), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
        self.process = subprocess.Popen(
            command,
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def seconds(self, part: str) -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(part, file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())


def measure(clones: dict[str, Path], batch_size: int, repetitions: int) -> list[dict[str, Any]]:
    """Milliseconds of each part in each clone; the clones take turns."""
    trees = {name: _Tree(path, batch_size) for name, path in clones.items()}
    try:
        lines = []
        for part in PARTS:
            # Crops are quick, and differ.
            turns = 1 + repetitions * (50 if part == "crop" else 1)
            times = {name: [] for name in trees}
            for _ in range(turns):
                for name, tree in trees.items():
                    times[name].append(tree.seconds(part))
            # The first call prepares tables.
            best = {
                name: 1000 * (sum(each[1:]) / (turns - 1) if part == "crop" else min(each[1:]))
                for name, each in times.items()
            }
            line: dict[str, Any] = {"CPU ms": part} | best
            if "beside" in best:
                line["beside / here"] = best["beside"] / best["here"]
            lines.append(line)
        return lines
    finally:
        for tree in trees.values():
            tree.process.kill()
            tree.process.wait()


def main() -> None:
    """Measures and prints the table."""
    parser = benchmark_parser(__doc__, "--repetitions", "--json")
    parser.add_argument("--beside", type=Path, help="another clone to take turns with")
    parser.add_argument("--batch-size", type=int, default=12, help="crops of 1.5 s in a step")
    parser.add_argument("--serve", action="store_true", help="used by the benchmark itself")
    options = parser.parse_args()
    if options.serve:
        serve(options.batch_size)
        return
    clones = {"here": Path(__file__).parents[2]}
    if options.beside is not None:
        clones["beside"] = options.beside.resolve()
    lines = measure(clones, options.batch_size, options.repetitions)
    print(f"{options.batch_size} crops a step, one thread, {describe('cpu')}\n")
    print(table(lines))
    write_figures(options.json, lines)


if __name__ == "__main__":
    main()
