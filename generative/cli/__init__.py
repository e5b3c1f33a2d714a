"""``python -m generative``: a file for each group of commands.

python -m generative train-lm TOKENS --out runs/lm --codebooks 4 --pattern delay --steps 20000
python -m generative train-diffusion TOKENS --out runs/diffusion --steps 20000
python -m generative sample runs/diffusion --label music --seconds 5 --count 4 --out clips
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from generative.cli import comparing, evaluation, llm_export, sampling, training
from tokenizer import __version__
from tokenizer.command import run_command


def build_parser() -> argparse.ArgumentParser:
    """The parser of `python -m generative`."""
    parser = argparse.ArgumentParser(
        prog="generative",
        description="Language models of codes and diffusion models of latents: train, sample,"
        " evaluate, export.",
    )
    parser.add_argument("--version", action="version", version=f"latent-tokenizer {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for group in (training, sampling, evaluation, comparing, llm_export):
        group.register(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; see `tokenizer.command.run_command` for the exit code."""

    def command() -> int | None:
        options = build_parser().parse_args(arguments)
        return options.run(options)

    return run_command("generative", command)
