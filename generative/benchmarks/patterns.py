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

import torch

from generative.benchmarks.cost_table import Cost, cost_parser, measure, open_tokenizer, print_table
from generative.cli.options import add
from generative.language_model.codec_lm import CodecLM
from generative.language_model.config import CodecLMConfig
from generative.language_model.patterns import PATTERNS
from generative.protocol import Batch
from generative.runs.prepared_data import load_prepared
from tokenizer import LatentTokenizer


@torch.no_grad()
def bits_per_code(model: CodecLM, batches: Iterator[Batch]) -> float:
    """Mean bits of a code."""
    nats, count = 0.0, 0
    for batch in batches:
        found = model.code_nats(batch)
        nats += float(found.codes.sum())
        count += int(found.counts.sum())
    return nats / count / math.log(2)


def costs(options: argparse.Namespace, tokenizer: LatentTokenizer) -> Iterator[tuple[str, Cost]]:
    """Trains and measures each pattern."""
    data = load_prepared(options.data, "codes", options.held_out)
    for pattern in options.patterns or PATTERNS:
        for frames in options.group_frames if pattern == "grouped" else [1]:
            torch.manual_seed(0)
            config = CodecLMConfig.for_tokenizer(
                tokenizer,
                options.codebooks,
                pattern=pattern,
                group_frames=frames,
                width=options.width,
                depth=options.depth,
                heads=options.heads,
                labels=data.labels,
            )
            model, n = CodecLM(config).eval(), options.codebooks
            name = f"{pattern}, {frames} frames" if pattern == "grouped" else pattern
            yield name, measure(model, data, tokenizer, options, bits_per_code, n_codebooks=n)


def main() -> None:
    """Measures and prints the table, row by row."""
    parser = cost_parser("Cost and quality of the patterns of codes.", "codes", 1e-3)
    add(parser, "--codebooks", None, 3, "number of codebooks to learn")
    text = "frames of a group, several for several rows; default: 2 4"
    parser.add_argument("--group-frames", type=int, nargs="+", default=[2, 4], help=text)
    text = "patterns to measure; default: all"
    parser.add_argument("--patterns", nargs="+", choices=sorted(PATTERNS), help=text)
    options = parser.parse_args()
    tokenizer = open_tokenizer(options)
    learned = f"{options.codebooks} codebooks at {tokenizer.frame_rate:g} frames a second"
    print_table(options, learned, "pattern", "bits per code", costs(options, tokenizer))


if __name__ == "__main__":
    main()
