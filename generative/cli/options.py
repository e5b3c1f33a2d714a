"""Options that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_run(parser: argparse.ArgumentParser) -> None:
    """Adds the folder of a run, and ``--tokenizer``."""
    parser.add_argument(
        "run_folder", metavar="RUN", type=Path, help="folder of a finished run, or of an export"
    )
    add_tokenizer(parser, "the run's")


def add_tokenizer(parser: argparse.ArgumentParser, default: str) -> None:
    """Adds ``--tokenizer``."""
    parser.add_argument(
        "--tokenizer", metavar="NAME", help=f"tokenizer folder or hub id; default: {default}"
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Adds ``--device``."""
    parser.add_argument("--device", default="cpu", help="torch device; default: cpu")


def add_held_out(parser: argparse.ArgumentParser) -> None:
    """Adds ``--held-out``."""
    parser.add_argument(
        "--held-out",
        metavar="SHARE",
        type=float,
        default=0.05,
        help="share of the sources, 0 to 1, to validate on if the dataset has no split for it;"
        " default: 0.05",
    )


def add_clips(parser: argparse.ArgumentParser) -> None:
    """Adds length, seed, guidance and device of the clips to generate."""
    parser.add_argument(
        "--seconds",
        metavar="S",
        type=float,
        default=5.0,
        help="length of each clip in seconds, a prompt included; default: 5",
    )
    parser.add_argument(
        "--seed", metavar="N", type=int, default=0, help="seed of the noise or draws; default: 0"
    )
    parser.add_argument(
        "--guidance",
        metavar="SCALE",
        type=float,
        default=2.0,
        help="scale of classifier-free guidance; 1 for none; default: 2",
    )
    add_device(parser)
