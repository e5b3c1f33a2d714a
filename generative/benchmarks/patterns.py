"""What each pattern of codes costs, and what it learns in the same time.

    python -m generative.benchmarks.patterns TOKENS [--codebooks 3] [--minutes 10]

For every pattern: multiply-adds per second of audio, and bits per code of held-out clips after
equal CPU time of training. CPU time, so that other programs on the machine change little. With
``--minutes 0`` nothing is trained, and there are no bits.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from generative.benchmarks.timed_training import train
from generative.cli.options import add, add_tokenizer
from generative.evaluation.arithmetic import multiply_adds
from generative.language_model.codec_lm import CodecLM
from generative.language_model.config import CodecLMConfig
from generative.language_model.patterns import PATTERNS
from generative.protocol import Batch
from generative.runs.batches import make_collator, training_batches, validation_batches
from generative.runs.prepared_data import load_prepared
from generative.training.training_config import TrainingConfig
from tokenizer import LatentTokenizer, load_tokenizer
from tokenizer.errors import InputError
from tokenizer.saving import write_json


@dataclass(frozen=True)
class PatternResult:
    """A row of the table.

    Attributes:
        pattern: Name, and frames of a group.
        parameters: Number of parameters.
        multiply_adds: Per second of audio, of the forward pass.
        steps: Steps of training.
        bits_per_code: Of held-out clips; None without training.
    """

    pattern: str
    parameters: int
    multiply_adds: float
    steps: int
    bits_per_code: float | None


@torch.no_grad()
def bits_per_code(model: CodecLM, batches: Iterator[Batch]) -> float:
    """Mean bits of a code."""
    nats, count = 0.0, 0
    for batch in batches:
        found = model.code_nats(batch)
        nats += float(found.codes.sum())
        count += int(found.counts.sum())
    return nats / count / math.log(2)


def measure(
    options: argparse.Namespace, tokenizer: LatentTokenizer, pattern: str, group_frames: int
) -> PatternResult:
    """Trains and measures one pattern."""
    data = load_prepared(options.data, "codes", options.held_out)
    config = TrainingConfig(
        steps=1, batch_size=options.batch_size, crop_frames=options.crop_frames, num_workers=0
    )
    settings: dict[str, Any] = {
        "crop_frames": options.crop_frames, "n_codebooks": options.codebooks,
    }  # fmt: skip
    torch.manual_seed(0)
    model = CodecLM(
        CodecLMConfig.for_tokenizer(
            tokenizer,
            options.codebooks,
            pattern=pattern,
            group_frames=group_frames,
            width=options.width,
            depth=options.depth,
            heads=options.heads,
            labels=data.labels,
        )
    ).eval()
    cost = multiply_adds(model, tokenizer.frame_rate)
    parameters = sum(p.numel() for p in model.parameters())
    name = f"{pattern}, {group_frames} frames" if pattern == "grouped" else pattern
    if not options.minutes:
        return PatternResult(name, parameters, cost, 0, None)
    training = training_batches(data, make_collator(data, tokenizer, seed=0, **settings), config)
    steps = train(model, training, 60 * options.minutes, options.learning_rate)
    held_out = make_collator(data, tokenizer, seed=1, **settings)
    held_out = validation_batches(data, held_out, batch_size=options.batch_size)
    return PatternResult(name, parameters, cost, steps, bits_per_code(model, held_out))


def main() -> None:
    """Measures and prints the table, row by row."""
    parser = argparse.ArgumentParser(description="Cost and quality of the patterns of codes.")
    parser.add_argument("data", type=Path, help="dataset prepared with --codes")
    add_tokenizer(parser, "the bundled one")
    for name, default, text in (
        ("codebooks", 3, "number of codebooks to learn"),
        ("minutes", 10.0, "CPU minutes of training of each pattern"),
        ("width", 256, "width of the hidden states"),
        ("depth", 4, "layers"),
        ("heads", 4, "attention heads"),
        ("batch-size", 8, "clips of a step"),
        ("crop-frames", 256, "frames of a clip, at most"),
        ("learning-rate", 1e-3, "largest learning rate"),
        ("held-out", 0.1, "share of the sources to measure on, where there is no split for it"),
        ("threads", 1, "CPU threads"),
    ):
        add(parser, f"--{name}", None, default, text)
    text = "frames of a group, several for several rows; default: 2 4"
    parser.add_argument("--group-frames", type=int, nargs="+", default=[2, 4], help=text)
    text = "patterns to measure; default: all"
    parser.add_argument("--patterns", nargs="+", choices=sorted(PATTERNS), help=text)
    parser.add_argument("--json", type=Path, help="file to write the rows to; default: none")
    options = parser.parse_args()
    if not options.minutes >= 0:
        raise InputError(f"--minutes {options.minutes:g} is negative.")
    torch.set_num_threads(options.threads)
    tokenizer = load_tokenizer(options.tokenizer)
    print(
        f"{options.codebooks} codebooks at {tokenizer.frame_rate:g} frames a second, width"
        f" {options.width}, {options.depth} layers, {options.minutes:g} CPU minutes of training"
        f" ({options.threads} threads), torch {torch.__version__}"
    )
    print("| pattern | parameters | multiply-adds per second of audio | steps | bits per code |")
    print("|---|---|---|---|---|")
    rows = []
    for pattern in options.patterns or PATTERNS:
        for frames in options.group_frames if pattern == "grouped" else [1]:
            row = measure(options, tokenizer, pattern, frames)
            rows.append(vars(row))
            print(
                f"| {row.pattern} | {row.parameters / 1e6:.1f} M | {row.multiply_adds / 1e9:.2f} G"
                f" | {row.steps or '-'} | {_bits(row.bits_per_code)} |",
                flush=True,
            )
            if options.json is not None:
                write_json(options.json, rows)


def _bits(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    main()
