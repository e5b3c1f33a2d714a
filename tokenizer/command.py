"""What the three command lines share: exit codes, error messages and options of dataclasses."""

from __future__ import annotations

import argparse
import gc
import inspect
import io
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Collection
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from tokenizer.errors import InputError, UserError

Config = TypeVar("Config")

_METAVARS: dict[type, str] = {int: "N", float: "X"}


def run_command(name: str, command: Callable[[], int | None]) -> int:
    """Runs a command of the program ``name`` and turns its outcome into an exit code.

    That is 0 or the command's own code; 2 after a `UserError` or an error of the operating system,
    which are printed as one line, or raised with ``LATOK_DEBUG=1`` in the environment; 130 when
    interrupted. Any other error is a bug and is raised. SIGTERM and SIGHUP end it by SystemExit, so
    that no partial files are left.
    """
    # Python would look ten times for unreachable objects among those of torch while it is imported.
    gc.set_threshold(50_000, 20, 20)
    if threading.current_thread() is threading.main_thread():
        for name_of_signal in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name_of_signal, None)  # Windows has no SIGHUP.
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, _terminate)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A name of a file that the terminal's encoding lacks is no reason to fail.
            stream.reconfigure(errors="backslashreplace")
    try:
        code = command()
        sys.stdout.flush()  # A closed pipe is reported here rather than at exit.
    except BrokenPipeError:
        # As in `latok info FILE | head -1`. Python would flush, and fail, once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"{name}: broken pipe: nobody reads the output", file=sys.stderr)
        return 2
    except (UserError, OSError) as error:
        if os.environ.get("LATOK_DEBUG", "") not in ("", "0"):
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"{name}: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    return code or 0


def _terminate(number: int, _: Any) -> None:
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def in_run_folder(command: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The command of a run, which holds the folder of its ``--out`` as `run_folder` does."""

    def run(options: Any) -> Any:
        # Here, since a command has to say when another package overwrote ours, saving included.
        from tokenizer.saving import run_folder

        with run_folder(options.out):
            return command(options)

    return run


def add_fields(
    parser: argparse.ArgumentParser,
    config: type,
    *,
    title: str | None = None,
    shown: Collection[str] | None = None,
    optional: bool = False,
    **defaults: Any,
) -> None:
    """Adds a group with an option for every field of a dataclass, with help from its docstring.

    Fields without default, in the dataclass or in ``defaults``, become required options; if all are
    ``optional``, each is None by default. ``--help`` lists those ``shown``, or else all.
    """
    group = parser.add_argument_group(title or config.__name__)
    texts = field_help(config)
    for field in fields(config):
        default = defaults.get(field.name, None if field.default is MISSING else field.default)
        kind, keywords = type(default) if default is not None else int, {}
        text = f"{default:g}" if isinstance(default, float) else str(default)
        if isinstance(default, bool):
            keywords["action"] = argparse.BooleanOptionalAction
        elif isinstance(default, tuple):
            metavar = ("LOW", "HIGH")
            keywords |= {"nargs": len(default), "type": type(default[0]), "metavar": metavar}
            text = " ".join(f"{value:g}" for value in default)
        else:
            keywords |= {"type": kind, "metavar": _METAVARS.get(kind, "TEXT")}
        required = field.default is MISSING and field.name not in defaults and not optional
        ending = "; required" if required else "" if optional else f"; default: {text}"
        text = (first_sentence(texts[field.name]) + ending).replace("%", "%%")
        default = None if optional else default
        if shown is not None and field.name not in shown:
            text = argparse.SUPPRESS
        name = "--" + field.name.replace("_", "-")
        group.add_argument(name, default=default, help=text, required=required, **keywords)


def take(config: type[Config], options: argparse.Namespace) -> Config:
    """Builds a dataclass from the options that `add_fields` added."""
    values = {f.name: getattr(options, f.name) for f in fields(config)}  # pyright: ignore[reportArgumentType]
    return config(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


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


def short_form(text: str, what: str, example: str) -> tuple[str, dict[str, Any]]:
    """Reads ``KIND`` or ``KIND:OPTION=VALUE,...``; values are JSON where they can be, else text.

    Raises ValueError, which says ``what`` the text is and gives an example of one.
    """
    kind, _, rest = text.partition(":")
    options: dict[str, Any] = {}
    for part in re.split(r",(?![^\[]*\])", rest) if rest else []:
        key, equals, value = (word.strip() for word in part.partition("="))
        if not equals or not key or not value:
            raise InputError(
                f"Cannot read {part!r} in {what} {text!r}; write KIND:OPTION=VALUE,..., e.g. "
                f"{example}."
            )
        if key in options:
            raise InputError(f"{what} {text!r} says {key} twice.")
        try:
            options[key] = json.loads(value)
        except (ValueError, RecursionError):
            options[key] = value
    return kind.strip(), options


def first_sentence(text: str) -> str:
    """The first sentence of a text, as help of an option."""
    sentence = text.split(". ")[0].rstrip(".")
    is_word = sentence[1:2].islower() and not sentence.startswith("Hz")
    return sentence[:1].lower() + sentence[1:] if is_word else sentence
