"""Options that several commands share."""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizer.errors import InputError

if TYPE_CHECKING:
    from tokenizer.model.core import TokenizerCore
    from tokenizer.model.latent_tokenizer import LatentTokenizer
    from tokenizer.training.clips import Clip


# What a file of ``--config`` may hold as a table, of which options are short forms.
_KINDS = ("autoencoder", "quantizer")
_TABLES = f"{' and '.join(_KINDS)} may be one, with a kind"


def add_command(commands: Any, name: str, run: Any, text: str, **keywords: Any) -> Any:
    """A parser for a command that calls ``run`` with its options."""
    parser = commands.add_parser(name, help=text, **keywords)
    parser.set_defaults(run=run)
    return parser


def add_option(parser: Any, name: str, text: str, default: Any = None, **keywords: Any) -> None:
    """Adds an option. Its default, if it has one, ends its help and decides its type."""
    if default is not None:
        text = f"{text}; default: {default}"
        keywords = {"type": type(default)} | keywords
    kind = keywords.get("type")
    if kind in (int, float):
        keywords.setdefault("metavar", "N" if kind is int else "X")
    parser.add_argument(name, default=default, help=text, **keywords)


def expand_config(arguments: Sequence[str]) -> list[str]:
    """Puts the options of a ``--config`` file after the command, where later ones override them."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path)
    options, rest = parser.parse_known_args(list(arguments))
    if options.config is None:
        return list(arguments)
    try:
        text = options.config.read_text(encoding="utf-8")
        is_json = options.config.suffix.lower() == ".json"
        values = json.loads(text) if is_json else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"Cannot read {options.config}: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{options.config} must hold names and values of options.")
    expanded = [word for name, value in values.items() for word in _as_option(name, value)]
    return [*rest[:1], *expanded, *rest[1:]]


def _as_option(name: str, value: Any) -> list[str]:
    flag = name.replace("_", "-")
    if value is None:
        return []
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    if isinstance(value, dict):
        if name not in _KINDS or not isinstance(value.get("kind"), str):
            raise InputError(f"{name} is a table in the file of --config: only {_TABLES}.")
        rest = ",".join(f"{k}={json.dumps(v)}" for k, v in value.items() if k != "kind")
        value = f"{value['kind']}:{rest}"
    return [f"--{flag}", *(str(v) for v in (value if isinstance(value, list) else [value]))]


def load(name: str | Path | None, device: str, beam_width: int | None = None) -> LatentTokenizer:
    """The tokenizer of ``--model``, on ``--device``, with the search of ``--beam-width``."""
    from tokenizer.model.loading import load_tokenizer

    return _prepared(load_tokenizer(name), device, beam_width)


def load_core(name: str | Path | None, device: str, beam_width: int | None = None) -> TokenizerCore:
    """The same to encode and decode alone, which starts sooner."""
    from tokenizer.model.loading import load_core

    return _prepared(load_core(name), device, beam_width)


def _prepared(tokenizer: Any, device: str, beam_width: int | None) -> Any:
    from tokenizer.devices import device_of

    if beam_width is not None:
        if not hasattr(tokenizer.quantizer, "beam_width"):
            raise InputError(
                f"--beam-width {beam_width}: this quantizer has no beam. Leave the option out."
            )
        tokenizer.quantizer.beam_width = beam_width
    return tokenizer.to(device_of(device))


def clips_of(audio: str, strict: bool) -> list[Clip]:
    """The clips of an audio argument; says which files are skipped, unless ``strict``."""
    from tokenizer.training.clips import scan

    skipped: list[str] | None = None if strict else []
    clips = scan(audio, skipped)
    for reason in skipped or ():
        print(f"skipped: {reason}", file=sys.stderr)
    if skipped:
        count = f"{len(skipped)} of {len(skipped) + len(clips)} files"
        print(f"{count} were skipped; --strict refuses them.", file=sys.stderr)
    return clips


def add_strict(parser: argparse.ArgumentParser) -> None:
    """Adds ``--strict``."""
    text = "stop at the first file that cannot be read; default: skip it, and say so"
    parser.add_argument("--strict", action="store_true", help=text)


def tty() -> bool:
    """Whether somebody watches, so that a progress bar makes sense."""
    return sys.stderr.isatty()


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds ``--model`` and ``--device``."""
    parser.add_argument(
        "--model", help="tokenizer folder, hub id or bundled name; default: base-44khz"
    )
    add_device(parser)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Adds ``--device``."""
    add_option(parser, "--device", "torch device", "cpu")


def add_search(parser: argparse.ArgumentParser) -> None:
    """Adds ``--beam-width``."""
    text = "hypotheses that the search for codes keeps; 1 is the fastest; default: the model's"
    add_option(parser, "--beam-width", text, type=int)


def add_rate(parser: argparse.ArgumentParser) -> None:
    """Adds ``--codebooks`` and ``--bitrate``, of which one may be given."""
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument("--codebooks", type=int, help="number of codebooks; default: all")
    rate.add_argument(
        "--bitrate",
        type=float,
        help="kbit/s and channel, instead of --codebooks; default: all codebooks",
    )
