"""Tables of variants of a model: what each costs, and what it learns in equal CPU time."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from generative.cli.options import add, add_tokenizer
from generative.evaluation.arithmetic import multiply_adds
from generative.protocol import Batch
from generative.runs.batches import make_collator, training_batches, validation_batches
from generative.runs.prepared_data import PreparedData
from generative.training.training_config import TrainingConfig
from tokenizer import LatentTokenizer, load_tokenizer
from tokenizer.errors import InputError
from tokenizer.saving import write_json

# Share of the time in which the learning rate rises; then it falls along a cosine.
WARMUP = 0.05


@dataclass(frozen=True)
class Cost:
    """A row of the table.

    Attributes:
        parameters: Number of parameters.
        multiply_adds: Per second of audio, of the forward pass.
        steps: Steps of training.
        score: Of held-out clips; None without training.
    """

    parameters: int
    multiply_adds: float
    steps: int
    score: float | None


def cost_parser(description: str, column: str, learning_rate: float) -> argparse.ArgumentParser:
    """The options that all tables share; ``column`` is "codes" or "latents"."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("data", type=Path, help=f"dataset prepared with --{column}")
    add_tokenizer(parser, "the bundled one")
    for name, default, text in (
        ("minutes", 10.0, "CPU minutes of training of each variant"),
        ("width", 256, "width of the hidden states"),
        ("depth", 4, "layers"),
        ("heads", 4, "attention heads"),
        ("batch-size", 8, "clips of a step"),
        ("crop-frames", 256, "frames of a clip, at most"),
        ("learning-rate", learning_rate, "largest learning rate"),
        ("held-out", 0.1, "share of the sources to measure on, where there is no split for it"),
        ("threads", 1, "CPU threads"),
    ):
        add(parser, f"--{name}", None, default, text)
    parser.add_argument("--json", type=Path, help="file to write the rows to; default: none")
    return parser


def open_tokenizer(options: argparse.Namespace) -> LatentTokenizer:
    """Checks the options, sets the threads and loads the tokenizer."""
    if not options.minutes >= 0:
        raise InputError(f"--minutes {options.minutes:g} is negative.")
    torch.set_num_threads(options.threads)
    return load_tokenizer(options.tokenizer)


def measure(
    model: Any,
    data: PreparedData,
    tokenizer: LatentTokenizer,
    options: argparse.Namespace,
    score: Callable[[Any, Iterator[Batch]], float],
    **settings: Any,
) -> Cost:
    """Trains a variant and scores it on held-out batches.

    ``settings`` are those of `make_collator`, ``score`` gives the mean over the batches.
    """
    cost = multiply_adds(model, tokenizer.frame_rate)
    parameters = sum(p.numel() for p in model.parameters())
    if not options.minutes:
        return Cost(parameters, cost, 0, None)
    settings["crop_frames"] = options.crop_frames
    config = TrainingConfig(
        steps=1, batch_size=options.batch_size, crop_frames=options.crop_frames, num_workers=0
    )
    training = training_batches(data, make_collator(data, tokenizer, seed=0, **settings), config)
    steps = train(model, training, 60 * options.minutes, options.learning_rate)
    held_out = make_collator(data, tokenizer, seed=1, **settings)
    held_out = validation_batches(data, held_out, batch_size=options.batch_size)
    return Cost(parameters, cost, steps, score(model, held_out))


def train(model: Any, batches: Iterator[Batch], seconds: float, learning_rate: float) -> int:
    """Trains a `GenerativeModel` for so many seconds of CPU time; returns the number of steps.

    It is CPU time, so that other programs on the machine change little.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95))
    start, steps = time.process_time(), 0
    model.train()
    while (share := (time.process_time() - start) / seconds) < 1:
        rate = min(share / WARMUP, 0.5 + 0.5 * math.cos(math.pi * share))
        optimizer.param_groups[0]["lr"] = learning_rate * max(rate, 0.01)
        generator = torch.Generator().manual_seed(steps)
        model.training_loss(next(batches), generator)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
    model.eval()
    return steps


def print_table(
    options: argparse.Namespace,
    learned: str,
    variant: str,
    score: str,
    rows: Iterable[tuple[str | int, Cost]],
) -> None:
    """Prints rows as they come, and writes them to ``--json``.

    Args:
        options: Those of `cost_parser`.
        learned: What the models learn, with the frame rate.
        variant: Title of the first column.
        score: Title of the last column.
        rows: The names of variants and their costs.
    """
    print(
        f"{learned}, width {options.width}, {options.depth} layers, {options.minutes:g} CPU minutes"
        f" of training ({options.threads} threads), torch {torch.__version__}"
    )
    print(f"| {variant} | parameters | multiply-adds per second of audio | steps | {score} |")
    print("|---|---|---|---|---|")
    written: list[dict[str, Any]] = []
    for name, cost in rows:
        found = vars(cost) | {variant: name, score: cost.score}
        found.pop("score")
        written.append({key.replace(" ", "_"): value for key, value in found.items()})
        shown = "-" if cost.score is None else f"{cost.score:.3f}"
        print(
            f"| {name} | {cost.parameters / 1e6:.1f} M | {cost.multiply_adds / 1e9:.2f} G"
            f" | {cost.steps or '-'} | {shown} |",
            flush=True,
        )
        if options.json is not None:
            write_json(options.json, written)
