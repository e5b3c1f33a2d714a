"""Options that several commands share."""

from __future__ import annotations

import argparse
from typing import Any


def add(
    parser: Any, name: str, metavar: str | None, default: Any, text: str, **options: Any
) -> None:
    """Adds an option with the type of its default, which the help names after the text."""
    if default is not None:
        options.setdefault("type", type(default))
        text += f"; default: {default:g}" if isinstance(default, float) else f"; default: {default}"
    parser.add_argument(name, metavar=metavar, default=default, help=text, **options)


def add_repeated(parser: argparse.ArgumentParser, name: str, text: str, **options: Any) -> None:
    """Adds an option that may be repeated."""
    parser.add_argument(name, action="append", default=[], help=text, **options)


# Models of the package: `generative.runs.loading.bundled_models` names them too, but needs torch.
BUNDLED = ("diffusion", "lm")
RUN_HELP = f"folder of a finished run or an export, or a model of the package: {', '.join(BUNDLED)}"


def add_run(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """Adds the run, which may be left out where there is a default, and ``--tokenizer``."""
    optional: dict[str, Any] = {} if default is None else {"nargs": "?", "default": default}
    ending = "" if default is None else f"; default: {default}"
    parser.add_argument("run_folder", metavar="RUN", help=RUN_HELP + ending, **optional)
    add_tokenizer(parser, "the run's")


def add_tokenizer(parser: argparse.ArgumentParser, default: str) -> None:
    """Adds ``--tokenizer``."""
    add(
        parser,
        "--tokenizer",
        "NAME",
        None,
        f"tokenizer folder, hub id or bundled name; default: {default}",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Adds ``--device``."""
    add(parser, "--device", None, "cpu", "torch device")


def add_held_out(parser: argparse.ArgumentParser) -> None:
    """Adds ``--held-out``."""
    text = "share of the sources, 0 to 1, to validate on if the dataset has no split for it"
    add(parser, "--held-out", "SHARE", 0.05, text)


def add_clips(parser: argparse.ArgumentParser) -> None:
    """Adds length, seed, guidance and device of the clips to generate."""
    add(parser, "--seconds", "S", 5.0, "length of each clip in seconds, a prompt included")
    add(parser, "--seed", "N", 0, "seed of the noise or draws")
    add(parser, "--guidance", "SCALE", 2.0, "scale of classifier-free guidance; 1 for none")
    add_device(parser)
