"""Options that several commands share."""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
import tomllib
from collections.abc import Collection, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tokenizer.errors import InputError

if TYPE_CHECKING:
    from tokenizer.model.latent_tokenizer import LatentTokenizer

Config = TypeVar("Config")

_METAVARS: dict[type, str] = {int: "N", float: "X"}


def field_help(config: type) -> dict[str, str]:
    """What each field of a dataclass means, in the words of its docstring's "Attributes"."""
    texts: dict[str, str] = {}
    for parent in reversed(config.__mro__):
        lines = inspect.cleandoc(parent.__dict__.get("__doc__") or "").splitlines()
        start = lines.index("Attributes:") + 1 if "Attributes:" in lines else len(lines)
        name = ""
        for line in lines[start:]:
            if not line.startswith("    "):
                break
            if field := re.match(r"    (\w+): (.*)", line):
                name, texts[field[1]] = field[1], field[2]
            else:
                texts[name] += " " + line.strip()
    return {name: text.replace("``", "") for name, text in texts.items()}


def first_sentence(text: str) -> str:
    """The first sentence of a text, as help of an option."""
    sentence = text.split(". ")[0].rstrip(".")
    is_word = sentence[1:2].islower() and not sentence.startswith("Hz")
    return sentence[:1].lower() + sentence[1:] if is_word else sentence


def add_fields(
    parser: argparse.ArgumentParser,
    config: type,
    *,
    title: str | None = None,
    shown: Collection[str] | None = None,
    **defaults: Any,
) -> None:
    """Adds an option for every field of a dataclass, with help from its docstring.

    Args:
        parser: Where to add a group of options.
        config: The dataclass.
        title: Title of the group. Default: the name of the dataclass.
        shown: Fields that ``--help`` lists; the others are taken too. Default: all.
        defaults: Values that replace the dataclass' own.
    """
    group = parser.add_argument_group(title or config.__name__)
    texts = field_help(config)
    for field in fields(config):
        default = defaults.get(field.name, None if field.default is MISSING else field.default)
        kind, keywords = type(default) if default is not None else int, {}
        said = f"{default:g}" if isinstance(default, float) else default
        if isinstance(default, bool):
            keywords["action"] = argparse.BooleanOptionalAction
        elif isinstance(default, tuple):
            keywords |= {
                "nargs": len(default),
                "type": type(default[0]),
                "metavar": ("LOW", "HIGH"),
            }
            said = " ".join(f"{value:g}" for value in default)
        else:
            keywords |= {"type": kind, "metavar": _METAVARS.get(kind, "TEXT")}
        text = f"{first_sentence(texts[field.name])}; default: {said}".replace("%", "%%")
        if shown is not None and field.name not in shown:
            text = argparse.SUPPRESS
        group.add_argument(
            "--" + field.name.replace("_", "-"), default=default, help=text, **keywords
        )


def take(config: type[Config], options: argparse.Namespace) -> Config:
    """Builds a dataclass from the options that `add_fields` added."""
    values = {f.name: getattr(options, f.name) for f in fields(config)}  # pyright: ignore[reportArgumentType]
    return config(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def add_config(parser: argparse.ArgumentParser) -> None:
    """Adds ``--config``, which `expand_config` replaces by what the file says."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help="TOML or JSON file of options (batch_size = 8), which the command line overrides; "
        "docs/howto/train.md lists all",
    )


def expand_config(arguments: Sequence[str]) -> list[str]:
    """Puts the options of a ``--config`` file after the command, where later ones override them.

    Args:
        arguments: The command and its arguments.

    Returns:
        The arguments without ``--config``.

    Raises:
        ValueError: If the file cannot be read.
    """
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
        raise InputError(f"{name} is a table in the file of --config; it holds no tables.")
    return [f"--{flag}", *(str(v) for v in (value if isinstance(value, list) else [value]))]


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
