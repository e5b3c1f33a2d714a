"""The command that judges representations by what can be generated from them: ``compare``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from generative.cli.options import add_device
from generative.evaluation.modelability_config import ModelabilityConfig
from tokenizer.command import add_fields, take


def register(commands: Any) -> None:
    """Adds the command of this file."""
    p = commands.add_parser(
        "compare",
        help="which tokenizer is easiest to model",
        description="Trains a small language model and a small diffusion model on each tokenizer,"
        " for the same time on the same audio, and compares what they generate with recordings.",
    )
    p.set_defaults(run=_compare)
    p.add_argument("train", metavar="AUDIO_TRAIN", type=Path, help="folder of audio to train on")
    p.add_argument(
        "held_out", metavar="AUDIO_EVAL", type=Path, help="folder of audio to compare with"
    )
    p.add_argument(
        "--tokenizer",
        action="append",
        required=True,
        metavar="[NAME=]PATH",
        help="tokenizer folder, hub id or bundled name; may be repeated",
    )
    p.add_argument("--out", type=Path, required=True, help="folder; a run in it is resumed")
    p.add_argument(
        "--perceptual",
        nargs="+",
        default=[],
        choices=("visqol", "zimtohrli", "pesq", "stoi"),
        help="also measure these of reconstructions; default: none",
    )
    add_device(p)
    add_fields(p, ModelabilityConfig, title="what is equal for all")


def _compare(options: argparse.Namespace) -> None:
    from generative.evaluation.modelability import Contest
    from generative.evaluation.modelability_table import modelability_table
    from tokenizer.evaluation.comparison import Competitor

    contest = Contest(
        options.train,
        options.held_out,
        options.out,
        take(ModelabilityConfig, options),
        tuple(options.perceptual),
        options.device,
        sys.stderr.isatty(),
    )
    result = contest.run([Competitor.parse(text) for text in options.tokenizer])
    print(modelability_table(result))
    print(f"Figures, models and clips: {options.out}/")
