"""Options that several commands share."""

from __future__ import annotations

import argparse
import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tokenizer.errors import InputError

if TYPE_CHECKING:
    from tokenizer.model.latent_tokenizer import LatentTokenizer

Config = TypeVar("Config")


def add_fields(parser: argparse.ArgumentParser, config: type, **defaults: Any) -> None:
    """Adds an option for every field of a dataclass; ``defaults`` replace the dataclass' own."""
    group = parser.add_argument_group(config.__name__)
    for field in fields(config):
        default = defaults.get(field.name, None if field.default is MISSING else field.default)
        name = "--" + field.name.replace("_", "-")
        if isinstance(default, bool):
            group.add_argument(name, action=argparse.BooleanOptionalAction, default=default)
        elif isinstance(default, tuple):
            kind = type(default[0])
            group.add_argument(name, nargs=len(default), type=kind, default=default)
        else:
            kind = type(default) if default is not None else int
            group.add_argument(name, type=kind, default=default, help=f"default: {default}")


def take(config: type[Config], options: argparse.Namespace) -> Config:
    """Builds a dataclass from the options that `add_fields` added."""
    values = {f.name: getattr(options, f.name) for f in fields(config)}  # pyright: ignore[reportArgumentType]
    return config(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def load(name: str | Path | None, device: str, beam_width: int | None = None) -> LatentTokenizer:
    """The tokenizer of ``--model``, on ``--device``, with the search of ``--beam-width``."""
    from tokenizer.devices import device_of
    from tokenizer.model.loading import load_tokenizer

    tokenizer = load_tokenizer(name)
    if beam_width is not None:
        if not hasattr(tokenizer.quantizer, "beam_width"):
            raise InputError(
                f"--beam-width {beam_width}: the quantizer of this tokenizer has no beam. Leave "
                "the option out."
            )
        setattr(tokenizer.quantizer, "beam_width", beam_width)  # noqa: B010
    return tokenizer.to(device_of(device))  # pyright: ignore[reportArgumentType]


def tty() -> bool:
    """Whether somebody watches, so that a progress bar makes sense."""
    return sys.stderr.isatty()


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds ``--model`` and ``--device``."""
    parser.add_argument("--model", help="tokenizer folder or hub id; default: the bundled one")
    add_device(parser)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Adds ``--device``."""
    parser.add_argument("--device", default="cpu", help="torch device; default: cpu")


def add_search(parser: argparse.ArgumentParser) -> None:
    """Adds ``--beam-width``."""
    parser.add_argument(
        "--beam-width",
        type=int,
        help="hypotheses that the search for codes keeps; 1 is the fastest; default: the model's",
    )


def add_rate(parser: argparse.ArgumentParser) -> None:
    """Adds ``--codebooks`` and ``--bitrate``, of which one may be given."""
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument("--codebooks", type=int, help="number of codebooks; default: all")
    rate.add_argument("--bitrate", type=float, help="kbit/s and channel, instead of --codebooks")
